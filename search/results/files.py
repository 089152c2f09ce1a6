"""The files that a finished search leaves in its run folder, and what can be read from them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...search_space.config import LowFormerConfig
from ..trials.run_folder import read_about, read_results, write_text
from .search_result import SearchResult


def write_result(result: SearchResult) -> list[Path]:
    """Writes front/*.json, outcome.json, and best.json and best.onnx of the answer; gives what was written.

    The ONNX file has random weights: a proxy training's are for another task.
    """
    folder = result.run / "front"
    written = []
    for rank, candidate in enumerate(result.front):
        path = folder / f"{rank:02d}-{candidate.config.id}.json"
        write_text(path, _json(candidate.to_dict()))
        written.append(path)
    for old in set(folder.glob("*.json")) - set(written):  # of an earlier, shorter run
        old.unlink()
    path = result.run / "outcome.json"
    write_text(path, _json(result.to_dict()))
    written.append(path)
    if result.answer is not None:
        return written + result.export("config", "onnx")
    for old in (result.run / "best.json", result.run / "best.onnx"):
        old.unlink(missing_ok=True)
    return written


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def run_config(run: str | Path, trial: int | None = None) -> LowFormerConfig:
    """The answer of a finished run, or the configuration of one of its trials."""
    run = Path(run)
    read_about(run)  # raises if it is no run
    if trial is not None:
        results = {result.trial: result for result in read_results(run)}
        if trial not in results:
            raise ValueError(f"{run} has no trial {trial}; it has {len(results)} ({_span(sorted(results))})")
        return results[trial].config
    best = run / "best.json"
    if not best.exists():
        raise ValueError(f"{run} has no answer (best.json); name a trial (--trial) or go on searching (--resume)")
    try:
        return LowFormerConfig.from_json(best.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{best}: {error}") from None


def _span(trials: Sequence[int]) -> str:
    return f"{trials[0]} to {trials[-1]}" if trials else "none"
