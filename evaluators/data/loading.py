"""Finds and splits labelled images, and loads them for proxy trainings as arrays of one size.

They are the user's own or those that need no download, from any data source (`evaluators.data.sources`): a
specification such as `imagefolder:DIR`, a `DataSource`, or arrays. `find_parts` gives the parts of a data set as they
are found, `load_data` those that a proxy training needs, decoded. Both split alike.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import tasks
from . import sources
from .pictures import average_cut, decoded
from .records import DataRequest, FoundData, ImageData, LabelledImages
from .sources import Data

logger = logging.getLogger("lownas.evaluators")

SMALLEST_SIDE = 8  # pixels; there is nothing to see in smaller images
VALIDATION_SHARE = 0.2
"""Share of the training images that is split off for validation where a source has no such part: one in five."""
MOST_VALIDATION_IMAGES = 10_000
"""Images that are split off for validation at most, but for rounding and one of each class. They tell accuracies apart
that differ by a percentage point; the rest is better learned from."""
MUCH_CUT = 0.3
"""Share of the pictures that is lost on average from which on it is said; 4 to 3 loses a quarter."""
_STREAM = 0xDA7A  # tells the random numbers of splits and subsets from others that are drawn from the same seed


@dataclass(frozen=True)
class DataParts:
    """The parts of a data set with their labels as a task takes them, before any image is decoded.

    Attributes:
        train, validation: the images to learn from and to choose by.
        test: those that judge what was chosen; None if they were not asked for, or there are none.
        classes: names in the order of the labels; empty where the labels are no classes.
        spec: the specification that they were found by.
        card: origin, counts, and under "parts" what each part is, as plain JSON values.
    """

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages | None
    classes: tuple[str, ...]
    spec: str
    card: dict[str, Any] = field(default_factory=dict)


def find_parts(
    data: Data, seed: int = 0, *, resolution: int = 224, task: str | tasks.Task = "classification", test: bool = False
) -> DataParts:
    """Finds all images of a data set and splits them, as `load_data` does with the same seed. Nothing is decoded.

    Args:
        data: a specification, a `DataSource`, or arrays (see `sources.source`).
        seed: of the split and of what a source draws.
        resolution: side of the images in pixels, for a source that makes them to order.
        task: what the labels are for, by name or as an object.
        test: whether to read the test part too. Without it no file of that part is opened.

    Raises:
        ValueError: the data are unknown, or cannot be trained on; one line says why.
    """
    _check_request(resolution, seed)
    source, chosen = sources.source(data), tasks.task(task)
    request = DataRequest(resolution, seed)
    found = source.read(request)
    if test:
        found = replace(found, test=source.read_test(request))
    found = chosen.prepared(found, source.spec)
    train, validation = _split(found, source.spec, chosen, _rng(seed))
    counts = {"train_images": len(train), "validation_images": len(validation)}
    if found.test is not None:
        counts["test_images"] = len(found.test)
    card = {"source": _kind(source.spec), **_described(found), **_fit(train, source.spec), **counts}
    return DataParts(train, validation, found.test, found.classes or (), source.spec, card)


def load_data(
    data: Data,
    resolution: int,
    seed: int = 0,
    *,
    train_images: int | None = None,
    validation_images: int | None = None,
    classes: int | None = None,
    task: str | tasks.Task = "classification",
) -> ImageData:
    """Loads, splits and resizes a data set.

    Which images are taken depends on the data, the seed and the counts alone, not on the resolution.

    Args:
        data: a specification (`sources.source_forms()` lists them), a `DataSource`, or two, four or six arrays.
        resolution: side of the images in pixels.
        seed: of the split, of the choice of a subset and of what a source draws.
        train_images, validation_images: at most this many of each part, chosen as the task does (of classes in
            proportion); None takes all. A source that is made to order rounds up, and has its own numbers for None.
        classes: number of classes, for a source that leaves it open.
        task: what the labels are for, by name or as an object.

    Raises:
        ValueError: the data are unknown, or cannot be trained on; one line says why.
    """
    _check_request(resolution, seed)
    for name, count in (("train_images", train_images), ("validation_images", validation_images)):
        if count is not None and count < 1:
            raise ValueError(f"{name}: at least 1, given {count}")
    source, chosen = sources.source(data), tasks.task(task)
    if classes is not None and not source.open_classes:
        raise ValueError(f"classes can be chosen for 'formula' only, not for {source.spec!r}")
    request = DataRequest(resolution, seed, train_images, validation_images, classes)
    found = chosen.prepared(source.read(request), source.spec)
    if source.made_to_order:
        return _as_found(found, source.spec, chosen)
    return _chosen(found, request, source.spec, chosen)


def _check_request(resolution: int, seed: int) -> None:
    if resolution < SMALLEST_SIDE:
        raise ValueError(f"resolution: at least {SMALLEST_SIDE} pixels, given {resolution}")
    if seed < 0:
        raise ValueError(f"seed: at least 0, given {seed}")


def _rng(seed: int) -> np.random.Generator:
    """What the split and then subsets are drawn from."""
    return np.random.default_rng([seed, _STREAM])


def _split(
    found: FoundData, spec: str, task: tasks.Task, rng: np.random.Generator
) -> tuple[LabelledImages, LabelledImages]:
    """The images to train on and those to validate by, which are split off where the source has none."""
    if found.validation is not None:
        return found.train, found.validation
    share = min(VALIDATION_SHARE, MOST_VALIDATION_IMAGES / max(1, len(found.train)))
    return task.split(found.train, share, found.classes or (), spec, rng)


def _described(found: FoundData) -> dict[str, Any]:
    """The source's card, in which each part has its words."""
    split_off = "split off from the training images, by a share of each class"
    parts = {
        "train": "all images that are neither validation nor test",
        "validation": split_off if found.validation is None else "the source's own",
        "test": "none",
        **found.card.get("parts", {}),
    }
    return {**found.card, "parts": parts}


