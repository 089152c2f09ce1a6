"""Pictures in folders, one for each class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np

from ..records import DataRequest, FoundData, ImageFiles, LabelledImages
from .base import DataSource

logger = logging.getLogger("lownas.evaluators")

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("val", "valid", "validation")
TEST_NAMES = ("test", "testing")
"""What the parts of a data set are called, in the order in which they are looked for."""

_NO_PICTURES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow knows without reading pictures from them: it has only their names, or runs another program."""
_LOOK_LIKE_PICTURES = frozenset(
    {
        ".3fr", ".arw", ".avif", ".avifs", ".cr2", ".cr3", ".dcm", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic",
        ".heif", ".jp2", ".jpx", ".jxl", ".nef", ".orf", ".pef", ".psb", ".raf", ".raw", ".rw2", ".svg", ".wmf", ".xcf",
    }
)  # fmt: skip
"""Extensions of pictures that the installed Pillow may not read; such files are counted in the card."""


@cache
def picture_extensions() -> frozenset[str]:
    """The extensions of all formats that the installed Pillow reads pictures from."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(name for name, kind in known.items() if kind in Image.OPEN and kind not in _NO_PICTURES)


@dataclass(frozen=True)
class ImageFolder(DataSource):
    """A folder of pictures for each class (`imagefolder:DIR`); subfolders train/, val/ and test/ are honoured."""

    folder: str

    @property
    def spec(self) -> str:
        return f"imagefolder:{self.folder}"

    def read(self, request: DataRequest) -> FoundData:
        folder, (train_folder, validation_folder, test_folder) = self._folders()
        unread: Counter[str] = Counter()
        train, names = _listed(folder, train_folder, None, unread)
        if not len(train):
            other = f" (found {_counted(unread)}, which this Pillow does not read)" if unread else ""
            raise ValueError(
                f"{self.spec}: no images{other}; expected one subfolder per class with files .jpg, .png, .webp, ..."
            )
        if len(names) < 2:
            raise ValueError(f"{self.spec}: at least 2 classes are needed, found {len(names)} ({', '.join(names)})")
        parts = {"test": f"the folder {test_folder}/" if test_folder else "none"}
        if unread:
            logger.warning("%s: pictures that this Pillow does not read are left out: %s", folder, _counted(unread))
        card = {"origin": "image folder", **({"not_read": dict(unread)} if unread else {})}
        if validation_folder is None:
            return FoundData(train, None, names, {**card, "parts": parts})
        parts = {"train": f"the folder {train_folder}/", "validation": f"the folder {validation_folder}/", **parts}
        validation = self._known(folder, validation_folder, names)
        return FoundData(train, validation, names, {**card, "parts": parts})

    def read_test(self, request: DataRequest) -> LabelledImages | None:
        folder, (train_folder, _, test_folder) = self._folders()
        if test_folder is None:
            return None
        inside = folder / train_folder
        names = tuple(name for name in _subfolders(inside) if next(_files(str(inside / name), "", Counter()), None))
        return self._known(folder, test_folder, names)

    def _folders(self) -> tuple[Path, tuple[str, str | None, str | None]]:
        """The folder, and the names of those for training ("" for itself), validation and testing."""
        folder = Path(self.folder)
        if not folder.is_dir():
            raise ValueError(f"{self.spec}: {'not a folder' if folder.exists() else 'no such folder'}")
        there = {child.name.lower(): child.name for child in sorted(folder.iterdir()) if child.is_dir()}
        train, validation, test = (
            next((there[name] for name in names if name in there), None)
            for names in (TRAIN_NAMES, VALIDATION_NAMES, TEST_NAMES)
        )
        return folder, ("", None, None) if train is None else (train, validation, test)

    def _known(self, folder: Path, part: str, names: tuple[str, ...]) -> LabelledImages:
        """The images of a part whose classes are known."""
        found, _ = _listed(folder, part, names)
        if not len(found):
            raise ValueError(f"{self.spec}: no images of the training classes in {part}/")
        return found


def _counted(unread: Counter[str]) -> str:
    return ", ".join(f"{count} {extension}" for extension, count in sorted(unread.items()))


def _listed(
    root: Path, part: str, known: tuple[str, ...] | None, unread: Counter[str] | None = None
) -> tuple[LabelledImages, tuple[str, ...]]:
    """The image files of a folder of classes, sorted, and the classes: those `known`, or those that have images.

    What looks like a picture but is not read is counted in `unread`, by extension.
    """
    unread = Counter() if unread is None else unread
    files: dict[str, list[str]] = {}
    for name in _subfolders(root / part):
        inside = os.path.join(part, name)
        # In the order of paths, which compares folder by folder.
        if found := sorted(_files(str(root / inside), inside, unread), key=lambda file: file.split(os.sep)):
            files[name] = found
    if known is not None and (extra := sorted(set(files) - set(known))):
        logger.warning("%s: classes without training images are left out: %s", root / part, ", ".join(extra))
    names = tuple(files) if known is None else known
    lists = [files.get(name, []) for name in names]
    labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(found) for found in lists])
    return LabelledImages(ImageFiles.of(root, chain.from_iterable(lists)), labels), names


def _subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: str, name: str, unread: Counter[str]) -> Iterator[str]:
    """The image files in a folder and those below it, each with `name` and its way from there.

    Names that begin with "._" are notes of macOS on the file of the rest of that name. Links to files are followed,
    those to folders are not, as they may lead in a circle. The folder's own listing says what is a file; to ask for
    each of a million would take minutes on a shared file system.
    """
    known = picture_extensions()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                extension = os.path.splitext(entry.name)[1].lower()
                if extension in known and entry.is_file():
                    if not entry.name.startswith("._"):
                        yield os.path.join(name, entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    yield from _files(entry.path, os.path.join(name, entry.name), unread)
                elif extension in _LOOK_LIKE_PICTURES and not entry.name.startswith("._"):
                    unread[extension] += 1
    except PermissionError:
        logger.warning("%s: cannot be read and is left out", folder)
