"""Pictures in folders, one for each class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
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

_EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageFolder(DataSource):
    """A folder of pictures for each class (`imagefolder:DIR`); subfolders train/, val/ and test/ are honoured."""

    folder: str

    @property
    def spec(self) -> str:
        return f"imagefolder:{self.folder}"

    def read(self, request: DataRequest) -> FoundData:
        folder, (train_folder, validation_folder, test_folder) = self._folders()
        train, names = _listed(folder, train_folder, None)
        if not len(train):
            raise ValueError(
                f"{self.spec}: no images; expected one subfolder per class with files {', '.join(sorted(_EXTENSIONS))}"
            )
        if len(names) < 2:
            raise ValueError(f"{self.spec}: at least 2 classes are needed, found {len(names)} ({', '.join(names)})")
        parts = {"test": f"the folder {test_folder}/" if test_folder else "none"}
        if validation_folder is None:
            return FoundData(train, None, names, {"origin": "image folder", "parts": parts})
        parts = {"train": f"the folder {train_folder}/", "validation": f"the folder {validation_folder}/", **parts}
        validation = self._known(folder, validation_folder, names)
        return FoundData(train, validation, names, {"origin": "image folder", "parts": parts})

    def read_test(self, request: DataRequest) -> LabelledImages | None:
        folder, (train_folder, _, test_folder) = self._folders()
        if test_folder is None:
            return None
        inside = folder / train_folder
        names = tuple(name for name in _subfolders(inside) if next(_files(str(inside / name), ""), None))
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


def _listed(root: Path, part: str, known: tuple[str, ...] | None) -> tuple[LabelledImages, tuple[str, ...]]:
    """The image files of a folder of classes, sorted, and the classes: those `known`, or those that have images."""
    files: dict[str, list[str]] = {}
    for name in _subfolders(root / part):
        inside = os.path.join(part, name)
        # In the order of paths, which compares folder by folder.
        if found := sorted(_files(str(root / inside), inside), key=lambda file: file.split(os.sep)):
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


def _files(folder: str, name: str) -> Iterator[str]:
    """The image files in a folder and those below it, each with `name` and its way from there.

    Links to files are followed, those to folders are not, as they may lead in a circle. The folder's own listing says
    what is a file; to ask for each of a million would take minutes on a shared file system.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if os.path.splitext(entry.name)[1].lower() in _EXTENSIONS and entry.is_file():
                    yield os.path.join(name, entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    yield from _files(entry.path, os.path.join(name, entry.name))
    except PermissionError:
        logger.warning("%s: cannot be read and is left out", folder)
