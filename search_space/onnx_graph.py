"""Operator graphs to ONNX files and back.

`write_onnx` turns an operator graph straight into an ONNX file: milliseconds instead of the seconds that tracing a torch
module takes, and without torch, so that a bare device can be calibrated. What is measured and what is shipped come from
this one writer. `op_graph_from_onnx` reads a file of any exporter into the same canonical operators.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .config import LowFormerConfig
from .graph import COLUMN, GRAPH_INPUT, KINDS, OpGraph, op_graph

OPSET = 20  # the first with Gelu; onnxruntime >= 1.17 and TensorRT >= 10 read it
IR_VERSION = 10
EPSILON = 1e-5

Weights = Sequence[Sequence[NDArray[np.float32]]]
"""For each operator of a graph its constants: weight and bias (convolutions, linear layers), or scale and bias (norms)."""


def random_weights(graph: OpGraph, seed: int = 0) -> list[list[NDArray[np.float32]]]:
    """Constants of the right shapes that keep activations in the range of a trained network's."""
    pool = np.random.default_rng(seed).standard_normal(1 << 16, dtype=np.float32)
    result: list[list[NDArray[np.float32]]] = []
    for op in graph.table.tolist():
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
        result.append(constants)
    return result


class _Writer:
    """Turns canonical operators into ONNX nodes, adding the reshapes and transposes that canonical graphs leave out."""

    def __init__(self, graph: OpGraph, weights: Weights, batch: int | str) -> None:
        self.graph = graph
        self.weights = weights
        self.batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.values: dict[int, str] = {}  # row of the table -> its output
        self.heads: dict[int, list[str]] = {}  # row of the qkv convolution -> q, k, v

    def node(self, kind: str, inputs: Sequence[str], name: str, count: int = 1, **attributes: object) -> list[str]:
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
        for row, sources in enumerate(self.graph.inputs_of()):
            self.values[row] = self.operator(row, sources)
        last = self.graph.table[-1]
        output = [self.batch, int(last[COLUMN["cout"]])]
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

    def operator(self, row: int, sources: list[int]) -> str:
        op = {name: int(self.graph.table[row, index]) for name, index in COLUMN.items()}
        kind = KINDS[op["kind"]]
        name = f"op{row}_{kind}"
        inputs = [self.values[source] for source in sources]
        if kind == "group_norm":
            return self.group_norm(row, op, inputs[0], name)
        constants = [self.constant(f"{name}.{i}", value) for i, value in enumerate(self.weights[row])]
        if kind in ("conv", "conv_transpose"):
            attributes = {
                "kernel_shape": [op["kh"], op["kw"]],
                "strides": [op["stride"]] * 2,
                "group": op["groups"],
                "pads": [op["pad_begin"]] * 2 + [op["pad_end"]] * 2,
            }
            onnx_kind = "Conv" if kind == "conv" else "ConvTranspose"
            return self.node(onnx_kind, [*inputs, *constants], name, **attributes)[0]
        if kind == "linear":
            return self.node("Gemm", [*inputs, *constants], name, transB=1)[0]
        if kind == "matmul":
            return self.matmul(row, op, sources, name)
        if kind == "softmax":
            return self.node("Softmax", inputs, name, axis=-1)[0]
        if kind == "layer_norm":
            return self.node("LayerNormalization", [*inputs, *constants], name, axis=-1, epsilon=EPSILON)[0]
        if kind == "global_pool":
            pooled = self.node("GlobalAveragePool", inputs, name)[0]
            return self.node("Flatten", [pooled], f"{name}_flatten", axis=1)[0]
        if kind == "resize":
            scales = self.constant(f"{name}.scales", np.array([1, 1, op["stride"], op["stride"]], np.float32))
            modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            return self.node("Resize", [inputs[0], "", scales], name, **modes)[0]
        if kind == "crop":
            bounds = [
                self.constant(f"{name}.{what}", np.array(value, np.int64))
                for what, value in (("starts", [0, 0]), ("ends", [op["hout"], op["wout"]]), ("axes", [2, 3]))
            ]
            return self.node("Slice", [*inputs, *bounds], name)[0]
        if kind in ("hardswish", "gelu", "add"):
            return self.node({"hardswish": "HardSwish", "gelu": "Gelu", "add": "Add"}[kind], inputs, name)[0]
        raise ValueError(f"write_onnx writes the operators of the LowFormer space, not {kind!r}")

    def group_norm(self, row: int, op: dict[str, int], source: str, name: str) -> str:
        """One group over C, H and W, as InstanceNormalization of a flat view, then scale and bias per channel."""
        channels = op["cout"]
        flat = self.constant(f"{name}.flat", np.array([0, 1, -1], np.int64))
        back = self.constant(f"{name}.back", np.array([0, channels, op["hout"], op["wout"]], np.int64))
        one, zero = (self.constant(f"{name}.{what}", np.array([value], np.float32)) for what, value in (("one", 1), ("zero", 0)))
        x = self.node("Reshape", [source, flat], f"{name}_flat")[0]
        x = self.node("InstanceNormalization", [x, one, zero], name, epsilon=EPSILON)[0]
        x = self.node("Reshape", [x, back], f"{name}_back")[0]
        scale, bias = (value.reshape(channels, 1, 1) for value in self.weights[row])
        x = self.node("Mul", [x, self.constant(f"{name}.scale", scale)], f"{name}_scale")[0]
        return self.node("Add", [x, self.constant(f"{name}.bias", bias)], f"{name}_bias")[0]

    def matmul(self, row: int, op: dict[str, int], sources: list[int], name: str) -> str:
        """Scores (q k^T) or values (weights v) of an attention; q is scaled in the weights (see `scale_queries`)."""
        left, right = sources
        heads = op["groups"]
        if left == right:  # scores: both factors come from the convolution that makes q, k and v
            q, k, v = self.split_heads(left, heads, op["cin"], name)
            self.heads[left] = [q, k, v]
            return self.node("MatMul", [q, k], name)[0]
        out = self.node("MatMul", [self.values[left], self.heads[right][2]], name)[0]
        out = self.node("Transpose", [out], f"{name}_transpose", perm=[0, 1, 3, 2])[0]
        qkv = self.graph.table[right]
        shape = np.array([0, heads * op["wout"], qkv[COLUMN["hout"]], qkv[COLUMN["wout"]]], np.int64)
        return self.node("Reshape", [out, self.constant(f"{name}.map", shape)], f"{name}_map")[0]

    def split_heads(self, qkv: int, heads: int, head_dim: int, name: str) -> tuple[str, str, str]:
        shape = self.constant(f"{name}.heads", np.array([0, heads, 3 * head_dim, -1], np.int64))
        x = self.node("Reshape", [self.values[qkv], shape], f"{name}_heads")[0]
        q, k, v = self.node("Split", [x], f"{name}_split", count=3, axis=2, num_outputs=3)
        q, v = (self.node("Transpose", [part], f"{part}_t", perm=[0, 1, 3, 2])[0] for part in (q, v))
        return q, k, v


