"""The images of a final training: its parts, what pixels are on average, and which batches an epoch has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import tasks
from ...data.feeding import RESIDENT_SHARE, Batch, ImageFeed, image_feed
from ...data.loading import DataParts
from ...data.memory import available_memory
from ...data.records import EncodedImages, ImageData, LabelledImages
from ...tasks.base import MixableTask
from .optimization import class_weights
from .recipe import TrainingRecipe
from .weights import Pixels

PIXEL_IMAGES = 2_000  # images from which mean and spread of the pixels are taken
LOOK_SIDE = 64  # pixels at which, at most
SIDE_STEP = 4  # sizes of images are multiples of it, in pixels
SMALLEST_SIDE = 24  # pixels of a training image
JUDGED_TOGETHER = 256  # images of a batch that is judged


@dataclass(frozen=True)
class _Joined:
    """The images of two parts, one after the other."""

    parts: tuple[LabelledImages, LabelledImages]
    index: NDArray[np.intp]

    def __getitem__(self, place: int) -> Path | bytes:
        place = int(self.index[place])
        first = len(self.parts[0])
        images = self.parts[0].images if place < first else self.parts[1].images
        return images[place if place < first else place - first]  # type: ignore[return-value]

    def take(self, index: NDArray[np.intp]) -> EncodedImages:
        return _Joined(self.parts, self.index[index])


def joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    """Both parts as one."""
    labels = np.concatenate([first.labels, second.labels])
    one, other = first.images, second.images
    in_memory = all(isinstance(each, np.ndarray) and not isinstance(each, np.memmap) for each in (one, other))
    if in_memory and one.shape[1:] == other.shape[1:]:  # type: ignore[union-attr]
        return LabelledImages(np.concatenate([one, other]), labels, first.fit)  # type: ignore[list-item]
    return LabelledImages(_Joined((first, second), np.arange(len(labels))), labels, first.fit)


def memory_needed(parts: DataParts, side: int) -> int:
    """Bytes that all images to learn from and to judge by take in memory, at the size that a training keeps."""
    return (len(parts.train) + len(parts.validation)) * max(side, SMALLEST_SIDE) ** 2 * 3


def fit_in_memory(needed: int, processes: int, share: float = RESIDENT_SHARE) -> bool:
    """Whether so many bytes for each of several processes are at most this share of the memory that is available."""
    return needed * processes <= share * available_memory()


class TrainingImages:
    """What a final training learns from and is judged by.

    Args:
        parts: of the data.
        both: whether it learns from the validation part too, and is not judged.
        side: of the network's images, pixels.
        workers: processes that decode images where these are not in memory.
        in_memory: whether they are kept there. Crops from there are others, so that a training has one or the other.

    Attributes:
        train: images to learn from.
        validation: images to judge by; None if there are none.
    """

    def __init__(self, parts: DataParts, *, both: bool, side: int, workers: int, in_memory: bool) -> None:
        self.side = side

        def feed(part: LabelledImages) -> ImageFeed:
            allowed = math.inf if in_memory else 0.0
            return image_feed(part, max(side, SMALLEST_SIDE), workers=workers, memory_bytes=allowed)

        self.train = feed(joined(parts.train, parts.validation) if both else parts.train)
        self.validation = None if both else feed(parts.validation)

    def pixels(self) -> Pixels:
        """Mean and spread of the training images' pixels, by channel, of 0 to 1."""
        count = len(self.train)
        looked_at = min(count, PIXEL_IMAGES)
        index = np.arange(looked_at, dtype=np.int64) * count // looked_at  # of all classes, in whose order they stand
        batches = [Batch(part, min(LOOK_SIDE, self.side)) for part in np.array_split(index, max(1, len(index) // 100))]
        total, squares, number = np.zeros(3), np.zeros(3), 0
        for images, _ in self.train.batches(batches):
            values = images.double() / 255
            total += values.sum(dim=(0, 2, 3)).numpy()
            squares += (values**2).sum(dim=(0, 2, 3)).numpy()
            number += values.shape[0] * values.shape[2] * values.shape[3]
        mean = total / number
        spread = np.maximum(np.sqrt(np.maximum(squares / number - mean**2, 0)), 1 / 255)
        return Pixels(_three(mean), _three(spread))

    def sides(self, recipe: TrainingRecipe) -> list[int]:
        """Sides of the training images in pixels, as the recipe alternates them."""
        return [self.side if share == 1 else _side(share * self.side) for share in recipe.sides]

    def epoch(self, recipe: TrainingRecipe, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The batches of an epoch, the same whenever they are asked for.

        Args:
            rank, world: which worker's share of each batch, of how many.
        """
        random = np.random.default_rng([seed, epoch])
        count, size = len(self.train), recipe.batch_size
        if recipe.balance == "sampling":
            counts = np.bincount(self.train.labels)
            chances = 1 / counts[self.train.labels]
            order = random.choice(count, count, p=chances / chances.sum())
        else:
            order = random.permutation(count)
        sides = self.sides(recipe)
        crops = int(random.integers(2**31))
        for step in range(recipe.steps_per_epoch(count)):
            side = sides[int(random.integers(len(sides)))]
            index = order[step * size : (step + 1) * size][rank::world].astype(np.int64)
            yield Batch(index, side, crops, (recipe.crop, 1.0))

    def some(self, recipe: TrainingRecipe, count: int, seed: int) -> list[Batch]:
        """Batches of some training images as they are judged, for BatchNorm's statistics.

        They are of equal size, as they count alike there, and of two images at least.
        """
        order = np.random.default_rng([seed, 1]).permutation(len(self.train))[:count].astype(np.int64)
        parts = np.array_split(order, max(1, math.ceil(count / JUDGED_TOGETHER)))
        return [batch for part in parts if len(part) > 1 for batch in judged(part, self.side, recipe)]

    def weights(self, recipe: TrainingRecipe, task: tasks.Task, classes: int) -> Tensor | None:
        """(classes,) what the images of each class weigh, or None."""
        if recipe.balance != "weights" or not isinstance(task, MixableTask):
            return None
        return class_weights(torch.from_numpy(np.asarray(self.train.labels)), classes)


def judged(index: NDArray[np.int64], side: int, recipe: TrainingRecipe) -> list[Batch]:
    """Batches of images as a network is judged by them: their centre, at the network's own size."""
    share = recipe.judged_share**2
    parts: Sequence[NDArray[np.int64]] = np.split(index, range(JUDGED_TOGETHER, len(index), JUDGED_TOGETHER))
    return [Batch(part, side, None, (share, share)) for part in parts]


def outputs_for(parts: DataParts, task: tasks.Task, side: int) -> int:
    """How many outputs a network for these data has; no image is decoded for that."""

    def blank(part: LabelledImages) -> NDArray[np.uint8]:
        return np.broadcast_to(np.uint8(0), (len(part), side, side, 3))

    train, validation = parts.train, parts.validation
    labels = ImageData(
        blank(train), train.labels, blank(validation), validation.labels, parts.classes, parts.spec, parts.card
    )
    return task.outputs(labels)


def lopsidedness(part: LabelledImages, task: tasks.Task) -> float:
    """Images of the largest class over those of the smallest; 1 where labels are no classes."""
    if not isinstance(task, MixableTask):
        return 1.0
    counts = np.unique(part.labels, return_counts=True)[1]
    return float(counts.max() / counts.min())


def _side(pixels: float) -> int:
    """The nearest size that training images may have."""
    return max(SMALLEST_SIDE, SIDE_STEP * round(pixels / SIDE_STEP))


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    one, two, three = (round(float(value), 6) for value in values)
    return one, two, three
