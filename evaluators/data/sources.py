"""Where labelled images come from: one reader for each kind of source, none of which decodes or resizes anything.

A reader gives its parts as it finds them; `data.py` splits, chooses, decodes and resizes.
"""

from __future__ import annotations

import gzip
import logging
import struct
import tokenize
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .cifar import read_cifar

logger = logging.getLogger("lownas.evaluators")

FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts it

_EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_TRAIN_FOLDERS = ("train", "training")
_VALIDATION_FOLDERS = ("val", "valid", "validation", "test", "testing")
_ARRAYS = tuple(f"{part}{what}" for part in ("", "train_", "validation_") for what in ("images", "labels"))
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target")
_FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

SOURCES = (
    *("imagefolder:DIR", "fashion-mnist:DIR", "cifar10:PATH", "cifar100:PATH", "arrays:PATH", "hf:NAME"),
    *("hf:NAME:CONFIG", "digits", "formula", "formula:CLASSES"),
)

Labels = NDArray[np.int64]


class Encoded(Protocol):
    """Image files that are fetched one by one: a path, or the bytes of a file."""

    def __getitem__(self, index: int, /) -> Path | bytes: ...

    def take(self, index: NDArray[np.intp], /) -> Encoded: ...


@dataclass(frozen=True)
class Items:
    """Images before any is decoded, with their labels (N,).

    `images` are arrays (N, H, W) or (N, H, W, 3) of bytes, or files.
    """

    images: NDArray[np.uint8] | Encoded
    labels: Labels

    def take(self, index: NDArray[np.intp]) -> Items:
        images = self.images[index] if isinstance(self.images, np.ndarray) else self.images.take(index)
        return Items(images, self.labels[index])


@dataclass(frozen=True)
class Files:
    """Image files by their paths."""

    paths: Sequence[Path]

    def __getitem__(self, index: int) -> Path:
        return self.paths[index]

    def take(self, index: NDArray[np.intp]) -> Files:
        return Files([self.paths[i] for i in index])


@dataclass(frozen=True)
class ImageSource:
    """What a reader found.

    Attributes:
        train: the images to train on.
        validation: those to judge by; None if the source has no such part.
        classes: names, in the order of the labels.
        card: what there is to say of the source, plain JSON values.
    """

    train: Items
    validation: Items | None
    classes: tuple[str, ...]
    card: Mapping[str, Any]


def read_source(spec: str) -> ImageSource:
    """The source that a specification (see `SOURCES`) names.

    Raises ValueError, in one line: unknown, not there, broken, or not usable.
    """
    kind, _, argument = spec.partition(":")
    if kind not in _READERS or ((kind == "digits") != (not argument) and kind != "fashion-mnist"):
        raise ValueError(f"unknown data {spec!r}; allowed are {', '.join(SOURCES)}")
    return _READERS[kind](argument, spec)


def _digits(argument: str, spec: str) -> ImageSource:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.clip(bunch.images * (255 / 16), 0, 255).astype(np.uint8)
    card = {"origin": "scikit-learn's handwritten digits, 8 x 8 pixels: for smoke tests"}
    return ImageSource(Items(grey, bunch.target.astype(np.int64)), None, tuple("0123456789"), card)


def _fashion_mnist(argument: str, spec: str) -> ImageSource:
    folder = Path(argument or FASHION_FOLDER)
    parts = []
    for part in ("train", "t10k"):
        images = _read_idx(folder, f"{part}-images-idx3-ubyte", 3)
        labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", 1).astype(np.int64)
        if len(images) != len(labels):
            raise ValueError(f"{folder}: {part} has {len(images)} images but {len(labels)} labels")
        if not len(labels):
            raise ValueError(f"{folder}: {part} has no images")
        if labels.max() >= len(_FASHION_CLASSES):
            raise ValueError(f"{folder}: {part} has label {labels.max()}, allowed are 0 to {len(_FASHION_CLASSES) - 1}")
        parts.append(Items(images, labels))
    return ImageSource(parts[0], parts[1], _FASHION_CLASSES, {"origin": "Fashion-MNIST IDX files, validation: t10k"})


