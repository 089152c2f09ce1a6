"""Turns images as they are found into RGB squares of one size."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .crops import Box, central_box, framed, in_image
from .records import LabelledImages, Labels, Pixels

Size = tuple[int, int]
CUT_LOOKS = 200
"""Images by which it is told how much of them is cut off."""

# What Pillow raises on broken files: among them OSError (also truncated or unknown ones), struct.error.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error)
_DECODERS = (RuntimeError, TypeError, LookupError)  # of AVIF, BLP, DDS and TIFF


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
    """Decodes images, makes squares of them as `part.fit` says, and resizes these.

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
        box = in_image(central_box(*framed(part.fit, *picture.size)), part.fit, *picture.size)
        images[index] = cropped(picture, box, resolution)
    sizes = f"{smallest} to {largest} pixels" if largest else "none"
    if skipped:
        images = images[readable]
    return Decoded(images, part.labels[readable], skipped, sizes, readable)


def opened(item: Path | bytes | Pixels, enough: Callable[[int, int], tuple[float, float]]) -> tuple[Any, Size]:
    """One image as RGB and upright, as Pillow has it, and the width and height that it has in its file, upright.

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
    with _as_os_errors(), Image.open(BytesIO(item) if isinstance(item, bytes) else item) as file:
        if file.format == "EPS":  # a program, which Pillow would have Ghostscript run
            raise OSError("PostScript is not decoded")
        if file.format == "PNG":  # of which Pillow decodes all to find EXIF, and hides what breaks there
            file.load()
        turned = _turned(file)
        size = file.size[::-1] if turned in _SIDEWAYS else file.size
        width, height = enough(*size)
        wanted = (height, width) if turned in _SIDEWAYS else (width, height)
        file.draft("RGB", (math.ceil(wanted[0]), math.ceil(wanted[1])))
        picture = _rgb(file)
        return (picture if turned is None else picture.transpose(turned)), size


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Makes what decoders raise beside `UNREADABLE`, and for too many pixels, one of them."""
    from PIL import Image

    try:
        yield
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from None
    except _DECODERS as error:
        raise OSError(f"{type(error).__name__}: {error}") from None


def described(item: Path | bytes | Pixels, index: int, error: Exception) -> str:
    """One line on an image that cannot be read."""
    name = str(item) if isinstance(item, Path) else f"image {index}"
    return f"{name}: {' '.join(str(error).split())}"


def cropped(picture: Any, box: Box, side: int) -> Pixels:
    """What is in a box of a Pillow image, as RGB (side, side, 3); black where the box reaches beyond it."""
    from PIL import Image

    left, top, right, bottom = box
    if left < 0 or top < 0 or right > picture.width or bottom > picture.height:
        picture = picture.crop((round(left), round(top), round(right), round(bottom)))
        box = (0, 0, *picture.size)
    small = picture.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return np.asarray(small.convert("RGB") if small.mode != "RGB" else small, dtype=np.uint8)


_SIDEWAYS = frozenset({2, 4, 5, 6})
"""What of `Image.Transpose` exchanges width and height: ROTATE_90, ROTATE_270, TRANSPOSE, TRANSVERSE."""


def _turned(file: Any) -> Any:
    """What makes an opened image upright (`Image.Transpose`), by its EXIF orientation; None if it is upright.

    Of a TIFF Pillow does it by itself. Metadata that cannot be read say nothing.
    """
    from PIL import ExifTags, Image

    if file.format == "TIFF":
        return None
    ways = Image.Transpose
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation)
    except (*UNREADABLE, *_DECODERS):
        return None
    return {
        2: ways.FLIP_LEFT_RIGHT,
        3: ways.ROTATE_180,
        4: ways.FLIP_TOP_BOTTOM,
        5: ways.TRANSPOSE,
        6: ways.ROTATE_270,
        7: ways.TRANSVERSE,
        8: ways.ROTATE_90,
    }.get(orientation)


def _rgb(image: Any) -> Any:
    """A Pillow image as RGB; transparent parts become white, numbers beyond a byte are brought to one."""
    from PIL import Image

    if image.mode == "F":
        return Image.fromarray(_as_bytes(np.asarray(image))).convert("RGB")
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


def _as_bytes(values: NDArray[np.float32]) -> Pixels:
    """Floating-point grey as bytes: 0 to 1, to 255 or to 65535, whichever is enough; else from least to most."""
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    limit = next((limit for limit in (1.0, 255.0, 65535.0) if low >= 0 and high <= limit), None)
    scaled = (finite - low) / (high - low) if limit is None else finite / limit
    return np.round(255 * scaled).astype(np.uint8)


def average_cut(part: LabelledImages, seed: int = 0, looks: int = CUT_LOOKS) -> float:
    """The share of an image that is cut off to make it a square, on average over some of the part; 0 if none is."""
    if part.fit != "crop" or not len(part):
        return 0.0
    if isinstance(part.images, np.ndarray):
        height, width = part.images.shape[1:3]
        return 1 - min(width, height) / max(width, height)
    found = []
    for index in np.random.default_rng(seed).permutation(len(part))[:looks]:
        item = part.images[int(index)]
        with suppress(*UNREADABLE):
            width, height = _size(item)
            found.append(1 - min(width, height) / max(width, height))
    return float(np.mean(found)) if found else 0.0


def _size(item: Path | bytes | Pixels) -> Size:
    """Width and height of an image, from its header."""
    from PIL import Image

    if not isinstance(item, Path | bytes):
        return item.shape[1], item.shape[0]
    with _as_os_errors(), Image.open(BytesIO(item) if isinstance(item, bytes) else item) as file:
        return file.size
