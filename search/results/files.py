"""The files that a finished search leaves in its run folder, and what can be read from them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...search_space.config import LowFormerConfig
from ..trials.run_folder import read_about, read_results, write_text
from .search_result import SearchResult
from .trained import (
    TRAINED,
    TRAINING,
    WEIGHTS,
    has_ended,
    holds_trained,
    load_trained,
    read_trained,
    stored_training,
    trains,
)

if TYPE_CHECKING:
    from ...search_space.model import LowFormer

BEST = ("best.json", "best.onnx", WEIGHTS)


def write_result(result: SearchResult) -> list[Path]:
    """Writes front/*.json, outcome.json, and best.json and best.onnx of the answer; gives what was written.

    The ONNX file has fresh weights, as a proxy training's are for another task, until the answer has had a final
    training. The files of that stay as they are, unless the answer is another one now.
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
    if result.final is not None or _is_trained(result):
        return written + [path for name in BEST if (path := result.run / name).exists()]
    for old in (result.run / name for name in (*BEST, TRAINED)):
        if result.answer is None or old.name in (WEIGHTS, TRAINED):
            old.unlink(missing_ok=True)
    return written if result.answer is None else written + result.export("config", "onnx")


def _is_trained(result: SearchResult) -> bool:
    """Whether best.safetensors is the answer's, though what its training came to was never noted."""
    if result.answer is None or not holds_trained(result.run / WEIGHTS):
        return False
    stored = stored_training(result.run / TRAINING)
    return stored is not None and trains(stored, result.answer.config)


def with_training(result: SearchResult) -> SearchResult:
    """The result with what a final training of its answer came to, where it had one before; else as it is.

    Where it was another answer that was trained, a note says so.
    """
    answer = None if result.answer is None else result.answer.config.id
    final = read_trained(result.run, answer)
    if final is not None:
        return replace(result, final=final, notes=(*result.notes, *final.lines))
    if (result.run / TRAINED).exists():
        note = "Another network is the answer now than the one that was trained: "
        note += f"best.onnx has fresh weights again; the trained ones stay in {result.run / TRAINING}."
        return replace(result, notes=(*result.notes, note))
    folder = result.run / TRAINING
    stored = stored_training(folder) if result.settings.train_s is None and not has_ended(folder) else None
    if stored is not None and result.answer is not None and trains(stored, result.answer.config):
        note = "The training of the answer has not ended: --train with the same time goes on with it."
        return replace(result, notes=(*result.notes, note))
    return result


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


@dataclass(frozen=True)
class Exportable:
    """A network to export.

    Attributes:
        config: its architecture.
        model: with its trained weights; None where it has none.
        about: what these are for, see `exporters.Exporter`.
        weights: which these are, in words.
    """

    config: LowFormerConfig
    model: LowFormer | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "fresh weights"


def exportable(folder: str | Path, trial: int | None = None) -> Exportable:
    """The answer of a run, one of its trials, or the network of a final training; with trained weights if it has any.

    Raises ValueError, in one line: no run and no training, no answer, no such trial, a training that has not ended.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file() and stored_training(folder) is not None:
        if trial is not None:
            raise ValueError(f"{folder} is a training, which has no trials")
        if not holds_trained(folder / WEIGHTS):
            raise ValueError(f"the training in {folder} has not ended: go on with it (lownas train --resume)")
        return _trained(folder / WEIGHTS, folder)
    config = run_config(folder, trial)
    stored = stored_training(folder / TRAINING)
    if stored is not None and trains(stored, config):
        for path in (folder / WEIGHTS, folder / TRAINING / WEIGHTS):
            if holds_trained(path):
                return _trained(path, folder / TRAINING)
    return Exportable(config)


def _trained(path: Path, folder: Path) -> Exportable:
    weights, about = load_trained(path)
    if weights.config is None:
        raise ValueError(f"{path}: only LowFormers can be exported, and it holds another network")
    score = about.get("validation_accuracy")
    judged = "" if score is None else f", {100 * score:.1f} % validation"
    return Exportable(weights.config, weights.model, about, f"trained weights of {folder}{judged}")


def _span(trials: Sequence[int]) -> str:
    return f"{trials[0]} to {trials[-1]}" if trials else "none"
