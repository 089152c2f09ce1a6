"""Proxy training: how good a candidate is, estimated by training it briefly at a fraction of its resolution.

All candidates of a run train under the same `ProxySettings`: equal images, epochs and batches, each at its own
resolution times one constant. A training may be judged at a part of its steps and go on later (`until`, `state`). The
mechanics are in `trainer.py`; `budget.py` chooses settings for a time.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from ...search_space import LowFormerConfig, build_model
from ...search_space.model import LowFormer
from .. import tasks
from ..data import sources
from ..data.loading import load_data
from ..data.records import ImageData
from ..data.sources import Data, DataSource
from .batches import ImageBatches
from .inherit import Source, inherit
from .settings import DEFAULT_TASK, ProxySettings
from .trainer import (
    Diverged,
    EpochRecord,
    Training,
    evaluate,
    recompute_batch_norm,
    seeded,
    silence_residual_branches,
    torch_threads,
)

KEPT_DATA_SETS = 8
"""Data sets that a process keeps in memory, for its next candidates; each resolution has its own."""
LONGEST_REASON = 300  # characters of an exception's text

logger = logging.getLogger("lownas.evaluators")


@dataclass(frozen=True)
class ProxyResult:
    """What a proxy training gave.

    Attributes:
        status: "complete", "paused" (stopped at `until`, can go on), or "failed" for the `reason`, in one line.
        accuracy: the task's score on the validation images, 0 to 1, higher is better; of a classification the share
            that is classified correctly. `Metric.from_score` gives it in the task's own unit. None if failed.
        loss: the mean loss on them, of a classification the cross-entropy in nats; None if failed.
        history: epochs that were finished.
        seconds: wall time of this call's training and evaluation, loading the data not counted.
        images_per_second: training images divided by the time of the training steps; 0 if none was made.
        resolution: at which it trained, pixels.
        share: share of its steps that are done.
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


@lru_cache(maxsize=KEPT_DATA_SETS)
def _load(
    source: DataSource,
    task: tasks.Task,
    resolution: int,
    seed: int,
    train_images: int,
    validation_images: int,
    classes: int | None,
) -> ImageData:
    return load_data(
        source,
        resolution,
        seed,
        train_images=train_images,
        validation_images=validation_images,
        classes=classes,
        task=task,
    )


def load_proxy_data(
    settings: ProxySettings, resolution: int, data: Data | None = None, task: str | tasks.Task | None = None
) -> ImageData:
    """Loads the data on which a candidate for `resolution` trains; the last few are kept for the next candidates.

    Args:
        data: where the images come from; None for what the settings name.
        task: what is learned; None for what the settings name.
    """
    source = sources.source(settings.data if data is None else data)
    return _load(
        source,  # type: ignore[arg-type]  # a protocol cannot say that it is hashable
        tasks.task(settings.task if task is None else task),  # type: ignore[arg-type]
        settings.proxy_resolution(resolution),
        settings.data_seed,
        settings.train_images,
        settings.validation_images,
        settings.classes if source.open_classes else None,
    )


def train_proxy(
    config: LowFormerConfig,
    data: ImageData | Data | None,
    settings: ProxySettings,
    seed: int = 0,
    device: str = "cpu",
    report: Callable[[EpochRecord], None] | None = None,
    threads: int = 1,
    *,
    until: float = 1.0,
    state: Path | None = None,
    source: Source | None = None,
    task: str | tasks.Task | None = None,
) -> ProxyResult:
    """Trains the network of `config` from fresh or inherited weights and evaluates it.

    The same arguments give the same result on the same machine, in one go or in parts.

    Args:
        config: its `head` is replaced by that of the task, its `classes` by the number of outputs for the data.
        data: images at the proxy resolution; or a specification, a `DataSource` or arrays, which are loaded as the
            settings say; or None for what the settings name.
        seed: seed of weights, order and augmentation.
        report: called after every epoch.
        threads: of torch, while this runs.
        until: share of the training's steps after which it is judged. The learning rate falls as in the whole training.
        state: file that a training which stops early is left in, and goes on from; removed when it is complete. One
            that is missing, broken, of another training or cannot be written only costs time: it is trained anew up to
            there.
        source: a network whose weights it starts from, as far as they correspond (`inherit`).
        task: what is learned; None for what the settings name.

    Returns:
        A result, also where training failed (loss not finite, out of memory, any exception of the network's).

    Raises:
        ValueError: the data cannot be loaded or are of another resolution than the settings ask for.
    """
    if not 0 < until <= 1:
        raise ValueError(f"until: a share of the training above 0 and at most 1, given {until}")
    learned = tasks.task(settings.task if task is None else task)
    settings = replace(settings, task=learned.name)
    if not isinstance(data, ImageData):
        origin = sources.source(settings.data if data is None else data)
        settings = replace(settings, data=origin.spec)
        data = load_proxy_data(settings, config.resolution, origin, learned)
    resolution = settings.proxy_resolution(config.resolution)
    if data.resolution != resolution:
        raise ValueError(f"data at {data.resolution} pixels, but {config.id} trains at {resolution}")
    config = config.replace(classes=learned.outputs(data), head=learned.head)
    attempt = _Attempt(config, data, settings, learned, seed, device, source)
    with torch_threads(threads), seeded(seed, device):
        try:
            accuracy, loss = attempt.run(until, state, report)
        except Exception as error:  # whatever a candidate does, it is that candidate's failure, not the run's
            return attempt.result("failed", reason=_reason(error, settings.batch_size, resolution))
        if state is not None:
            attempt.keep(state)
    return attempt.result("complete" if attempt.complete else "paused", accuracy, loss)


