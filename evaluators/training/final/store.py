"""Where a final training keeps its files: a folder here, or one that another process writes into."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """Files by their names, each written completely or not at all.

    `LocalStore` is one; another one is where the workers of a distributed training hand files to the process that
    started them.
    """

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, over one that is there. Raises OSError, in one line; the former content then stays."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if there is none."""
        ...

    def remove(self, name: str) -> None:
        """Removes a file if it is there."""
        ...


class LocalStore:
    """A folder of this machine, made when the first file is written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error

    def read(self, name: str) -> bytes | None:
        path = self.folder / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OSError(f"cannot read {path}: {error.strerror or error}") from error

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
