"""Feeds long trainings: batches of images as bytes, from memory or decoded as they are needed.

A trainer says which images it wants, in which size and from which crops (`Batch`); an `ImageFeed` gives them. Where all
fit into memory they are decoded once (`ResidentFeed`), else again and again by worker processes (`StreamedFeed`).
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, get_worker_info

from .crops import Box, central_box, draws, framed, in_image, random_box
from .memory import available_memory
from .pictures import UNREADABLE, Decoded, decoded, described, opened
from .records import Fit, LabelledImages, Labels, Pixels

logger = logging.getLogger("lownas.evaluators")

RESIDENT_SHARE = 0.25
"""Images stay in memory if they take at most this share of what is available. The rest is for the training itself."""
_DECODED_TOGETHER = 64  # images of a worker's task while a resident part is decoded
_BATCHES_AHEAD = 2  # that each worker prepares
_SHARED_MEMORY = Path("/dev/shm")
_SHARED_MEMORY_MARGIN = 64
"""Batches that shared memory must have room for. Each worker keeps a few; a process that finds none left is killed."""
_SURELY_BROKEN = 1000
"""Images of which not one could be read, after which a pass ends."""
_REDUCED_TO_JUDGE = 2
"""Times the side that a JPEG's crop keeps when it is decoded at a smaller size to judge, as in short trainings. Random
crops, which vary far more, keep the side."""
_FEW_CHUNKS = 16  # are decoded before processes would have started


@dataclass(frozen=True)
class Batch:
    """Which images a training wants, and how.

    Attributes:
        index: (n,) places of the images in their part.
        side: of the square images, in pixels.
        seed: None for the central square, as for judging. Else crops are random, drawn from the seed and the image's
            place alone: the same in any process, in any order.
        crop: least and largest share of the area that a crop covers; with a seed of the picture (from memory: of its
            central square) at a random place, with an aspect ratio of 3/4 to 4/3. Without a seed the central square is
            this share, the largest one, of the largest square. (1, 1) is always the whole central square.
    """

    index: NDArray[np.int64]
    side: int
    seed: int | None = None
    crop: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side: at least 1 pixel, given {self.side}")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"crop: two shares of 0 to 1, the smaller one first, given {self.crop}")

    @property
    def random_crops(self) -> bool:
        """Whether each image is cropped at a place and in a size of its own."""
        return self.seed is not None and self.crop[0] < 1


class ImageFeed(Protocol):
    """One part of a data set as batches of images.

    Attributes:
        labels: (N, ...) of all images of the part, also of those that turn out unreadable.
        resident: whether the images are in memory.
        skipped: what is wrong with those images that could not be read so far, by their places in the part.
    """

    @property
    def labels(self) -> Labels: ...
    @property
    def resident(self) -> bool: ...
    @property
    def skipped(self) -> Mapping[int, str]: ...

    def __len__(self) -> int: ...

    def batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch its images (n, 3, side, side) as bytes, channels last, and their labels (n, ...).

        Images that cannot be read are left out, so n may be less than was asked for, and 0. The first one is said.

        Raises:
            ValueError: no image at all could be read, in one line.
        """
        ...


