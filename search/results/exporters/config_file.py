"""The configuration as JSON, from which everything else can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....search_space.config import LowFormerConfig
from ...trials.run_folder import write_text

if TYPE_CHECKING:
    from ....search_space.model import LowFormer


class ConfigExporter:
    """Writes the configuration as a JSON file; it holds no weights."""

    name = "config"
    suffix = ".json"

    def write(self, config: LowFormerConfig, path: Path, model: LowFormer | None, about: Mapping[str, Any]) -> None:
        write_text(path, config.to_json(indent=2) + "\n")
