"""The mechanics of a short training: batches, augmentation, optimizer, schedule, evaluation; and its state on disk.

What is trained for how long is said in `proxy.py`. The recipe must be fair from 0.2 to 6 GMACs after some thirty steps,
which plain AdamW is not (at 2e-3 it left LowFormer-B1.5 at chance). So residual branches and the classifier start at
zero, and every network starts as a shallow one; the learning rate of a weight falls with the square root of its fan-in;
gradients are clipped.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.loading import ImageData

if TYPE_CHECKING:
    from .proxy import ProxySettings

BATCH_NORM_IMAGES = 512  # training images on which BatchNorm statistics are recomputed before evaluation
EVALUATION_BATCH = 128
RESIDENT_SHARE = 0.25
"""Images stay on a GPU if they take at most this share of its free memory; else a loader brings them batch by batch."""
LOADER_PROCESSES = 2

_SCHEMA = "1"


class Diverged(Exception):
    """The loss is no longer finite."""


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Torch's generators seeded inside, as before outside; cuDNN chooses deterministic kernels."""
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


# --- images ----------------------------------------------------------------------------------------------------------


class Images:
    """One part of the data: bytes (N, 3, R, R) and labels (N,), and what normalizes them (the training part's pixels).

    On a CPU, or where they fit, they are on the device; else a loader's processes bring batches from pinned memory.
    """

    def __init__(self, data: ImageData, part: Literal["train", "validation"], device: str) -> None:
        images, labels = (
            (data.train_images, data.train_labels)
            if part == "train"
            else (data.validation_images, data.validation_labels)
        )
        self.device = torch.device(device)
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(labels)
        self.resident = _fits(self.images.numel(), self.device)
        if self.resident:
            self.images, self.labels = self.images.to(self.device), self.labels.to(self.device)
        pixels = data.train_images.reshape(-1, 3)
        mean, spread = pixels.mean(axis=0, dtype=np.float64), pixels.std(axis=0, dtype=np.float64)
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.scale = torch.tensor(1 / np.maximum(spread, 1), dtype=torch.float32, device=device).view(1, 3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each index tensor its images (n, 3, R, R), normalized and channels-last, and labels (n,)."""
        if self.resident:
            for index in parts:
                index = index.to(self.device)
                yield self._normalized(self.images[index]), self.labels[index]
            return
        loader = torch.utils.data.DataLoader(
            _Rows(self.images, self.labels),
            batch_sampler=[part.tolist() for part in parts],
            collate_fn=_as_it_is,
            num_workers=min(LOADER_PROCESSES, len(parts)),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # not the training's
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )
        for images, labels in loader:
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
            yield self._normalized(images), labels

    def _normalized(self, images: Tensor) -> Tensor:
        return ((images.float() - self.mean) * self.scale).contiguous(memory_format=torch.channels_last)


class _Rows(torch.utils.data.Dataset[Any]):
    """Whole batches at a time (`__getitems__`), which `DataLoader` asks for where it is defined."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def _as_it_is(batch: Any) -> Any:
    return batch


def _fits(size: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size <= RESIDENT_SHARE * free


def augmentation(settings: ProxySettings, side: int) -> nn.Module:
    """Mirrors and shifts each image of (N, 3, side, side) at random, by torch's global generator.

    What a shift uncovers repeats the border.
    """
    from kornia.augmentation import RandomCrop, RandomHorizontalFlip  # type: ignore[import-untyped, unused-ignore]

    steps: list[nn.Module] = []
    if settings.flip:
        steps.append(RandomHorizontalFlip(p=0.5))
    if pixels := round(settings.max_shift * side):
        steps.append(RandomCrop((side, side), padding=pixels, padding_mode="replicate"))
    return nn.Sequential(*steps)


# --- learning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean loss and accuracy (0 to 1) over its training batches as they were learned from."""

    epoch: int
    train_loss: float
    train_accuracy: float


class Training:
    """A network with its optimizer and schedule, and how far it has got.

    Attributes:
        steps: optimizer steps of the whole training; a batch that an epoch does not fill is left out.
        done: how many of them are done.
        history: of the epochs that are finished.
        seconds: that the steps of this process took.
    """

    def __init__(self, model: nn.Module, settings: ProxySettings, images: int, device: str) -> None:
        self.model = model.train()
        self.settings = settings
        self.batches = max(1, images // settings.batch_size)
        self.steps = settings.epochs * self.batches
        self.warmup = max(1, round(settings.warmup_share * self.steps))
        self.done = 0
        self.history: list[EpochRecord] = []
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
        # Of the epoch under way: the order of its images, and per step loss and correct answers.
        self._order = torch.empty(0, dtype=torch.int64)
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []

    def rate(self) -> float:
        """Of the next step, as a share of the peak: linear warm-up, then half a cosine to zero."""
        if self.done < self.warmup:
            return (self.done + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (self.done - self.warmup) / max(1, self.steps - self.warmup)))

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step; gives the loss and the logits (N, classes) before it, detached."""
        rate = self.settings.learning_rate * self.rate()
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        with autocast(self.device):
            logits = self.model(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.done += 1
        return loss.detach(), logits.detach()

    def run(self, images: Images, augment: nn.Module, until: int) -> Iterator[EpochRecord]:
        """Trains on until `until` steps are done; gives each epoch as it ends.

        Raises Diverged.
        """
        self.model.train()
        size = self.settings.batch_size
        while self.done < until:
            position = self.done % self.batches
            if position == 0:
                self._order, self._losses, self._correct = torch.randperm(len(images)), [], []
            parts = self._order.split(size)[position : min(self.batches, position + until - self.done)]
            for batch, labels in images.batches(parts):
                loss, logits = self.step(augment(batch).contiguous(memory_format=torch.channels_last), labels)
                self._losses.append(loss)
                self._correct.append((logits.argmax(dim=1) == labels).sum())
            # Read now and then only: reading every step would make a GPU wait.
            mean_loss = torch.stack(self._losses).mean().item()
            if not math.isfinite(mean_loss):
                epoch = 1 + (self.done - 1) // self.batches
                raise Diverged(f"loss is not finite in epoch {epoch} of {self.settings.epochs}")
            if self.done % self.batches == 0:
                seen = min(len(images), self.batches * size)
                accuracy = torch.stack(self._correct).sum().item() / seen
                self.history.append(EpochRecord(self.done // self.batches - 1, mean_loss, accuracy))
                yield self.history[-1]

    # --- on disk

    def save(self, path: Path, identity: str) -> None:
        """Everything that `load` needs to go on, as safetensors; a file written completely or not at all."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{number}.{name}": value for name, value in state.items()})
        tensors |= {"order": self._order, "random": torch.get_rng_state()}
        if self._losses:
            tensors |= {"losses": torch.stack(self._losses), "correct": torch.stack(self._correct)}
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
        self.model.load_state_dict(_under("model.", tensors))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            number, _, what = name.partition(".")
            if value.ndim:  # the fused step reads moments in their parameter's memory format, whatever their own
                value = torch.empty_like(parameters[int(number)]).copy_(value)
            state.setdefault(int(number), {})[what] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self._order = tensors["order"]
        self._losses = [value.to(self.device) for value in tensors.get("losses", torch.empty(0))]
        self._correct = [value.to(self.device) for value in tensors.get("correct", torch.empty(0))]
        self.done = facts["done"]
        self.history = [EpochRecord(**record) for record in facts["history"]]
        torch.set_rng_state(tensors["random"])
        return True


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 on GPUs that have it; on CPUs it measured no faster at these sizes."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


# --- judging ---------------------------------------------------------------------------------------------------------


def recompute_batch_norm(model: nn.Module, train: Images, seed: int) -> None:
    """BatchNorm statistics as plain averages over training images; after few steps the running ones lag behind."""
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


def evaluate(model: nn.Module, images: Images) -> tuple[float, float]:
    """Accuracy, 0 to 1, and mean cross-entropy in nats. Raises Diverged if the latter is not finite."""
    model.eval()
    logits, labels = [], []
    with torch.no_grad(), autocast(images.device):
        for batch, wanted in images.batches(torch.arange(len(images)).split(EVALUATION_BATCH)):
            logits.append(model(batch).float())
            labels.append(wanted)
    said, truth = torch.cat(logits), torch.cat(labels)
    loss = F.cross_entropy(said, truth).item()
    if not math.isfinite(loss):
        raise Diverged("the validation loss is not finite")
    return (said.argmax(dim=1) == truth).float().mean().item(), loss
