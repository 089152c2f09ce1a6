"""What varies the images of a final training: on the device, batch by batch, by torch's global generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ... import tasks
from ...tasks.base import MixableTask
from .recipe import TrainingRecipe

if TYPE_CHECKING:
    from ...tasks.base import Augmentation

KORNIA_STRENGTHS = 3.0
"""Kornia's RandAugment counts strengths to 30, the papers (and timm) to 10."""


class Augmenter:
    """Flips and shifts as the task has them, then RandAugment and erasing; mixing comes last."""

    def __init__(self, recipe: TrainingRecipe, task: tasks.Task, classes: int) -> None:
        self.recipe, self.task, self.classes = recipe, task, classes
        self._by_side: dict[int, Augmentation] = {}
        self._operations: nn.Module | None = None
        self._erasing: nn.Module | None = None
        if recipe.randaugment_layers and recipe.randaugment_magnitude:
            from kornia.augmentation.auto import RandAugment  # type: ignore[import-untyped, unused-ignore]

            self._operations = RandAugment(
                n=recipe.randaugment_layers, m=min(29, max(1, round(KORNIA_STRENGTHS * recipe.randaugment_magnitude)))
            )
        if recipe.erasing:
            from kornia.augmentation import RandomErasing  # type: ignore[import-untyped, unused-ignore]

            self._erasing = RandomErasing(p=recipe.erasing)

    def __call__(self, images: Tensor, labels: Tensor, normalized: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Varies a batch.

        Args:
            images: (N, 3, R, R), floats of 0 to 1.
            labels: (N, ...).
            normalized: makes them a network's input.

        Returns normalized images, and labels or, where images were mixed, shares (N, classes).
        """
        side = images.shape[-1]
        if side not in self._by_side:
            self._by_side[side] = self.task.augmentation(self.recipe, side)
        images, labels = self._by_side[side](images, labels)
        if self._operations is not None:
            images = self._operations(images).clamp(0, 1)
        images = normalized(images)
        if self._erasing is not None:
            images = self._erasing(images)
        if isinstance(self.task, MixableTask) and (self.recipe.mixup or self.recipe.cutmix):
            return self._mixed(images, self.task.shares(labels, self.classes))
        return images, labels

    def _mixed(self, images: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes each image with another one of the batch: blended, or with a rectangle of it."""
        recipe = self.recipe
        cut = bool(recipe.cutmix) and (not recipe.mixup or torch.rand(()).item() < 0.5)
        alpha = recipe.cutmix if cut else recipe.mixup
        keep = torch.distributions.Beta(alpha, alpha).sample().item()
        other = torch.randperm(len(images), device="cpu").to(images.device)
        if cut:
            side = images.shape[-1]
            length = round(side * (1 - keep) ** 0.5)
            top, left = (int(torch.randint(0, side - length + 1, ()).item()) for _ in range(2))
            box = (..., slice(top, top + length), slice(left, left + length))
            images = images.clone()
            images[box] = images[other][box]
            keep = 1 - (length / side) ** 2
        else:
            images = torch.lerp(images[other], images, keep)
        return images, torch.lerp(shares[other], shares, keep)
