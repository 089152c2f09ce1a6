"""Proxy training: how good a candidate is, estimated by training it briefly at a fraction of its resolution.

All candidates of a run train under the same `ProxySettings`: equal images, epochs and batches, each at its own
resolution times one constant. A training may be judged at a part of its steps and go on later (`until`, `state`). The
mechanics are in `training.py`; `budget.py` chooses settings for a time.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError
from torch import nn

from ...search_space import LowFormerConfig, build_model
from ...search_space.model import LowFormer
from ..data.loading import FORMULA_CLASSES, ImageData, load_data
from .inherit import Source, inherit
from .trainer import (
    Diverged,
    EpochRecord,
    Images,
    Training,
    augmentation,
    evaluate,
    recompute_batch_norm,
    seeded,
    silence_residual_branches,
    torch_threads,
)

SMALLEST_RESOLUTION = 24  # pixels; below it the published models' resolutions would collapse into one
RESOLUTION_STEP = 4
RESOLUTION_SCALE = 1 / 7  # 224 -> 32 pixels

logger = logging.getLogger("lownas.evaluators")


@dataclass(frozen=True)
class ProxySettings:
    """How all candidates of a run are trained.

    Attributes:
        data: the specification of the data, see `data.py`.
        data_seed: of its split and subset.
        classes: of the data.
        resolution_scale: proxy resolution over the candidate's.
        epochs: passes over the training images.
        train_images, validation_images: how many of each are used, at most.
        batch_size: images a step.
        learning_rate: peak, for weights of at most `full_rate_fan_in` inputs and for norms and biases; others get it
            times sqrt(full_rate_fan_in / inputs).
        full_rate_fan_in: see `learning_rate`.
        weight_decay: on weights, not on norms and biases.
        second_moment_decay: AdamW's beta 2, short because the training is.
        label_smoothing: share of the target spread over all classes.
        warmup_share: of the steps, linear; a cosine to zero follows.
        clip_norm: bound on the norm of the gradient.
        flip: mirror training images left to right at random.
        max_shift: largest random shift of training images, as a share of their side.
        expected_seconds: of an average candidate's training on the machine that chose these settings; 0 if unknown.
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
        for name in ("weight_decay", "expected_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"proxy settings: {name} must be at least 0, given {value!r}")

    def proxy_resolution(self, resolution: int) -> int:
        """The side in pixels at which a candidate for `resolution` trains."""
        steps = round(resolution * self.resolution_scale / RESOLUTION_STEP)
        return max(SMALLEST_RESOLUTION, steps * RESOLUTION_STEP)

    def steps(self, train_images: int) -> int:
        """Optimizer steps of a training on that many images; an incomplete last batch of an epoch is left out."""
        return self.epochs * max(1, train_images // self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

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


@dataclass(frozen=True)
class ProxyResult:
    """What a proxy training gave.

    Attributes:
        status: "complete", "paused" (stopped at `until`, can go on), or "failed" for the `reason`, in one line.
        accuracy: share of the validation images classified correctly, 0 to 1; None if failed.
        loss: mean cross-entropy on them, nats; None if failed.
        history: epochs that were finished.
        seconds: wall time of this call's training and evaluation, loading the data not counted.
        images_per_second: training images over the time of the training steps; 0 if none was made.
        resolution: at which it trained, pixels.
        share: of its steps that are done.
    """

    status: Literal["complete", "paused", "failed"]
    accuracy: float | None
    loss: float | None
    history: tuple[EpochRecord, ...]
    seconds: float
    images_per_second: float
    resolution: int
    share: float = 1.0
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "history": [asdict(record) for record in self.history]}


@lru_cache(maxsize=8)
def _load(spec: str, resolution: int, seed: int, train_images: int, validation_images: int, classes: int) -> ImageData:
    own_classes = classes if spec == "formula" else None
    return load_data(
        spec,
        resolution,
        seed,
        train_images=train_images,
        validation_images=validation_images,
        classes=own_classes,
    )


def load_proxy_data(settings: ProxySettings, resolution: int) -> ImageData:
    """The data on which a candidate for `resolution` trains. The last few are kept, for a worker's next candidates."""
    return _load(
        settings.data,
        settings.proxy_resolution(resolution),
        settings.data_seed,
        settings.train_images,
        settings.validation_images,
        settings.classes,
    )


def train_proxy(
    config: LowFormerConfig,
    data: ImageData | str | None,
    settings: ProxySettings,
    seed: int = 0,
    device: str = "cpu",
    report: Callable[[EpochRecord], None] | None = None,
    threads: int = 1,
    *,
    until: float = 1.0,
    state: Path | None = None,
    source: Source | None = None,
) -> ProxyResult:
    """Trains the network of `config` from fresh or inherited weights and evaluates it.

    The same arguments give the same result on the same machine, in one go or in parts.

    Args:
        config: its `classes` is replaced by that of the data.
        data: images at the proxy resolution, or a specification (loaded as the settings say), or None for
            `settings.data`.
        seed: of weights, order and augmentation.
        report: called after every epoch.
        threads: of torch, while this runs.
        until: share of the training's steps after which it is judged. The learning rate falls as in the whole training.
        state: file that a training which stops early is left in, and goes on from; removed when it is complete. One
            that is missing, broken, of another training or cannot be written only costs time: it is trained anew up to
            there.
        source: a network whose weights it starts from, as far as they correspond (`inherit`).

    Returns:
        A result, also where training failed (loss not finite, out of memory, any exception of the network's).

    Raises:
        ValueError: the data cannot be loaded or is of another resolution than the settings ask for.
    """
    if not 0 < until <= 1:
        raise ValueError(f"until: a share of the training above 0 and at most 1, given {until}")
    resolution = settings.proxy_resolution(config.resolution)
    if not isinstance(data, ImageData):
        if data is not None:
            settings = replace(settings, data=data)
        data = load_proxy_data(settings, config.resolution)
    if data.resolution != resolution:
        raise ValueError(f"data at {data.resolution} pixels, but {config.id} trains at {resolution}")
    config = config.replace(classes=len(data.classes))
    facts = {"config": config.id, "seed": seed, "settings": settings.to_dict()}
    identity = json.dumps(facts | {"source": source.identity if source else None}, sort_keys=True)

    start = time.perf_counter()
    training: Training | None = None
    images_per_second = 0.0

    def failed(reason: str) -> ProxyResult:
        history = tuple(training.history) if training else ()
        seconds = time.perf_counter() - start
        return ProxyResult("failed", None, None, history, seconds, images_per_second, resolution, reason=reason)

    with torch_threads(threads), seeded(seed, device):
        try:
            model = prepared_model(config, device, source)
            train, validation = Images(data, "train", device), Images(data, "validation", device)
            training = Training(model, settings, len(train), device)
            if state is not None:
                training.load(state, identity)
            begin, before = time.perf_counter(), training.done
            steps = max(1, round(until * training.steps))
            for record in training.run(train, augmentation(settings, resolution), steps):
                if report is not None:
                    report(record)
            trained = (training.done - before) * min(settings.batch_size, len(train))
            images_per_second = trained / (time.perf_counter() - begin)
            recompute_batch_norm(model, train, seed)
            accuracy, loss = evaluate(model, validation)
        except Diverged as error:
            return failed(str(error))
        except (torch.OutOfMemoryError, MemoryError):
            return failed(f"out of memory at batch size {settings.batch_size} and {resolution} pixels")
        except Exception as error:  # whatever a candidate does, it is that candidate's failure, not the run's
            text = " ".join(str(error).split())
            if "can't allocate memory" in text or "not enough memory" in text:
                return failed(f"out of memory at batch size {settings.batch_size} and {resolution} pixels")
            return failed(f"{type(error).__name__}: {text[:300]}")
        complete = training.done >= training.steps
        if state is not None:
            try:
                if complete:
                    state.unlink(missing_ok=True)
                else:
                    training.save(state, identity)
            except (OSError, SafetensorError) as error:
                logger.warning("the state of a training is not kept: %s", error)
    return ProxyResult(
        "complete" if complete else "paused",
        accuracy,
        loss,
        tuple(training.history),
        time.perf_counter() - start,
        images_per_second,
        resolution,
        training.done / training.steps,
    )


def prepared_model(config: LowFormerConfig, device: str, source: Source | None = None) -> LowFormer:
    """As a training starts: weights by torch's generator, channels last; every block the identity, the classifier zero.

    Then what can be inherited from `source`.
    """
    model = build_model(config)
    silence_residual_branches(model)
    nn.init.zeros_(model.classifier.weight)  # type: ignore[arg-type]
    if source is not None:
        inherit(model, source)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
