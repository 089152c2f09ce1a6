"""The answer of a search after its final training: what it reached, what it costs, and where its weights are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ...search_space.config import LowFormerConfig
from ..quantities import duration_text
from ..trials.records import LatencySource
from ..trials.run_folder import write_text

if TYPE_CHECKING:
    from ...evaluators.training.final.weights import Weights

TRAINING = "training"  # folder of the final training, in the run folder
TRAINED = "trained.json"
WEIGHTS = "best.safetensors"


@dataclass(frozen=True)
class TrainedAnswer:
    """The answer of a search, trained on the user's data.

    Attributes:
        answer: id of the candidate that it is, as the search had it: with the space's number of classes.
        config: the same architecture with the classes of the data.
        data: that it was trained on.
        metric: by which it was judged; "accuracy" of a classification.
        validation, test: its values in the metric's own unit; None where the data have no such part, or the training
            used it. The test images were read once, when the training had ended.
        estimate: what the search had expected, as a score of 0 to 1; None where it estimates something else.
        proxy: the score that its short trainings in the search had reached, 0 to 1.
        epochs, seconds: of the training.
        latency_ms, low_ms, high_ms: of the network with these weights, measured or predicted, as `latency_source` says.
        quantile_ms: what is held against the budget.
        latency_budget_ms: the budget.
        onnx_difference: largest difference of an output of best.onnx and of the torch model, over the largest output.
        history: a mapping for each epoch.
    """

    answer: str
    config: LowFormerConfig
    data: str
    metric: str
    validation: float | None
    test: float | None
    estimate: float | None
    proxy: float | None
    epochs: int
    seconds: float
    latency_ms: float
    low_ms: float
    high_ms: float
    latency_source: LatencySource
    quantile_ms: float
    latency_budget_ms: float
    onnx_difference: float
    history: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)

    @property
    def within_budget(self) -> bool:
        return self.quantile_ms <= self.latency_budget_ms

    @property
    def lines(self) -> list[str]:
        """What a reader must know of it, in plain sentences."""
        judged = [
            f"{self.shown(value)} on the {part}"
            for part, value in (("validation images", self.validation), ("test images", self.test))
            if value is not None
        ]
        reached = f"{self.metric} {' and '.join(judged)}" if judged else "no images were left to judge it by"
        lines = [f"The answer was trained for {self.epochs} epochs, {duration_text(self.seconds)}: {reached}."]
        if expected := self.expected:
            lines.append(expected)
        fits = "within" if self.within_budget else "over"
        lines.append(
            f"Trained, it takes {self.latency_ms:.3g} ms ({self.latency_source}, {self.low_ms:.3g} to "
            f"{self.high_ms:.3g}) and stays below {self.quantile_ms:.3g} ms at the asked confidence: {fits} the budget "
            f"of {self.latency_budget_ms:.4g} ms."
        )
        lines.append(
            f"best.safetensors and best.onnx hold the trained weights; their outputs differ by "
            f"{self.onnx_difference:.1g} of the largest one."
        )
        return lines

    @property
    def expected(self) -> str:
        """What the search had expected, in a sentence; empty where it estimates something else."""
        if self.estimate is None:
            return ""
        proxy = "" if self.proxy is None else f"; its short trainings had reached {100 * self.proxy:.1f} %"
        score = "accuracy" if self.metric == "accuracy" else f"score of the {self.metric}"
        return f"The search had estimated its {score} at {100 * self.estimate:.1f} %{proxy}."

    def shown(self, value: float) -> str:
        """A value of the metric as people read it."""
        return f"{100 * value:.1f} %" if self.metric == "accuracy" else f"{value:.4g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {**asdict(self), "config": self.config.to_dict(), "history": [dict(row) for row in self.history]}
        return {**values, "within_budget": self.within_budget}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises ValueError or TypeError for values that are none."""
        known = {one.name for one in fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        history = tuple(dict(row) for row in given.get("history", ()))
        return cls(**{**given, "config": LowFormerConfig.from_dict(given["config"]), "history": history})


def write_trained(run: Path, trained: TrainedAnswer) -> None:
    """Notes in the run folder what a training of its answer came to. Raises OSError if that is not possible."""
    write_text(run / TRAINED, json.dumps(trained.to_dict(), indent=2, allow_nan=False) + "\n")


def read_trained(run: Path, answer: str | None) -> TrainedAnswer | None:
    """What a training of a run's answer came to, if there was one of the `answer` with this id.

    Raises ValueError if the file is damaged.
    """
    path = run / TRAINED
    if answer is None or not path.is_file():
        return None
    try:
        trained = TrainedAnswer.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    return trained if trained.answer == answer and (run / WEIGHTS).is_file() else None


def stored_training(folder: Path) -> dict[str, Any] | None:
    """What training.json in the folder of a training says; None if there is none.

    Raises ValueError, in one line, if it is damaged.
    """
    path = folder / "training.json"
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("settings"), dict):
        raise ValueError(f"{path} is not a training's description: it has no settings")
    return stored


def has_ended(folder: Path) -> bool:
    """Whether the training in a folder has ended."""
    return (folder / "result.json").is_file() and (folder / "best.safetensors").is_file()


def trains(stored: dict[str, Any], config: LowFormerConfig) -> bool:
    """Whether the training that training.json describes is one of this architecture, whatever its classes."""
    try:
        network = LowFormerConfig.from_dict(stored["network"])
    except (KeyError, TypeError, ValueError):
        return False
    return network.replace(classes=config.classes, head=config.head) == config


def holds_trained(path: Path) -> bool:
    """Whether a file is there and holds trained weights: fresh ones can be exported under the same name.

    Raises ValueError, in one line, if it is damaged.
    """
    if not path.is_file():
        return False
    from ...evaluators.training.final.weights import is_trained_file

    return is_trained_file(path)


def load_trained(path: Path) -> tuple[Weights, dict[str, Any]]:
    """Trained weights, and what their file says of them, as `exporters.Exporter` takes it.

    Raises ValueError, in one line: no file, no plain tensors, another kind of network, numbers that are not finite.
    """
    from safetensors import safe_open

    from ...evaluators.training.final.weights import load_weights

    weights = load_weights(path)
    if weights.pixels is None:  # not of a final training: it says nothing of itself
        return weights, {}
    with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call, unused-ignore]
        return weights, dict(json.loads(file.metadata()["about"]))
