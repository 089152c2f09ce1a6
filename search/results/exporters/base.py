"""What an export format is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ....search_space.config import LowFormerConfig

if TYPE_CHECKING:
    from ....search_space.model import LowFormer


class Exporter(Protocol):
    """Writes a network in one format.

    To write another one, give a class a `name`, a `suffix` and `write`, and register an instance
    (`lownas.search.register_exporter`); then `lownas export --format NAME` and `result.export("NAME")` find it.
    `write` writes the file completely or not at all: to a temporary file beside it, then renamed. It is handed the
    model with its trained weights where there are some; else it writes fresh ones, or none, as the format has it.
    `about` says what trained weights are for, as JSON values: "classes", the "resolution", "mean" and "std" of the
    input, and more; it is empty for fresh ones. What the format needs beside this package is imported in `write`; a
    missing package is a ValueError that says what to install.

    Attributes:
        name: that users say.
        suffix: of the file, with its dot.
    """

    @property
    def name(self) -> str: ...
    @property
    def suffix(self) -> str: ...

    def write(self, config: LowFormerConfig, path: Path, model: LowFormer | None, about: Mapping[str, Any]) -> None:
        """Writes `path`. Raises OSError, in one line, if that is not possible."""
