"""The folders of final trainings: whose they are, what is in them, and that only one process writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..paths import check_writable
from ..results.trained import TRAINING
from ..trials.run_folder import read_about


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a search."""
    return (folder / "run.json").is_file()


def training_of(folder: Path) -> Path:
    """The folder of the training that a folder is or, where it is that of a search, has."""
    return folder / TRAINING if is_run(folder) else folder


def run_settings(run: Path) -> dict[str, Any]:
    """The settings of the search in `run`. Raises ValueError if there is none."""
    settings: dict[str, Any] = read_about(run)["settings"]
    return settings


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps a folder for this process while it trains; what never began leaves nothing behind.

    Files that a killed process had half written are removed.

    Raises ValueError if another process trains there or it is a search's, OSError if the folder cannot be written.
    """
    if is_run(folder):
        raise ValueError(f"{folder} is the folder of a search: train its answer with --run, or name another folder")
    check_writable(folder, "the folder")
    there = folder.exists()
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another training is at work in {folder}; wait for it or name another folder") from None
    except OSError as error:
        raise OSError(f"cannot write the folder {folder}: {error.strerror or error}") from error
    try:
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
        if not (folder / "training.json").exists():
            (folder / "lock").unlink(missing_ok=True)
            if not there:
                with suppress(OSError):
                    folder.rmdir()
