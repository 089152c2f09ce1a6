"""Labelled images for proxy training: the user's own, or those that need no download, as arrays of one size.

Specifications: `imagefolder:DIR` (a folder of pictures for each class; train/ and val/ subfolders are honoured),
`fashion-mnist:DIR` (IDX files, plain or gzipped), `cifar10:PATH`, `cifar100:PATH` (the python archive or its folder),
`arrays:PATH` (a .safetensors file or a folder of .npy files: images and labels, or train_images, train_labels,
validation_images, validation_labels), `hf:NAME` or `hf:NAME:CONFIG` (Hugging Face), `digits` (scikit-learn's, for smoke
tests), `formula` or `formula:CLASSES` (fractals, see `formula.py`).
"""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .formula import formula_images
from .sources import Items, Labels, read_source

logger = logging.getLogger("lownas.evaluators")

FORMULA_CLASSES = 10
FORMULA_TRAIN_IMAGES = 1920  # in all, unless said otherwise
FORMULA_VALIDATION_IMAGES = 1000
CARD_CLASSES = 1000  # listed one by one in a data card, at most
VALIDATION_SHARE = 0.2  # of a set that has no validation part of its own

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageData:
    """Images of one size with their labels, in two parts.

    Attributes:
        train_images, validation_images: (N, R, R, 3) RGB.
        train_labels, validation_labels: (N,), indices into `classes`.
        classes: names.
        spec: the specification that it was loaded from.
        card: what there is to know of it: origin, counts, sizes as found, images skipped; plain JSON values.
    """

    train_images: Images
    train_labels: Labels
    validation_images: Images
    validation_labels: Labels
    classes: tuple[str, ...]
    spec: str
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        return int(self.train_images.shape[1])


def load_data(
    spec: str,
    resolution: int,
    seed: int = 0,
    *,
    train_images: int | None = None,
    validation_images: int | None = None,
    classes: int | None = None,
) -> ImageData:
    """Loads, splits and resizes a data set.

    Which images are taken depends on the specification, the seed and the counts alone, not on the resolution.

    Args:
        spec: one of `data_sources.SOURCES`.
        resolution: side of the images in pixels.
        seed: of the split, of the choice of a subset and of what `formula` draws.
        train_images, validation_images: at most this many of each part, balanced over the classes as the set is; None
            takes all (for `formula` a default).
        classes: number of classes of a `formula` that names none itself; no other source allows it.

    Raises:
        ValueError: the specification is unknown, or what it names cannot be trained on; one line says why.
    """
    if resolution < 8:
        raise ValueError(f"resolution: at least 8 pixels, given {resolution}")
    if seed < 0:
        raise ValueError(f"seed: at least 0, given {seed}")
    for name, count in (("train_images", train_images), ("validation_images", validation_images)):
        if count is not None and count < 1:
            raise ValueError(f"{name}: at least 1, given {count}")
    source, _, argument = spec.partition(":")
    if source == "formula":
        return _formula(spec, argument, resolution, seed, train_images, validation_images, classes)
    if classes is not None:
        raise ValueError(f"classes can be chosen for 'formula' only, not for {spec!r}")
    rng = np.random.default_rng([seed, 0xDA7A])
    found = read_source(spec)
    names = found.classes
    _check(found.train, "training", names, spec)
    if found.validation is None:
        train, validation = _split(found.train, rng, spec, names)
    else:
        train, validation = found.train, found.validation
        _check(validation, "validation", names, spec)
    available = {"available_train_images": len(train.labels), "available_validation_images": len(validation.labels)}
    train = _subset(train, train_images, rng)
    validation = _subset(validation, validation_images, rng)
    x_train, y_train, bad_train, sizes = _decode(train, resolution)
    x_validation, y_validation, bad_validation, _ = _decode(validation, resolution)
    skipped = bad_train + bad_validation
    if skipped:
        logger.warning("%s: skipped %d images that could not be read (first: %s)", spec, len(skipped), skipped[0])
    if lost := sorted({int(label) for label in train.labels} - {int(label) for label in y_train}):
        raise ValueError(f"{spec}: class {names[lost[0]]!r} has no readable training image")
    if not len(y_validation):
        raise ValueError(f"{spec}: no validation image could be read")
    card = {"source": source, "skipped": len(skipped), "sizes": sizes, **available, **found.card}
    return _image_data(spec, x_train, y_train, x_validation, y_validation, names, card)


def _check(items: Items, part: str, names: Sequence[str], spec: str) -> None:
    if not len(items.labels):
        raise ValueError(f"{spec}: no {part} images")
    if len(names) < 2:
        raise ValueError(f"{spec}: at least 2 classes are needed, found {len(names)} ({', '.join(names)})")
    if len(outside := items.labels[(items.labels < 0) | (items.labels >= len(names))]):
        raise ValueError(f"{spec}: a {part} image has label {outside[0]}, allowed are 0 to {len(names) - 1}")


def data_identity(data: ImageData) -> str:
    """Twelve hexadecimal digits of the content, pixels and labels: two loads agree if and only if this does."""
    digest = hashlib.sha256()
    for part in (data.train_images, data.train_labels, data.validation_images, data.validation_labels):
        digest.update(repr((part.shape, str(part.dtype))).encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:12]


