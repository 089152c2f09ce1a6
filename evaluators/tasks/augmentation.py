"""Augmentations that tasks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Recipe

if TYPE_CHECKING:
    from torch import nn


def flips_and_shifts(recipe: Recipe, side: int) -> nn.Module:
    """Mirrors and shifts each image of (N, 3, side, side) at random, by torch's global generator.

    What a shift uncovers repeats the border.
    """
    from torch import nn

    pixels = round(recipe.max_shift * side)
    steps: list[nn.Module] = []
    if recipe.flip or pixels:
        from kornia.augmentation import RandomCrop, RandomHorizontalFlip  # type: ignore[import-untyped, unused-ignore]

        if recipe.flip:
            steps.append(RandomHorizontalFlip(p=0.5))
        if pixels:
            steps.append(RandomCrop((side, side), padding=pixels, padding_mode="replicate"))
    return nn.Sequential(*steps)
