"""The formats that a network can be written in, each found by name.

To add one, write an `Exporter` in a file of its own and register it here, or from your own code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....search_space.config import LowFormerConfig
from .base import Exporter
from .config_file import ConfigExporter
from .onnx_file import OnnxExporter
from .weights_file import WeightsExporter

if TYPE_CHECKING:
    from ....search_space.model import LowFormer

__all__ = ["Exporter", "export_config", "exporter_names", "register_exporter"]

EXPORTERS: dict[str, Exporter] = {}


def register_exporter(exporter: Exporter) -> Exporter:
    """Makes an export format known by its name."""
    EXPORTERS[exporter.name] = exporter
    return exporter


register_exporter(ConfigExporter())
register_exporter(OnnxExporter())
register_exporter(WeightsExporter())


def exporter_names() -> tuple[str, ...]:
    """The names of all known formats."""
    return tuple(EXPORTERS)


def export_config(
    config: LowFormerConfig,
    stem: Path,
    *,
    formats: Sequence[str],
    model: LowFormer | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Writes a network in each of the formats to STEM and the format's suffix; gives what was written.

    Args:
        model: the network with trained weights; None where there are none.
        about: what these are for, see `Exporter`.

    Raises ValueError for an unknown format, OSError if a file cannot be written.
    """
    if unknown := [name for name in formats if name not in EXPORTERS]:
        raise ValueError(f"export format {unknown[0]!r}: allowed are {sorted(EXPORTERS)}")
    written = []
    for name in formats:
        exporter = EXPORTERS[name]
        path = stem.with_name(stem.name + exporter.suffix)
        exporter.write(config, path, model, about or {})
        written.append(path)
    return written
