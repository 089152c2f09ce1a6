"""Weights as safetensors, from which training, judging and exporting can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....search_space.config import LowFormerConfig
from ...trials.run_folder import write_bytes

if TYPE_CHECKING:
    from ....search_space.model import LowFormer


class WeightsExporter:
    """Writes a safetensors file, its configuration in the metadata: the model's weights, or else fresh ones."""

    name = "weights"
    suffix = ".safetensors"

    def write(self, config: LowFormerConfig, path: Path, model: LowFormer | None, about: Mapping[str, Any]) -> None:
        from safetensors.torch import save

        from ....evaluators.training.final.weights import FORMAT
        from ....search_space.model import build_model

        network = build_model(config) if model is None else model
        metadata = {"format": FORMAT, "about": json.dumps(dict(about))} if about else {}
        tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        write_bytes(path, save(tensors, {**metadata, "config": json.dumps(config.to_dict())}))