class ResidentFeed:
    """Images that are decoded once, to central squares of one size, and kept in memory.

    At its own size and uncropped it gives the very images of `pictures.decoded`.

    Args:
        part: the images with their labels.
        side: what they are kept at, in pixels; smaller and larger batches are resized from that (bicubic).
        workers: processes that decode them; 0 for this one.

    Raises:
        ValueError: no image can be read.
    """

    resident = True

    def __init__(self, part: LabelledImages, side: int, *, workers: int = 0) -> None:
        self.labels: Labels = part.labels
        self.kept_side = side
        self.skipped: dict[int, str] = {}
        kept = np.empty((len(part), side, side, 3), dtype=np.uint8)
        chunks = [range(i, min(i + _DECODED_TOGETHER, len(part))) for i in range(0, len(part), _DECODED_TOGETHER)]
        done = _worked(_Squares(part, side), chunks, workers if len(chunks) > _FEW_CHUNKS else 0)
        for chunk, found in zip(chunks, done, strict=True):
            kept[np.array(chunk)[found.readable]] = found.images
            unreadable = np.array(chunk)[~found.readable].tolist()
            _note(self.skipped, dict(zip(unreadable, found.skipped, strict=True)))
        _check_any(len(part), self.skipped)
        self._images, self._labels = torch.from_numpy(kept), torch.from_numpy(np.ascontiguousarray(part.labels))
        self._readable = torch.ones(len(part), dtype=torch.bool)
        self._readable[list(self.skipped)] = False

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """See `ImageFeed.batches`."""
        for batch in batches:
            index = torch.from_numpy(np.asarray(batch.index, dtype=np.int64))
            index = index[self._readable[index]] if self.skipped else index
            yield self._cropped(batch, index), self._labels[index]

    def _cropped(self, batch: Batch, index: Tensor) -> Tensor:
        images = self._images[index].permute(0, 3, 1, 2)  # channels last, so far without another copy
        if not batch.random_crops:
            share = batch.crop[1] if batch.seed is None else 1.0
            return _resized(images, central_box(self.kept_side, self.kept_side, share), batch.side)
        assert batch.seed is not None
        result = torch.empty((len(index), batch.side, batch.side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        for row, numbers in enumerate(draws(batch.seed, index.numpy()).tolist()):
            box = random_box(self.kept_side, self.kept_side, batch.crop, numbers)
            result[row] = _resized(images[row : row + 1], box, batch.side)[0]
        return result


def _resized(images: Tensor, box: Box, side: int) -> Tensor:
    """What is in a box of bytes (n, 3, H, W), brought to (n, 3, side, side)."""
    left, top, right, bottom = map(round, box)
    images = images[:, :, top:bottom, left:right]
    if images.shape[2:] == (side, side) or not len(images):
        return images[:, :, :side, :side]
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True)


class StreamedFeed:
    """Images that are decoded each time they are asked for.

    Args:
        part: the images with their labels.
        workers: processes that decode; 0 for this one, which then waits for it.
    """

    resident = False

    def __init__(self, part: LabelledImages, *, workers: int = 0) -> None:
        self.labels: Labels = part.labels
        self.workers = workers
        self.skipped: dict[int, str] = {}
        self._part, self._labels = part, torch.from_numpy(np.ascontiguousarray(part.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """See `ImageFeed.batches`."""
        readable, unreadable = 0, 0
        for found in _worked(_Crops(self._part), batches, self.workers):
            _note(self.skipped, found.skipped)
            readable, unreadable = readable + len(found.places), unreadable + len(found.skipped)
            if not readable and unreadable >= _SURELY_BROKEN:
                break
            yield torch.as_tensor(found.images).permute(0, 3, 1, 2), self._labels[torch.from_numpy(found.places)]
        if not readable:
            _check_any(unreadable, self.skipped)


class _Squares(Dataset[Any]):
    """The central squares of images, by ranges of their places."""

    def __init__(self, part: LabelledImages, side: int) -> None:
        self.part, self.side = part, side

    def __getitems__(self, chunk: range) -> Decoded:
        return decoded(self.part.take(np.array(chunk, dtype=np.intp)), self.side, chunk.start)


class _CropsFound(NamedTuple):
    """Images (n, side, side, 3), their places (n,), and those that could not be read with what is wrong."""

    images: Tensor | Pixels
    places: NDArray[np.int64]
    skipped: dict[int, str]


class _Crops(Dataset[Any]):
    """The images of batches, decoded and cropped."""

    def __init__(self, part: LabelledImages) -> None:
        self.part = part

    def __getitems__(self, batch: Batch) -> _CropsFound:
        index = np.asarray(batch.index, dtype=np.int64)
        images = np.empty((len(index), batch.side, batch.side, 3), dtype=np.uint8)
        readable = np.ones(len(index), dtype=bool)
        skipped: dict[int, str] = {}
        numbers = draws(batch.seed, index).tolist() if batch.seed is not None and batch.random_crops else None
        for row, place in enumerate(index.tolist()):
            item = self.part.images[place]
            try:
                images[row] = _crop(item, batch, self.part.fit, None if numbers is None else numbers[row])
            except UNREADABLE as error:
                readable[row] = False
                skipped[place] = described(item, place, error)
        if skipped:
            images, index = images[readable], index[readable]
        return _CropsFound(_sendable(images), index, skipped)


def _sendable(images: Pixels) -> Tensor | Pixels:
    """Images as they travel from a worker: through shared memory, or where that is small (in containers) a pipe."""
    if get_worker_info() is None or not _SHARED_MEMORY.is_dir():
        return images
    free = shutil.disk_usage(_SHARED_MEMORY).free
    return torch.from_numpy(images) if free > _SHARED_MEMORY_MARGIN * images.nbytes else images


def _crop(item: Path | bytes | Pixels, batch: Batch, fit: Fit, numbers: Sequence[float] | None) -> Pixels:
    """One image of a batch, (side, side, 3), or (side, side, 1) if it is grey.

    It is resized by torch, whose code for bytes takes a fourth of Pillow's time for the same result.
    """

    def box_in(width: int, height: int) -> Box:
        frame = framed(fit, width, height)
        if numbers is not None:
            return in_image(random_box(*frame, batch.crop, numbers), fit, width, height)
        return in_image(central_box(*frame, batch.crop[1] if batch.seed is None else 1.0), fit, width, height)

    def enough(width: int, height: int) -> tuple[float, float]:
        left, top, right, bottom = box_in(width, height)
        least = batch.side * (_REDUCED_TO_JUDGE if batch.seed is None else 1)
        return least * width / (right - left), least * height / (bottom - top)

    if isinstance(item, Path | bytes):
        picture, (width, height) = opened(item, enough)
        # 1, 2, 4 or 8; reduced sizes are rounded up, so that their ratio is not quite that.
        reduced = 2 ** round(math.log2(width / picture.width))
        left, top, right, bottom = (round(edge / reduced) for edge in box_in(width, height))
        pixels = np.array(picture.crop((left, top, max(right, left + 1), max(bottom, top + 1))))
    else:
        left, top, right, bottom = map(round, box_in(item.shape[1], item.shape[0]))
        pixels = _cut(item, left, top, max(right, left + 1), max(bottom, top + 1))
    image = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)[None]
    if image.shape[2:] != (batch.side, batch.side):
        image = F.interpolate(image, (batch.side, batch.side), mode="bicubic", antialias=True)
    result: Pixels = image[0].permute(1, 2, 0).numpy()
    return result


def _cut(image: Pixels, left: int, top: int, right: int, bottom: int) -> Pixels:
    """What is in a box of an image (H, W) or (H, W, 3); black where the box reaches beyond it."""
    height, width = image.shape[:2]
    inside = np.array(image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)])
    missing = [(max(-top, 0), max(bottom - height, 0)), (max(-left, 0), max(right - width, 0))]
    return np.pad(inside, [*missing, (0, 0)][: image.ndim]) if any(map(any, missing)) else inside


