"""Images and labels that are arrays already: in files, or given in Python."""

from __future__ import annotations

import hashlib
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import DataRequest, FoundData, LabelledImages, Pixels
from .base import DataSource

_NAMES = tuple(f"{part}{what}" for part in ("", "train_", "validation_") for what in ("images", "labels"))
_TEST_NAMES = ("test_images", "test_labels")


@dataclass(frozen=True)
class ArrayFiles(DataSource):
    """A .safetensors file, or a folder of .npy files (`arrays:PATH`).

    They hold `images` and `labels`, or `train_images` and `train_labels`; with them there may be `validation_images`
    and `validation_labels`, and `test_images` and `test_labels`.
    """

    path: str

    @property
    def spec(self) -> str:
        return f"arrays:{self.path}"

    def read(self, request: DataRequest) -> FoundData:
        there, arrays = self._arrays(_NAMES)
        found = ", ".join(sorted(there)) or "nothing"
        return _data(arrays, self.spec, f"arrays: {found}", found, tested=any(name in there for name in _TEST_NAMES))

    def read_test(self, request: DataRequest) -> LabelledImages | None:
        return _part(self._arrays(_TEST_NAMES)[1], "test_", self.spec)

    def _arrays(self, names: tuple[str, ...]) -> tuple[list[str], dict[str, NDArray[Any]]]:
        """The names of all arrays that are there, and those of these `names`; no others are read."""
        path = Path(self.path)
        return _npy_folder(path, names) if path.is_dir() else _safetensors(path, names)


class ArraySource(DataSource):
    """Arrays that were given in Python. Two with the same content are equal, here and in a worker.

    Args:
        images: (N, H, W) or (N, H, W, 1, 3 or 4), or channels first; bytes, or floats of 0 to 1.
        labels: (N,) integers for a classification; other tasks take what they say.
        validation_images, validation_labels: those to choose by; a share is split off if there are none.
        test_images, test_labels: those to judge the final network by, if there are such.

    Attributes:
        spec: "memory:" and twelve hexadecimal digits of the content.

    Raises:
        ValueError: arrays that cannot be used, in one line.
    """

    kind = "memory"

    def __init__(
        self,
        images: Any,
        labels: Any,
        validation_images: Any = None,
        validation_labels: Any = None,
        test_images: Any = None,
        test_labels: Any = None,
    ) -> None:
        given = {
            **{"images": images, "labels": labels},
            **{"validation_images": validation_images, "validation_labels": validation_labels},
            **{"test_images": test_images, "test_labels": test_labels},
        }
        arrays = {name: np.asarray(array) for name, array in given.items() if array is not None}
        self._test = _part(arrays, "test_", "data")
        found = ", ".join(sorted(arrays))
        self._found = _data(arrays, "data", "arrays given in Python", found, tested=self._test is not None)
        digest = hashlib.sha256()
        for part in (self._found.train, self._found.validation, self._test):
            for array in () if part is None else (part.images, part.labels):
                assert isinstance(array, np.ndarray)
                digest.update(repr((array.shape, str(array.dtype))).encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        self._spec = f"{self.kind}:{digest.hexdigest()[:12]}"

    @property
    def spec(self) -> str:
        return self._spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArraySource) and other.spec == self.spec

    def __hash__(self) -> int:
        return hash(self.spec)

    def __repr__(self) -> str:
        return f"ArraySource({self.spec}, {len(self._found.train)} images)"

    def read(self, request: DataRequest) -> FoundData:
        return self._found

    def read_test(self, request: DataRequest) -> LabelledImages | None:
        return self._test


