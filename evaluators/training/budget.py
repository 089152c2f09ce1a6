"""Chooses the settings of a proxy training for the time that a run has.

Steps of a small, a middling and a large candidate are timed on this machine. What the time leaves open (the number of
classes where a source leaves it open, resolution, epochs) follows rules that were measured once, see the constants.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from ...search_space import LowFormerConfig, SearchSpace, build_model, op_graph
from .. import tasks
from ..data import sources
from ..data.loading import load_data
from ..data.records import ImageData
from ..data.sources import Data
from ..data.sources.formula import FORMULA_CLASSES
from .orthogonal import orthogonal_macs
from .proxy import prepared_model
from .settings import RESOLUTION_SCALE, SMALLEST_RESOLUTION, ProxySettings
from .trainer import BATCH_NORM_IMAGES, Training, seeded, torch_threads

logger = logging.getLogger("lownas.evaluators")

MIN_EPOCHS = 3
MAX_EPOCHS = 30
MIN_STEPS = 18
"""Fewer steps teach nothing. Measured on ten formula classes at 32 pixels: LowFormer-B0 reached 0.52 in 30 steps, 0.40
in 18 and 0.27 in 12, a logistic regression on the same images 0.26, 0.28 and 0.25."""
IMAGES_PER_DRAWN_CLASS = 192
"""Image passes for each class of a source that is made to order (measured on `formula`); with more of them ten classes
saturate, so classes are added where the source leaves their number open."""
MAX_DRAWN_CLASSES = 100
ENOUGH_PASSES = 40_000
"""With more image passes than this a higher resolution is the better use of time."""
MATRIX_RATE = 0.02
"""Peak rate of the orthogonalized steps (experiments/short_training/)."""
AFFORDED_ORTHOGONAL_MACS = 1.0
"""Steps are orthogonalized where that takes at most so many MACs for each of the forward and backward passes. On a CPU
dense products are some four times as fast as these convolutions, so that it costs a fourth of the time at most. Wide
networks at 32 pixels, such as the published ones, would take several times as long."""
SHIFTED_EPOCHS = 12
"""From so many epochs on images are shifted where the source allows that; before, it only makes learning slower
(experiments/short_training/)."""
BUDGET_SHARE = 0.8
"""Share of the budget that is planned; the rest is for building, loading, and workers that slow each other down."""
VALIDATION_IMAGES = 1000
EVALUATED_PER_TRAINED = 3
"""Images that are evaluated in the time of one that is trained on: the backward pass takes about two forward passes."""
LARGE_RESOLUTION = 112
"""Candidates for at least so many pixels train at a fraction of them; the published models are for 160 to 288."""
LOOK_IMAGES = 64  # of each part that are loaded to learn what the data are
DRAWN_CANDIDATES = 24  # that stand for a space


Timer = Callable[[Sequence[LowFormerConfig], ProxySettings, ImageData, tasks.Task], list[float]]
"""What times training steps: networks, settings, a look at the data and a task to seconds per training image."""


@dataclass(frozen=True)
class _Budget:
    """The time of a run's proxy trainings.

    Attributes:
        seconds: that all of them may take.
        rounds: whole trainings that follow each other, as several workers train at once.
        evaluation: image passes that judging one training costs.
    """

    seconds: float
    rounds: float
    evaluation: float

    def passes(self, seconds_per_image: float) -> float:
        """Image passes that a training may make."""
        return BUDGET_SHARE * self.seconds / self.rounds / seconds_per_image - self.evaluation

    def needed(self, passes: float, seconds_per_image: float) -> float:
        """Seconds that the run's trainings take with so many image passes each."""
        return (passes + self.evaluation) * seconds_per_image * self.rounds / BUDGET_SHARE