class _Attempt:
    """One call's part of a training, and what is known of it, also where it fails."""

    def __init__(
        self,
        config: LowFormerConfig,
        data: ImageData,
        settings: ProxySettings,
        task: tasks.Task,
        seed: int,
        device: str,
        source: Source | None,
    ) -> None:
        self.config = config
        self.data = data
        self.settings = settings
        self.task = task
        self.seed = seed
        self.device = device
        self.source = source
        facts = {"config": config.id, "seed": seed, "settings": settings.to_dict()}
        self.identity = json.dumps(facts | {"source": source.identity if source else None}, sort_keys=True)
        self.training: Training | None = None
        self.images_per_second = 0.0
        self.start = time.perf_counter()

    def run(
        self, until: float, state: Path | None, report: Callable[[EpochRecord], None] | None
    ) -> tuple[float, float]:
        """Trains up to the share `until` of the steps, and judges: the score, 0 to 1, and the mean loss."""
        model = prepared_model(self.config, self.device, self.source, self.task)
        train = ImageBatches(self.data, "train", self.device)
        validation = ImageBatches(self.data, "validation", self.device)
        self.training = training = Training(model, self.settings, len(train), self.device, self.task)
        if state is not None:
            training.load(state, self.identity)
        begin, before = time.perf_counter(), training.done
        steps = max(1, round(until * training.steps))
        for record in training.run(train, self.task.augmentation(self.settings, self.data.resolution), steps):
            if report is not None:
                report(record)
        trained = (training.done - before) * min(self.settings.batch_size, len(train))
        self.images_per_second = trained / (time.perf_counter() - begin)
        recompute_batch_norm(model, train, self.seed)
        return evaluate(model, validation, self.task)

    @property
    def complete(self) -> bool:
        return self.training is not None and self.training.done >= self.training.steps

    def keep(self, state: Path) -> None:
        """Leaves a training that can go on in the file `state`; removes that of one which is complete."""
        assert self.training is not None
        try:
            if self.complete:
                state.unlink(missing_ok=True)
            else:
                self.training.save(state, self.identity)
        except (OSError, SafetensorError) as error:
            logger.warning("the state of a training is not kept: %s", error)

    def result(
        self,
        status: Literal["complete", "paused", "failed"],
        accuracy: float | None = None,
        loss: float | None = None,
        reason: str = "",
    ) -> ProxyResult:
        training = self.training
        return ProxyResult(
            status,
            accuracy,
            loss,
            tuple(training.history) if training else (),
            time.perf_counter() - self.start,
            self.images_per_second,
            self.data.resolution,
            training.done / training.steps if training and status != "failed" else 1.0,
            reason,
        )


def _reason(error: Exception, batch_size: int, resolution: int) -> str:
    """Why a training failed, in one line."""
    if isinstance(error, Diverged):
        return str(error)
    text = " ".join(str(error).split())
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if out_of_memory or "can't allocate memory" in text or "not enough memory" in text:
        return f"out of memory at batch size {batch_size} and {resolution} pixels"
    return f"{type(error).__name__}: {text[:LONGEST_REASON]}"


def prepared_model(
    config: LowFormerConfig, device: str, source: Source | None = None, task: tasks.Task | None = None
) -> LowFormer:
    """Builds a network as a training starts: weights by torch's generator, every block the identity, channels last.

    The head is as the task starts it (None: a classification, whose classifier is zero). Then comes what can be
    inherited from `source`.
    """
    model = build_model(config)
    silence_residual_branches(model)
    (task or tasks.task(DEFAULT_TASK)).start(model)
    if source is not None:
        inherit(model, source)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