def _as_found(found: FoundData, spec: str, task: tasks.Task) -> ImageData:
    """The images of a source that gives just what it was asked for."""
    train, validation = found.train, found.validation
    if validation is None or not isinstance(train.images, np.ndarray) or not isinstance(validation.images, np.ndarray):
        raise ValueError(f"{spec}: a source that is made to order must give both parts, as arrays")
    card = {"source": _kind(spec), "skipped": 0, **_described(found)}
    parts = train.images, train.labels, validation.images, validation.labels
    return _image_data(ImageData(*parts, found.classes or (), spec, card), task)


def _chosen(found: FoundData, request: DataRequest, spec: str, task: tasks.Task) -> ImageData:
    """The images that are used of those found, decoded and resized."""
    rng, names = _rng(request.seed), found.classes or ()
    train, validation = _split(found, spec, task, rng)
    available = {"available_train_images": len(train), "available_validation_images": len(validation)}
    train = _subset(train, request.train_images, task, rng)
    validation = _subset(validation, request.validation_images, task, rng)
    learn, judge = decoded(train, request.resolution), decoded(validation, request.resolution)
    skipped = learn.skipped + judge.skipped
    if skipped:
        logger.warning("%s: skipped %d images that could not be read (first: %s)", spec, len(skipped), skipped[0])
    task.check_readable(train.labels, learn.labels, names, spec)
    if not len(judge.labels):
        raise ValueError(f"{spec}: no validation image could be read")
    card = {"source": _kind(spec), "skipped": len(skipped), "sizes": learn.sizes, **available, **_described(found)}
    card |= _fit(train, spec)
    return _image_data(ImageData(learn.images, learn.labels, judge.images, judge.labels, names, spec, card), task)


def _fit(train: LabelledImages, spec: str) -> dict[str, Any]:
    """How images are made squares, and what share of one that costs on average; much of it is warned of."""
    cut = average_cut(train)
    if cut > MUCH_CUT:
        logger.warning(
            "%s: pictures are no squares, and %.0f %% of one are cut off on average (squash:%s and pad:%s keep all)",
            spec, 100 * cut, spec, spec,
        )  # fmt: skip
    return {"fit": train.fit, "cut_off": round(cut, 3)}


def _subset(part: LabelledImages, count: int | None, task: tasks.Task, rng: np.random.Generator) -> LabelledImages:
    return part if count is None or count >= len(part) else part.take(task.subset(part.labels, count, rng))


def _kind(spec: str) -> str:
    return spec.partition(":")[0]


def _image_data(data: ImageData, task: tasks.Task) -> ImageData:
    """`data` with the rest of its card: counts, resolution, and what its labels are."""
    data.card.update(
        train_images=len(data.train_labels),
        validation_images=len(data.validation_labels),
        resolution=data.resolution,
        **task.label_card(data),
    )
    return data


def data_identity(data: ImageData) -> str:
    """Twelve hexadecimal digits of the content, pixels and labels: two loads agree if and only if this does."""
    digest = hashlib.sha256()
    for part in (data.train_images, data.train_labels, data.validation_images, data.validation_labels):
        digest.update(repr((part.shape, str(part.dtype))).encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:12]


def data_card(data: ImageData) -> dict[str, Any]:
    """Describes the images that a run trains on, as plain JSON values.

    Origin, counts, sizes as found, what was skipped, what the labels are (of classes the images of each), the value of
    a constant guess ("chance"), and the identity of the content.
    """
    return {"data": data.spec, **data.card, "identity": data_identity(data)}


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
