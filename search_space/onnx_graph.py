"""Operator graphs to ONNX files and back.

`write_onnx` turns an operator graph straight into an ONNX file: milliseconds instead of the seconds that tracing a
torch module takes, and without torch, so that a bare device can be calibrated. What is measured and what is shipped
come from this one writer. `op_graph_from_onnx` reads a file of any exporter into the same canonical operators.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.shape_inference
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .config import LowFormerConfig
from .graph import COLUMN, GRAPH_INPUT, KIND, KINDS, GraphBuilder, OpGraph, op_graph

OPSET = 20  # the first with Gelu; onnxruntime >= 1.17 and TensorRT >= 10 read it
IR_VERSION = 10
EPSILON = 1e-5

Weights = Sequence[Sequence[NDArray[np.float32]]]
"""For each operator of a graph its constants: weight and bias, or a norm's scale and bias."""


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
            attributes: dict[str, Any] = {
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
            modes: dict[str, Any] = {
                "mode": "nearest",
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor",
            }
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
        one, zero = (
            self.constant(f"{name}.{what}", np.array([value], np.float32)) for what, value in (("one", 1), ("zero", 0))
        )
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


def op_graph_from_onnx(path: str | Path) -> OpGraph:
    """The operator graph of an ONNX file, whichever exporter wrote it; symbolic batch sizes count as 1.

    Only shapes are read: constants kept outside the file are not opened. BatchNorm is folded; hardswish, GELU, SiLU,
    GroupNorm and LayerNorm are recognized when they are spelled out in smaller operators.

    Raises ValueError, in one line: a file that is no ONNX model, or one whose shapes cannot be determined.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no ONNX file at {path}")
    try:
        model = onnx.load(str(path), load_external_data=False)
        return graph_from_model(model)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"{path} is not a valid ONNX model: {' '.join(str(error).split())[:200]}") from None
    except UnreadableModel as error:
        raise ValueError(f"{path}: {error}") from None


class UnreadableModel(ValueError):
    """An ONNX model that is well-formed but cannot be turned into an operator graph."""


_POINTWISE = {
    "Add": "add",
    "Sub": "add",
    "Sum": "add",
    "Mul": "mul",
    "Div": "mul",
    "Relu": "relu",
    "Clip": "relu",
    "LeakyRelu": "relu",
    "PRelu": "relu",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "hardsigmoid",
    "HardSwish": "hardswish",
    "Gelu": "gelu",
    "Tanh": "tanh",
    "Swish": "silu",
    "BatchNormalization": "batch_norm",
    "LayerNormalization": "layer_norm",
    "SimplifiedLayerNormalization": "layer_norm",
    "RMSNormalization": "layer_norm",
    "GroupNormalization": "group_norm",
    "InstanceNormalization": "group_norm",
}
_LAYOUT = {
    "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Split", "Identity", "Cast", "Dropout", "Expand",
    "DepthToSpace", "SpaceToDepth", "Slice", "Pad", "Gather", "SplitToSequence", "SequenceAt",
}  # fmt: skip
# Operators on shapes that are worth evaluating: their results are as small as what they read.
_FOLDABLE = {
    "Cast", "Concat", "ConstantOfShape", "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Gather", "Identity", "Max", "Min",
    "Reshape", "Slice", "Split", "Squeeze", "Sqrt", "Transpose", "Unsqueeze", "Where", "Equal", "Floor", "Ceil",
}  # fmt: skip
_SMALL = 4096
_REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ArgMax"}
_MAX_ELEMENTS = 1 << 40


def graph_from_model(model: onnx.ModelProto) -> OpGraph:
    """`op_graph_from_onnx` of a model in memory."""
    return _Reader(model).read()


class _Reader:
    """Reads the nodes in order, keeping for every tensor the operator that produced it and its shape."""

    def __init__(self, model: onnx.ModelProto) -> None:
        if not model.graph.node:
            raise UnreadableModel("a model without operators")
        self.constants: dict[str, TensorProto] = {}
        for tensor in model.graph.initializer:
            self.constants[tensor.name] = tensor
        for node in model.graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self.constants[node.output[0]] = attribute.t
                    elif attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
                        value = np.array(helper.get_attribute_value(attribute))
                        self.constants[node.output[0]] = numpy_helper.from_array(value, node.output[0])
        inferred = _fold_shape_arithmetic(_with_batch_one(model, self.constants), self.constants)
        self.nodes = [node for node in inferred.graph.node if node.output[0] not in self.constants]
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(t.dims) for name, t in self.constants.items()}
        for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
            self._note_shape(info)
        self.inputs = [i.name for i in inferred.graph.input if i.name not in self.constants]
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.build = GraphBuilder()
        self.rows: dict[str, int] = {name: GRAPH_INPUT for name in self.inputs}
        self.pads: dict[str, tuple[str, list[int]]] = {}  # output of a Pad -> its input, (top, left, bottom, right)
        self.sequences: dict[str, list[tuple[int, ...]]] = {}  # output of a SplitToSequence -> the shapes of its parts
        self.done: set[int] = set()  # nodes that belong to a pattern recognized before
        self.constant_values = set(self.constants)

    def _note_shape(self, info: onnx.ValueInfoProto) -> None:
        kind = info.type.tensor_type
        if not kind.HasField("shape"):
            return
        dims = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
        if all(dims) or not dims:
            if np.prod([float(d) for d in dims]) > _MAX_ELEMENTS:
                raise UnreadableModel(f"tensor {info.name!r} of {dims} elements is too large")
            self.shapes.setdefault(info.name, tuple(dims))

    def read(self) -> OpGraph:
        for index, node in enumerate(self.nodes):
            if index in self.done or node.op_type == "Constant":
                continue
            if all(name in self.constant_values or not name for name in node.input) or self._is_shape_arithmetic(node):
                self.constant_values.update(node.output)
                continue
            self._read_node(index, node)
        if not self.build.rows:
            raise UnreadableModel("a model that computes nothing")
        return self.build.build()

    def _is_shape_arithmetic(self, node: onnx.NodeProto) -> bool:
        """Whether a node only computes shapes: it starts from Shape, or all that it reads are such results."""
        if node.op_type in ("Shape", "Size"):
            return True
        return not any(name in self.rows for name in node.input)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise UnreadableModel(f"the shape of tensor {name!r} cannot be determined; export with a fixed input size")
        return self.shapes[name]

    def map_shape(self, name: str) -> tuple[int, int, int]:
        """(C, H, W) of a tensor: of (N, C, H, W); tokens (N, T, C) count as (C, T, 1)."""
        shape = self.shape(name)
        if len(shape) == 4:
            return shape[1], shape[2], shape[3]
        if len(shape) == 3:
            return shape[2], shape[1], 1
        if len(shape) <= 2:
            return (shape[-1] if shape else 1), 1, 1
        return int(np.prod(shape[1:-2])), shape[-2], shape[-1]

    def activations(self, node: onnx.NodeProto) -> list[str]:
        return [name for name in node.input if name in self.rows]

    def attribute(self, node: onnx.NodeProto, name: str, default: Any) -> Any:
        for attribute in node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def value(self, name: str) -> NDArray[np.generic] | None:
        """A small constant's value, or None."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL or np.prod(tensor.dims, initial=1.0) > _SMALL:
            return None
        return numpy_helper.to_array(tensor)

    def _read_node(self, index: int, node: onnx.NodeProto) -> None:
        kind = node.op_type
        out = node.output[0]
        sources = self.activations(node)
        row: int
        if kind in ("Conv", "ConvTranspose"):
            row = self._conv(node)
        elif kind in ("Gemm", "MatMul"):
            row = self._product(node)
        elif kind == "Pad" and self._pads_a_convolution(node):
            row = self.rows[sources[0]]
        elif kind in _LAYOUT:
            row = self._layout(node)
        elif match := self._pattern(index, node):
            row, out = match
        elif kind == "BatchNormalization" and self._folds(sources[0]):
            row = self._fold_norm(self.rows[sources[0]])
        elif kind == "Add" and self._is_product_bias(node):
            row = self._add_bias(self.rows[sources[0]])
        elif kind in ("Mul", "Div") and self._scales_attention(node):
            row = self.rows[sources[0]]
        elif kind in _POINTWISE:
            row = self._pointwise(_POINTWISE[kind], node)
        elif kind == "Softmax":
            row = self.build.pointwise("softmax", [self.rows[sources[0]]], self.map_shape(out))
        elif kind == "GlobalAveragePool" or (kind == "ReduceMean" and self._pools_everything(node)):
            shape = self.map_shape(sources[0])
            row = self.build.add_op("global_pool", self._rows(sources), shape_in=shape, shape_out=(shape[0], 1, 1))
        elif kind in ("MaxPool", "AveragePool"):
            row = self._pool("max_pool" if kind == "MaxPool" else "avg_pool", node)
        elif kind in ("Resize", "Upsample"):
            before, after = self.map_shape(sources[0]), self.map_shape(out)
            stride = max(1, after[1] // before[1])
            row = self.build.add_op("resize", self._rows(sources), shape_in=before, shape_out=after, stride=stride)
        else:
            name = "concat" if kind == "Concat" else "reduce" if kind in _REDUCTIONS else "other"
            inputs = sum(int(np.prod(self.shape(source))) for source in sources)
            row = self.build.add_op(
                name,
                self._rows(sources),
                shape_in=self.map_shape(sources[0]),
                shape_out=self.map_shape(out),
                inputs=inputs,
            )
        for name in (out, *node.output):
            self.rows[name] = row

    def _rows(self, names: Sequence[str]) -> list[int]:
        return [self.rows[name] for name in names]

    def _conv(self, node: onnx.NodeProto) -> int:
        source = node.input[0]
        extra = [0, 0, 0, 0]
        if source in self.pads:
            source, extra = self.pads[source]
        shape, out = self.map_shape(source), self.map_shape(node.output[0])
        weight = self.shape(node.input[1])
        strides = self.attribute(node, "strides", [1, 1])
        pads = list(self.attribute(node, "pads", [0, 0, 0, 0]))
        if len(weight) != 4:
            raise UnreadableModel(f"{node.op_type} with weights of {list(weight)}: only two-dimensional ones are read")
        if self.attribute(node, "auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
            pads = [weight[2] // 2] * 4
        pads = [p + e for p, e in zip(pads, extra, strict=True)]
        elements = int(np.prod(weight))
        has_bias = len(node.input) > 2 and bool(node.input[2])
        transposed = node.op_type == "ConvTranspose"
        over = shape if transposed else out
        return self.build.add_op(
            "conv_transpose" if transposed else "conv",
            [self.rows[source]],
            shape_in=shape,
            shape_out=out,
            kernel=(weight[2], weight[3]),
            stride=strides[0],
            groups=self.attribute(node, "group", 1),
            pad=(pads[0], pads[2]),
            bias=has_bias,
            macs=elements * over[1] * over[2],
            weights=elements + out[0] * has_bias,
            params=elements + out[0] * has_bias,
        )

    def _product(self, node: onnx.NodeProto) -> int:
        sources = self.activations(node)
        left, right = self.shape(node.input[0]), self.shape(node.input[1])
        out = self.shape(node.output[0])
        if len(sources) == 2:
            rows, contracted, columns = left[-2], left[-1], right[-1]
            heads = int(np.prod(out[:-2]))
            return self.build.matmul(self.rows[sources[0]], self.rows[sources[1]], heads, rows, contracted, columns)
        weight = right if node.input[0] in self.rows else left
        fan_in, fan_out = left[-1] if node.input[0] in self.rows else right[-2], out[-1]
        elements = int(np.prod(weight))
        tokens = max(1, int(np.prod(out)) // fan_out)
        bias = node.op_type == "Gemm" and len(node.input) > 2 and bool(node.input[2])
        return self.build.add_op(
            "linear",
            self._rows(sources),
            shape_in=(fan_in, tokens, 1),
            shape_out=(fan_out, tokens, 1),
            bias=bias,
            macs=elements * tokens,
            weights=elements + fan_out * bias,
            params=elements + fan_out * bias,
        )

    def _pads_a_convolution(self, node: onnx.NodeProto) -> bool:
        """Zero padding of height and width that only convolutions read is part of them."""
        pads = self.attribute(node, "pads", None)
        if pads is None and len(node.input) > 1:
            value = self.value(node.input[1])
            pads = None if value is None else value.tolist()
        constant = self.value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        users = self.consumers.get(node.output[0], [])
        if (
            pads is None
            or len(pads) != 8
            or any(pads[i] for i in (0, 1, 4, 5))
            or constant is None
            or np.any(constant)
            or self.attribute(node, "mode", b"constant") != b"constant"
            or not users
            or any(user.op_type != "Conv" for user in users)
        ):
            return False
        self.pads[node.output[0]] = (node.input[0], [pads[2], pads[3], pads[6], pads[7]])
        return True

    def _layout(self, node: onnx.NodeProto) -> int:
        source = self.activations(node)[0]
        row = self.rows[source]
        if node.op_type == "SplitToSequence":
            return self._split_to_sequence(node, row)
        if node.op_type == "SequenceAt":
            place = self.value(node.input[1])
            parts = self.sequences.get(source, [])
            if place is not None and -len(parts) <= int(place) < len(parts):
                self.shapes[node.output[0]] = parts[int(place)]
                self._infer_from(node)
            return row
        before, after = self.shape(source), self.shapes.get(node.output[0], ())
        producer = KINDS[self.build.rows[row][COLUMN["kind"]]] if row >= 0 else "input"
        if (
            node.op_type == "Slice"
            and producer in ("conv_transpose", "resize", "crop")
            and len(before) == len(after) == 4
            and before[:2] == after[:2]
            and before != after
        ):
            if producer == "crop":  # height first, then width: one crop
                op = list(self.build.rows[row])
                op[COLUMN["hout"]], op[COLUMN["wout"]] = after[2:]
                op[COLUMN["outputs"]] = int(np.prod(after))
                self.build.rows[row] = tuple(op)
                return row
            return self.build.add_op("crop", [row], shape_in=before[1:], shape_out=after[1:])
        return row

    def _split_to_sequence(self, node: onnx.NodeProto, row: int) -> int:
        """torch's newer exporter splits q, k and v this way; shape inference does not see through it."""
        shape = self.shape(node.input[0])
        axis = int(self.attribute(node, "axis", 0)) % len(shape)
        split = self.value(node.input[1]) if len(node.input) > 1 else np.ones((), np.int64)
        if split is not None:
            if split.ndim == 0:
                size = max(1, int(split))
                sizes: list[int] = [min(size, shape[axis] - start) for start in range(0, shape[axis], size)]
            else:
                sizes = [int(part) for part in split]
            self.sequences[node.output[0]] = [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes[:_SMALL]]
        return row

    def _infer_from(self, known: onnx.NodeProto) -> None:
        """Shapes of the operators after `known`, whose output's shape became known just now."""
        frontier = list(self.consumers.get(known.output[0], []))
        for _ in range(64):
            if not frontier:
                return
            node = frontier.pop(0)
            if node.output[0] in self.shapes or not all(name in self.shapes for name in node.input if name):
                continue
            if node.op_type == "Transpose":
                shape = self.shapes[node.input[0]]
                perm = self.attribute(node, "perm", list(range(len(shape)))[::-1])
                self.shapes[node.output[0]] = tuple(shape[place] for place in perm)
            elif node.op_type == "MatMul":
                left, right = self.shapes[node.input[0]], self.shapes[node.input[1]]
                self.shapes[node.output[0]] = (*left[:-1], right[-1])
            elif node.op_type in ("Mul", "Div", "Softmax", "Add", "Identity", "Cast"):
                self.shapes[node.output[0]] = max((self.shapes[name] for name in node.input), key=len)
            else:
                continue
            frontier.extend(self.consumers.get(node.output[0], []))

    def _folds(self, source: str) -> bool:
        row = self.rows[source]
        return (
            row >= 0
            and self.build.rows[row][COLUMN["kind"]] in (KIND["conv"], KIND["conv_transpose"], KIND["linear"])
            and len(self.consumers.get(source, [])) == 1
        )

    def _fold_norm(self, row: int) -> int:
        """BatchNorm folds into the operator before it, which has a bias from then on."""
        op = list(self.build.rows[row])
        cout = op[COLUMN["cout"]]
        if not op[COLUMN["bias"]]:
            op[COLUMN["weights"]] += cout
        op[COLUMN["bias"]] = 1
        op[COLUMN["params"]] += 2 * cout
        self.build.rows[row] = tuple(op)
        return row

    def _is_product_bias(self, node: onnx.NodeProto) -> bool:
        sources = self.activations(node)
        if len(sources) != 1 or not self._folds(sources[0]):
            return False
        op = self.build.rows[self.rows[sources[0]]]
        constant = next(name for name in node.input if name not in self.rows)
        return not op[COLUMN["bias"]] and int(np.prod(self.shape(constant))) == op[COLUMN["cout"]]

    def _add_bias(self, row: int) -> int:
        op = list(self.build.rows[row])
        op[COLUMN["bias"]] = 1
        op[COLUMN["weights"]] += op[COLUMN["cout"]]
        op[COLUMN["params"]] += op[COLUMN["cout"]]
        self.build.rows[row] = tuple(op)
        return row

    def _scales_attention(self, node: onnx.NodeProto) -> bool:
        """Scaling by one number right before or after a matrix product of two activations, or before a softmax."""
        sources = self.activations(node)
        others = [name for name in node.input if name not in self.rows]
        if len(sources) != 1 or int(np.prod(self.shapes.get(others[0], (1,)))) != 1:
            return False
        row = self.rows[sources[0]]
        if row >= 0 and self.build.rows[row][COLUMN["kind"]] == KIND["matmul"]:
            return True
        users = self.consumers.get(node.output[0], [])
        return bool(users) and all(self._reaches_product(user) for user in users)

    def _reaches_product(self, node: onnx.NodeProto) -> bool:
        for _ in range(4):
            if node.op_type == "MatMul":
                return not any(name in self.constant_values for name in node.input)
            users = self.consumers.get(node.output[0], [])
            if node.op_type not in _LAYOUT or len(users) != 1:
                return False
            node = users[0]
        return False

    def _pools_everything(self, node: onnx.NodeProto) -> bool:
        source = self.shape(self.activations(node)[0])
        out = self.shape(node.output[0])
        return len(source) == 4 and int(np.prod(out)) == source[0] * source[1]

    def _pool(self, kind: str, node: onnx.NodeProto) -> int:
        kernel = self.attribute(node, "kernel_shape", [1, 1])
        pads = self.attribute(node, "pads", [0, 0, 0, 0])
        return self.build.add_op(
            kind,
            self._rows(self.activations(node)),
            shape_in=self.map_shape(node.input[0]),
            shape_out=self.map_shape(node.output[0]),
            kernel=(kernel[0], kernel[-1]),
            stride=self.attribute(node, "strides", [1, 1])[0],
            pad=(pads[0], pads[-1]),
        )

    def _pointwise(self, kind: str, node: onnx.NodeProto) -> int:
        sources = self.activations(node)
        # torch writes residual sums as (branch, shortcut); the order carries no meaning.
        rows = sorted(self._rows(sources), reverse=True) if kind in ("add", "mul") else self._rows(sources)
        constants = sum(
            int(np.prod(self.shapes.get(name, ()))) for name in node.input if name and name not in self.rows
        )
        params = constants if kind.endswith("norm") else 0
        if kind in ("add", "mul") and constants > 1:
            return self.build.add_op(
                kind,
                rows,
                shape_in=self.map_shape(sources[0]),
                shape_out=self.map_shape(node.output[0]),
                weights=constants,
                params=constants,
            )
        return self.build.pointwise(kind, rows, self.map_shape(node.output[0]), params=params)

    def _pattern(self, index: int, node: onnx.NodeProto) -> tuple[int, str] | None:
        """An activation or norm spelled out in smaller operators, from its first node on: (its row, its output)."""
        for kind, chain in _CHAINS.get(node.op_type, ()):
            names = self._follow(node, chain)
            if names is None:
                continue
            nodes, out = names
            source = self.activations(node)[0]
            params = 0
            if kind in ("group_norm", "layer_norm"):
                params = sum(
                    int(np.prod(self.shapes.get(name, ())))
                    for step in nodes
                    if step.op_type in ("Mul", "Add")
                    for name in step.input
                    if name in self.constants and int(np.prod(self.shapes[name])) > 1
                )
            self.done.update(self.nodes.index(step) for step in nodes[1:])
            return self.build.pointwise(kind, [self.rows[source]], self.map_shape(out), params=params), out
        return None

    def _follow(self, first: onnx.NodeProto, chain: tuple[str, ...]) -> tuple[list[onnx.NodeProto], str] | None:
        """The nodes of `chain` starting at `first`, each reading the one before; all must stay inside the pattern."""
        nodes = [first]
        for kind in chain[1:]:
            users = [user for user in self.consumers.get(nodes[-1].output[0], []) if user.op_type == kind]
            if not users:
                return None
            nodes.append(users[0])
        inside = {id(node) for node in nodes}
        for node in nodes[:-1]:
            if any(id(user) not in inside for user in self.consumers.get(node.output[0], [])):
                return None
        return nodes, nodes[-1].output[0]


# First operator -> (canonical kind, the operators in order). Hardswish, GELU and SiLU end by multiplying the input.
_CHAINS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "HardSigmoid": (("hardswish", ("HardSigmoid", "Mul")),),
    "Sigmoid": (("silu", ("Sigmoid", "Mul")),),
    "Add": (
        ("hardswish", ("Add", "Clip", "Mul", "Div")),
        ("hardswish", ("Add", "Clip", "Div", "Mul")),
        ("hardswish", ("Add", "Relu", "Min", "Mul", "Div")),
    ),
    "Div": (("gelu", ("Div", "Erf", "Add", "Mul", "Mul")),),
    "Mul": (("gelu", ("Mul", "Erf", "Add", "Mul", "Mul")),),
    "InstanceNormalization": (("group_norm", ("InstanceNormalization", "Reshape", "Mul", "Add")),),
    "ReduceMean": (("layer_norm", ("ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add")),),
}


def _with_batch_one(model: onnx.ModelProto, constants: dict[str, TensorProto]) -> onnx.ModelProto:
    """A copy in which symbolic batch sizes are 1 and large constants are dropped to their shapes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [t for t in copy.graph.initializer if np.prod(t.dims, initial=1.0) <= _SMALL]
    large = [t for t in copy.graph.initializer if np.prod(t.dims, initial=1.0) > _SMALL]
    for tensor in large:
        copy.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    for info in copy.graph.input:
        if info.name in constants:
            continue
        dims = info.type.tensor_type.shape.dim
        for place, dim in enumerate(dims):
            symbolic = dim.HasField("dim_param") or not dim.dim_value
            if symbolic and place > 0:
                raise UnreadableModel(f"input {info.name!r} has a symbolic size; export with a fixed input size")
            if place == 0 and len(dims) == 4 and not symbolic and dim.dim_value != 1:
                raise UnreadableModel(
                    f"input {info.name!r} has a fixed batch of {dim.dim_value}; export with batch 1 or a symbolic one"
                )
            if symbolic:
                dim.Clear()
                dim.dim_value = 1
    del copy.graph.value_info[:]  # written for another batch size, perhaps
    for info in copy.graph.output:
        info.type.tensor_type.ClearField("shape")
    return copy


def _fold_shape_arithmetic(model: onnx.ModelProto, constants: dict[str, TensorProto]) -> onnx.ModelProto:
    """The model with shapes inferred, and what is computed from shapes alone evaluated into `constants`."""
    for _ in range(8):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        shapes = {
            info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
            for info in (*model.graph.input, *model.graph.value_info)
            if info.type.tensor_type.HasField("shape")
            and all(d.HasField("dim_value") for d in info.type.tensor_type.shape.dim)
        }
        found: dict[str, NDArray[np.generic]] = {}
        for node in model.graph.node:
            if len(node.output) != 1 or node.output[0] in constants:
                continue
            if node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
                found[node.output[0]] = np.array(shapes[node.input[0]], np.int64)
            elif node.op_type in _FOLDABLE and node.input:
                inputs = [_small_value(name, constants, found) for name in node.input]
                if all(value is not None for value in inputs):
                    value = _evaluate(node, [value for value in inputs if value is not None], model)
                    if value is not None:
                        found[node.output[0]] = value
        if not found:
            break
        for name, value in found.items():
            constants[name] = numpy_helper.from_array(value, name)
        kept = [node for node in model.graph.node if node.output[0] not in found]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        model.graph.initializer.extend(constants[name] for name in found)
    return model


def _small_value(
    name: str, constants: dict[str, TensorProto], found: dict[str, NDArray[np.generic]]
) -> NDArray[np.generic] | None:
    if not name or name in found:
        return found.get(name)
    tensor = constants.get(name)
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL or np.prod(tensor.dims, initial=1.0) > _SMALL:
        return None
    return numpy_helper.to_array(tensor)


def _evaluate(
    node: onnx.NodeProto, inputs: list[NDArray[np.generic]], model: onnx.ModelProto
) -> NDArray[np.generic] | None:
    """The result of one operator on small constants, or None where it cannot be had."""
    if node.op_type == "ConstantOfShape" and float(np.prod(inputs[0].astype(float), initial=1.0)) > _SMALL:
        return None
    opset = {entry.domain: entry.version for entry in model.opset_import}
    try:
        (value,) = ReferenceEvaluator(node, opsets=opset).run(
            None,
            dict(zip(node.input, inputs, strict=True)),  # type: ignore[arg-type]
        )
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, ZeroDivisionError):
        return None
    return value if isinstance(value, np.ndarray) and value.size <= _SMALL else None
