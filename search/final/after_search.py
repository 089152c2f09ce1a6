"""What follows a search with --train: its answer is trained, judged, exported with its weights and measured again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...evaluators import tasks
from ...evaluators.data.sources import Data
from ...evaluators.training.final.planning import Plan
from ...evaluators.training.final.records import FinalSettings, Report
from ...predictors import Target
from ...predictors.latency.undisturbed import sentinel_reference
from ...search_space import LowFormerConfig
from ..devices import open_meter
from ..latency.correction import Predictor
from ..latency.finalists import FINALIST_ROUNDS
from ..latency.looks import MeasuredLatency, measured_latency, take_look
from ..quantities import duration_text
from ..results.exporters import export_config
from ..results.search_result import SearchResult
from ..results.trained import (
    TRAINING,
    TrainedAnswer,
    has_ended,
    load_trained,
    stored_training,
    trains,
    write_trained,
)
from ..trials.candidate import Candidate
from ..trials.records import MeasuredRound
from .evaluate import NoTestPart, evaluate
from .folders import claimed
from .machine import machine_settings
from .train import AskedTraining, FinalTraining, run_training

logger = logging.getLogger("lownas.search")

SAME_OUTPUTS = 1e-4
"""Largest difference of an output of the ONNX file from the torch model's, over the largest output."""
_FEWEST_ROUNDS = 3  # looks from which a latency counts as measured
_LOOKED_AT = 4  # images that both compute


class WrongExport(RuntimeError):
    """The ONNX file does not compute what the network computes."""


@dataclass(frozen=True)
class AfterSearch:
    """What a final training needs beside the search's result.

    Attributes:
        target: whose latency is measured again, or predicted.
        predictor: of its latency.
        data, task: what is trained on, and what for.
        profiles: folder of the user's own target profiles.
        progress: as in `train`.
        announce: is told the recipe.
    """

    target: Target
    predictor: Predictor
    data: Data
    task: str | tasks.Task
    profiles: str | Path | None = None
    progress: bool | Report = False
    announce: Callable[[Plan], None] | None = None


def train_answer(result: SearchResult, after: AfterSearch) -> SearchResult:
    """Trains the answer of a search for `settings.train_s`; gives the result with what came of it.

    A training that was interrupted goes on. Nothing happens where there is no answer, or it was trained before; a
    warning says so if that was for another time.

    Raises:
        ValueError: the time is too short for one epoch, or the data cannot be trained on.
        OSError: a file cannot be written.
        RuntimeError: the loss is not finite, again and again, or the ONNX file is wrong.
    """
    if result.answer is None or result.final is not None:
        if result.final is not None:
            _warn_of_time(result)
        return result
    try:
        return _trained(result, result.answer, after)
    except (ValueError, OSError, RuntimeError) as error:
        kind = next(kind for kind in (ValueError, OSError, RuntimeError) if isinstance(error, kind))
        raise kind(f"the search is done (see {result.run}), but training its answer failed: {error}") from error


def _trained(result: SearchResult, answer: Candidate, after: AfterSearch) -> SearchResult:
    folder = result.run / TRAINING
    asked, resume = _asked(result, answer, folder, after)
    trained = run_training(asked, resume=resume, progress=after.progress, announce=after.announce)
    assert trained.config is not None
    difference = export_trained(trained, result.run)
    measured = _latency(trained.config, result, after)
    task = tasks.task(after.task)
    validation = None if trained.validation_accuracy is None else task.metric.from_score(trained.validation_accuracy)
    final = TrainedAnswer(
        answer=answer.config.id,
        config=trained.config,
        data=result.settings.data or "",
        metric=task.metric.name,
        validation=validation,
        test=_tested(trained, asked, after),
        estimate=answer.objective / 100 if result.objective.learns else None,
        proxy=answer.accuracy,
        epochs=trained.epochs,
        seconds=trained.seconds,
        latency_budget_ms=result.settings.latency_budget_ms,
        onnx_difference=difference,
        history=trained.history,
        **measured,
    )
    write_trained(result.run, final)
    return replace(result, final=final, notes=(*result.notes, *final.lines))


def _asked(result: SearchResult, answer: Candidate, folder: Path, after: AfterSearch) -> tuple[AskedTraining, bool]:
    """The training to make, and whether it goes on with one that began before."""
    settings = result.settings
    stored = stored_training(folder)
    if stored is not None and not trains(stored, answer.config):
        set_aside(folder)
        stored = None
    values: dict[str, Any] = {"budget_s": settings.train_s, "seed": settings.seed, "data_seed": settings.seed}
    if stored is not None:
        values = dict(stored["settings"])
        _warn_of_time(result)
    asked = AskedTraining(
        answer.config,
        after.data,
        after.task,
        FinalSettings(**values, **machine_settings(None, (stored or {}).get("threads"), None, 0)),
        folder,
    )
    return asked, stored is not None


