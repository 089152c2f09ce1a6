"""Where images are cropped: the central square, or boxes drawn from a seed and the image's place alone.

Boxes are chosen in a frame: the image itself, or a square into which it was squashed or padded (`framed`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .records import Fit

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; the right and the bottom edge are outside."""

ASPECT = 4 / 3
"""Width over height of a random crop is at most this, and at least one over this."""
_TRIES = 10
"""Draws of a size and an aspect before a crop falls back on the central square, as torchvision's RandomResizedCrop has
it."""
_NUMBERS = 2 * _TRIES + 2


def draws(seed: int, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Random numbers of 0 to 1 for images, (n, 22), each row from the seed and its image's place alone.

    They are a hash (splitmix64, Steele et al., OOPSLA 2014), which makes all rows at once; a generator of numpy's for
    each image would take as long as a small image's decoding.
    """
    with np.errstate(over="ignore"):
        start = _mixed(np.asarray(index).astype(np.uint64) + _mixed(np.uint64(seed % 2**64)))
        steps = np.arange(1, _NUMBERS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return np.asarray((_mixed(start[:, None] + steps) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _mixed(value: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    value = np.atleast_1d(value)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def framed(fit: Fit, width: int, height: int) -> tuple[int, int]:
    """Width and height of the frame of an image."""
    side = max(width, height)
    return (width, height) if fit == "crop" else (side, side)


def in_image(box: Box, fit: Fit, width: int, height: int) -> Box:
    """A box of an image's frame, in pixels of the image; where that is padded, it may reach beyond."""
    left, top, right, bottom = box
    side = max(width, height)
    if fit == "squash":
        return left * width / side, top * height / side, right * width / side, bottom * height / side
    across, down = ((side - width) / 2, (side - height) / 2) if fit == "pad" else (0.0, 0.0)
    return left - across, top - down, right - across, bottom - down


def central_box(width: int, height: int, share: float = 1.0) -> Box:
    """The central square; its area is this share of that of the largest one."""
    side = min(width, height) * math.sqrt(share)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, crop: tuple[float, float], numbers: Sequence[float]) -> Box:
    """A box of whole pixels that covers a share of the area between the two of `crop`, at a random place.

    Args:
        numbers: an image's row of `draws`.
    """
    least, largest = crop
    if least < 1:
        for chance, shape in zip(numbers[:_TRIES], numbers[_TRIES : 2 * _TRIES], strict=True):
            area = width * height * (least + (largest - least) * chance)
            aspect = ASPECT ** (2 * shape - 1)
            across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < across <= width and 0 < down <= height:
                left = int(numbers[-2] * (width - across + 1))
                top = int(numbers[-1] * (height - down + 1))
                return left, top, left + across, top + down
    return central_box(width, height)
