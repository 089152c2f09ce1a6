"""A network in training: one optimizer step, judging, and everything that a training goes on from, as tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ... import tasks
from ...data.feeding import Batch, ImageFeed
from ..optimizer_state import restore, state_tensors, under
from ..orthogonal import OrthogonalSteps
from .augmentation import Augmenter
from .optimization import AveragedWeights, FinalLoss, LossScale, computing, optimizers_of
from .recipe import TrainingRecipe
from .weights import Pixels, Prepared, Weights, plain_tensors
from .workers import Workers

AGREES_FROM = 0.25  # share of the steps after which the averaged weights are agreed with


class Teacher:
    """A trained network whose outputs are learned from too. It sees the same images, in its own normalization."""

    def __init__(self, weights: Weights, pixels: Pixels, device: torch.device) -> None:
        assert weights.model is not None
        self.model = weights.model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        own = weights.pixels or pixels
        given, wanted = (_shaped(one, device) for one in (pixels, own))
        self._scale = given[1] / wanted[1]
        self._shift = (given[0] - wanted[0]) / wanted[1]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Its outputs for images that are normalized for the network that learns."""
        outputs: Tensor = self.model(images * self._scale + self._shift)
        return outputs


def _shaped(pixels: Pixels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and spread, each (1, 3, 1, 1)."""
    mean, spread = (torch.tensor(value, device=device).view(1, 3, 1, 1) for value in (pixels.mean, pixels.spread))
    return mean, spread


class Learner:
    """A network with its optimizer, averaged weights, loss and augmentation, on one device.

    Args:
        prepared: the network as its training starts, on the CPU.
        outputs: how many it has.
        class_weights: (classes,) what the images of each class weigh; None if all weigh alike.

    Attributes:
        model: the network.
        averaged: its averaged weights, which are what is judged.
    """

    def __init__(
        self,
        prepared: Prepared,
        recipe: TrainingRecipe,
        task: tasks.Task,
        pixels: Pixels,
        device: torch.device,
        workers: Workers,
        *,
        outputs: int,
        class_weights: Tensor | None = None,
        teacher: Weights | None = None,
    ) -> None:
        self.recipe, self.task, self.device = recipe, task, device
        self.model: nn.Module = prepared.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizers = optimizers_of(prepared, recipe)
        self.frozen = prepared.frozen
        self._trained = workers.wrapped(self.model, device)
        self.averaged = AveragedWeights(self.model, recipe.ema)
        self._scale = LossScale(recipe.precision, device)
        self._augmenter = Augmenter(recipe, task, outputs)
        self._loss = FinalLoss(recipe, task, None if class_weights is None else class_weights.to(device))
        self._mean, self._spread = _shaped(pixels, device)
        self._teacher = None if teacher is None else Teacher(teacher, pixels, device)
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def input(self, images: Tensor) -> Tensor:
        """A network's input (N, 3, R, R) from bytes."""
        return self._normalized(images.to(self.device, non_blocking=True).float() / 255)

    def _normalized(self, images: Tensor) -> Tensor:
        return ((images - self._mean) / self._spread).contiguous(memory_format=torch.channels_last)

    def train(self) -> None:
        """Puts the network into training; what is frozen keeps its statistics."""
        self._trained.train()
        if not self.frozen:
            return
        for module in self.model.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()

    def step(self, images: Tensor, labels: Tensor, rate: float, step: int, share: float) -> tuple[Tensor, Tensor]:
        """Makes one optimizer step from bytes (N, 3, R, R) and their labels.

        Args:
            rate: the learning rate as a share of its peak.
            step: how many were made before.
            share: how much of the training is done, 0 to 1.

        Returns the mean loss, and the sum of the images' scores as they were learned from; both detached.
        """
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate * group["peak"]
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        self.model.zero_grad(set_to_none=True)
        losses, scores = [], []
        parts = min(self.recipe.accumulation, max(1, len(images) // 2))  # BatchNorm needs two images
        for some, theirs in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            varied, wanted = self._augmenter(some.float() / 255, theirs, self._normalized)
            varied = varied.contiguous(memory_format=torch.channels_last)
            with computing(self.recipe.precision, self.device):
                outputs = self._trained(varied)
                taught = None if self._teacher is None else self._teacher(varied).float()
                agreed = self._agreed(varied) if share >= AGREES_FROM else None
            outputs = outputs.float()
            loss = self._loss(outputs, wanted, taught, agreed) * (len(some) / len(images))
            self._scale.scaler.scale(loss).backward()
            losses.append(loss.detach())
            scores.append(self.task.summed_score(outputs.detach(), theirs))
        for optimizer in self.optimizers.values():
            self._scale.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip_norm)
        for optimizer in self.optimizers.values():
            self._scale.scaler.step(optimizer)
        self._scale.scaler.update()
        self.averaged.update(step)
        return torch.stack(losses).sum(), torch.stack(scores).sum()

    @torch.no_grad()
    def _agreed(self, images: Tensor) -> Tensor | None:
        """The averaged weights' outputs, where they are to be agreed with."""
        return self.averaged.model(images).float() if self.recipe.agreement else None

    @torch.no_grad()
    def recompute_batch_norm(self, feed: ImageFeed, batches: Sequence[Batch]) -> None:
        """Sets the averaged network's BatchNorm statistics to plain averages over these images, if there are any."""
        model = self.averaged.model
        norms = [
            module
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        ]
        if self.frozen:  # what was not trained keeps its own
            kept = {id(value) for name, value in model.named_parameters() if name in self.frozen}
            norms = [module for module in norms if not all(id(value) in kept for value in module.parameters())]
        if not norms or not batches:
            return
        before = [module.momentum for module in norms]
        for module in norms:
            module.reset_running_stats()
            module.momentum = None
            module.train()
        for images, _ in feed.batches(batches):
            if len(images) > 1:
                with computing(self.recipe.precision, self.device):
                    model(self.input(images))
        for module, momentum in zip(norms, before, strict=True):
            module.momentum = momentum
        model.eval()

    @torch.no_grad()
    def judge(self, feed: ImageFeed, batches: Iterable[Batch]) -> tuple[float, float]:
        """The averaged network's score (0 to 1) and mean loss on these images."""
        outputs, wanted = [], []
        for images, labels in feed.batches(batches):
            if not len(images):  # none of them could be read
                continue
            with computing(self.recipe.precision, self.device):
                outputs.append(self.averaged.model(self.input(images)).float())
            wanted.append(labels.to(self.device))
        found, truth = torch.cat(outputs), torch.cat(wanted)
        loss = self.task.loss(found, truth).item()
        return self.task.metric.score(self.task.metric.value(found, truth)), loss

    def is_finite(self) -> bool:
        """Whether all numbers of the averaged network are."""
        return all(bool(value.isfinite().all()) for value in self.averaged.model.state_dict().values())

    # --- on disk

    def to_bytes(self, facts: dict[str, Any]) -> bytes:
        """Everything that `load` needs, as a safetensors file with these facts."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"averaged.{name}": value for name, value in self.averaged.model.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            tensors |= state_tensors(name, optimizer)
        facts = {**facts, "loss_scale": self._scale.state(), "matrix_steps": self._matrix_steps}
        return save_tensors(plain_tensors(tensors), {"facts": json.dumps(facts)})

    def load(self, content: bytes, where: str) -> dict[str, Any]:
        """Goes on from what `to_bytes` gave; gives its facts. Raises ValueError, in one line, for something else."""
        try:
            tensors = load_tensors(content)
            facts: dict[str, Any] = json.loads(_metadata(content)["facts"])
            self.model.load_state_dict(under("model.", tensors))
            self.averaged.model.load_state_dict(under("averaged.", tensors))
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{where} cannot be gone on from: {' '.join(str(error).split()):.200}") from None
        for name, optimizer in self.optimizers.items():
            restore(optimizer, under(name, tensors))
            if isinstance(optimizer, OrthogonalSteps):
                optimizer.done = facts["matrix_steps"]
        del facts["matrix_steps"]
        self._scale.load(facts.pop("loss_scale", {}))
        return facts

    @property
    def _matrix_steps(self) -> int:
        """How many steps `OrthogonalSteps` has made, on which it depends when it computes anew."""
        return max((each.done for each in self.optimizers.values() if isinstance(each, OrthogonalSteps)), default=0)


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: its header is JSON, and says first how long it is."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    found: dict[str, str] = header["__metadata__"]
    return found
