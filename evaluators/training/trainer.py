"""Trains a network briefly and judges it: optimizer, schedule, evaluation, and the state of a training on disk.

`proxy.py` says what is trained for how long. The recipe must be fair from 0.2 to 6 GMACs after some thirty steps, which
plain AdamW is not (at 2e-3 it left LowFormer-B1.5 at chance). So residual branches and the head's last layer start at
zero, and every network starts as a shallow one; the learning rate of a weight falls with the square root of its fan-in;
gradients are clipped. Where the settings say so, the steps of matrices are orthogonalized (`orthogonal.py`), which
learns about twice as much in a step.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import tasks
from .batches import ImageBatches
from .optimizer_state import restore, state_tensors, under
from .orthogonal import OrthogonalSteps, is_matrix
from .settings import DEFAULT_TASK, ProxySettings

if TYPE_CHECKING:
    from ..tasks.base import Augmentation

BATCH_NORM_IMAGES = 512  # training images on which BatchNorm statistics are recomputed before evaluation
EVALUATION_BATCH = 128  # images

_SCHEMA = "1"  # of the files in which trainings wait


class Diverged(Exception):
    """The loss is no longer finite."""


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Gives torch this many threads inside, and those it had before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seeds torch's generators inside and leaves them as they were outside; cuDNN chooses deterministic kernels."""
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        torch.manual_seed(seed)
        yield


# --- the network -----------------------------------------------------------------------------------------------------


def silence_residual_branches(model: nn.Module) -> int:
    """Sets the last layer of every residual branch to zero, so that its block starts as the identity.

    Returns the number of branches. Source: Goyal et al., arXiv 1706.02677, section 5.1 (BatchNorm's gamma).
    """
    from ...search_space.blocks import Residual

    count = 0
    for module in model.modules():
        if isinstance(module, Residual) and module.shortcut:
            last = [layer for layer in module.main.modules() if isinstance(getattr(layer, "weight", None), Tensor)][-1]
            for parameter in last.parameters(recurse=False):
                nn.init.zeros_(parameter)
            count += 1
    return count


