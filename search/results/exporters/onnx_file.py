"""ONNX, with BatchNorm folded: what runtimes load, and what is timed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....search_space.config import LowFormerConfig

if TYPE_CHECKING:
    from ....search_space.model import LowFormer


class OnnxExporter:
    """Writes an ONNX file, with the model's weights or else with random ones.

    What is known of trained weights stands in its `metadata_props` ("lownas.mean", "lownas.std", "lownas.classes").
    """

    name = "onnx"
    suffix = ".onnx"

    def write(self, config: LowFormerConfig, path: Path, model: LowFormer | None, about: Mapping[str, Any]) -> None:
        from ....search_space.graph.onnx_writer import write_onnx

        weights = None
        metadata = {f"lownas.{name}": json.dumps(value) for name, value in about.items()}
        if model is not None:
            from ....search_space.model import folded_weights

            weights = folded_weights(model)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_onnx(config, path, weights, metadata=metadata)
        except OSError as error:
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error
