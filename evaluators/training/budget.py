"""Chooses the settings of a proxy training for the time that a run has.

Steps of a small, a middling and a large candidate are timed on this machine; what is left open by the time (classes of
`formula`, resolution, epochs) follows rules that were measured once, see the constants.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...search_space import LowFormerConfig, SearchSpace, op_graph
from ..data.loading import FORMULA_CLASSES, FORMULA_VALIDATION_IMAGES, load_data
from .proxy import RESOLUTION_SCALE, SMALLEST_RESOLUTION, ProxySettings, prepared_model
from .trainer import BATCH_NORM_IMAGES, Training, seeded, torch_threads

logger = logging.getLogger("lownas.evaluators")

MIN_EPOCHS = 3
MAX_EPOCHS = 30
# Measured on ten formula classes at 32 pixels: LowFormer-B0 reached 0.52 in 30 steps, 0.40 in 18 and 0.27 in 12, a
# logistic regression on the same images 0.26, 0.28 and 0.25.
MIN_STEPS = 18
IMAGES_PER_FORMULA_CLASS = 192  # image passes; with more of them ten classes saturate, so classes are added
MAX_FORMULA_CLASSES = 100
ENOUGH_PASSES = 40_000  # with more image passes than this a higher resolution is the better use of time
BUDGET_SHARE = 0.8  # the rest is for building, loading, and workers that slow each other down
VALIDATION_IMAGES = 1000


def choose_settings(
    candidates: SearchSpace | Sequence[LowFormerConfig],
    data: str,
    proxy_budget_seconds: float,
    trials: int,
    workers: int,
    device: str = "cpu",
    *,
    epochs: int | None = None,
    seed: int = 0,
    threads: int = 1,
) -> ProxySettings:
    """Settings with which `trials` trainings by `workers` at once take about `proxy_budget_seconds` together.

    Times a few steps of a small, a middling and a large candidate on this machine. To be called once in a run.

    Args:
        candidates: typical ones, or the space to draw them from.
        data: a specification.
        trials: trainings in all, repeats with other seeds included.
        workers: 0 counts as 1.
        epochs: pins the epochs.
        seed: of the data's split, and of the draw from the space.

    Raises:
        ValueError: the data cannot be used, or the budget is not positive.
    """
    if not (math.isfinite(proxy_budget_seconds) and proxy_budget_seconds > 0):
        raise ValueError(f"the proxy budget must be a positive number of seconds, given {proxy_budget_seconds}")
    if trials < 1:
        raise ValueError(f"trials: at least 1, given {trials}")
    if isinstance(candidates, SearchSpace):
        rng = np.random.default_rng(seed)
        candidates = [candidates.sample(rng) for _ in range(24)]
    if not candidates:
        raise ValueError("candidates: at least one is needed to choose proxy settings")
    look = load_data(data, SMALLEST_RESOLUTION, seed, train_images=64, validation_images=64)
    formula = look.card["source"] == "formula"
    large = max(config.resolution for config in candidates) >= 112
    settings = ProxySettings(
        data=data,
        data_seed=seed,
        classes=len(look.classes),
        resolution_scale=RESOLUTION_SCALE if large else 1.0,
        flip=look.card["source"] != "digits",
        max_shift=0.0 if formula else 1 / 16,
    )
    available = None if formula else int(look.card["available_train_images"])
    held_out = FORMULA_VALIDATION_IMAGES if formula else int(look.card["available_validation_images"])
    held_out = min(held_out, VALIDATION_IMAGES)

    seconds_per_image = _mean_seconds_per_image(candidates, settings, device, threads)
    each = BUDGET_SHARE * proxy_budget_seconds / math.ceil(trials / max(1, workers))
    # An evaluated image costs a third of a trained one.
    evaluation = (held_out + BATCH_NORM_IMAGES) / 3
    passes = each / seconds_per_image - evaluation
    while settings.resolution_scale < 1 and passes > ENOUGH_PASSES:
        scale = min(1.0, 2 * settings.resolution_scale)
        slower = (scale / settings.resolution_scale) ** 2
        settings = replace(settings, resolution_scale=scale)
        seconds_per_image *= slower
        passes = each / seconds_per_image - evaluation
    least = MIN_STEPS * settings.batch_size
    if passes < least:
        logger.warning(
            "a proxy budget of %.0f s allows %d images a candidate; %d are used, as fewer teach nothing: about %.0f s",
            *(proxy_budget_seconds, max(0, int(passes)), least),
            (least + evaluation) * seconds_per_image * math.ceil(trials / max(1, workers)) / BUDGET_SHARE,
        )
        passes = least
    if formula:
        if data == "formula":
            wanted = int(passes / IMAGES_PER_FORMULA_CLASS)
            settings = replace(settings, classes=min(MAX_FORMULA_CLASSES, max(FORMULA_CLASSES, wanted)))
        passes = min(passes, 2 * IMAGES_PER_FORMULA_CLASS * settings.classes)
    chosen_epochs = epochs or MIN_EPOCHS
    if available is not None:
        chosen_epochs = epochs or min(MAX_EPOCHS, max(MIN_EPOCHS, int(passes / available)))
    batches = max(-(-MIN_STEPS // chosen_epochs), round(passes / chosen_epochs / settings.batch_size))
    train_images = batches * settings.batch_size
    if available is not None:
        train_images = min(train_images, available)
    settings = replace(settings, epochs=chosen_epochs, train_images=train_images, validation_images=held_out)
    expected = (chosen_epochs * train_images + evaluation) * seconds_per_image
    return replace(settings, expected_seconds=round(expected, 2))


def _mean_seconds_per_image(
    candidates: Sequence[LowFormerConfig], settings: ProxySettings, device: str, threads: int
) -> float:
    """Mean over the candidates of the seconds that training costs per image, from three timed ones, linear between."""

    def proxy_macs(config: LowFormerConfig) -> float:
        return float(op_graph(config.replace(resolution=settings.proxy_resolution(config.resolution))).macs)

    ordered = sorted(candidates, key=proxy_macs)
    macs = np.array([proxy_macs(config) for config in ordered])
    timed = sorted({0, len(ordered) // 2, len(ordered) - 1})
    seconds = [_seconds_per_image(ordered[i], settings, device, threads) for i in timed]
    return float(np.interp(macs, macs[timed], seconds).mean())


def _seconds_per_image(
    config: LowFormerConfig, settings: ProxySettings, device: str, threads: int, steps: int = 2
) -> float:
    """Median time of a training step on random images over the batch, after one step to warm up."""
    side = settings.proxy_resolution(config.resolution)
    with torch_threads(threads), seeded(0, device):
        model = prepared_model(config.replace(classes=settings.classes), device)
        training = Training(model, settings, (steps + 1) * settings.batch_size, device)
        images = torch.randn(settings.batch_size, 3, side, side).to(device, memory_format=torch.channels_last)
        labels = torch.zeros(settings.batch_size, dtype=torch.int64, device=device)
        times = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            training.step(images, labels)
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    return float(np.median(times[1:])) / settings.batch_size
