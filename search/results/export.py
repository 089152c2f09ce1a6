"""What a run hands out: the Pareto front, the best configuration, its ONNX file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...search_space.config import LowFormerConfig
from ..trials.run_folder import read_about, read_results, write_text
from .outcome import Candidate, SearchOutcome


def candidate_to_dict(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON values."""
    return {
        "trial": candidate.trial,
        "id": candidate.config.id,
        "objective": candidate.objective,
        "accuracy": candidate.accuracy,
        "seeds": candidate.seeds,
        "prior_top1": candidate.prior_top1,
        "extrapolated": candidate.extrapolated,
        "latency_ms": candidate.latency_ms,
        "low_ms": candidate.low_ms,
        "high_ms": candidate.high_ms,
        "latency_source": candidate.latency_source,
        "predicted_ms": candidate.predicted_ms,
        "quantile_ms": candidate.quantile_ms,
        "macs": candidate.macs,
        "params": candidate.params,
        "config": candidate.config.to_dict(),
    }


def outcome_to_dict(outcome: SearchOutcome) -> dict[str, Any]:
    """A search's outcome as JSON values: what `--json` prints."""
    return {
        "run": str(outcome.run),
        "target": outcome.settings.target,
        "latency_budget_ms": outcome.settings.latency_budget_ms,
        "confidence": outcome.settings.confidence,
        "data": outcome.settings.data,
        "answer": candidate_to_dict(outcome.answer) if outcome.answer else None,
        "front": [candidate.config.id for candidate in outcome.front],
        "candidates": [candidate_to_dict(candidate) for candidate in outcome.candidates],
        "counts": dict(outcome.counts),
        "notes": list(outcome.notes),
        "interrupted": outcome.interrupted,
        "seconds": outcome.seconds,
    }


def export_outcome(outcome: SearchOutcome) -> list[Path]:
    """Writes front/*.json, outcome.json, and best.json and best.onnx of the answer; gives what was written.

    The ONNX file has random weights: a proxy training's are for another task.
    """
    folder = outcome.run / "front"
    written = []
    front = outcome.front
    for rank, candidate in enumerate(front):
        path = folder / f"{rank:02d}-{candidate.config.id}.json"
        write_text(path, _json(candidate_to_dict(candidate)))
        written.append(path)
    for old in set(folder.glob("*.json")) - set(written):  # of an earlier, shorter run
        old.unlink()
    path = outcome.run / "outcome.json"
    write_text(path, _json(outcome_to_dict(outcome)))
    written.append(path)
    for old in (outcome.run / "best.json", outcome.run / "best.onnx"):
        if outcome.answer is None:
            old.unlink(missing_ok=True)
    if outcome.answer is not None:
        written += export_config(outcome.answer.config, outcome.run / "best", formats=("config", "onnx"))
    return written


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def _write_config(config: LowFormerConfig, path: Path) -> None:
    write_text(path, config.to_json(indent=2) + "\n")


def _write_onnx(config: LowFormerConfig, path: Path) -> None:
    from ...search_space.graph.onnx_writer import write_onnx

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_onnx(config, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


FORMATS: dict[str, tuple[str, Callable[[LowFormerConfig, Path], None]]] = {
    "config": (".json", _write_config),
    "onnx": (".onnx", _write_onnx),
}


def export_config(config: LowFormerConfig, stem: Path, *, formats: Sequence[str]) -> list[Path]:
    """Writes `config` in `formats` (of `FORMATS`) to STEM.json, STEM.onnx; gives what was written."""
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"export format {unknown[0]!r}: allowed are {sorted(FORMATS)}")
    written = []
    for name in formats:
        suffix, write = FORMATS[name]
        path = stem.with_name(stem.name + suffix)
        write(config, path)
        written.append(path)
    return written


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
