"""How the networks of the table are trained: two fixed schedules on Fashion-MNIST, on a CPU or many at once on a GPU.

It stands apart from the proxy training of searches (`evaluators.training`), so that a better proxy leaves the table
as it is. The 60,000 training images of Fashion-MNIST are split once: 10,240 to train on, 5,000 for validation, the
rest is left out so that an epoch is short; the 10,000 test images are the data set's own. Networks see them at their
own resolution (bicubic), grey repeated over the three channels.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lownas.evaluators.data.pictures import decoded
from lownas.evaluators.data.records import DataRequest
from lownas.evaluators.data.sources.fashion_mnist import FASHION_FOLDER, FashionMnist
from lownas.search_space import LowFormerConfig, build_model

SPLIT_SEED = 2026
TRAIN_IMAGES = 10_240
VALIDATION_IMAGES = 5_000
BATCH_NORM_IMAGES = 1_000
BATCH_NORM_BATCH = 250
EVALUATION_BATCH = {"cpu": 250, "cuda": 2500}


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
LONG = Schedule("long", epochs=60, max_shift=2)
SCHEDULES = {schedule.name: schedule for schedule in (SHORT, LONG)}
STEPS_PER_EPOCH = TRAIN_IMAGES // SHORT.batch_size


@dataclass
class Curve:
    """What one training gave: accuracies (0 to 1) after every epoch, losses in nats, the device that it ran on."""

    train_loss: list[float]
    validation_loss: list[float]
    validation_accuracy: list[float]
    test_accuracy: list[float]
    device: str


@dataclass(frozen=True)
class Part:
    """Images (N, 3, R, R) as bytes, channels last, and labels (N,)."""

    images: Tensor
    labels: Tensor

    def to(self, device: str) -> Part:
        return Part(self.images.to(device), self.labels.to(device))


@lru_cache(maxsize=8)
def parts(resolution: int, folder: str = FASHION_FOLDER) -> dict[str, Part]:
    """Fashion-MNIST at `resolution` pixels: "train", "validation" and "test"."""
    source, request = FashionMnist(folder), DataRequest(resolution, seed=0)
    train, test = (decoded(part, resolution) for part in (source.read(request).train, source.read_test(request)))
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train.labels))
    chosen = {"train": order[:TRAIN_IMAGES], "validation": order[TRAIN_IMAGES : TRAIN_IMAGES + VALIDATION_IMAGES]}

    def part(images: np.ndarray, labels: np.ndarray) -> Part:
        grey = torch.from_numpy(np.ascontiguousarray(images[..., 0]))
        return Part(grey[:, None], torch.from_numpy(labels))

    return {
        **{name: part(train.images[index], train.labels[index]) for name, index in chosen.items()},
        "test": part(test.images, test.labels),
    }


def normalized(images: Tensor) -> Tensor:
    """Grey bytes (N, 1, R, R) as floats (N, 3, R, R), by the mean and spread of Fashion-MNIST's training pixels."""
    layout = torch.contiguous_format if images.is_cuda else torch.channels_last  # as the weights have it
    return ((images.float() - 72.94) / 90.02).expand(-1, 3, -1, -1).contiguous(memory_format=layout)