def scale_queries(graph: OpGraph, weights: Weights) -> list[list[NDArray[np.float32]]]:
    """Attention's factor 1 / sqrt(head_dim), moved into the convolution that makes the queries."""
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
    network: LowFormerConfig | OpGraph, weights: Weights | None = None, *, batch: int | str = 1, seed: int = 0
) -> onnx.ModelProto:
    """`network` as an ONNX model; see `write_onnx`."""
    graph = op_graph(network) if isinstance(network, LowFormerConfig) else network
    if weights is None:
        weights = random_weights(graph, seed)
    return _Writer(graph, scale_queries(graph, weights), batch).write()


def write_onnx(
    network: LowFormerConfig | OpGraph,
    path: str | Path,
    weights: Weights | None = None,
    *,
    batch: int | str = 1,
    seed: int = 0,
) -> None:
    """Writes `network` as an ONNX file with input "input" (batch, 3, R, R) and output "output" (batch, classes), fp32.

    Args:
        network: a configuration, or the operator graph of one.
        path: where to; appears only once complete.
        weights: constants for each operator, BatchNorm folded (`lowformer.folded_weights(model)`); random ones if None,
            which is what measuring needs.
        batch: a fixed batch size, or a name for a symbolic one.
        seed: of the random weights.
    """
    model = onnx_model(network, weights, batch=batch, seed=seed)
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