def _read_idx(folder: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes (format: yann.lecun.com/exdb/mnist), gzipped or not."""
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
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"{path}: not an IDX file of unsigned bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise ValueError(f"{path}: truncated or too long: {len(content)} bytes, expected {expected} for shape {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _imagefolder(argument: str, spec: str) -> ImageSource:
    folder = Path(argument)
    if not folder.is_dir():
        raise ValueError(f"{spec}: {'not a folder' if folder.exists() else 'no such folder'}")
    train_folder = _subfolder(folder, _TRAIN_FOLDERS)
    validation_folder = _subfolder(folder, _VALIDATION_FOLDERS) if train_folder else None
    items, names = _list_folder(train_folder or folder, None)
    if not len(items.labels):
        raise ValueError(
            f"{spec}: no images; expected one subfolder per class with files {', '.join(sorted(_EXTENSIONS))}"
        )
    if len(names) < 2:
        raise ValueError(f"{spec}: at least 2 classes are needed, found {len(names)} ({', '.join(names)})")
    if validation_folder is None:
        return ImageSource(items, None, names, {"origin": "image folder, split by class"})
    validation, _ = _list_folder(validation_folder, names)
    if not len(validation.labels):
        raise ValueError(f"{spec}: no images of the training classes in {validation_folder.name}/")
    return ImageSource(
        items, validation, names, {"origin": f"image folder with {validation_folder.name}/ for validation"}
    )


def _subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these subfolders that is there, in capitals or not."""
    there = {child.name.lower(): child for child in sorted(folder.iterdir()) if child.is_dir()}
    return next((there[name] for name in names if name in there), None)


def _list_folder(folder: Path, known: tuple[str, ...] | None) -> tuple[Items, tuple[str, ...]]:
    """The image files of a folder of classes, sorted, and the classes: those `known`, or those that have images."""
    files: dict[str, list[Path]] = {}
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            found = sorted(p for p in child.rglob("*") if p.suffix.lower() in _EXTENSIONS and p.is_file())
            if found:
                files[child.name] = found
    if known is not None and (extra := sorted(set(files) - set(known))):
        logger.warning("%s: classes without training images are left out: %s", folder, ", ".join(extra))
    names = tuple(files) if known is None else known
    paths = [path for name in names for path in files.get(name, [])]
    labels = [label for label, name in enumerate(names) for _ in files.get(name, [])]
    return Items(Files(paths), np.array(labels, dtype=np.int64)), names


def _cifar(argument: str, spec: str) -> ImageSource:
    classes = int(spec.partition(":")[0].removeprefix("cifar"))
    data = read_cifar(Path(argument), classes)
    return ImageSource(
        Items(data.train_images, data.train_labels),
        Items(data.test_images, data.test_labels),
        data.classes,
        {"origin": f"CIFAR-{classes}'s python archive, validation: its test part"},
    )


# --- arrays ----------------------------------------------------------------------------------------------------------


def _arrays(argument: str, spec: str) -> ImageSource:
    path = Path(argument)
    arrays = _npy_folder(path) if path.is_dir() else _safetensors(path)
    found = ", ".join(sorted(arrays)) or "nothing"
    prefix = "train_" if "train_images" in arrays else ""
    if f"{prefix}images" not in arrays or f"{prefix}labels" not in arrays:
        raise ValueError(f"{spec}: expected are images and labels, or train_images and train_labels; found {found}")
    values: NDArray[Any] | None = None
    parts: list[Items | None] = []
    for part in (prefix, "validation_"):
        here = [name for name in (f"{part}images", f"{part}labels") if name in arrays]
        if not here:
            parts.append(None)
            continue
        if len(here) == 1:
            raise ValueError(f"{spec}: {here[0]} alone; {part}images and {part}labels belong together")
        if arrays[f"{part}images"].shape[:1] == (0,):
            raise ValueError(f"{spec}: no images in {part}images")
        images = _as_bytes(arrays[f"{part}images"], f"{spec}: {part}images")
        labels = arrays[f"{part}labels"]
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(f"{spec}: {part}labels are {labels.dtype} {labels.shape}, expected are integers (N,)")
        if len(labels) != len(images):
            raise ValueError(f"{spec}: {len(images)} {part}images but {len(labels)} {part}labels")
        if values is None:
            values = np.unique(labels)
        if unknown := sorted(set(labels.tolist()) - set(values.tolist())):
            raise ValueError(f"{spec}: {part}labels has {unknown[0]}, which no training image has")
        parts.append(Items(images, np.searchsorted(values, labels).astype(np.int64)))
    train, validation = parts
    assert train is not None and values is not None
    return ImageSource(train, validation, tuple(map(str, values)), {"origin": f"arrays: {found}"})


def _npy_folder(folder: Path) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for file in (folder / f"{name}.npy" for name in _ARRAYS):
        if not file.exists():
            continue
        try:
            # Not `np.load`: it opens archives, whatever their name. Both refuse arrays of objects.
            arrays[file.stem] = np.lib.format.open_memmap(file, mode="r")
        # What numpy stumbles over in a damaged header is among them.
        except (ValueError, OSError, EOFError, OverflowError, TypeError, tokenize.TokenError) as error:
            raise ValueError(f"{file}: not a plain array: {' '.join(str(error).split()):.120}") from None
    return arrays


def _safetensors(file: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        raise ValueError(f"{file}: no such file or folder (a .safetensors file, or a folder of .npy files)")
    try:
        return dict(load_file(file))
    except (TypeError, AttributeError):  # how numbers that numpy does not have announce themselves
        raise ValueError(f"{file}: numbers that numpy lacks (bfloat16, float8); expected are bytes or floats") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: not a safetensors file: {' '.join(str(error).split()):.120}") from None


def _as_bytes(images: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """(N, H, W) or (N, H, W, 1, 3 or 4), or channels first, bytes or floats of 0 to 1, as (N, H, W) or (N, H, W, 3)."""
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
    images = images.astype(np.uint8)
    if images.ndim == 3:
        return images
    return images[..., 0] if images.shape[-1] == 1 else images[..., :3]


# --- Hugging Face ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Encoded images of a Hugging Face data set's column."""

    table: Any
    column: str

    def __getitem__(self, index: int) -> bytes | Path:
        image = self.table[index][self.column] or {}  # None where there is none
        if image.get("bytes") is not None or image.get("path") is None:
            return image.get("bytes") or b""  # which no decoder takes for an image
        return Path(image["path"])

    def take(self, index: NDArray[np.intp]) -> _Rows:
        return _Rows(self.table.select(index), self.column)


def _hugging_face(argument: str, spec: str) -> ImageSource:
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise ValueError(f"{spec} needs the library `datasets`: pip install 'lownas[data]'") from None
    found = _load_dataset(argument, spec)
    train = next((found[part] for part in _TRAIN_FOLDERS if part in found), None)
    if train is None:
        raise ValueError(f"{spec}: no split 'train'; there are {', '.join(found)}")
    image, label = _columns(train, spec)
    kind = train.features[label]
    given = train[label][:]
    # Known from here on: the names in the order of the labels, and the label of each value that may occur.
    if isinstance(kind, datasets.ClassLabel):
        names = tuple(kind.names)
        number = {index: index for index in range(len(names))}
    else:
        values = sorted({value for value in given if value is not None})
        names = tuple(map(str, values))
        number = {value: index for index, value in enumerate(values)}

    def items(part: Any) -> Items:
        values = part[label][:]
        if unknown := sorted({str(value) for value in values if value not in number}):
            raise ValueError(
                f"{spec}: {unknown[0]} in column {label!r} is no class; classes are {', '.join(names):.80}"
            )
        files = part.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        return Items(_Rows(files, image), np.array([number[value] for value in values], dtype=np.int64))

    # A published test part may hide its labels (-1 or none): then it is no part to judge by.
    held_out = next(
        (part for part in _VALIDATION_FOLDERS if part in found and not {-1, None}.issuperset(found[part][label][:])),
        None,
    )
    judged = f"validation: {held_out}" if held_out else "split by class"
    origin = f"Hugging Face data set, columns {image!r} and {label!r}, {judged}"
    return ImageSource(items(train), items(found[held_out]) if held_out else None, names, {"origin": origin})


def _load_dataset(argument: str, spec: str) -> Any:
    """The parts of a data set by their names; of what the library reads, nothing is executed."""
    import datasets

    name, _, config = argument.partition(":")
    if name == "pandas":  # the library's reader of pickles, which it would let loose on the current folder
        raise ValueError(f"{spec}: not a data set; of a folder called so say hf:./pandas")
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise ValueError(f"{spec}: no such folder")
    try:
        return datasets.load_dataset(name, config or None)
    # Whatever the library and the network raise: not found, no access, a script it would have to run, broken files.
    except Exception as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = " ".join(str(cause or error).split())
        raise ValueError(f"{spec}: cannot be loaded: {type(error).__name__}: {reason:.200}") from None


def _columns(table: Any, spec: str) -> tuple[str, str]:
    """The columns of images and of labels, by their types; else labels are integers or text, by name or alone."""
    import datasets

    images = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
    labels = [column for column, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    plain = [
        column
        for column, kind in table.features.items()
        if isinstance(kind, datasets.Value) and kind.dtype.strip("u").startswith(("int", "string", "large_string"))
    ]
    labels = labels or [column for column in _LABEL_COLUMNS if column in plain] or (plain if len(plain) == 1 else [])
    if not images or not labels:
        raise ValueError(
            f"{spec}: a column of images and one of labels are needed; there are {', '.join(table.column_names):.120}"
        )
    return images[0], labels[0]


_READERS: Mapping[str, Callable[[str, str], ImageSource]] = {
    "imagefolder": _imagefolder,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "arrays": _arrays,
    "hf": _hugging_face,
    "digits": _digits,
}