def choose_settings(
    candidates: SearchSpace | Sequence[LowFormerConfig],
    data: Data,
    proxy_budget_seconds: float,
    trials: float,
    workers: int,
    device: str = "cpu",
    *,
    epochs: int | None = None,
    seed: int = 0,
    threads: int = 1,
    task: str | tasks.Task = "classification",
    timer: Timer | None = None,
) -> ProxySettings:
    """Chooses settings with which `trials` trainings take about `proxy_budget_seconds` together.

    Times a few steps of a small, a middling and a large candidate. To be called once in a run.

    Args:
        candidates: typical ones, or the space to draw them from.
        data: a specification, a `DataSource` or arrays.
        trials: trainings in all, repeats with other seeds included; not a whole number where some are stopped early.
        workers: how many train at once; 0 counts as 1.
        epochs: pins the epochs.
        seed: of the data's split, and of the draw from the space.
        task: what is learned.
        timer: times the steps where candidates will train; on this machine if None.

    Raises:
        ValueError: the data cannot be used, or the budget is not positive.
    """
    candidates = _typical(candidates, proxy_budget_seconds, trials, seed)
    source, learned = sources.source(data), tasks.task(task)
    look = load_data(
        source, SMALLEST_RESOLUTION, seed, train_images=LOOK_IMAGES, validation_images=LOOK_IMAGES, task=learned
    )
    settings = ProxySettings(
        data=source.spec,
        data_seed=seed,
        classes=len(look.classes) or FORMULA_CLASSES,
        resolution_scale=RESOLUTION_SCALE if max(c.resolution for c in candidates) >= LARGE_RESOLUTION else 1.0,
        flip=source.mirrored,
        task=learned.name,
    )
    if _affords_orthogonal_steps(candidates, settings):
        settings = replace(settings, matrix_rate=MATRIX_RATE)
    available = None if source.made_to_order else int(look.card["available_train_images"])
    held_out = VALIDATION_IMAGES
    if not source.made_to_order:
        held_out = min(held_out, int(look.card["available_validation_images"]))
    settings = replace(settings, validation_images=held_out)

    timed = timer or partial(seconds_per_image, device=device, threads=threads)
    each = _mean_seconds_per_image(candidates, settings, look, learned, timed)
    evaluation = (held_out + BATCH_NORM_IMAGES) / EVALUATED_PER_TRAINED
    budget = _Budget(proxy_budget_seconds, _rounds(trials, max(1, workers)), evaluation)
    settings, each = _with_resolution(settings, budget, each)
    passes = _usable_passes(settings, budget, each)
    if source.made_to_order:
        if source.open_classes:
            wanted = int(passes / IMAGES_PER_DRAWN_CLASS)
            settings = replace(settings, classes=min(MAX_DRAWN_CLASSES, max(FORMULA_CLASSES, wanted)))
        passes = min(passes, 2 * IMAGES_PER_DRAWN_CLASS * settings.classes)
    settings = _with_images(settings, passes, available, epochs)
    if settings.epochs >= SHIFTED_EPOCHS:
        settings = replace(settings, max_shift=source.max_shift)
    expected = (settings.epochs * settings.train_images + evaluation) * each
    return replace(settings, expected_seconds=round(expected, 2))


def _rounds(trials: float, workers: int) -> float:
    """How many whole trainings follow each other on each worker.

    Those that are stopped early come in many parts, which keep all workers busy until the end; there a worker waits for
    half a training.
    """
    if math.isclose(trials, round(trials)):
        return math.ceil(round(trials) / workers)
    return max(1.0, trials / workers + 0.5 * (1 - 1 / workers))


def _typical(
    candidates: SearchSpace | Sequence[LowFormerConfig], proxy_budget_seconds: float, trials: float, seed: int
) -> Sequence[LowFormerConfig]:
    """The candidates, or some drawn from the space. Raises ValueError if no training can be planned for them."""
    if not (math.isfinite(proxy_budget_seconds) and proxy_budget_seconds > 0):
        raise ValueError(f"the proxy budget must be a positive number of seconds, given {proxy_budget_seconds}")
    if not (math.isfinite(trials) and trials > 0):
        raise ValueError(f"trials: more than 0, given {trials}")
    if isinstance(candidates, SearchSpace):
        rng = np.random.default_rng(seed)
        return [candidates.sample(rng) for _ in range(DRAWN_CANDIDATES)]
    if not candidates:
        raise ValueError("candidates: at least one is needed to choose proxy settings")
    return candidates


