"""Turns images as they are found into RGB squares of one size."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .crops import Box, central_box
from .records import LabelledImages, Labels, Pixels

Size = tuple[int, int]

# What Pillow raises on broken files: among them OSError (also truncated or unknown ones), struct.error.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error)


class Decoded(NamedTuple):
    """Images of one size.

    Attributes:
        images: (N, resolution, resolution, 3).
        labels: (N, ...) of those that could be read.
        skipped: a line for each image that could not be read.
        sizes: the range of sides found, in words.
        readable: (M,) of all M images, whether they are among the N.
    """

    images: Pixels
    labels: Labels
    skipped: list[str]
    sizes: str
    readable: NDArray[np.bool_]


def decoded(part: LabelledImages, resolution: int, first: int = 0) -> Decoded:
    """Decodes images, cuts out their central squares and resizes these.

    Args:
        part: M images.
        resolution: side of the squares in pixels.
        first: number of the first image, for messages on images without a name.
    """
    images = np.empty((len(part), resolution, resolution, 3), dtype=np.uint8)
    readable = np.ones(len(part), dtype=bool)
    if isinstance(part.images, np.ndarray) and part.images.shape[1:3] == (resolution, resolution) and len(part):
        images[:] = part.images if part.images.ndim == 4 else part.images[..., None]  # as they are
        return Decoded(images, part.labels, [], f"{resolution} to {resolution} pixels", readable)
    skipped: list[str] = []
    smallest, largest = 2**31, 0
    for index in range(len(part)):
        item = part.images[index]
        try:
            # JPEGs are decoded at a fraction of their size where that leaves twice the resolution.
            picture, (width, height) = opened(item, lambda *_: (2 * resolution, 2 * resolution))
        except UNREADABLE as error:
            skipped.append(described(item, first + index, error))
            readable[index] = False
            continue
        smallest, largest = min(smallest, width, height), max(largest, width, height)
        images[index] = cropped(picture, central_box(*picture.size), resolution)
    sizes = f"{smallest} to {largest} pixels" if largest else "none"
    if skipped:
        images = images[readable]
    return Decoded(images, part.labels[readable], skipped, sizes, readable)


def opened(item: Path | bytes | Pixels, enough: Callable[[int, int], tuple[float, float]]) -> tuple[Any, Size]:
    """One image as RGB, as Pillow has it, and the width and height that it has in its file.

    Args:
        item: a path, the bytes of a file, or an array (H, W) or (H, W, 3).
        enough: for the width and height in the file those that are enough. A JPEG is then decoded at a half, a quarter
            or an eighth of its size, as long as that leaves as much; this takes less time.

    Raises:
        One of `UNREADABLE`: no image, or a broken one.
    """
    from PIL import Image

    if not isinstance(item, Path | bytes):
        picture = Image.fromarray(item)
        return picture, picture.size
    try:
        with Image.open(BytesIO(item) if isinstance(item, bytes) else item) as file:
            if file.format == "EPS":  # a program, which Pillow would have Ghostscript run
                raise OSError("PostScript is not decoded")
            size = file.size
            width, height = enough(*size)
            file.draft("RGB", (math.ceil(width), math.ceil(height)))
            return _rgb(file), size
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from None


def described(item: Path | bytes | Pixels, index: int, error: Exception) -> str:
    """One line on an image that cannot be read."""
    name = str(item) if isinstance(item, Path) else f"image {index}"
    return f"{name}: {' '.join(str(error).split())}"


def cropped(picture: Any, box: Box, side: int) -> Pixels:
    """What is in a box of a Pillow image, as RGB (side, side, 3)."""
    from PIL import Image

    small = picture.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return np.asarray(small.convert("RGB") if small.mode != "RGB" else small, dtype=np.uint8)


def _rgb(image: Any) -> Any:
    """A Pillow image as RGB; transparent parts become white, 16-bit grey is brought to 8 bits."""
    from PIL import Image

    if image.mode.startswith("I"):
        wide = np.asarray(image)
        return Image.fromarray((wide >> 8 if wide.max() > 255 else wide).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    if image.mode == "RGB":  # which `convert` would copy
        image.load()
        return image
    return image.convert("RGB")
