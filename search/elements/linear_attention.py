"""ReLU linear attention as EfficientViT has it (arXiv 2205.14756), without its multi-scale convolutions, as ONNX.

x + projection(v (relu(k)^T relu(q)) / normalization), with GroupNorm before it: its cost grows with the pixels, not
with their square. The operator graphs of this package have no such products, so it is written here by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HEAD_CHANNELS = 32
OPSET, IR_VERSION = 17, 8
EPSILON = 1e-5


def _heads(channels: int) -> tuple[int, int]:
    heads = max(1, channels // HEAD_CHANNELS)
    return heads, channels // heads


def macs(channels: int, pixels: int) -> int:
    """Multiply-accumulates of one block for one image."""
    heads, dim = _heads(channels)
    return pixels**2 * (4 * channels * channels + 2 * heads * dim * (dim + 1))


def params(channels: int) -> int:
    """Parameters of one block: two convolutions, one bias, a norm."""
    return 4 * channels * channels + 3 * channels


def write(folder: Path, channels: int, pixels: int, copies: int, batch: int) -> Path:
    """Writes a chain of blocks between two 1x1 convolutions and before the global mean; gives the file."""
    import onnx
    from onnx import TensorProto, helper

    path = folder / f"linear-attention-{channels}x{pixels}-b{batch}.onnx"
    build = _Nodes(np.random.default_rng(0))
    x = build.node("HardSwish", [build.convolution("input", channels, channels, "first")], "first_act")
    for number in range(copies):
        x = build.block(x, channels, pixels, f"block{number}")
    x = build.node("HardSwish", [build.convolution(x, channels, channels, "last")], "last_act")
    x = build.node("GlobalAveragePool", [x], "pool")
    build.node("Flatten", [x], "output", axis=1)
    shape, out = [batch, channels, pixels, pixels], [batch, channels]
    graph = helper.make_graph(
        build.nodes,
        "linear_attention",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, out)],
        build.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    partial = path.with_suffix(".partial")
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(partial))
    partial.rename(path)
    return path


class _Nodes:
    """Nodes and constants so far."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._rng = rng

    def node(self, kind: str, inputs: Sequence[str], name: str, outputs: int = 1, **attributes: Any) -> str:
        from onnx import helper

        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def convolution(self, source: str, cin: int, cout: int, name: str) -> str:
        weight = self._rng.standard_normal((cout, cin, 1, 1), dtype=np.float32) / np.sqrt(np.float32(cin))
        bias = self.constant(f"{name}.bias", self._rng.standard_normal(cout, dtype=np.float32) * np.float32(0.1))
        return self.node("Conv", [source, self.constant(f"{name}.weight", weight), bias], name, kernel_shape=[1, 1])

    def norm(self, source: str, channels: int, pixels: int, name: str) -> str:
        """GroupNorm of one group, written as the networks of this package have it."""
        flat = self.constant(f"{name}.flat", np.array([0, 1, -1], np.int64))
        back = self.constant(f"{name}.back", np.array([0, channels, pixels, pixels], np.int64))
        one, zero = (self.constant(f"{name}.{value}", np.array([value], np.float32)) for value in (1, 0))
        x = self.node("Reshape", [source, flat], f"{name}_flat")
        x = self.node("InstanceNormalization", [x, one, zero], f"{name}_norm", epsilon=EPSILON)
        x = self.node("Reshape", [x, back], f"{name}_back")
        scale = self.constant(f"{name}.scale", np.ones((channels, 1, 1), np.float32))
        bias = self.constant(f"{name}.bias", np.full((channels, 1, 1), 0.1, np.float32))
        return self.node("Add", [self.node("Mul", [x, scale], f"{name}_scale"), bias], f"{name}_bias")

    def block(self, source: str, channels: int, pixels: int, name: str) -> str:
        heads, dim = _heads(channels)
        normed = self.norm(source, channels, pixels, f"{name}_gn")
        qkv = self.convolution(normed, channels, 3 * heads * dim, f"{name}_qkv")
        shape = self.constant(f"{name}.heads", np.array([0, heads, 3 * dim, pixels**2], np.int64))
        tokens = self.node("Reshape", [qkv, shape], f"{name}_tokens")
        parts = self.constant(f"{name}.parts", np.array([dim] * 3, np.int64))
        split = self.node("Split", [tokens, parts], f"{name}_split", outputs=3, axis=2)
        q, k = (self.node("Relu", [f"{split}_{i}"], f"{name}_relu{i}") for i in range(2))
        one, zero = (self.constant(f"{name}.pad{what}", value) for what, value in (("s", _PADS), ("v", _ONE)))
        v = self.node("Pad", [f"{split}_2", one, zero], f"{name}_pad")
        turned = self.node("Transpose", [k], f"{name}_kt", perm=[0, 1, 3, 2])
        products = self.node("MatMul", [v, turned], f"{name}_vk")
        out = self.node("MatMul", [products, q], f"{name}_vkq")
        sizes = self.constant(f"{name}.sizes", np.array([dim, 1], np.int64))
        shares = self.node("Split", [out, sizes], f"{name}_shares", outputs=2, axis=2)
        small = self.constant(f"{name}.eps", np.array([EPSILON], np.float32))
        norm = self.node("Add", [f"{shares}_1", small], f"{name}_norm")
        out = self.node("Div", [f"{shares}_0", norm], f"{name}_div")
        back = self.constant(f"{name}.map", np.array([0, heads * dim, pixels, pixels], np.int64))
        out = self.node("Reshape", [out, back], f"{name}_map")
        out = self.convolution(out, heads * dim, channels, f"{name}_proj")
        return self.node("Add", [out, source], f"{name}_sum")


_PADS = np.array([0, 0, 0, 0, 0, 0, 1, 0], np.int64)  # one more row after the channels of v
_ONE = np.array(1, np.float32)