def _data(arrays: Mapping[str, NDArray[Any]], spec: str, origin: str, found: str, *, tested: bool) -> FoundData:
    """The parts in `arrays` by their names, but for the test part.

    Args:
        arrays: by their names.
        spec: what they are called.
        origin: for the card.
        found: the names of all arrays that are there.
        tested: whether there is a test part.

    Raises:
        ValueError: arrays that cannot be used, in one line that begins with `spec`.
    """
    prefix = "train_" if "train_images" in arrays else ""
    if f"{prefix}images" not in arrays or f"{prefix}labels" not in arrays:
        raise ValueError(f"{spec}: expected are images and labels, or train_images and train_labels; found {found}")
    train = _part(arrays, prefix, spec)
    assert train is not None
    parts = {"test": "test_images" if tested else "none"}
    return FoundData(train, _part(arrays, "validation_", spec), None, {"origin": origin, "parts": parts})


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str, spec: str) -> LabelledImages | None:
    """The images and labels whose names begin with `prefix`; None if there are neither."""
    here = [name for name in (f"{prefix}images", f"{prefix}labels") if name in arrays]
    if not here:
        return None
    if len(here) == 1:
        raise ValueError(f"{spec}: {here[0]} alone; {prefix}images and {prefix}labels belong together")
    if arrays[f"{prefix}images"].shape[:1] == (0,):
        raise ValueError(f"{spec}: no images in {prefix}images")
    images = _as_bytes(arrays[f"{prefix}images"], f"{spec}: {prefix}images")
    labels = arrays[f"{prefix}labels"]
    if labels.ndim < 1 or labels.dtype.kind not in "iuf":
        raise ValueError(f"{spec}: {prefix}labels are {labels.dtype} {labels.shape}, expected are numbers (N,)")
    if len(labels) != len(images):
        raise ValueError(f"{spec}: {len(images)} {prefix}images but {len(labels)} {prefix}labels")
    return LabelledImages(images, labels)


def _npy_folder(folder: Path, names: tuple[str, ...]) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """What there is in a folder of .npy files, and the arrays of these names, of which none may hold objects."""
    arrays: dict[str, NDArray[Any]] = {}
    there = [name for name in (*_NAMES, *_TEST_NAMES) if (folder / f"{name}.npy").exists()]
    for name in there:
        if name not in names:
            continue
        file = folder / f"{name}.npy"
        try:
            # Not `np.load`: it opens archives, whatever their name. Both refuse arrays of objects.
            arrays[name] = np.lib.format.open_memmap(file, mode="r")
        # What numpy stumbles over in a damaged header is among them.
        except (ValueError, OSError, EOFError, OverflowError, TypeError, tokenize.TokenError) as error:
            raise ValueError(f"{file}: not a plain array: {' '.join(str(error).split()):.120}") from None
    return there, arrays


def _safetensors(file: Path, names: tuple[str, ...]) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """What there is in a safetensors file, and the arrays of these names."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ValueError(f"{file}: no such file or folder (a .safetensors file, or a folder of .npy files)")
    try:
        with safe_open(file, framework="numpy") as content:
            there = list(content.keys())
            return there, {name: content.get_tensor(name) for name in there if name in names}
    except (TypeError, AttributeError):  # how numbers that numpy does not have announce themselves
        raise ValueError(f"{file}: numbers that numpy lacks (bfloat16, float8); expected are bytes or floats") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: not a safetensors file: {' '.join(str(error).split()):.120}") from None


def _as_bytes(images: NDArray[Any], what: str) -> Pixels:
    """Images of any layout that is accepted, as bytes (N, H, W) or (N, H, W, 3).

    Accepted are (N, H, W) and (N, H, W, 1, 3 or 4), or channels first; bytes, or floats of 0 to 1.
    """
    said = f"{what} are {images.dtype} {images.shape}"
    if images.ndim == 4 and images.shape[-1] not in (1, 3, 4) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3, 4)) or not images.size:
        raise ValueError(f"{said}, expected is (N, H, W), (N, H, W, channels) or (N, channels, H, W)")
    if images.dtype.kind == "f":
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{said} from {low:g} to {high:g}, expected are 0 to 1, or bytes")
        images = np.round(np.asarray(images) * 255)
    elif images.dtype != np.uint8:
        raise ValueError(f"{said}, expected are bytes (uint8), or floats of 0 to 1")
    images = images.astype(np.uint8, copy=False)
    if images.ndim == 3:
        return images
    return images[..., 0] if images.shape[-1] == 1 else images[..., :3]
