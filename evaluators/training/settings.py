"""The settings of proxy trainings: what all candidates of a run have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from ..data.sources.formula import FORMULA_CLASSES

SMALLEST_RESOLUTION = 24  # pixels; below it the published models' resolutions would collapse into one
RESOLUTION_STEP = 4  # pixels
RESOLUTION_SCALE = 1 / 7  # 224 -> 32 pixels
DEFAULT_TASK = "classification"


@dataclass(frozen=True)
class ProxySettings:
    """How all candidates of a run are trained.

    Attributes:
        data: the specification of the data, see `evaluators.data`.
        data_seed: seed of its split and subset.
        classes: number of classes of the data; what a source that leaves their number open is asked for.
        resolution_scale: proxy resolution divided by the candidate's.
        epochs: passes over the training images.
        train_images, validation_images: how many of each are used, at most.
        batch_size: images a step.
        learning_rate: the peak, for weights of at most `full_rate_fan_in` inputs and for norms and biases; others get
            it times sqrt(full_rate_fan_in / inputs).
        full_rate_fan_in: see `learning_rate`.
        weight_decay: on weights, not on norms and biases.
        second_moment_decay: AdamW's beta 2, short because the training is.
        label_smoothing: share of the target that is spread over all classes.
        warmup_share: share of the steps in which the rate rises linearly; then it falls to zero as a cosine does.
        clip_norm: bound on the norm of the gradient.
        flip: whether training images are mirrored left to right at random.
        max_shift: largest random shift of training images, as a share of their side.
        expected_seconds: what an average candidate's training takes on the machine that chose these settings; 0 if
            unknown.
        task: what is learned, see `evaluators.tasks`.
        matrix_rate: peak rate of the orthogonalized steps of matrices (`orthogonal.py`); 0 leaves all to AdamW.

    Dictionaries and JSON leave out `task` and `matrix_rate` where they are the default, so that settings of runs that
    knew nothing of them are equal to these.
    """

    data: str = "formula"
    data_seed: int = 0
    classes: int = FORMULA_CLASSES
    resolution_scale: float = RESOLUTION_SCALE
    epochs: int = 3
    train_images: int = 640
    validation_images: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-3
    full_rate_fan_in: int = 64
    weight_decay: float = 0.05
    second_moment_decay: float = 0.95
    label_smoothing: float = 0.1
    warmup_share: float = 0.2
    clip_norm: float = 1.0
    flip: bool = True
    max_shift: float = 0.0
    expected_seconds: float = 0.0
    task: str = DEFAULT_TASK
    matrix_rate: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (
            *(("classes", 2), ("epochs", 1), ("train_images", 1), ("validation_images", 1)),
            *(("batch_size", 2), ("full_rate_fan_in", 1), ("data_seed", 0)),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"proxy settings: {name} must be an integer of at least {least}, given {value!r}")
        for name in ("resolution_scale", "learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"proxy settings: {name} must be positive, given {value!r}")
        for name in ("second_moment_decay", "label_smoothing", "warmup_share", "max_shift"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"proxy settings: {name} must be at least 0 and below 1, given {value!r}")
        for name in ("weight_decay", "expected_seconds", "matrix_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"proxy settings: {name} must be at least 0, given {value!r}")
        if not isinstance(self.task, str) or not self.task:
            raise ValueError(f"proxy settings: task must be the name of one, given {self.task!r}")

    def proxy_resolution(self, resolution: int) -> int:
        """The side in pixels at which a candidate for `resolution` trains."""
        steps = round(resolution * self.resolution_scale / RESOLUTION_STEP)
        return max(SMALLEST_RESOLUTION, steps * RESOLUTION_STEP)

    def steps(self, train_images: int) -> int:
        """Optimizer steps of a training on that many images; an incomplete last batch of an epoch is left out."""
        return self.epochs * max(1, train_images // self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        for name, usual in (("task", DEFAULT_TASK), ("matrix_rate", 0.0)):
            if values[name] == usual:
                del values[name]
        return values

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises ValueError for unknown names and impossible values."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"proxy settings: unknown {unknown}; allowed are {sorted(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"proxy settings: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"proxy settings: broken JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"proxy settings: a JSON object is expected, not {text[:60]!r}")
        return cls.from_dict(values)
