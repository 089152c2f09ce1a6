"""Turns images as they are found into RGB squares of one size."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .records import LabelledImages, Labels, Pixels


class Decoded(NamedTuple):
    """Images of one size.

    Attributes:
        images: (N, resolution, resolution, 3).
        labels: (N, ...) of those that could be read.
        skipped: a line for each image that could not be read.
        sizes: the range of sides found, in words.
    """

    images: Pixels
    labels: Labels
    skipped: list[str]
    sizes: str


def decoded(part: LabelledImages, resolution: int) -> Decoded:
    """Decodes images, cuts out their central squares and resizes these."""
    from PIL import Image

    images: list[Pixels] = []
    kept: list[int] = []
    skipped: list[str] = []
    sides: list[int] = []
    for index in range(len(part)):
        item = part.images[index]
        if isinstance(item, Path | bytes):
            try:
                with Image.open(BytesIO(item) if isinstance(item, bytes) else item) as file:
                    if file.format == "EPS":  # a program, which Pillow would have Ghostscript run
                        raise OSError("PostScript is not decoded")
                    # JPEGs are decoded at a fraction of their size where that is enough.
                    sides += file.size
                    file.draft("RGB", (2 * resolution, 2 * resolution))
                    picture = _rgb(file)
            # What Pillow raises on broken files: among them OSError (also truncated or unknown ones), struct.error.
            except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
                name = f"image {index}" if isinstance(item, bytes) else str(item)
                skipped.append(f"{name}: {' '.join(str(error).split())}")
                continue
        else:
            picture = Image.fromarray(item)
            sides += picture.size
        images.append(_square(picture, resolution))
        kept.append(index)
    stacked = np.stack(images) if images else np.empty((0, resolution, resolution, 3), dtype=np.uint8)
    sizes = f"{min(sides)} to {max(sides)} pixels" if sides else "none"
    return Decoded(stacked, part.labels[np.array(kept, dtype=np.intp)], skipped, sizes)


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
    return image.convert("RGB")


def _square(picture: Any, resolution: int) -> Pixels:
    """The central square of a Pillow image, as RGB (resolution, resolution, 3)."""
    from PIL import Image

    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    small = picture.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box)
    return np.asarray(small.convert("RGB"), dtype=np.uint8)