def _affords_orthogonal_steps(candidates: Sequence[LowFormerConfig], settings: ProxySettings) -> bool:
    """Whether orthogonalized steps cost little for these candidates together (`AFFORDED_ORTHOGONAL_MACS`)."""
    orthogonal = passes = 0.0
    for config in candidates:
        with torch.device("meta"):
            orthogonal += orthogonal_macs(build_model(config))
        passes += 3 * settings.batch_size * _proxy_macs(config, settings)
    return orthogonal <= AFFORDED_ORTHOGONAL_MACS * passes


def _proxy_macs(config: LowFormerConfig, settings: ProxySettings) -> float:
    return float(op_graph(config.replace(resolution=settings.proxy_resolution(config.resolution))).macs)


def _with_resolution(settings: ProxySettings, budget: _Budget, seconds_per_image: float) -> tuple[ProxySettings, float]:
    """The settings at the resolution that the time allows, and the seconds per image there."""
    while settings.resolution_scale < 1 and budget.passes(seconds_per_image) > ENOUGH_PASSES:
        scale = min(1.0, 2 * settings.resolution_scale)
        seconds_per_image *= (scale / settings.resolution_scale) ** 2
        settings = replace(settings, resolution_scale=scale)
    return settings, seconds_per_image


def _usable_passes(settings: ProxySettings, budget: _Budget, seconds_per_image: float) -> float:
    """Image passes of a training: what the time allows, but enough to learn something; warns if these are more."""
    passes, least = budget.passes(seconds_per_image), MIN_STEPS * settings.batch_size
    if passes >= least:
        return passes
    logger.warning(
        "a proxy budget of %.0f s allows %d images a candidate; %d are used, as fewer teach nothing: about %.0f s",
        *(budget.seconds, max(0, int(passes)), least, budget.needed(least, seconds_per_image)),
    )
    return least


def _with_images(settings: ProxySettings, passes: float, available: int | None, epochs: int | None) -> ProxySettings:
    """The settings with epochs and training images that make about so many image passes.

    Args:
        available: training images there are; None if there is no end to them.
        epochs: pins the epochs.
    """
    chosen = epochs or MIN_EPOCHS
    if available is not None:
        chosen = epochs or min(MAX_EPOCHS, max(MIN_EPOCHS, round(passes / available)))
    batches = max(-(-MIN_STEPS // chosen), round(passes / chosen / settings.batch_size))
    images = batches * settings.batch_size
    return replace(settings, epochs=chosen, train_images=images if available is None else min(images, available))


def _mean_seconds_per_image(
    candidates: Sequence[LowFormerConfig],
    settings: ProxySettings,
    look: ImageData,
    task: tasks.Task,
    timer: Timer,
) -> float:
    """Mean over the candidates of the seconds that training costs per image.

    Three of them are timed; between these the time is taken as linear in MACs.
    """

    ordered = sorted(candidates, key=lambda config: _proxy_macs(config, settings))
    macs = np.array([_proxy_macs(config, settings) for config in ordered])
    timed = sorted({0, len(ordered) // 2, len(ordered) - 1})
    seconds = timer([ordered[i] for i in timed], settings, look, task)
    return float(np.interp(macs, macs[timed], seconds).mean())


def seconds_per_image(
    configs: Sequence[LowFormerConfig],
    settings: ProxySettings,
    look: ImageData,
    task: tasks.Task,
    device: str = "cpu",
    threads: int = 1,
) -> list[float]:
    """Times training steps of each network on this machine; gives seconds per training image.

    `look` is a small part of the data, of which only the kind of labels and their number matter.
    """
    return [_seconds_per_image(config, settings, look, task, device, threads) for config in configs]


def _seconds_per_image(
    config: LowFormerConfig,
    settings: ProxySettings,
    look: ImageData,
    task: tasks.Task,
    device: str,
    threads: int,
    steps: int = 2,
) -> float:
    """Median time of a training step on random images over the batch, after one step to warm up."""
    side, size = settings.proxy_resolution(config.resolution), settings.batch_size
    with torch_threads(threads), seeded(0, device):
        model = prepared_model(config.replace(classes=task.outputs(look), head=task.head), device, task=task)
        training = Training(model, settings, (steps + 1) * size, device, task)
        images = torch.randn(size, 3, side, side).to(device, memory_format=torch.channels_last)
        labels = torch.from_numpy(np.resize(look.train_labels, (size, *look.train_labels.shape[1:]))).to(device)
        times = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            training.step(images, labels)
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) / size
