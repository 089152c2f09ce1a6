"""CIFAR-10 and CIFAR-100 from their python archives (cs.toronto.edu/~kriz/cifar.html), read without unpickling."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..plain_pickle import one_line, plain_pickle
from ..records import DataRequest, FoundData, LabelledImages
from .base import DataSource

SIDE = 32  # pixels
LARGEST_FILE = 256 * 2**20
"""Bytes of one file of an archive, unpacked; those of CIFAR have at most 155 MB."""


@dataclass(frozen=True)
class _CifarSource(DataSource):
    """The python archive, or the folder in it; validation images are split off from its training part."""

    path: str

    class_count = 0

    @property
    def spec(self) -> str:
        return f"cifar{self.class_count}:{self.path}"

    def read(self, request: DataRequest) -> FoundData:
        data = read_cifar(Path(self.path), self.class_count)
        parts = {"test": "CIFAR's test batch" if self.class_count == 10 else "CIFAR's part test"}
        card = {"origin": f"CIFAR-{self.class_count}'s python archive", "parts": parts}
        return FoundData(LabelledImages(data.images, data.labels), None, data.classes, card)

    def read_test(self, request: DataRequest) -> LabelledImages:
        data = read_cifar(Path(self.path), self.class_count, test=True)
        return LabelledImages(data.images, data.labels)


class Cifar10(_CifarSource):
    """CIFAR-10 (`cifar10:PATH`)."""

    class_count = 10


class Cifar100(_CifarSource):
    """CIFAR-100 with its fine labels (`cifar100:PATH`)."""

    class_count = 100


@dataclass(frozen=True)
class Cifar:
    """Images (N, 32, 32, 3) and labels (N,) of one part, and the names of the classes."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]


def read_cifar(path: Path, classes: int, *, test: bool = False) -> Cifar:
    """Reads one part of CIFAR-`classes` (10 or 100) from the archive `path`, its folder, or the folder around that.

    Args:
        path: the archive or folder.
        classes: 10 or 100.
        test: whether to read the test part; else it is the training part. The other one is left alone.

    Raises:
        ValueError: nothing there, cut short, not CIFAR, or something in it that is no plain data; in one line.
    """
    folder, train, test_part = {
        10: ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "test_batch"),
        100: ("cifar-100-python", ["train"], "test"),
    }[classes]
    label_key, meta, names_key = {
        10: ("labels", "batches.meta", "label_names"),
        100: ("fine_labels", "meta", "fine_label_names"),
    }[classes]
    parts = [test_part] if test else train
    files = _files(path, folder, [*parts, meta])
    found = [_part(files[part], f"{path}: {part}", label_key, classes) for part in parts]
    names = plain_pickle(files[meta], f"{path}: {meta}").get(names_key)
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: {meta} does not name {classes} classes")
    return Cifar(np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found]), tuple(names))


def _part(content: bytes, what: str, label_key: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 32, 32, 3) and labels (N,) of one pickled batch."""
    batch = plain_pickle(content, what)
    data, given = batch.get("data"), batch.get(label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
        raise ValueError(f"{what}: no images of 32 x 32 pixels")
    if not isinstance(given, list) or not all(isinstance(label, int) and label.bit_length() < 63 for label in given):
        raise ValueError(f"{what}: no {label_key!r}")
    labels = np.array(given, dtype=np.int64)
    if len(labels) != len(data):
        raise ValueError(f"{what}: {len(data)} images but {len(labels)} labels")
    if len(wrong := labels[(labels < 0) | (labels >= classes)]):
        raise ValueError(f"{what}: label {wrong[0]}, allowed are 0 to {classes - 1}")
    return np.ascontiguousarray(data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels


def _files(path: Path, folder: str, wanted: list[str]) -> dict[str, bytes]:
    """The content of the wanted files, from the archive or the folder."""
    if path.is_dir():
        inside = path / folder if (path / folder).is_dir() else path
        if missing := [name for name in wanted if not (inside / name).is_file()]:
            raise ValueError(f"{path}: no {missing[0]} there (expected: {folder}/ with {', '.join(wanted)})")
        try:
            for name in wanted:
                _check_size((inside / name).stat().st_size, name, path)
            return {name: (inside / name).read_bytes() for name in wanted}
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error}") from None
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder (the python archive of CIFAR, or the folder in it)")
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                _check_size(member.size, member.name, path)  # also of others: they are unpacked to be skipped
                name = member.name.removeprefix("./").removeprefix(f"{folder}/")
                if name in wanted and member.isfile() and (content := archive.extractfile(member)):
                    found[name] = content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path}: cut short, or no archive: {one_line(error)}") from None
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"{path}: no {missing[0]} in it (expected: {folder}/ with {', '.join(wanted)})")
    return found


def _check_size(size: int, name: str, path: Path) -> None:
    if size > LARGEST_FILE:
        raise ValueError(f"{path}: {name} is said to have {size} bytes, allowed are {LARGEST_FILE}")
