"""Pictures in folders, one for each class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..records import DataRequest, FoundData, ImageFiles, LabelledImages
from .base import DataSource

logger = logging.getLogger("lownas.evaluators")

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("val", "valid", "validation", "test", "testing")
"""What parts of a data set are called, in the order in which they are looked for."""

_EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageFolder(DataSource):
    """A folder of pictures for each class (`imagefolder:DIR`); subfolders train/ and val/ or the like are honoured."""

    folder: str

    @property
    def spec(self) -> str:
        return f"imagefolder:{self.folder}"

    def read(self, request: DataRequest) -> FoundData:
        folder, spec = Path(self.folder), self.spec
        if not folder.is_dir():
            raise ValueError(f"{spec}: {'not a folder' if folder.exists() else 'no such folder'}")
        train_folder = _subfolder(folder, TRAIN_NAMES)
        validation_folder = _subfolder(folder, VALIDATION_NAMES) if train_folder else None
        train, names = _listed(train_folder or folder, None)
        if not len(train):
            raise ValueError(
                f"{spec}: no images; expected one subfolder per class with files {', '.join(sorted(_EXTENSIONS))}"
            )
        if len(names) < 2:
            raise ValueError(f"{spec}: at least 2 classes are needed, found {len(names)} ({', '.join(names)})")
        if validation_folder is None:
            return FoundData(train, None, names, {"origin": "image folder, split by class"})
        validation, _ = _listed(validation_folder, names)
        if not len(validation):
            raise ValueError(f"{spec}: no images of the training classes in {validation_folder.name}/")
        origin = f"image folder with {validation_folder.name}/ for validation"
        return FoundData(train, validation, names, {"origin": origin})


def _subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these subfolders that is there, in capitals or not."""
    there = {child.name.lower(): child for child in sorted(folder.iterdir()) if child.is_dir()}
    return next((there[name] for name in names if name in there), None)


def _listed(folder: Path, known: tuple[str, ...] | None) -> tuple[LabelledImages, tuple[str, ...]]:
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
    return LabelledImages(ImageFiles(paths), np.array(labels, dtype=np.int64)), names
