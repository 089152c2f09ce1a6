"""ONNX, with BatchNorm folded: what runtimes load, and what is timed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ....search_space.config import LowFormerConfig

if TYPE_CHECKING:
    from ....search_space.model import LowFormer


class OnnxExporter:
    """Writes an ONNX file, with the model's weights or else with random ones."""

    name = "onnx"
    suffix = ".onnx"

    def write(self, config: LowFormerConfig, path: Path, model: LowFormer | None) -> None:
        from ....search_space.graph.onnx_writer import write_onnx

        weights = None
        if model is not None:
            from ....search_space.model import folded_weights

            weights = folded_weights(model)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_onnx(config, path, weights)
        except OSError as error:
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error
