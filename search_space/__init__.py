"""What an architecture is: configurations, the published ones, models, operator graphs and the space itself.

Everything here works without torch, except `build_model`, `load_checkpoint` and what they return, which import it on
first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import Attention, LowFormerConfig, StageConfig
from .graph import OpGraph, op_graph
from .presets import PRESETS, PUBLISHED
from .space import SearchSpace

if TYPE_CHECKING:
    from .checkpoints import export_state_dict, load_checkpoint
    from .lowformer import LowFormer, build_model
    from .onnx_graph import op_graph_from_onnx, write_onnx
    from .torch_graph import op_graph_from_torch

__all__ = [
    "PRESETS",
    "PUBLISHED",
    "Attention",
    "LowFormer",
    "LowFormerConfig",
    "OpGraph",
    "SearchSpace",
    "StageConfig",
    "build_model",
    "export_state_dict",
    "load_checkpoint",
    "op_graph",
    "op_graph_from_onnx",
    "op_graph_from_torch",
    "write_onnx",
]

_LATE = {
    "LowFormer": "lowformer",
    "build_model": "lowformer",
    "export_state_dict": "checkpoints",
    "load_checkpoint": "checkpoints",
    "op_graph_from_onnx": "onnx_graph",
    "op_graph_from_torch": "torch_graph",
    "write_onnx": "onnx_graph",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LATE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
