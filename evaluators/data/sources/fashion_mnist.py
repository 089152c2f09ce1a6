"""Fashion-MNIST from its IDX files (format: yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..records import DataRequest, FoundData, LabelledImages, Pixels
from .base import DataSource

FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts it

_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_UNSIGNED_BYTE = 8  # the code of this type in an IDX file's header


@dataclass(frozen=True)
class FashionMnist(DataSource):
    """Fashion-MNIST's IDX files, plain or gzipped (`fashion-mnist:DIR`); its part t10k is the test part.

    Attributes:
        folder: where the files are; None or empty for `FASHION_FOLDER`.
    """

    folder: str | None = None

    @property
    def spec(self) -> str:
        return "fashion-mnist" if self.folder is None else f"fashion-mnist:{self.folder}"

    def read(self, request: DataRequest) -> FoundData:
        card = {"origin": "Fashion-MNIST IDX files", "parts": {"test": "t10k, the set's own"}}
        return FoundData(self._part("train"), None, _CLASSES, card)

    def read_test(self, request: DataRequest) -> LabelledImages:
        return self._part("t10k")

    def _part(self, part: str) -> LabelledImages:
        folder = Path(self.folder or FASHION_FOLDER)
        images = _read_idx(folder, f"{part}-images-idx3-ubyte", 3)
        labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", 1).astype(np.int64)
        if len(images) != len(labels):
            raise ValueError(f"{folder}: {part} has {len(images)} images but {len(labels)} labels")
        if not len(labels):
            raise ValueError(f"{folder}: {part} has no images")
        if labels.max() >= len(_CLASSES):
            raise ValueError(f"{folder}: {part} has label {labels.max()}, allowed are 0 to {len(_CLASSES) - 1}")
        return LabelledImages(images, labels)


def _read_idx(folder: Path, name: str, dimensions: int) -> Pixels:
    """Reads an IDX file of unsigned bytes, gzipped or not."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder (Fashion-MNIST's IDX files are expected there)")
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise ValueError(f"{folder}: neither {name} nor {name}.gz is there")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        raise ValueError(f"{path}: not an IDX file of unsigned bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise ValueError(f"{path}: truncated or too long: {len(content)} bytes, expected {expected} for shape {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
