"""Writes operator graphs as ONNX files, directly and without torch.

That takes milliseconds instead of the seconds that exporting a torch module takes, and a device without torch can be
calibrated. Files that are measured and files that are shipped come from this one writer. `onnx_reader` reads files of
any exporter.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..config import LowFormerConfig
from .from_config import op_graph
from .operators import COLUMN, GRAPH_INPUT, KINDS, OpGraph

OPSET = 20
"""The first operator set with Gelu; onnxruntime >= 1.17 and TensorRT >= 10 read it."""
IR_VERSION = 10
NORM_EPSILON = 1e-5
"""torch's default for all normalizations."""
RANDOM_NUMBERS = 1 << 16
"""Random weights repeat after so many numbers."""

_OF_MAPS = frozenset(
    ("conv", "conv_transpose", "max_pool", "avg_pool", "resize", "crop", "group_norm", "batch_norm", "permute")
)
"""Operators that read and write maps, whatever comes before them."""

Weights = Sequence[Sequence[NDArray[np.float32]]]
"""For each operator of a graph its constants: weight and bias, or a norm's scale and bias."""


def random_weights(graph: OpGraph, seed: int = 0) -> list[list[NDArray[np.float32]]]:
    """Draws constants of the right shapes that keep activations in the range of a trained network's."""
    numbers = np.random.default_rng(seed).standard_normal(RANDOM_NUMBERS, dtype=np.float32)
    result: list[list[NDArray[np.float32]]] = []
    for row, op in enumerate(graph.table.tolist()):
        pool = np.roll(numbers, row)  # runtimes keep equal constants once, and then read them from their caches
        kind = KINDS[op[COLUMN["kind"]]]
        cin, cout, groups = op[COLUMN["cin"]], op[COLUMN["cout"]], op[COLUMN["groups"]]
        kernel = (op[COLUMN["kh"]], op[COLUMN["kw"]])
        constants = []
        if kind in ("conv", "conv_transpose", "linear"):
            shape: tuple[int, ...] = (cout, cin // groups, *kernel)
            if kind == "conv_transpose":
                shape = (cin, cout // groups, *kernel)
            elif kind == "linear":
                shape = (cout, cin)
            fan_in = cin // groups * kernel[0] * kernel[1]
            constants.append((np.resize(pool, shape) / np.float32(np.sqrt(fan_in))).astype(np.float32))
            if op[COLUMN["bias"]]:
                constants.append(np.resize(pool, cout) * np.float32(0.1))
        elif kind in ("group_norm", "layer_norm"):
            constants = [1 + np.resize(pool, cout) * np.float32(0.1), np.resize(pool, cout) * np.float32(0.1)]
        elif kind == "batch_norm":
            scale, shift = 1 + np.resize(pool, cout) * np.float32(0.1), np.resize(pool, cout) * np.float32(0.1)
            constants = [scale, shift, shift, np.abs(scale)]
        elif kind in ("add", "mul") and op[COLUMN["weights"]]:
            constants = [1 + np.resize(pool, op[COLUMN["weights"]]) * np.float32(0.1)]
        result.append(constants)
    return result


MAP, TOKENS, PIXELS, VECTOR = "map", "tokens", "pixels", "vector"
"""Layouts that a value can have while it is written: (N, C, H, W), (N, T, C), (N, H, W, C) or (N, C)."""

_SIMPLE = {
    "hardswish": "HardSwish",
    "gelu": "Gelu",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "add": "Add",
    "mul": "Mul",
}
_MERGED = {"relu", "sigmoid", "hardsigmoid", "tanh"}
"""Operators that onnxruntime merges with a convolution before them."""


class _Writer:
    """Turns canonical operators into ONNX nodes, adding the reshapes and transposes that operator graphs leave out.

    Attributes:
        graph, weights, batch: what is written.
        nodes, constants: what has been written so far.
        values: row of the table -> name of its output.
        layouts: row of the table -> layout of its output.
        converted: (row of the table, layout) -> name of its output in that layout.
        attention_inputs: row of an operator that makes q, k and v -> the names of these.
        sources: for each row those that it reads.
    """

    def __init__(self, graph: OpGraph, weights: Weights, batch: int | str) -> None:
        self.graph = graph
        self.weights = weights
        self.batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.values: dict[int, str] = {}
        self.layouts: dict[int, str] = {GRAPH_INPUT: MAP}
        self.converted: dict[tuple[int, str], str] = {}
        self.attention_inputs: dict[int, list[str]] = {}
        self.sources = graph.inputs_of()

    def node(self, kind: str, inputs: Sequence[str], name: str, count: int = 1, **attributes: Any) -> list[str]:
        outputs = [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        return outputs

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def write(self) -> onnx.ModelProto:
        first = self.graph.table[0]
        shape = [self.batch, *(int(first[COLUMN[name]]) for name in ("cin", "hin", "win"))]
        self.values[GRAPH_INPUT] = "input"
        for row, sources in enumerate(self.sources):
            self.values[row] = self.operator(row, sources)
        rank = {MAP: 4, PIXELS: 4, TOKENS: 3, VECTOR: 2}[self.layouts[len(self.graph) - 1]]
        output = [self.batch, int(self.graph.table[-1][COLUMN["cout"]])] if rank == 2 else [None] * rank
        self.nodes[-1].output[0] = "output"
        return helper.make_model(
            helper.make_graph(
                self.nodes,
                "lownas",
                [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
                [helper.make_tensor_value_info("output", TensorProto.FLOAT, output)],
                self.constants,
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="lownas",
        )

    def in_layout(self, source: int, layout: str, op: dict[str, int]) -> str:
        """Gives the output of `source` in the layout that the operator `op` needs, by reshapes and a transposition."""
        have = self.layouts[source]
        if have == layout or VECTOR in (have, layout):
            return self.values[source]
        if (source, layout) in self.converted:
            return self.converted[source, layout]
        name, value = f"op{source}_transpose", self.values[source]
        if have == MAP and layout == PIXELS:
            value = self.node("Transpose", [value], name, perm=[0, 2, 3, 1])[0]
        elif have == PIXELS and layout == MAP:
            value = self.node("Transpose", [value], name, perm=[0, 3, 1, 2])[0]
        elif have == MAP:
            flat = self.constant(f"{name}.flat", np.array([0, int(op["cin"]), -1], np.int64))
            value = self.node("Reshape", [value, flat], f"op{source}_flat")[0]
            value = self.node("Transpose", [value], name, perm=[0, 2, 1])[0]
        else:
            value = self.node("Transpose", [value], name, perm=[0, 2, 1])[0]
            back = self.constant(f"{name}.back", np.array([0, op["cin"], op["hin"], op["win"]], np.int64))
            value = self.node("Reshape", [value, back], f"op{source}_back")[0]
        self.converted[source, layout] = value
        return value

    def operator(self, row: int, sources: list[int]) -> str:
        op = {name: int(self.graph.table[row, index]) for name, index in COLUMN.items()}
        kind = KINDS[op["kind"]]
        name = f"op{row}_{kind}"
        if kind in _MERGED and sources[0] != GRAPH_INPUT and KINDS[self.graph.table[sources[0], 0]] == "conv":
            # onnxruntime makes one operator of the two, which gets the name of the second.
            name += f"_of{sources[0]}"
        layout = self.layout_of(kind, op, sources)
        self.layouts[row] = layout
        if kind == "matmul":
            return self.matmul(row, op, sources, name)
        inputs = [self.values[s] if kind == "softmax" else self.in_layout(s, layout, op) for s in sources]
        if kind == "group_norm":
            return self.group_norm(row, op, inputs[0], name)
        if kind == "linear" and layout != VECTOR:
            return self.linear_tokens(row, op, inputs[0], name)
        weights = self.weights[row]
        if kind in ("add", "mul") and weights:
            weights = [weights[0].reshape(self.operand_shape(op, layout))]
        names = [f"{name}.{i}" for i in range(len(weights))]
        if kind == "conv" and op["params"] > op["weights"]:  # named as exporters name what is left of a BatchNorm
            names[1] = f"{name}.0_bias"
        constants = [self.constant(each, value) for each, value in zip(names, weights, strict=True)]
        if kind in ("conv", "conv_transpose"):
            onnx_kind = "Conv" if kind == "conv" else "ConvTranspose"
            return self.node(onnx_kind, [*inputs, *constants], name, **self.window(op), group=op["groups"])[0]
        if kind in ("max_pool", "avg_pool"):
            return self.node("MaxPool" if kind == "max_pool" else "AveragePool", inputs, name, **self.window(op))[0]
        if kind == "linear":
            return self.node("Gemm", [*inputs, *constants], name, transB=1)[0]
        if kind == "softmax":
            return self.node("Softmax", inputs, name, axis=-1)[0]
        if kind == "layer_norm":
            return self.node("LayerNormalization", [*inputs, *constants], name, axis=-1, epsilon=NORM_EPSILON)[0]
        if kind == "batch_norm":
            return self.node("BatchNormalization", [*inputs, *constants], name, epsilon=NORM_EPSILON)[0]
        if kind == "hardsigmoid":
            return self.node("HardSigmoid", inputs, name, alpha=1 / 6)[0]
        if kind == "silu":
            gate = self.node("Sigmoid", inputs, f"{name}_gate")[0]
            return self.node("Mul", [*inputs, gate], name)[0]
        if kind == "concat":
            return self.node("Concat", inputs, name, axis=1 if layout == MAP else -1)[0]
        if kind in ("global_pool", "reduce"):
            return self.mean(op, kind, inputs[0], name, layout)
        if kind == "resize":
            scales = self.constant(f"{name}.scales", np.array([1, 1, op["stride"], op["stride"]], np.float32))
            modes: dict[str, Any] = {
                "mode": "nearest",
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor",
            }
            return self.node("Resize", [inputs[0], "", scales], name, **modes)[0]
        if kind == "crop":
            return self.slice(inputs[0], [0, 0], [op["hout"], op["wout"]], [2, 3], name)
        if kind == "move":
            return self.slice(inputs[0], [0], [op["cout"]], [1], name)
        if kind == "permute":
            return self.space_to_depth(op, inputs[0], name)
        if kind in _SIMPLE:
            return self.node(_SIMPLE[kind], [*inputs, *constants], name)[0]
        raise ValueError(f"write_onnx does not write {kind!r}")

    def layout_of(self, kind: str, op: dict[str, int], sources: list[int]) -> str:
        """Gives the layout of an operator's output, which is with few exceptions that of its inputs."""
        before = self.layouts[sources[0]]
        if kind in ("linear", "layer_norm"):
            if op["hin"] * op["win"] == 1 and before == VECTOR:
                return VECTOR
            return PIXELS if op["win"] > 1 or before == PIXELS else TOKENS
        if kind == "global_pool":
            return MAP if self.is_gate(sources[0]) else VECTOR
        if kind == "reduce":
            return MAP if before == MAP else VECTOR
        if kind in _OF_MAPS:
            return MAP
        if kind == "matmul":
            return MAP if KINDS[self.graph.table[sources[1], 0]] == "conv" else TOKENS
        layouts = {self.layouts[source] for source in sources}
        if len(layouts) > 1:
            return MAP
        flattens = before == MAP and sources[0] != GRAPH_INPUT and op["wout"] == 1 < op["hout"]
        return TOKENS if flattens and self.graph.table[sources[0], COLUMN["wout"]] > 1 else before

    def is_gate(self, source: int) -> bool:
        """Tells whether something else reads `source` too, as in squeeze-excitation the product with the gate does."""
        return sum(source in sources for sources in self.sources) > 1

    def operand_shape(self, op: dict[str, int], layout: str) -> tuple[int, ...]:
        """Gives the shape of a constant that is added or multiplied: a number for each channel, or for each element."""
        per_channel = op["weights"] == op["cout"]
        if layout == MAP:
            return (op["cout"], 1, 1) if per_channel else (op["cout"], op["hout"], op["wout"])
        return (op["cout"],) if per_channel else (op["hout"], op["cout"])

    def window(self, op: dict[str, int]) -> dict[str, Any]:
        return {
            "kernel_shape": [op["kh"], op["kw"]],
            "strides": [op["stride"]] * 2,
            "pads": [op["pad_begin"]] * 2 + [op["pad_end"]] * 2,
        }

    def slice(self, source: str, starts: list[int], ends: list[int], axes: list[int], name: str) -> str:
        bounds = [
            self.constant(f"{name}.{what}", np.array(value, np.int64))
            for what, value in (("starts", starts), ("ends", ends), ("axes", axes))
        ]
        return self.node("Slice", [source, *bounds], name)[0]

    def mean(self, op: dict[str, int], kind: str, source: str, name: str, layout: str) -> str:
        """Writes global pooling (that of a gate keeps height and width), a mean over channels, or one over tokens."""
        if kind == "global_pool" and layout == VECTOR:
            pooled = self.node("GlobalAveragePool", [source], name)[0]
            return self.node("Flatten", [pooled], f"{name}_flatten", axis=1)[0]
        axes = self.constant(f"{name}.axes", np.array([2, 3] if kind == "global_pool" else [1], np.int64))
        return self.node("ReduceMean", [source, axes], name, keepdims=int(layout == MAP))[0]

    def linear_tokens(self, row: int, op: dict[str, int], source: str, name: str) -> str:
        weight, *bias = self.weights[row]
        out = self.node("MatMul", [source, self.constant(f"{name}.0", weight.T)], f"{name}_product" if bias else name)
        if bias:
            out = self.node("Add", [*out, self.constant(f"{name}.1", bias[0])], name)
        return out[0]

    def space_to_depth(self, op: dict[str, int], source: str, name: str) -> str:
        """Writes a permutation of a map as one that puts 2x2 pixels into the channels, by a transpose."""
        channels, height, width = op["cin"], op["hout"], op["wout"]
        apart = self.constant(f"{name}.apart", np.array([0, channels, height, 2, width, 2], np.int64))
        joined = self.constant(f"{name}.joined", np.array([0, 4 * channels, height, width], np.int64))
        x = self.node("Reshape", [source, apart], f"{name}_apart")[0]
        x = self.node("Transpose", [x], name, perm=[0, 1, 3, 5, 2, 4])[0]
        return self.node("Reshape", [x, joined], f"{name}_joined")[0]

    def group_norm(self, row: int, op: dict[str, int], source: str, name: str) -> str:
        """Writes a GroupNorm of one group as InstanceNormalization of a flat view, then scale and bias per channel."""
        channels = op["cout"]
        flat = self.constant(f"{name}.flat", np.array([0, 1, -1], np.int64))
        back = self.constant(f"{name}.back", np.array([0, channels, op["hout"], op["wout"]], np.int64))
        one, zero = (
            self.constant(f"{name}.{what}", np.array([value], np.float32)) for what, value in (("one", 1), ("zero", 0))
        )
        x = self.node("Reshape", [source, flat], f"{name}_flat")[0]
        x = self.node("InstanceNormalization", [x, one, zero], name, epsilon=NORM_EPSILON)[0]
        x = self.node("Reshape", [x, back], f"{name}_back")[0]
        scale, bias = (value.reshape(channels, 1, 1) for value in self.weights[row])
        x = self.node("Mul", [x, self.constant(f"{name}.scale", scale)], f"{name}_scale")[0]
        return self.node("Add", [x, self.constant(f"{name}.bias", bias)], f"{name}_bias")[0]

    def matmul(self, row: int, op: dict[str, int], sources: list[int], name: str) -> str:
        """Writes one of an attention's two products: the scores q k^T, or the weighted sum of v.

        The queries are not scaled here, because their weights are (see `scale_queries`).
        """
        left, right = sources
        heads = op["groups"]
        tokens = self.layouts[row] == TOKENS
        if left == right:  # the scores: both factors come from the operator that makes q, k and v
            split = self.split_tokens if tokens else self.split_heads
            q, k, v = split(left, heads, op["cin"], name)
            self.attention_inputs[left] = [q, k, v]
            return self.node("MatMul", [q, k], name)[0]
        out = self.node("MatMul", [self.values[left], self.attention_inputs[right][2]], name)[0]
        if tokens:
            out = self.node("Transpose", [out], f"{name}_transpose", perm=[0, 2, 1, 3])[0]
            shape = np.array([0, op["hout"], heads * op["wout"]], np.int64)
            return self.node("Reshape", [out, self.constant(f"{name}.tokens", shape)], f"{name}_tokens")[0]
        out = self.node("Transpose", [out], f"{name}_transpose", perm=[0, 1, 3, 2])[0]
        qkv = self.graph.table[right]
        shape = np.array([0, heads * op["wout"], qkv[COLUMN["hout"]], qkv[COLUMN["wout"]]], np.int64)
        return self.node("Reshape", [out, self.constant(f"{name}.map", shape)], f"{name}_map")[0]

    def split_heads(self, qkv: int, heads: int, head_dim: int, name: str) -> tuple[str, str, str]:
        """Splits a map (N, heads * 3 * head_dim, H, W) into q, k and v."""
        shape = self.constant(f"{name}.heads", np.array([0, heads, 3 * head_dim, -1], np.int64))
        x = self.node("Reshape", [self.values[qkv], shape], f"{name}_heads")[0]
        q, k, v = self.node("Split", [x], f"{name}_split", count=3, axis=2, num_outputs=3)
        q, v = (self.node("Transpose", [part], f"{part}_t", perm=[0, 1, 3, 2])[0] for part in (q, v))
        return q, k, v

    def split_tokens(self, qkv: int, heads: int, head_dim: int, name: str) -> tuple[str, str, str]:
        """Splits tokens (N, T, 3 * heads * head_dim) into q, k and v."""
        shape = self.constant(f"{name}.heads", np.array([0, 0, 3, heads, head_dim], np.int64))
        x = self.node("Reshape", [self.values[qkv], shape], f"{name}_heads")[0]
        x = self.node("Transpose", [x], f"{name}_order", perm=[2, 0, 3, 1, 4])[0]
        parts = self.node("Split", [x], f"{name}_split", count=3, axis=0, num_outputs=3)
        first = self.constant(f"{name}.first", np.array([0], np.int64))
        q, k, v = (self.node("Squeeze", [part, first], f"{part}_part")[0] for part in parts)
        return q, self.node("Transpose", [k], f"{k}_t", perm=[0, 1, 3, 2])[0], v


def scale_queries(graph: OpGraph, weights: Weights) -> list[list[NDArray[np.float32]]]:
    """Moves attention's factor 1 / sqrt(head_dim) into the weights of the convolution that makes the queries."""
    scaled = [list(constants) for constants in weights]
    for row, sources in enumerate(graph.inputs_of()):
        op = graph.table[row]
        if KINDS[op[COLUMN["kind"]]] == "matmul" and sources[0] == sources[1]:
            heads, head_dim = int(op[COLUMN["groups"]]), int(op[COLUMN["cin"]])
            weight = scaled[sources[0]][0]
            by_head = weight.reshape(heads, 3, head_dim, -1).copy()
            by_head[:, 0] *= np.float32(head_dim**-0.5)
            scaled[sources[0]][0] = by_head.reshape(weight.shape)
    return scaled


def onnx_model(
    network: LowFormerConfig | OpGraph,
    weights: Weights | None = None,
    *,
    batch: int | str = 1,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Gives a network as an ONNX model in memory; see `write_onnx`."""
    graph = op_graph(network) if isinstance(network, LowFormerConfig) else network
    if weights is None:
        weights = random_weights(graph, seed)
    model = _Writer(graph, scale_queries(graph, weights), batch).write()
    helper.set_model_props(model, dict(metadata or {}))
    return model


def write_onnx(
    network: LowFormerConfig | OpGraph,
    path: str | Path,
    weights: Weights | None = None,
    *,
    batch: int | str = 1,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a network as an ONNX file in fp32.

    Its input is "input" (batch, 3, R, R); its output is "output", of a classification head (batch, classes).

    Args:
        network: a configuration, or the operator graph of one.
        path: where to write; the file appears only once it is complete.
        weights: constants for each operator, BatchNorm folded (`model.folded_weights`); if None random ones, with which
            latency can be measured.
        batch: a fixed batch size, or a name for a symbolic one.
        seed: of the random weights.
        metadata: what the file says of itself beside the network, as names and texts (`metadata_props`).
    """
    model = onnx_model(network, weights, batch=batch, seed=seed, metadata=metadata)
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
