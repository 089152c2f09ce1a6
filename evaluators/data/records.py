"""The records in which labelled images travel from a data source to a training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""Images as bytes, (N, H, W) or (N, H, W, 3) in RGB."""

Fit = Literal["crop", "squash", "pad"]
"""How an image that is no square becomes one: its centre alone, all of it squashed, or all of it between black bars."""

Labels = NDArray[Any]
"""One label for each image, (N,) or (N, ...); what they mean is the task's concern (`evaluators.tasks`)."""


class EncodedImages(Protocol):
    """Images that are fetched one by one, each as a path, as the bytes of a file or as pixels (H, W) or (H, W, 3)."""

    def __getitem__(self, index: int, /) -> Path | bytes | Pixels: ...

    def take(self, index: NDArray[np.intp], /) -> EncodedImages: ...


@dataclass(frozen=True)
class ImageFiles:
    """Image files in a folder, by their names.

    The names stand in one block of bytes. As objects, those of ImageNet would take half a gigabyte, of which each
    process that decodes would make a copy, as Python writes to what it reads.

    Attributes:
        folder: what the names are relative to.
        names: all names, one after the other, as the file system has them.
        starts, ends: (N,) where each image's name is in `names`.
    """

    folder: Path
    names: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, folder: Path, names: Iterable[str]) -> ImageFiles:
        """The files of these names, which may have folders in them."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(folder, b"".join(encoded), np.concatenate([[0], ends])[:-1].astype(np.int64), ends)

    def __getitem__(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.names[self.starts[index] : self.ends[index]])

    def take(self, index: NDArray[np.intp]) -> ImageFiles:
        return ImageFiles(self.folder, self.names, self.starts[index], self.ends[index])


@dataclass(frozen=True)
class ArrayRows:
    """Images of an array that stays on disk, by their rows: taking some of them reads none."""

    array: Pixels
    rows: NDArray[np.intp]

    def __getitem__(self, index: int) -> Pixels:
        return np.asarray(self.array[self.rows[index]])

    def take(self, index: NDArray[np.intp]) -> ArrayRows:
        return ArrayRows(self.array, self.rows[index])


@dataclass(frozen=True)
class LabelledImages:
    """One part of a data set before any image is decoded or resized.

    Attributes:
        images: arrays (N, H, W) or (N, H, W, 3) of bytes, or what gives images one by one.
        labels: (N,) or (N, ...), one for each image.
        fit: how images that are no squares become squares.
    """

    images: Pixels | EncodedImages
    labels: Labels
    fit: Fit = "crop"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.intp]) -> LabelledImages:
        if isinstance(self.images, np.memmap):
            return LabelledImages(ArrayRows(self.images, np.asarray(index)), self.labels[index], self.fit)
        images = self.images[index] if isinstance(self.images, np.ndarray) else self.images.take(index)
        return LabelledImages(images, self.labels[index], self.fit)


@dataclass(frozen=True)
class DataRequest:
    """What a training asks of a data source. Most sources give all they have and need not look at it.

    Attributes:
        resolution: side of the images in pixels.
        seed: for whatever the source draws at random.
        train_images, validation_images: how many of each part are used at most; None for all.
        classes: how many classes there should be; None leaves it to the source.
    """

    resolution: int
    seed: int
    train_images: int | None = None
    validation_images: int | None = None
    classes: int | None = None


@dataclass(frozen=True)
class FoundData:
    """What a data source found.

    Attributes:
        train: the images to train on.
        validation: those to judge by; None if the source has no such part, and one is to be split off.
        classes: their names in the order of the labels, which are then indices into them; None if the labels are values
            as they stand in the source, which the task gives a meaning.
        card: what there is to say of the source, as plain JSON values; under "parts" what its own parts are, in words.
        test: the images that judge at the very end. `DataSource.read` leaves them alone; loading adds them on request.
    """

    train: LabelledImages
    validation: LabelledImages | None
    classes: tuple[str, ...] | None
    card: Mapping[str, Any] = field(default_factory=dict)
    test: LabelledImages | None = None


@dataclass(frozen=True)
class ImageData:
    """Images of one size with their labels, in two parts, ready for training.

    Attributes:
        train_images, validation_images: (N, R, R, 3) RGB.
        train_labels, validation_labels: (N,) or (N, ...); of a classification indices into `classes`.
        classes: names; empty where the labels are no classes.
        spec: the specification that they were loaded from.
        card: origin, counts, sizes as found, images skipped and what the labels are, as plain JSON values.
    """

    train_images: Pixels
    train_labels: Labels
    validation_images: Pixels
    validation_labels: Labels
    classes: tuple[str, ...]
    spec: str
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        return int(self.train_images.shape[1])
