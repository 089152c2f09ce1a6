"""Batches of training and validation images on the device that trains."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data.records import ImageData

RESIDENT_SHARE = 0.25
"""Images stay on a GPU if they take at most this share of its free memory; else a loader brings them batch by batch.
The rest is for the network, its gradients and its activations."""
LOADER_PROCESSES = 2


class ImageBatches:
    """One part of the data as batches for a network, normalized by the mean and spread of the training part's pixels.

    On a CPU, or where they fit, the images are on the device; else a loader's processes bring batches from pinned
    memory.

    Attributes:
        images: bytes (N, 3, R, R).
        labels: (N, ...).
        resident: whether they are on the device.
        mean, scale: (1, 3, 1, 1), by which pixels are normalized: (pixel - mean) * scale.
    """

    def __init__(self, data: ImageData, part: Literal["train", "validation"], device: str) -> None:
        images, labels = (
            (data.train_images, data.train_labels)
            if part == "train"
            else (data.validation_images, data.validation_labels)
        )
        self.device = torch.device(device)
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(labels)
        self.resident = _fits(self.images.numel(), self.device)
        if self.resident:
            self.images, self.labels = self.images.to(self.device), self.labels.to(self.device)
        pixels = data.train_images.reshape(-1, 3)
        mean, spread = pixels.mean(axis=0, dtype=np.float64), pixels.std(axis=0, dtype=np.float64)
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.scale = torch.tensor(1 / np.maximum(spread, 1), dtype=torch.float32, device=device).view(1, 3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each index tensor its images (n, 3, R, R), normalized and channels-last, and labels (n, ...)."""
        if self.resident:
            for index in parts:
                index = index.to(self.device)
                yield self._normalized(self.images[index]), self.labels[index]
            return
        loader = torch.utils.data.DataLoader(
            _Rows(self.images, self.labels),
            batch_sampler=[part.tolist() for part in parts],
            collate_fn=_as_it_is,
            num_workers=min(LOADER_PROCESSES, len(parts)),
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # not the training's
            multiprocessing_context="fork" if sys.platform == "linux" else None,
        )
        for images, labels in loader:
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in (images, labels))
            yield self._normalized(images), labels

    def _normalized(self, images: Tensor) -> Tensor:
        return ((images.float() - self.mean) * self.scale).contiguous(memory_format=torch.channels_last)


class _Rows(torch.utils.data.Dataset[Any]):
    """Gives whole batches at a time (`__getitems__`), which `DataLoader` asks for where it is defined."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def _as_it_is(batch: Any) -> Any:
    return batch


def _fits(size: int, device: torch.device) -> bool:
    """Whether images of this size in bytes stay on the device."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size <= RESIDENT_SHARE * free