# --- learning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave.

    Attributes:
        epoch: its number, from 0.
        train_loss: mean over its training batches as they were learned from.
        train_accuracy: mean score of their images, 0 to 1: of a classification the share classified correctly.
    """

    epoch: int
    train_loss: float
    train_accuracy: float


class Training:
    """A network with its optimizer and schedule, and how far it has got.

    Args:
        images: how many there are to train on.
        task: what is learned; None for a classification.

    Attributes:
        steps: optimizer steps of the whole training; a batch that an epoch does not fill is left out.
        done: how many of them are done.
        history: the epochs that are finished.
    """

    def __init__(
        self, model: nn.Module, settings: ProxySettings, images: int, device: str, task: tasks.Task | None = None
    ) -> None:
        self.model = model.train()
        self.settings = settings
        self.task = task or tasks.task(DEFAULT_TASK)
        self.batches = max(1, images // settings.batch_size)
        self.steps = settings.epochs * self.batches
        self.warmup = max(1, round(settings.warmup_share * self.steps))
        self.done = 0
        self.history: list[EpochRecord] = []
        self.device = torch.device(device)
        by_rate: dict[tuple[float, float], list[nn.Parameter]] = {}
        matrices: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if settings.matrix_rate and is_matrix(name, parameter):
                matrices.append(parameter)
                continue
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
        self.matrices = OrthogonalSteps(matrices, settings.matrix_rate, settings.weight_decay) if matrices else None
        # Of the epoch under way: the order of its images, and for each step the loss and the sum of the scores.
        self._order = torch.empty(0, dtype=torch.int64)
        self._losses: list[Tensor] = []
        self._scores: list[Tensor] = []

    def rate(self) -> float:
        """The learning rate of the next step as a share of the peak: a linear warm-up, then half a cosine to zero."""
        if self.done < self.warmup:
            return (self.done + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (self.done - self.warmup) / max(1, self.steps - self.warmup)))

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Makes one optimizer step; gives the loss and the outputs (N, ...) before it, detached."""
        rate = self.rate()
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = self.settings.learning_rate * rate * scale
        for group in self.matrices.param_groups if self.matrices else ():
            group["lr"] = self.settings.matrix_rate * rate
        with autocast(self.device):
            outputs = self.model(images).float()
        loss = self.task.loss(outputs, labels, self.settings)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        if self.matrices:
            self.matrices.step()
        self.done += 1
        return loss.detach(), outputs.detach()

    def run(self, images: ImageBatches, augment: Augmentation | None, until: int) -> Iterator[EpochRecord]:
        """Trains until `until` steps are done in all; gives each epoch as it ends.

        Args:
            augment: what varies the images, and their labels with them (`Task.augmentation`).

        Raises Diverged.
        """
        self.model.train()
        size = self.settings.batch_size
        while self.done < until:
            position = self.done % self.batches
            if position == 0:
                self._order, self._losses, self._scores = torch.randperm(len(images)), [], []
            parts = self._order.split(size)[position : min(self.batches, position + until - self.done)]
            for batch, labels in images.batches(parts):
                if augment is not None:
                    batch, labels = augment(batch, labels)
                loss, outputs = self.step(batch.contiguous(memory_format=torch.channels_last), labels)
                self._losses.append(loss)
                self._scores.append(self.task.summed_score(outputs, labels))
            # Read now and then only: reading every step would make a GPU wait.
            mean_loss = torch.stack(self._losses).mean().item()
            if not math.isfinite(mean_loss):
                epoch = 1 + (self.done - 1) // self.batches
                raise Diverged(f"loss is not finite in epoch {epoch} of {self.settings.epochs}")
            if self.done % self.batches == 0:
                seen = min(len(images), self.batches * size)
                score = torch.stack(self._scores).sum().item() / seen
                self.history.append(EpochRecord(self.done // self.batches - 1, mean_loss, score))
                yield self.history[-1]

    # --- on disk

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By what their state is called in a file."""
        return {"optimizer.": self.optimizer} | ({"matrices.": self.matrices} if self.matrices else {})

    def save(self, path: Path, identity: str) -> None:
        """Writes everything that `load` needs to go on, as safetensors; the file is complete or not there."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for prefix, optimizer in self._optimizers().items():
            tensors |= state_tensors(prefix, optimizer)
        tensors |= {"order": self._order, "random": torch.get_rng_state()}
        if self._losses:
            tensors |= {"losses": torch.stack(self._losses), "correct": torch.stack(self._scores)}
        facts = {"done": self.done, "history": [vars(record) for record in self.history]}
        metadata = {"schema": _SCHEMA, "identity": identity, "facts": json.dumps(facts)}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: Path, identity: str) -> bool:
        """Goes on from what `save` left, torch's global generator included; False if there is nothing of `identity`.

        A file that cannot be read counts as none: the training then starts anew and gives the same result.
        """
        try:
            with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call, unused-ignore]
                metadata = file.metadata() or {}
                if (metadata.get("schema"), metadata.get("identity")) != (_SCHEMA, identity):
                    return False
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(metadata["facts"])
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
            return False
        self.model.load_state_dict(under("model.", tensors))
        for prefix, optimizer in self._optimizers().items():
            restore(optimizer, under(prefix, tensors))
        self._order = tensors["order"]
        self._losses = [value.to(self.device) for value in tensors.get("losses", torch.empty(0))]
        self._scores = [value.to(self.device) for value in tensors.get("correct", torch.empty(0))]
        self.done = facts["done"]
        if self.matrices:
            self.matrices.done = self.done
        self.history = [EpochRecord(**record) for record in facts["history"]]
        torch.set_rng_state(tensors["random"])
        return True


def autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Computes in bfloat16 on GPUs that have it; on CPUs it measured no faster at these sizes."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


# --- judging ---------------------------------------------------------------------------------------------------------


def recompute_batch_norm(model: nn.Module, train: ImageBatches, seed: int) -> None:
    """Sets BatchNorm's statistics to plain averages over training images, as running ones lag behind in few steps."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    # A generator of its own: that a training was looked at in between must not change how it goes on.
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    parts = [part for part in order[:BATCH_NORM_IMAGES].split(EVALUATION_BATCH) if len(part) > 1]
    model.train()
    with torch.no_grad(), autocast(train.device):
        for images, _ in train.batches(parts):
            model(images)


def evaluate(model: nn.Module, images: ImageBatches, task: tasks.Task | None = None) -> tuple[float, float]:
    """Judges a network: the score (0 to 1, of a classification its accuracy) and the mean loss on these images.

    Raises Diverged if the loss is not finite.
    """
    task = task or tasks.task(DEFAULT_TASK)
    model.eval()
    parts, wanted = [], []
    with torch.no_grad(), autocast(images.device):
        for batch, labels in images.batches(torch.arange(len(images)).split(EVALUATION_BATCH)):
            parts.append(model(batch).float())
            wanted.append(labels)
    outputs, truth = torch.cat(parts), torch.cat(wanted)
    loss = task.loss(outputs, truth).item()
    if not math.isfinite(loss):
        raise Diverged("the validation loss is not finite")
    return task.metric.score(task.metric.value(outputs, truth)), loss