@dataclass(frozen=True)
class Draws:
    """All that is random in the course of a training, for each of its S steps of B images.

    Attributes:
        index: (S, B) which training images.
        mirrored: (S, B) whether an image is mirrored.
        start: (S, 2, B) first row and column that are kept of an image, which a margin of `margin` pixels surrounds.
    """

    index: Tensor
    mirrored: Tensor
    start: Tensor
    margin: int

    @classmethod
    def of(cls, schedule: Schedule, images: int, side: int, seed: int) -> Draws:
        """The same for the same arguments, whatever device trains by it."""
        random, size = torch.Generator().manual_seed(seed), schedule.batch_size
        margin = round(schedule.max_shift * side / 28)
        index, mirrored, start = [], [], []
        for _ in range(schedule.epochs):
            index.append(torch.randperm(images, generator=random)[: images // size * size].view(-1, size))
            for _ in index[-1]:
                mirrored.append(torch.rand(size, generator=random) < 0.5)
                if margin:
                    start.append(torch.randint(0, 2 * margin + 1, (2, size, 1), generator=random)[..., 0])
        starts = torch.stack(start) if margin else torch.zeros(len(mirrored), 2, size, dtype=torch.long)
        return cls(torch.cat(index), torch.stack(mirrored), starts, margin)

    def to(self, device: str) -> Draws:
        return Draws(self.index.to(device), self.mirrored.to(device), self.start.to(device), self.margin)


def augmented(images: Tensor, mirrored: Tensor, start: Tensor, margin: int) -> Tensor:
    """(N, 1, R, R), mirrored where (N,) says so, and moved over black: what `start` (2, N) keeps of a wider image."""
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if not margin:
        return images
    side = images.shape[2]
    wide = F.pad(images, (margin,) * 4)[:, 0]
    rows, columns = start[:, :, None] + torch.arange(side, device=images.device)
    across = wide.gather(1, rows[:, :, None].expand(-1, -1, wide.shape[2]))
    return across.gather(2, columns[:, None, :].expand(-1, side, -1))[:, None]


def prepared(config: LowFormerConfig, seed: int) -> nn.Module:
    """Fresh weights; the classifier starts at zero."""
    torch.manual_seed(seed)
    model = build_model(config)
    nn.init.zeros_(model.classifier.weight)  # type: ignore[arg-type]
    return model


def optimizer_of(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """Rates are tensors of the model's device, so that a recorded step reads them anew; `peak` is their largest."""
    by_rate: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        weight = parameter.ndim > 1
        scale = min(1.0, math.sqrt(64 / parameter[0].numel())) if weight else 1.0
        by_rate.setdefault((scale, schedule.weight_decay if weight else 0.0), []).append(parameter)
    device = next(model.parameters()).device
    groups = [
        {
            "params": parameters,
            "lr": torch.tensor(0.0, device=device),
            "peak": schedule.learning_rate * scale,
            "weight_decay": decay,
        }
        for (scale, decay), parameters in by_rate.items()
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True, capturable=device.type == "cuda")


@lru_cache(maxsize=8)
def rates(schedule: Schedule, steps: int) -> Tensor:
    """(steps,) the learning rate of each step as a share of its peak."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    course = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=steps, pct_start=schedule.warmup_share, div_factor=10, cycle_momentum=False
    )
    shares = []
    for _ in range(steps):
        shares.append(course.get_last_lr()[0])
        optimizer.step()
        if len(shares) < steps:
            course.step()
    return torch.tensor(shares)


class Trainee:
    """A network in training: its weights, its place in the schedule and what came of it so far, all on one device.

    `step` and `look` take nothing, give nothing and wait for nothing, so that a GPU can record and replay them.
    """

    def __init__(
        self, config: LowFormerConfig, schedule: Schedule, seed: int, data: dict[str, Part], device: str = "cpu"
    ) -> None:
        layout = torch.contiguous_format if device == "cuda" else torch.channels_last
        self.schedule, self.data, self.device = schedule, data, device
        self.model = prepared(config, seed).to(device, memory_format=layout)  # type: ignore[call-overload]
        self.norms = [module for module in self.model.modules() if isinstance(module, nn.BatchNorm2d)]
        self.parameters = list(self.model.parameters())
        self.optimizer = optimizer_of(self.model, schedule)
        images = len(data["train"].labels)
        self.steps_per_epoch = images // schedule.batch_size
        self.draws = Draws.of(schedule, images, config.resolution, seed).to(device)
        self.rates = rates(schedule, schedule.epochs * self.steps_per_epoch).to(device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)  # steps done
        self.results = {
            name: torch.zeros(schedule.epochs, device=device)
            for name in ("train_loss", "validation_loss", "validation_accuracy", "test_accuracy")
        }

    @property
    def epoch(self) -> Tensor:
        """(1,) the epoch of the last step."""
        return torch.div(self.place - 1, self.steps_per_epoch, rounding_mode="floor")

    def step(self) -> None:
        self.model.train()
        self._average_norms_by(0.0)  # their statistics are taken anew for every evaluation
        index, mirrored, start = (
            part.index_select(0, self.place)[0] for part in (self.draws.index, self.draws.mirrored, self.draws.start)
        )
        part = self.data["train"]
        images = normalized(augmented(part.images.index_select(0, index), mirrored, start, self.draws.margin))
        labels = part.labels.index_select(0, index)
        loss = F.cross_entropy(self.model(images), labels, label_smoothing=self.schedule.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.schedule.clip_norm)
        share = self.rates.index_select(0, self.place)[0]
        for group in self.optimizer.param_groups:
            group["lr"].copy_(share * group["peak"])
        self.optimizer.step()
        self.place += 1
        self.results["train_loss"].index_add_(0, self.epoch, loss.detach()[None] / self.steps_per_epoch)

    @torch.no_grad()
    def look(self) -> None:
        """Takes loss and accuracies after an epoch, with BatchNorm statistics over the first training images."""
        self.model.train()
        first = self.data["train"].images[:BATCH_NORM_IMAGES].split(BATCH_NORM_BATCH)
        for number, images in enumerate(first):
            self._average_norms_by(1 / (number + 1))
            self.model(normalized(images))
        self.model.eval()
        for name in ("validation", "test"):
            part = self.data[name]
            batches = part.images.split(EVALUATION_BATCH[self.device])
            logits = torch.cat([self.model(normalized(images)) for images in batches])
            accuracy = (logits.argmax(1) == part.labels).float().mean()
            self.results[f"{name}_accuracy"].index_copy_(0, self.epoch, accuracy[None])
            if name == "validation":
                loss = F.cross_entropy(logits, part.labels)
                self.results["validation_loss"].index_copy_(0, self.epoch, loss[None])

    def _average_norms_by(self, momentum: float) -> None:
        for norm in self.norms:
            norm.momentum = momentum

    def curve(self) -> Curve:
        found = {name: values.tolist() for name, values in self.results.items()}
        return Curve(**found, device=torch.cuda.get_device_name() if self.device == "cuda" else "cpu")


def train(config: LowFormerConfig, schedule: Schedule, seed: int, data: dict[str, Part] | None = None) -> Curve:
    """Trains the network of `config` (10 classes) from fresh weights, on the CPU with one thread.

    Args:
        seed: of weights, order and augmentation. The same seed on the same machine gives the same curve.
        data: `parts(config.resolution)`, the default.
    """
    torch.set_num_threads(1)
    trainee = Trainee(config, schedule, seed, data or parts(config.resolution))
    for _ in range(schedule.epochs):
        for _ in range(trainee.steps_per_epoch):
            trainee.step()
        trainee.look()
    return trainee.curve()


def step_ms(config: LowFormerConfig, warm_up: int = 2, steps: int = 5) -> float:
    """Milliseconds of one step of `SHORT` on the CPU with one thread: the median over so many."""
    torch.set_num_threads(1)
    trainee, times = Trainee(config, SHORT, 0, parts(config.resolution)), []
    for _ in range(warm_up + steps):
        begin = time.perf_counter()
        trainee.step()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[warm_up:])


# --- on a GPU --------------------------------------------------------------------------------------------------------

Job = tuple[LowFormerConfig, Schedule, int]

CHUNK = 16  # steps queued at a time for one network
AHEAD = 3  # chunks queued and not yet done, at most


class Recorded:
    """A trainee whose step and look are CUDA graphs, replayed on a stream of its own: a step of networks as small as
    these is hundreds of kernels, each shorter than its launch from Python.
    """

    def __init__(self, trainee: Trainee) -> None:
        self.trainee, self.stream = trainee, torch.cuda.Stream()
        self.step, self.look = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self.queued = 0
        self.total = trainee.schedule.epochs * trainee.steps_per_epoch
        self.marks: list[torch.cuda.Event] = []
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self._warm_up()
            trainee.optimizer.zero_grad()  # the gradients are then part of the recording
            for graph, work in ((self.step, trainee.step), (self.look, trainee.look)):
                graph.capture_begin()
                work()
                graph.capture_end()

    def _warm_up(self) -> None:
        """One step and look, so that the libraries have chosen their kernels; then all is as it was."""
        trainee = self.trainee
        kept = [tensor.detach().clone() for tensor in trainee.parameters]
        trainee.step()
        trainee.look()
        with torch.no_grad():
            for tensor, value in zip(trainee.parameters, kept, strict=True):
                tensor.copy_(value)
            for state in trainee.optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()
            for tensor in (trainee.place, *trainee.results.values()):
                tensor.zero_()

    def advance(self) -> bool:
        """Queues a chunk of steps unless enough are waiting; gives whether it did."""
        while self.marks and self.marks[0].query():
            del self.marks[0]
        if self.queued == self.total or len(self.marks) >= AHEAD:
            return False
        with torch.cuda.stream(self.stream):
            for _ in range(min(CHUNK, self.total - self.queued)):
                self.step.replay()
                self.queued += 1
                if self.queued % self.trainee.steps_per_epoch == 0:
                    self.look.replay()
            self.marks.append(torch.cuda.Event())
            self.marks[-1].record()
        return True

    @property
    def done(self) -> bool:
        return self.queued == self.total and all(mark.query() for mark in self.marks)


def train_many(jobs: Iterable[Job], at_once: int) -> Iterator[tuple[Job, Curve]]:
    """Trains networks on the GPU, so many at once, by the same draws and arithmetic (fp32, no TF32) as `train`.

    Gives each as it ends. The next job is asked for when there is room for it.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    @lru_cache(maxsize=8)
    def on_device(resolution: int) -> dict[str, Part]:
        return {name: part.to("cuda") for name, part in parts(resolution).items()}

    waiting, running = iter(jobs), dict[Job, Recorded]()
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection in the middle of a recording could free what may not be freed then
    try:
        while True:
            if len(running) < at_once and (job := next(waiting, None)) is not None:
                config, schedule, seed = job
                running[job] = Recorded(Trainee(config, schedule, seed, on_device(config.resolution), "cuda"))
            elif not running:
                return
            moved = [run.advance() for run in running.values()]
            for job in [job for job, run in running.items() if run.done]:
                yield job, running.pop(job).trainee.curve()
                gc.collect()
            if not any(moved):
                time.sleep(5e-4)
    finally:
        gc.enable()
        gc.unfreeze()