def _worked(dataset: Any, tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    """What `dataset.__getitems__` gives for each task, in their order; by this process if there are no `workers`."""
    if workers == 0:
        yield from map(dataset.__getitems__, tasks)
        return
    loader = DataLoader(
        dataset,
        batch_sampler=tasks,  # type: ignore[arg-type]  # a task stands for a batch's indices
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=_BATCHES_AHEAD,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # not the training's
        worker_init_fn=_quiet,
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OSError(
            "a process that decodes images was ended from outside (out of memory? fewer workers need less)"
        ) from None


def _quiet(worker: int) -> None:
    """Keeps Pillow's remarks on odd files to itself, which each process would make again in each epoch."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _as_it_is(found: Any) -> Any:
    return found


def _note(skipped: dict[int, str], new: Mapping[int, str]) -> None:
    """Adds images that could not be read, and says so of the first ones."""
    if new and not skipped:
        logger.warning("images that cannot be read are left out; the first is %s", next(iter(new.values())))
    skipped.update(new)


def _check_any(looked_at: int, skipped: Mapping[int, str]) -> None:
    """Raises ValueError if as many images were skipped as were looked at."""
    if looked_at and len(skipped) >= looked_at:
        raise ValueError(f"none of {looked_at} images could be read (first: {next(iter(skipped.values()))})")


def readable_labels(feed: ImageFeed) -> Labels:
    """The labels of a feed's images without those that could not be read so far (see `Task.check_readable`)."""
    kept = np.ones(len(feed), dtype=bool)
    kept[list(feed.skipped)] = False
    return feed.labels[kept]


def image_feed(part: LabelledImages, side: int, *, workers: int, memory_bytes: float | None = None) -> ImageFeed:
    """A feed from memory if the images fit there, else one that decodes as it goes.

    Args:
        part: the images with their labels.
        side: the largest one that batches will ask for, in pixels.
        workers: processes that decode; 0 for this one.
        memory_bytes: how much the images may take; None for a quarter of the memory that is available to this process.
    """
    allowed = RESIDENT_SHARE * available_memory() if memory_bytes is None else memory_bytes
    if len(part) * side * side * 3 <= allowed:
        return ResidentFeed(part, side, workers=workers)
    return StreamedFeed(part, workers=workers)
