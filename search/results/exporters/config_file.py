"""The configuration as JSON, from which everything else can be made again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ....search_space.config import LowFormerConfig
from ...trials.run_folder import write_text

if TYPE_CHECKING:
    from ....search_space.model import LowFormer


class ConfigExporter:
    """Writes the configuration as a JSON file; it holds no weights."""

    name = "config"
    suffix = ".json"

    def write(self, config: LowFormerConfig, path: Path, model: LowFormer | None) -> None:
        write_text(path, config.to_json(indent=2) + "\n")
