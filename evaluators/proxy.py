"""Proxy training: how good a candidate is, estimated by training it briefly at a fraction of its resolution.

All candidates of a run train under the same `ProxySettings`: equal images, epochs and batches, each at its own
resolution times one constant. The recipe must be fair from 0.2 to 6 GMACs after some thirty steps, which plain AdamW
is not (at 2e-3 it left LowFormer-B1.5 at chance). So residual branches and the classifier start at zero, and every
network starts as a shallow one; the learning rate of a weight falls with the square root of its fan-in; gradients are
clipped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..search_space import LowFormerConfig, SearchSpace, build_model, op_graph
from .data import FORMULA_CLASSES, FORMULA_VALIDATION_IMAGES, ImageData, load_data

logger = logging.getLogger("lownas.evaluators")

BATCH_NORM_IMAGES = 512  # training images on which BatchNorm statistics are recomputed before evaluation
EVALUATION_BATCH = 128
SMALLEST_RESOLUTION = 24  # pixels; below it the published models' resolutions would collapse into one
RESOLUTION_STEP = 4
RESOLUTION_SCALE = 1 / 7  # 224 -> 32 pixels
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
    epochs: int = MIN_EPOCHS
    train_images: int = 640
    validation_images: int = VALIDATION_IMAGES
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
class EpochRecord:
    """One epoch: mean loss and accuracy (0 to 1) over its training batches as they were learned from."""

    epoch: int
    train_loss: float
    train_accuracy: float


@dataclass(frozen=True)
class ProxyResult:
    """What a proxy training gave.

    Attributes:
        status: "complete", or "failed" for the `reason`, in one line.
        accuracy: share of the validation images classified correctly, 0 to 1; None if failed.
        loss: mean cross-entropy on them, nats; None if failed.
        history: epochs that were finished.
        seconds: wall time of training and evaluation, loading the data not counted.
        images_per_second: training images over the time of the training steps; 0 if no epoch was finished.
        resolution: at which it trained, pixels.
    """

    status: Literal["complete", "failed"]
    accuracy: float | None
    loss: float | None
    history: tuple[EpochRecord, ...]
    seconds: float
    images_per_second: float
    resolution: int
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "history": [asdict(record) for record in self.history]}


class _Diverged(Exception):
    """The loss is no longer finite."""


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
) -> ProxyResult:
    """Trains the network of `config` from fresh weights and evaluates it.

    The same arguments give the same result on the same machine.

    Args:
        config: its `classes` is replaced by that of the data.
        data: images at the proxy resolution, or a specification (loaded as the settings say), or None for
            `settings.data`.
        seed: of weights, order and augmentation.
        report: called after every epoch.
        threads: of torch, while this runs.

    Returns:
        A result, also where training failed (loss not finite, out of memory, any exception of the network's).

    Raises:
        ValueError: the data cannot be loaded or is of another resolution than the settings ask for.
    """
    resolution = settings.proxy_resolution(config.resolution)
    if not isinstance(data, ImageData):
        if data is not None:
            settings = replace(settings, data=data)
        data = load_proxy_data(settings, config.resolution)
    if data.resolution != resolution:
        raise ValueError(f"data at {data.resolution} pixels, but {config.id} trains at {resolution}")

    start = time.perf_counter()
    history: list[EpochRecord] = []
    images_per_second = 0.0

    def failed(reason: str) -> ProxyResult:
        seconds = time.perf_counter() - start
        return ProxyResult("failed", None, None, tuple(history), seconds, images_per_second, resolution, reason)

    with _torch_threads(threads), _seeded(seed, device):
        try:
            model = _prepared_model(config, len(data.classes), device)
            train, validation = _Tensors(data, "train", device), _Tensors(data, "validation", device)
            order = torch.Generator().manual_seed(seed)
            training = _Training(model, settings, settings.steps(len(train.labels)), device)
            trained = 0
            training_start = time.perf_counter()
            for epoch in range(settings.epochs):
                record = _train_epoch(training, train, order, epoch)
                trained += min(
                    len(train.labels), max(1, len(train.labels) // settings.batch_size) * settings.batch_size
                )
                images_per_second = trained / (time.perf_counter() - training_start)
                history.append(record)
                if report is not None:
                    report(record)
            _recompute_batch_norm(model, train, order, device)
            accuracy, loss = _evaluate(model, validation, device)
        except _Diverged as error:
            return failed(str(error))
        except (torch.OutOfMemoryError, MemoryError):
            return failed(f"out of memory at batch size {settings.batch_size} and {resolution} pixels")
        except Exception as error:  # whatever a candidate does, it is that candidate's failure, not the run's
            text = " ".join(str(error).split())
            if "can't allocate memory" in text or "not enough memory" in text:
                return failed(f"out of memory at batch size {settings.batch_size} and {resolution} pixels")
            return failed(f"{type(error).__name__}: {text[:300]}")
    seconds = time.perf_counter() - start
    return ProxyResult("complete", accuracy, loss, tuple(history), seconds, images_per_second, resolution)


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
    with _torch_threads(threads), _seeded(0, device):
        model = _prepared_model(config, settings.classes, device)
        training = _Training(model, settings, steps + 1, device)
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


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Torch's generators seeded inside, as before outside; cuDNN chooses deterministic kernels."""
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        torch.manual_seed(seed)
        yield


def _prepared_model(config: LowFormerConfig, classes: int, device: str) -> nn.Module:
    model = build_model(config.replace(classes=classes))
    silence_residual_branches(model)
    nn.init.zeros_(model.classifier.weight)  # type: ignore[arg-type]
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def silence_residual_branches(model: nn.Module) -> int:
    """Sets the last layer of every residual branch to zero, so that its block starts as the identity.

    Returns the number of branches. Source: Goyal et al., arXiv 1706.02677, section 5.1 (BatchNorm's gamma).
    """
    from ..search_space.blocks import Residual

    count = 0
    for module in model.modules():
        if isinstance(module, Residual) and module.shortcut:
            last = [layer for layer in module.main.modules() if isinstance(getattr(layer, "weight", None), Tensor)][-1]
            for parameter in last.parameters(recurse=False):
                nn.init.zeros_(parameter)
            count += 1
    return count


class _Tensors:
    """One part of the data on the device: bytes (N, 3, R, R), labels (N,), and what normalizes them (of training)."""

    def __init__(self, data: ImageData, part: Literal["train", "validation"], device: str) -> None:
        images, labels = (
            (data.train_images, data.train_labels)
            if part == "train"
            else (data.validation_images, data.validation_labels)
        )
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        pixels = data.train_images.reshape(-1, 3)
        mean, spread = pixels.mean(axis=0, dtype=np.float64), pixels.std(axis=0, dtype=np.float64)
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.scale = torch.tensor(1 / np.maximum(spread, 1), dtype=torch.float32, device=device).view(1, 3, 1, 1)

    def batch(self, index: Tensor) -> Tensor:
        """Normalized images (len(index), 3, R, R), channels last."""
        images = self.images[index.to(self.images.device)].float()
        return ((images - self.mean) * self.scale).contiguous(memory_format=torch.channels_last)


def _augment(images: Tensor, settings: ProxySettings, order: torch.Generator) -> Tensor:
    """Mirrors and shifts each image of (N, 3, R, R) at random; what a shift uncovers repeats the border."""
    count, _, side, _ = images.shape
    if settings.flip:
        mirrored = (torch.rand(count, generator=order) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    pixels = round(settings.max_shift * side)
    if pixels:
        shift = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=order)
        rows, columns = (torch.arange(side) + shift).clamp(0, side - 1).to(images.device)
        picked = torch.arange(count, device=images.device)[:, None, None]
        # Indexing with a slice between two index arrays moves the channels last: (N, R, R, 3).
        images = images[picked, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


class _Training:
    """A network with its optimizer and schedule."""

    def __init__(self, model: nn.Module, settings: ProxySettings, steps: int, device: str) -> None:
        self.model = model.train()
        self.settings = settings
        self.steps = steps
        self.warmup = max(1, round(settings.warmup_share * steps))
        self.done = 0
        self.device = torch.device(device)
        by_rate: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in model.parameters():
            scale, decay = 1.0, 0.0
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                scale, decay = min(1.0, math.sqrt(settings.full_rate_fan_in / fan_in)), settings.weight_decay
            by_rate.setdefault((scale, decay), []).append(parameter)
        self.scales = [scale for scale, _ in by_rate]
        groups = [{"params": group, "weight_decay": decay} for (_, decay), group in by_rate.items()]
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=(0.9, settings.second_moment_decay), fused=True
        )

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step; gives the loss and the logits (N, classes) before it, detached."""
        settings = self.settings
        if self.done < self.warmup:
            rate = (self.done + 1) / self.warmup
        else:
            rate = 0.5 * (1 + math.cos(math.pi * (self.done - self.warmup) / max(1, self.steps - self.warmup)))
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = settings.learning_rate * rate * scale
        with _autocast(self.device):
            logits = self.model(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.done += 1
        return loss.detach(), logits.detach()


def _autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 on GPUs that have it; on CPUs it measured no faster at these sizes."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _train_epoch(training: _Training, train: _Tensors, order: torch.Generator, epoch: int) -> EpochRecord:
    settings = training.settings
    shuffled = torch.randperm(len(train.labels), generator=order)
    batches = max(1, len(shuffled) // settings.batch_size)
    losses, correct, seen = [], [], 0
    for number in range(batches):
        index = shuffled[number * settings.batch_size : (number + 1) * settings.batch_size]
        labels = train.labels[index.to(train.labels.device)]
        loss, logits = training.step(_augment(train.batch(index), settings, order), labels)
        losses.append(loss)
        correct.append((logits.argmax(dim=1) == labels).sum())
        seen += len(index)
    # Read once an epoch: reading every step would make a GPU wait.
    mean_loss = torch.stack(losses).mean().item()
    if not math.isfinite(mean_loss):
        raise _Diverged(f"loss is not finite in epoch {epoch + 1} of {settings.epochs}")
    return EpochRecord(epoch, mean_loss, torch.stack(correct).sum().item() / seen)


def _recompute_batch_norm(model: nn.Module, train: _Tensors, order: torch.Generator, device: str) -> None:
    """BatchNorm statistics as plain averages over training images; after few steps the running ones lag behind."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    index = torch.randperm(len(train.labels), generator=order)[:BATCH_NORM_IMAGES]
    model.train()
    with torch.no_grad(), _autocast(torch.device(device)):
        for part in index.split(EVALUATION_BATCH):
            if len(part) > 1:
                model(train.batch(part))


def _evaluate(model: nn.Module, validation: _Tensors, device: str) -> tuple[float, float]:
    """Accuracy, 0 to 1, and mean cross-entropy in nats on the validation images."""
    model.eval()
    parts = []
    with torch.no_grad(), _autocast(torch.device(device)):
        for part in torch.arange(len(validation.labels)).split(EVALUATION_BATCH):
            parts.append(model(validation.batch(part)).float())
    logits = torch.cat(parts)
    loss = F.cross_entropy(logits, validation.labels).item()
    if not math.isfinite(loss):
        raise _Diverged("the validation loss is not finite")
    return (logits.argmax(dim=1) == validation.labels).float().mean().item(), loss
