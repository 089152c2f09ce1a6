"""One optimizer step of a final training: rates, precision, loss, and the weights that are averaged."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import tasks
from ...tasks.base import MixableTask
from ..orthogonal import OrthogonalSteps, is_matrix
from .recipe import TrainingRecipe
from .weights import Prepared


def optimizers_of(prepared: Prepared, recipe: TrainingRecipe) -> dict[str, torch.optim.Optimizer]:
    """What steps the parameters that are trained; of each group "peak" is the largest rate.

    AdamW, and for matrices `OrthogonalSteps` where the recipe has a `matrix_rate`; each by its name in state files.
    """
    last = _last_layer(prepared.model)
    groups: dict[str, dict[tuple[float, float], list[nn.Parameter]]] = {"optimizer.": {}, "matrices.": {}}
    for name, parameter in prepared.model.named_parameters():
        if name in prepared.frozen:
            parameter.requires_grad_(False)
            continue
        peak, decay, kind = recipe.learning_rate, 0.0, "optimizer."
        if parameter.ndim > 1:
            decay = recipe.weight_decay
            if recipe.matrix_rate and id(parameter) not in last and is_matrix(name, parameter):
                peak, kind = recipe.matrix_rate, "matrices."
            elif recipe.full_rate_fan_in:
                peak *= min(1.0, math.sqrt(recipe.full_rate_fan_in / parameter[0].numel()))
        if name in prepared.inherited:
            peak *= recipe.inherited_rate
        groups[kind].setdefault((peak, decay), []).append(parameter)
    found: dict[str, torch.optim.Optimizer] = {}
    if groups["optimizer."]:
        betas = (0.9, recipe.second_moment_decay)
        found["optimizer."] = torch.optim.AdamW(_with_peaks(groups["optimizer."]), betas=betas, fused=True)
    if groups["matrices."]:
        found["matrices."] = OrthogonalSteps(_with_peaks(groups["matrices."]), recipe.matrix_rate, recipe.weight_decay)
    if not found:
        raise ValueError("nothing is left to train: all parameters are frozen")
    return found


def _with_peaks(groups: Mapping[tuple[float, float], list[nn.Parameter]]) -> Any:  # as torch takes groups
    return [{"params": each, "weight_decay": decay, "peak": peak} for (peak, decay), each in groups.items()]


def _last_layer(model: nn.Module) -> set[int]:
    """The ids of the last layer's parameters, whose rows are classes; none of a module that does not name it."""
    find = getattr(model, "get_classifier", None)
    return set() if find is None else {id(parameter) for parameter in find().parameters()}


def rate_share(step: int, steps: int, recipe: TrainingRecipe) -> float:
    """The rate of a step as a share of its peak: a linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(recipe.warmup_share * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class AveragedWeights:
    """An exponential moving average of a network's weights and statistics.

    Attributes:
        model: the network with the averages, in eval mode, without gradients.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self._averaged: list[Tensor] = []
        self._latest: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        latest = dict(model.state_dict(keep_vars=True))
        states = {id(value): (name, value) for name, value in self.model.state_dict(keep_vars=True).items()}
        for name, value in states.values():  # each once, though a module may have it under two names
            if value.is_floating_point():
                self._averaged.append(value.detach())
                self._latest.append(latest[name].detach())
            else:
                self._copied.append((value, latest[name]))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights after a step into the average, in which the first steps weigh little."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._latest, 1 - decay)
        for averaged, latest in self._copied:
            averaged.copy_(latest)


class LossScale:
    """Scales the loss in fp16, whose range is narrow, and gradients back; in other precisions it does nothing."""

    def __init__(self, precision: str, device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def state(self) -> dict[str, float]:
        found: dict[str, float] = self.scaler.state_dict()
        return found

    def load(self, state: Mapping[str, float]) -> None:
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(state))


def computing(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Computes in this precision inside."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.float16 if precision == "fp16" else torch.bfloat16)


class FinalLoss:
    """The loss of a batch: the task's, with mixed or smoothed labels, class weights, and agreement with a teacher.

    Args:
        weights: (classes,) of a class's images; None if all weigh alike.
    """

    def __init__(self, recipe: TrainingRecipe, task: tasks.Task, weights: Tensor | None) -> None:
        self.recipe, self.task, self.weights = recipe, task, weights

    def __call__(self, outputs: Tensor, labels: Tensor, teacher: Tensor | None, averaged: Tensor | None) -> Tensor:
        """The mean loss of (N, ...) outputs, float32, in nats.

        Args:
            labels: as the task has them, or the shares (N, classes) of mixed images.
            teacher: its outputs for the same images.
            averaged: those of the averaged weights, if these are to be agreed with.
        """
        if not isinstance(self.task, MixableTask):
            return self.task.loss(outputs, labels, self.recipe)
        shares = labels if labels.ndim == 2 else self.task.shares(labels, outputs.shape[1])
        each = self._each(outputs, shares)
        if self.weights is not None:
            weights = shares.to(self.weights.dtype) @ self.weights
            loss = (each * weights).sum() / weights.sum()
        else:
            loss = each.mean()
        if averaged is not None:
            loss = loss + self.recipe.agreement * self._each(outputs, averaged.softmax(1), smooth=False).mean()
        if teacher is not None:
            share = self.recipe.teacher_share
            loss = (1 - share) * loss + share * distillation(outputs, teacher, self.recipe.temperature)
        return loss

    def _each(self, outputs: Tensor, shares: Tensor, *, smooth: bool = True) -> Tensor:
        """(N,) the loss of each image."""
        if smooth and self.recipe.label_smoothing:
            smoothing = self.recipe.label_smoothing
            shares = shares * (1 - smoothing) + smoothing / outputs.shape[1]
        if self.recipe.loss == "bce":
            return F.binary_cross_entropy_with_logits(outputs, shares, reduction="none").mean(1)
        return -(shares * outputs.log_softmax(1)).sum(1)


def distillation(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The mean divergence of a network's predictions from a teacher's, both softened (Hinton et al., 1503.02531)."""
    soft, target = (outputs / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(soft, target, log_target=True, reduction="batchmean")


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """(classes,) float32: the root of how rare a class is, 1 on average over the images."""
    counts = torch.bincount(labels, minlength=classes).float().clamp(min=1)
    weights = counts.rsqrt()
    return weights * (counts.sum() / (weights * counts).sum())
