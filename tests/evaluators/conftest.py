"""What tests of several readers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Evil:
    """Pickled, it is a program that creates the file `path` when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))
