"""Classification: each image is one of several classes, and a network is judged by the share it gets right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.records import FoundData, ImageData, LabelledImages, Labels
from .augmentation import flips_and_shifts
from .base import Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .base import Augmentation

LISTED_CLASSES = 1000
"""Classes that a data card lists one by one, at most: as many as ImageNet has."""


@dataclass(frozen=True)
class Accuracy:
    """The share of the images that are classified correctly, which is its own score."""

    name = "accuracy"
    unit = "share of the images classified correctly"
    range = (0.0, 1.0)
    higher_is_better = True

    def value(self, outputs: Tensor, labels: Tensor) -> float:
        return (outputs.argmax(dim=1) == labels).float().mean().item()

    def score(self, value: float) -> float:
        return value

    def from_score(self, score: float) -> float:
        return score


@dataclass(frozen=True)
class Classification:
    """One of several classes for each image: labels (N,) are integers, the loss is the cross-entropy in nats."""

    name = "classification"
    head = "classification"
    metric = Accuracy()

    # --- data

    def prepared(self, found: FoundData, spec: str) -> FoundData:
        """Labels as indices into the names of the classes, int64; any integers may stand for classes."""
        if found.classes is None:
            found = _numbered(found, spec)
        names = found.classes or ()
        for part, name in ((found.train, "training"), (found.validation, "validation"), (found.test, "test")):
            if part is not None:
                _check(part.labels, name, names, spec)
        return found

    def split(
        self, part: LabelledImages, share: float, classes: Sequence[str], spec: str, rng: np.random.Generator
    ) -> tuple[LabelledImages, LabelledImages]:
        """Holds out a share of each class that has images, at least one image of it."""
        held_out = np.zeros(len(part), dtype=bool)
        for label in np.unique(part.labels):
            members = rng.permutation(np.flatnonzero(part.labels == label))
            if len(members) < 2:
                raise ValueError(
                    f"{spec}: at least 2 images of each class are needed, one to train and one to validate; "
                    f"class {classes[label]!r} has {len(members)}"
                )
            held_out[members[: max(1, round(share * len(members)))]] = True
        return part.take(np.flatnonzero(~held_out)), part.take(np.flatnonzero(held_out))

    def subset(self, labels: Labels, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Takes class by class in the proportions of the whole, but at least one image of each class."""
        # The place of an image within its class, shuffled, over the size of the class: the lowest are a stratified
        # choice.
        rank = np.empty(len(labels))
        first = []
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            rank[members] = (np.arange(len(members)) + rng.random()) / len(members)
            first.append(members[0])
        rank[first] = -1 if len(first) <= count else rank[first]
        return np.sort(np.argsort(rank, kind="stable")[:count])

    def check_readable(self, labels: Labels, readable: Labels, classes: Sequence[str], spec: str) -> None:
        if lost := sorted({int(label) for label in labels} - {int(label) for label in readable}):
            raise ValueError(f"{spec}: class {classes[lost[0]]!r} has no readable training image")

    def label_card(self, data: ImageData) -> dict[str, Any]:
        """How many classes there are, how many images of each, and the accuracy of always guessing the largest."""
        parts = {"train": data.train_labels, "validation": data.validation_labels}
        counts = {part: np.bincount(labels, minlength=len(data.classes)) for part, labels in parts.items()}
        listed = data.classes[:LISTED_CLASSES]
        return {
            "classes": len(data.classes),
            "smallest_class": int(counts["train"].min()),
            "largest_class": int(counts["train"].max()),
            "chance": float(counts["validation"].max() / len(data.validation_labels)),
            "images_by_class": {
                name: {part: int(counts[part][index]) for part in parts} for index, name in enumerate(listed)
            },
        }

    # --- training

    def outputs(self, data: ImageData) -> int:
        """One for each class."""
        return len(data.classes)

    def start(self, model: nn.Module) -> None:
        """Lets all classes be equally likely at first: the classifier weighs nothing."""
        from torch import nn

        nn.init.zeros_(model.classifier.weight)  # type: ignore[union-attr, arg-type]

    def augmentation(self, recipe: Recipe, side: int) -> Augmentation:
        """Mirrors and shifts images; their class stays."""
        augment = flips_and_shifts(recipe, side)
        return lambda images, labels: (augment(images), labels)

    def loss(self, outputs: Tensor, labels: Tensor, recipe: Recipe | None = None) -> Tensor:
        """The cross-entropy in nats, in training with smoothed labels."""
        from torch.nn import functional as F

        return F.cross_entropy(outputs, labels, label_smoothing=recipe.label_smoothing if recipe else 0.0)

    def shares(self, labels: Tensor, outputs: int) -> Tensor:
        """Its class has all of an image."""
        from torch.nn import functional as F

        return F.one_hot(labels, outputs).float()

    def summed_score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """How many images of the batch are classified correctly."""
        return (outputs.argmax(dim=1) == labels).sum()


def _numbered(found: FoundData, spec: str) -> FoundData:
    """`found` with classes for the values of its labels, in their order."""
    found = replace(
        found,
        train=_without_one_hot(found.train),
        validation=None if found.validation is None else _without_one_hot(found.validation),
        test=None if found.test is None else _without_one_hot(found.test),
    )
    parts = {"training": found.train, "validation": found.validation, "test": found.test}
    for name, part in parts.items():
        if part is not None and (part.labels.ndim != 1 or part.labels.dtype.kind not in "iu"):
            raise ValueError(
                f"{spec}: {name} labels are {part.labels.dtype} {part.labels.shape}, expected are integers (N,), "
                "or rows of zeros with a single one (N, classes)"
            )
    values = np.unique(found.train.labels)

    def numbered(part: LabelledImages, name: str) -> LabelledImages:
        if unknown := sorted(set(part.labels.tolist()) - set(values.tolist())):
            raise ValueError(f"{spec}: {name}_labels has {unknown[0]}, which no training image has")
        return replace(part, labels=np.searchsorted(values, part.labels).astype(np.int64))

    return replace(
        found,
        train=numbered(found.train, "train"),
        validation=None if found.validation is None else numbered(found.validation, "validation"),
        test=None if found.test is None else numbered(found.test, "test"),
        classes=tuple(map(str, values)),
    )


def _without_one_hot(part: LabelledImages) -> LabelledImages:
    """`part` with the places of the ones where each label is a row of zeros with a single one."""
    labels = part.labels
    if labels.ndim != 2 or labels.shape[1] < 2 or not len(labels):
        return part
    one_hot = ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()
    return replace(part, labels=labels.argmax(axis=1)) if one_hot else part


def _check(labels: Labels, part: str, names: Sequence[str], spec: str) -> None:
    """Raises ValueError unless there are images, two classes, and no label beyond them."""
    if not len(labels):
        raise ValueError(f"{spec}: no {part} images")
    if len(names) < 2:
        raise ValueError(f"{spec}: at least 2 classes are needed, found {len(names)} ({', '.join(names)})")
    if len(outside := labels[(labels < 0) | (labels >= len(names))]):
        raise ValueError(f"{spec}: a {part} image has label {outside[0]}, allowed are 0 to {len(names) - 1}")
