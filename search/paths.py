"""Files and folders that people name: as they are found again from elsewhere, and whether they can be written."""

from __future__ import annotations

import os
from pathlib import Path


def absolute(file: str) -> str:
    """The absolute path of a file that a run names, as it may be resumed or replayed from another folder."""
    return str(Path(file).absolute()) if Path(file).is_file() else file


def absolute_data(spec: str) -> str:
    """A specification of data, with the absolute path of the file or folder that it names."""
    kind, colon, argument = spec.partition(":")
    if kind in ("squash", "pad"):  # of another specification
        return f"{kind}:{absolute_data(argument)}"
    path, *rest = (argument, "") if Path(argument).exists() else argument.partition(":")
    return f"{kind}:{Path(path).absolute()}{''.join(rest)}" if colon and path and Path(path).exists() else spec


def check_writable(folder: Path, what: str) -> None:
    """Raises OSError, in one line, if a folder cannot be written into, or not be made."""
    nearest = next(known for known in (folder, *folder.absolute().parents) if known.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "is not a folder" if not nearest.is_dir() else "is not writable"
        raise OSError(f"cannot write {what} {folder}: {nearest} {reason}")


def new_folder(parent: Path, name: str) -> Path:
    """The first of PARENT/NAME-1, -2, ... that is not there."""
    number = 1
    while (path := parent / f"{name}-{number}").exists():
        number += 1
    return path
