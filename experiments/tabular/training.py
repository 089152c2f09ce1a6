"""How the networks of the table are trained: two fixed schedules on Fashion-MNIST.

It stands apart from the proxy training of searches (`lownas.evaluators.proxy`), so that a better proxy leaves the table
as it is. The 60,000 training images of Fashion-MNIST are split once: 10,240 to train on, 5,000 for validation, the
rest is left out so that an epoch is short; the 10,000 test images are the data set's own. Networks see them at their
own resolution (bicubic), grey repeated over the three channels.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lownas.evaluators.data import load_data
from lownas.evaluators.data_sources import FASHION_FOLDER
from lownas.search_space import LowFormerConfig, build_model

SPLIT_SEED = 2026
TRAIN_IMAGES = 10_240
VALIDATION_IMAGES = 5_000
BATCH_NORM_IMAGES = 1_000
EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Schedule:
    """One way of training.

    Attributes:
        name: as the table calls it.
        epochs: passes over the training images; the accuracies are taken after each.
        max_shift: largest random shift of a training image, pixels of the original 28.
        batch_size: images a step.
        learning_rate: peak of AdamW's, reached after `warmup_share` of the steps; a cosine to zero follows. Weights of
            more than 64 inputs get it times sqrt(64 / inputs).
        weight_decay: on weights, not on norms and biases.
        label_smoothing: share of the target spread over all classes.
        clip_norm: bound on the norm of the gradient.
    """

    name: str
    epochs: int
    max_shift: int
    batch_size: int = 128
    learning_rate: float = 4e-3
    warmup_share: float = 0.15
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    clip_norm: float = 1.0


SHORT = Schedule("short", epochs=9, max_shift=0)
LONG = Schedule("long", epochs=40, max_shift=2)
SCHEDULES = {schedule.name: schedule for schedule in (SHORT, LONG)}


@dataclass
class Curve:
    """What one training gave: accuracies (0 to 1) after every epoch, losses in nats, seconds in all.

    `cpu_seconds` are those of the process, which other work on the machine disturbs less than the wall's.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Part:
    """Images (N, 3, R, R) as bytes, channels last, and labels (N,)."""

    images: Tensor
    labels: Tensor

    def batch(self, index: Tensor) -> Tensor:
        return normalized(self.images[index])


@lru_cache(maxsize=8)
def parts(resolution: int, folder: str = FASHION_FOLDER) -> dict[str, Part]:
    """Fashion-MNIST at `resolution` pixels: "train", "validation" and "test"."""
    data = load_data(f"fashion-mnist:{folder}", resolution)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(data.train_labels))
    chosen = {"train": order[:TRAIN_IMAGES], "validation": order[TRAIN_IMAGES : TRAIN_IMAGES + VALIDATION_IMAGES]}

    def part(images: np.ndarray, labels: np.ndarray) -> Part:
        grey = torch.from_numpy(np.ascontiguousarray(images[..., 0]))
        return Part(grey[:, None], torch.from_numpy(labels))

    return {
        **{name: part(data.train_images[index], data.train_labels[index]) for name, index in chosen.items()},
        "test": part(data.validation_images, data.validation_labels),
    }


def normalized(images: Tensor) -> Tensor:
    """Grey bytes (N, 1, R, R) as floats (N, 3, R, R), by the mean and spread of Fashion-MNIST's training pixels."""
    grey = (images.float() - 72.94) / 90.02
    return grey.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def augmented(images: Tensor, max_shift: int, random: torch.Generator) -> Tensor:
    """Each of (N, 1, R, R) mirrored with probability 1/2 and moved over black, by at most `max_shift` of 28 pixels."""
    count, _, side, _ = images.shape
    mirrored = torch.rand(count, generator=random) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    pixels = round(max_shift * side / 28)
    if not pixels:
        return images
    wide = F.pad(images, (pixels,) * 4)
    start = torch.randint(0, 2 * pixels + 1, (2, count, 1), generator=random)
    rows, columns = start + torch.arange(side)
    return wide[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def prepared(config: LowFormerConfig, seed: int) -> nn.Module:
    """Fresh weights; the classifier starts at zero."""
    torch.manual_seed(seed)
    model = build_model(config)
    nn.init.zeros_(model.classifier.weight)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics are plain averages, taken anew for every evaluation
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def optimizer_of(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    by_rate: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        weight = parameter.ndim > 1
        scale = min(1.0, math.sqrt(64 / parameter[0].numel())) if weight else 1.0
        by_rate.setdefault((scale, schedule.weight_decay if weight else 0.0), []).append(parameter)
    groups = [
        {"params": parameters, "lr": schedule.learning_rate * scale, "weight_decay": decay}
        for (scale, decay), parameters in by_rate.items()
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train(config: LowFormerConfig, schedule: Schedule, seed: int, data: dict[str, Part] | None = None) -> Curve:
    """Trains the network of `config` (10 classes) from fresh weights, on the CPU with one thread.

    Args:
        seed: of weights, order and augmentation. The same seed on the same machine gives the same curve.
        data: `parts(config.resolution)`, the default.
    """
    torch.set_num_threads(1)
    data = data or parts(config.resolution)
    model = prepared(config, seed)
    optimizer = optimizer_of(model, schedule)
    steps = schedule.epochs * (len(data["train"].labels) // schedule.batch_size)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=schedule.warmup_share,
        div_factor=10,
        cycle_momentum=False,
    )
    random = torch.Generator().manual_seed(seed)
    curve = Curve()
    cpu_begin = time.process_time()
    for _ in range(schedule.epochs):
        epoch_begin = time.perf_counter()
        curve.train_loss.append(train_epoch(model, data["train"], schedule, optimizer, rate, random))
        curve.train_seconds += time.perf_counter() - epoch_begin
        recompute_batch_norm(model, data["train"])
        loss, accuracy = evaluate(model, data["validation"])
        curve.validation_loss.append(loss)
        curve.validation_accuracy.append(accuracy)
        curve.test_accuracy.append(evaluate(model, data["test"])[1])
    curve.cpu_seconds = time.process_time() - cpu_begin
    return curve


def train_epoch(
    model: nn.Module,
    part: Part,
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    rate: torch.optim.lr_scheduler.LRScheduler,
    random: torch.Generator,
) -> float:
    """One pass over the images, an incomplete last batch left out; gives the mean loss."""
    model.train()
    total = torch.zeros(())
    batches = torch.randperm(len(part.labels), generator=random).split(schedule.batch_size)
    batches = batches[: len(part.labels) // schedule.batch_size]
    for index in batches:
        images = normalized(augmented(part.images[index], schedule.max_shift, random))
        loss = F.cross_entropy(model(images), part.labels[index], label_smoothing=schedule.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm)
        optimizer.step()
        rate.step()
        total += loss.detach()
    return float(total) / len(batches)


@torch.no_grad()
def recompute_batch_norm(model: nn.Module, part: Part) -> None:
    """BatchNorm statistics as averages over the first training images, which stand in random order."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    model.train()
    for index in torch.arange(BATCH_NORM_IMAGES).split(EVALUATION_BATCH):
        model(part.batch(index))


@torch.no_grad()
def evaluate(model: nn.Module, part: Part) -> tuple[float, float]:
    """Mean cross-entropy in nats, and the share of images classified correctly."""
    model.eval()
    logits = torch.cat([model(part.batch(index)) for index in torch.arange(len(part.labels)).split(EVALUATION_BATCH)])
    accuracy = (logits.argmax(1) == part.labels).float().mean().item()
    return F.cross_entropy(logits, part.labels).item(), accuracy
