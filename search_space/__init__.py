"""Describes architectures: configurations, the published ones, the search space, operator graphs and torch models.

Names are resolved on first use. Everything here works without torch, except `build_model`, `load_checkpoint`,
`export_state_dict`, `op_graph_from_torch` and what they return. YAML files are read, and ONNX files read and written,
by libraries that are imported on first use as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints import export_state_dict, load_checkpoint
    from .config import Attention, LowFormerConfig, StageConfig
    from .graph.from_config import op_graph
    from .graph.onnx_reader import op_graph_from_onnx
    from .graph.onnx_writer import write_onnx
    from .graph.operators import OpGraph
    from .graph.shaped_file import OnnxFile
    from .graph.torch_tracer import op_graph_from_torch
    from .heads import Head, register_head
    from .model import LowFormer, build_model
    from .presets import PRESETS, PUBLISHED
    from .space import SearchSpace

__all__ = [
    "PRESETS",
    "PUBLISHED",
    "Attention",
    "Head",
    "LowFormer",
    "LowFormerConfig",
    "OnnxFile",
    "OpGraph",
    "SearchSpace",
    "StageConfig",
    "build_model",
    "export_state_dict",
    "load_checkpoint",
    "op_graph",
    "op_graph_from_onnx",
    "op_graph_from_torch",
    "register_head",
    "write_onnx",
]

_LATE = {
    "PRESETS": "presets",
    "PUBLISHED": "presets",
    "Attention": "config",
    "Head": "heads",
    "LowFormer": "model",
    "LowFormerConfig": "config",
    "OnnxFile": "graph.shaped_file",
    "OpGraph": "graph.operators",
    "SearchSpace": "space",
    "StageConfig": "config",
    "build_model": "model",
    "export_state_dict": "checkpoints",
    "load_checkpoint": "checkpoints",
    "op_graph": "graph.from_config",
    "op_graph_from_onnx": "graph.onnx_reader",
    "op_graph_from_torch": "graph.torch_tracer",
    "register_head": "heads",
    "write_onnx": "graph.onnx_writer",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LATE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