def data_card(data: ImageData) -> dict[str, Any]:
    """What there is to know of the images that a run trains on, as plain JSON values.

    Origin, counts, images of each class, sizes as found, what was skipped, the accuracy of always guessing the largest
    class ("chance"), and the identity of the content.
    """
    parts = {"train": data.train_labels, "validation": data.validation_labels}
    per_class = {part: np.bincount(labels, minlength=len(data.classes)).tolist() for part, labels in parts.items()}
    names = data.classes[:CARD_CLASSES]
    images = {name: {part: per_class[part][index] for part in parts} for index, name in enumerate(names)}
    return {"data": data.spec, **data.card, "images_by_class": images, "identity": data_identity(data)}


def linear_baseline(data: ImageData, seed: int = 0) -> float:
    """Validation accuracy, 0 to 1, of a logistic regression on the raw pixels of the same images and split.

    A network that learned shapes is clearly better. The regularization is the best of a few by validation accuracy,
    which favours the regression.
    """
    from sklearn.linear_model import LogisticRegression

    train = data.train_images.reshape(len(data.train_images), -1).astype(np.float32) / 127.5 - 1
    validation = data.validation_images.reshape(len(data.validation_images), -1).astype(np.float32) / 127.5 - 1
    best = 0.0
    for strength in (1e-4, 1e-3, 1e-2):
        model = LogisticRegression(C=strength, max_iter=100, random_state=seed, tol=1e-3)
        model.fit(train, data.train_labels)
        best = max(best, float(model.score(validation, data.validation_labels)))
    return best


def _image_data(
    spec: str,
    x: Images,
    y: Labels,
    x_validation: Images,
    y_validation: Labels,
    names: Sequence[str],
    card: dict[str, Any],
) -> ImageData:
    counts = np.bincount(y, minlength=len(names))
    card = {
        **card,
        "classes": len(names),
        "train_images": len(y),
        "validation_images": len(y_validation),
        "smallest_class": int(counts.min()),
        "largest_class": int(counts.max()),
        "resolution": int(x.shape[1]),
        "chance": float(np.bincount(y_validation).max() / len(y_validation)),
    }
    return ImageData(x, y, x_validation, y_validation, tuple(names), spec, card)


def _formula(
    spec: str,
    argument: str,
    resolution: int,
    seed: int,
    train_images: int | None,
    validation_images: int | None,
    classes: int | None,
) -> ImageData:
    count = FORMULA_CLASSES if classes is None else classes
    if argument or spec.endswith(":"):
        if not argument.isdecimal() or not 2 <= int(argument) <= 10_000:
            raise ValueError(f"unknown data {spec!r}: formula:CLASSES takes 2 to 10000 classes")
        if classes not in (None, int(argument)):
            raise ValueError(f"classes: {spec!r} has {argument}, given {classes}")
        count = int(argument)
    # Rounded up to full classes: the set is always balanced.
    train = -(-(train_images or FORMULA_TRAIN_IMAGES) // count)
    validation = -(-(validation_images or FORMULA_VALIDATION_IMAGES) // count)
    images, labels = formula_images(count, train + validation, resolution, seed)
    # The first images of a class are its validation images: they stay the same however many it is trained on.
    held_out = np.arange(len(labels)) % (train + validation) < validation
    card = {"source": "formula", "skipped": 0, "origin": "iterated function systems (after FractalDB), no photographs"}
    names = [f"fractal_{i}" for i in range(count)]
    return _image_data(spec, images[~held_out], labels[~held_out], images[held_out], labels[held_out], names, card)


def _split(items: Items, rng: np.random.Generator, spec: str, names: Sequence[str]) -> tuple[Items, Items]:
    """A share of each class that has images, at least one image of it, is held out."""
    held_out = np.zeros(len(items.labels), dtype=bool)
    for label in np.unique(items.labels):
        members = rng.permutation(np.flatnonzero(items.labels == label))
        if len(members) < 2:
            raise ValueError(
                f"{spec}: at least 2 images of each class are needed, one to train and one to validate; "
                f"class {names[label]!r} has {len(members)}"
            )
        held_out[members[: max(1, round(VALIDATION_SHARE * len(members)))]] = True
    return items.take(np.flatnonzero(~held_out)), items.take(np.flatnonzero(held_out))


def _subset(items: Items, count: int | None, rng: np.random.Generator) -> Items:
    """At most `count` items, class by class in the proportions of the whole, but at least one of each class."""
    if count is None or count >= len(items.labels):
        return items
    # The place of an item within its class, shuffled, over the size of the class: the lowest are a stratified choice.
    rank = np.empty(len(items.labels))
    first = []
    for label in np.unique(items.labels):
        members = rng.permutation(np.flatnonzero(items.labels == label))
        rank[members] = (np.arange(len(members)) + rng.random()) / len(members)
        first.append(members[0])
    rank[first] = -1 if len(first) <= count else rank[first]
    return items.take(np.sort(np.argsort(rank, kind="stable")[:count]))


def _decode(items: Items, resolution: int) -> tuple[Images, Labels, list[str], str]:
    """Images (N, resolution, resolution, 3), their labels, the files that could not be read, and the sizes found."""
    from PIL import Image

    images: list[Images] = []
    labels: list[int] = []
    skipped: list[str] = []
    sides: list[int] = []
    for index, label in enumerate(items.labels):
        item = items.images[index]
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
        labels.append(int(label))
    stacked = np.stack(images) if images else np.empty((0, resolution, resolution, 3), dtype=np.uint8)
    sizes = f"{min(sides)} to {max(sides)} pixels" if sides else "none"
    return stacked, np.array(labels, dtype=np.int64), skipped, sizes


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


def _square(picture: Any, resolution: int) -> Images:
    """The central square of a Pillow image, as RGB (resolution, resolution, 3)."""
    from PIL import Image

    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    small = picture.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box)
    return np.asarray(small.convert("RGB"), dtype=np.uint8)