def _warn_of_time(result: SearchResult) -> None:
    """Says that a training of the answer keeps the time that it was begun for, if another one is asked for now."""
    folder = result.run / TRAINING
    stored = stored_training(folder)
    known = None if stored is None else stored["settings"].get("budget_s")
    if stored is None or known == result.settings.train_s:
        return
    time_given = f"{stored['settings'].get('epochs')} epochs" if known is None else duration_text(known)
    what = "was for" if has_ended(folder) else "goes on with what it began with:"
    logger.warning(
        "the training in %s %s %s; for another one train anew (lownas train --run %s --out DIR)",
        *(folder, what, time_given, result.run),
    )


def set_aside(folder: Path) -> Path:
    """Renames the folder of a training of another network, so that nothing of it is lost; gives the new name."""
    number = 1
    while (other := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    try:
        with claimed(folder):  # nobody is at work there
            folder.rename(other)
    except OSError as error:
        raise OSError(f"cannot rename {folder}: {error.strerror or error}") from error
    logger.warning("%s was of another network and is %s now", folder, other.name)
    return other


def export_trained(trained: FinalTraining, run: Path) -> float:
    """Writes best.json, best.safetensors and best.onnx of a trained network into a run folder.

    The ONNX file is read back with onnxruntime before it gets its name.

    Returns the largest difference of its outputs from the network's, over the largest output.

    Raises:
        WrongExport: it is larger than `SAME_OUTPUTS`; no file was changed.
        OSError: a file cannot be written.
    """
    weights, about = load_trained(trained.folder / "best.safetensors")
    assert weights.config is not None and weights.model is not None
    config, model = weights.config, weights.model
    (checked,) = export_config(config, trained.folder / "unchecked", formats=["onnx"], model=model, about=about)
    try:
        difference = _difference(checked, model, config)
        if not difference <= SAME_OUTPUTS:
            raise WrongExport(
                f"the ONNX file of the trained network computes something else: its outputs differ by "
                f"{difference:.2g} of the largest one, {SAME_OUTPUTS:g} is allowed"
            )
        export_config(config, run / "best", formats=["weights", "config"], model=model, about=about)
        checked.replace(run / "best.onnx")
    finally:
        checked.unlink(missing_ok=True)
    return difference


def _difference(path: Path, model: Any, config: LowFormerConfig) -> float:
    """How far an ONNX file and the network are apart on a few random images."""
    import torch

    from ...evaluators.training.final.judging import OnnxNetwork

    images = np.random.default_rng(0).standard_normal((_LOOKED_AT, 3, config.resolution, config.resolution), np.float32)
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(images)).numpy()
    found = OnnxNetwork(path)(images)
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))


def _latency(config: LowFormerConfig, result: SearchResult, after: AfterSearch) -> dict[str, Any]:
    """The latency fields of a `TrainedAnswer`: measured where the target is at hand, else predicted."""
    confidence = result.settings.confidence
    if after.target.can_be_measured and (found := _measured(result.run / "best.onnx", config, result, after)):
        return {
            "latency_ms": found.undisturbed_ms,
            "low_ms": found.low_ms,
            "high_ms": found.high_ms,
            "latency_source": "measured",
            "quantile_ms": found.budget_ms,
        }
    (predicted,) = after.predictor.predict([config])
    return {
        "latency_ms": float(predicted.latency_ms),
        "low_ms": float(predicted.low_ms),
        "high_ms": float(predicted.high_ms),
        "latency_source": "predicted",
        "quantile_ms": float(after.predictor.quantile_ms([config], confidence)[0]),
    }


def _measured(onnx: Path, config: LowFormerConfig, result: SearchResult, after: AfterSearch) -> MeasuredLatency | None:
    """What a few looks say, at the file with its weights where the runtime takes files; None if there are too few.

    What was trained must not be lost to a measurement that fails: that is said, and left out.
    """
    network: Path | LowFormerConfig = onnx
    rounds: list[MeasuredRound] = []
    reference_ms = None
    try:
        with open_meter(after.target) as meter, meter.measuring(after.profiles) as measuring:
            watch = measuring.watch()
            for number in range(FINALIST_ROUNDS):
                about = {"round": number, "target": str(after.target)}
                try:
                    taken = take_look(partial(measuring.look, network), watch, config.id, **about)
                except ValueError:  # the runtime, or the batch of the target, asks for something else than this file
                    network = config
                    taken = take_look(partial(measuring.look, network), watch, config.id, **about)
                rounds.append(taken)
            reference_ms = sentinel_reference([] if watch is None else watch.sentinels_ms, measuring.known_ms)
    except (ValueError, OSError, RuntimeError) as error:
        logger.warning(
            "after %d of %d looks the trained network could not be measured: %s", len(rounds), FINALIST_ROUNDS, error
        )
    if len(rounds) < _FEWEST_ROUNDS:
        return None
    return measured_latency(rounds, reference_ms, result.settings.budget_on, result.settings.confidence)


def _tested(trained: FinalTraining, asked: AskedTraining, after: AfterSearch) -> float | None:
    """The metric on the test part, which is read now for the first time; None where the data have none.

    What was trained must not be lost to a test part that cannot be used: that is said, and left out.
    """
    try:
        return evaluate(trained, after.data, part="test", task=after.task, seed=asked.settings.data_seed).value
    except NoTestPart:
        return None
    except (ValueError, OSError) as error:
        logger.warning("the trained network was not judged by the test part: %s", error)
        return None
