"""ONNX files of others: exporters, opsets, kinds of networks; and files that are wrong, by accident or on purpose."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from lownas.search_space import OpGraph, op_graph_from_onnx
from lownas.search_space.graph.onnx_file import precision_of
from lownas.search_space.graph.onnx_reader import graph_from_model
from lownas.search_space.graph.torch_tracer import op_graph_from_torch

NEWEST = onnx.defs.onnx_opset_version()
FLOAT = TensorProto.FLOAT
node = helper.make_node


def info(name: str, shape: Sequence[int | str | None] | None = None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def whole(name: str, value: int) -> TensorProto:
    return numpy_helper.from_array(np.array(value, np.int64), name)


def floats(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def subgraph(
    nodes: Sequence[NodeProto], outputs: Sequence[str], inputs: Sequence[onnx.ValueInfoProto] = ()
) -> GraphProto:
    return helper.make_graph(list(nodes), "sub", list(inputs), [info(name) for name in outputs])


def model_of(
    nodes: Sequence[NodeProto],
    constants: Sequence[TensorProto] = (),
    *,
    image: Sequence[int | str] = ("n", 3, 32, 32),
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
    functions: Sequence[onnx.FunctionProto] = (),
) -> ModelProto:
    graph = helper.make_graph(
        list(nodes), "g", [info("x", image)], [info(name) for name in outputs], initializer=list(constants)
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, functions=list(functions), opset_imports=imports)


# --- opsets, batches, exporters


def plain_cnn(opset: int, batch: int | str) -> ModelProto:
    """Operators whose axes and scales moved from attributes to inputs, or back, between opsets."""
    axes: dict[str, Any] = {"axes": [2, 3]} if opset < 18 else {}
    by_input = [] if opset < 18 else ["hw"]
    return model_of(
        [
            node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["c", "b", "b", "b", "b"], ["n"]),
            node("Relu", ["n"], ["r"]),
            node("Resize", ["r", "", "scales"], ["u"], mode="nearest"),
            node("MaxPool", ["u"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Add", ["p", "r"], ["s"]),
            node("ReduceMean", ["s", *by_input], ["m"], keepdims=0, **axes),
            node("Gemm", ["m", "fc"], ["y"], transB=1),
        ],
        [
            floats("w", 8, 3, 3, 3),
            floats("b", 8),
            floats("fc", 10, 8),
            ints("hw", 2, 3),
            numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
        ],
        image=(batch, 3, 32, 32),
        opset=opset,
    )


@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("opset", [13, 17, 18, 20, 23, NEWEST, NEWEST + 5])
def test_every_opset_gives_the_same_graph(opset: int, batch: int | str) -> None:
    graph = graph_from_model(plain_cnn(opset, batch))
    assert graph.kinds == ["conv", "relu", "resize", "max_pool", "add", "global_pool", "linear"]
    assert graph.macs == 8 * 3 * 9 * 16 * 16 + 8 * 10
    assert graph.inputs_of() == [[-1], [0], [1], [2], [3, 1], [4], [5]]


def test_the_standard_domain_has_two_names() -> None:
    model = plain_cnn(17, 1)
    model.opset_import[0].domain = "ai.onnx"
    model.graph.node[0].domain = "ai.onnx"
    assert graph_from_model(model).macs == graph_from_model(plain_cnn(17, 1)).macs


class Block(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.norms = nn.ModuleList([nn.LayerNorm(16), nn.LayerNorm(16)])
        self.qkv, self.project = nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).reshape(batch, tokens, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = ((q * 8**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.project(out.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norms[1](x))


class Hybrid(nn.Module):
    """Convolutions with norms of several kinds and a gate, then attention over their pixels and a token."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.groups = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.GroupNorm(4, 16)
        self.gate = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid())
        self.patches = nn.Conv2d(16, 16, 4, stride=4)
        self.token, self.position = nn.Parameter(torch.ones(1, 1, 16)), nn.Parameter(torch.ones(1, 17, 16))
        self.block, self.head = Block(fused), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(x)))
        y = self.groups(self.depthwise(x))
        x = x + y * self.gate(y.mean((2, 3), keepdim=True))
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.block(x).mean(1))


def exported(module: nn.Module, *, dynamo: bool, opset: int, symbolic: bool) -> ModelProto:
    torch.manual_seed(0)
    module = module.eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)  # exporters drop what is zero, or one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            pytest.importorskip("onnxscript")
            x = torch.zeros(2 if symbolic else 1, 3, 32, 32)
            shapes = ({0: torch.export.Dim.DYNAMIC},) if symbolic else None
            program = torch.onnx.export(
                module, (x,), dynamo=True, opset_version=opset, verbose=False, dynamic_shapes=shapes
            )
            assert program is not None
            return program.model_proto
        file = io.BytesIO()
        axes = {"x": {0: "batch"}} if symbolic else None
        x = torch.zeros(1, 3, 32, 32)
        torch.onnx.export(module, (x,), file, dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes)
        return onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize(
    ("dynamo", "opset", "symbolic", "fused"),
    [
        (False, 13, True, False),
        (False, 17, False, True),
        (False, 20, True, True),
        (True, 18, True, False),
        (True, 21, True, True),  # GroupNormalization as one operator
        (True, 24, False, True),  # Attention as one operator
    ],
)
def test_a_hybrid_from_either_exporter_costs_what_it_costs_in_torch(
    dynamo: bool, opset: int, symbolic: bool, fused: bool
) -> None:
    model = exported(Hybrid(fused), dynamo=dynamo, opset=opset, symbolic=symbolic)
    assert model.opset_import[0].version == opset
    graph, expected = graph_from_model(model), op_graph_from_torch(Hybrid(fused), (3, 32, 32))
    assert sorted(graph.kinds) == sorted(expected.kinds)
    assert graph.macs == expected.macs
    assert graph.column("weights").sum() == expected.column("weights").sum()


@pytest.mark.parametrize("opset", [18, 21, NEWEST])
def test_group_normalization_keeps_its_inputs_shape(opset: int) -> None:
    per = floats("per", 8 if opset >= 21 else 2)
    nodes = [node("Conv", ["x", "w"], ["c"]), node("GroupNormalization", ["c", "per", "per"], ["y"], num_groups=2)]
    graph = graph_from_model(model_of(nodes, [floats("w", 8, 3, 1, 1), per], opset=opset))
    assert graph.kinds == ["conv", "group_norm"] and graph.column("hout")[1] == 32


@pytest.mark.parametrize("heads_in_shape", [True, False])
def test_attention_as_one_operator_is_product_softmax_product(heads_in_shape: bool) -> None:
    nodes = [node("Reshape", ["x", "tokens"], ["t"])]
    names = []
    for name in "qkv":
        nodes.append(node("MatMul", ["t", "w"], [name]))
        names.append(name)
        if heads_in_shape:
            nodes.append(node("Reshape", [name, "heads"], [f"{name}4"]))
            nodes.append(node("Transpose", [f"{name}4"], [f"{name}_t"], perm=[0, 2, 1, 3]))
            names[-1] = f"{name}_t"
    heads = {} if heads_in_shape else {"q_num_heads": 4, "kv_num_heads": 4}
    nodes.append(node("Attention", names, ["y"], **heads))
    constants = [ints("tokens", 0, 64, 48), ints("heads", 0, 64, 4, 4), floats("w", 48, 16)]
    graph = graph_from_model(model_of(nodes, constants, opset=23))
    assert graph.kinds[-3:] == ["matmul", "softmax", "matmul"]
    assert graph.macs == 64 * 48 * 16 * 3 + 2 * 64 * 64 * 16
    assert list(graph.column("groups")[-3:]) == [4, 1, 4]


# --- quantized files


def quantized_pair(quantized: bool) -> ModelProto:
    """A convolution and a linear layer, in floats or between QuantizeLinear and DequantizeLinear."""
    big = numpy_helper.from_array(np.ones((64, 16, 3, 3), np.int8), "big.q")
    small = numpy_helper.from_array(np.ones((16, 3, 3, 3), np.int8), "small.q")
    scale, zero = numpy_helper.from_array(np.float32(0.1).reshape(()), "s"), numpy_helper.from_array(np.int8(0), "z")
    bias = numpy_helper.from_array(np.ones(64, np.int32), "bias.q")
    nodes = []
    for name in ("big", "small", "bias"):
        nodes.append(node("DequantizeLinear", [f"{name}.q", "s"], [name]))
    source = "x"
    for place, (weight, out) in enumerate((("small", "c"), ("big", "d"))):
        if quantized:
            nodes.append(node("QuantizeLinear", [source, "s", "z"], [f"q{place}"]))
            nodes.append(node("DequantizeLinear", [f"q{place}", "s", "z"], [f"d{place}"]))
            source = f"d{place}"
        more = ["bias"] if weight == "big" else []
        nodes.append(node("Conv", [source, weight, *more], [out], pads=[1, 1, 1, 1]))
        source = out
    nodes.append(node("GlobalAveragePool", ["d"], ["y"]))
    return model_of(nodes, [big, small, bias, scale, zero])


def test_quantizing_adds_no_operators() -> None:
    graph, expected = graph_from_model(quantized_pair(True)), graph_from_model(quantized_pair(False))
    assert graph.kinds == ["conv", "conv", "global_pool"]
    assert np.array_equal(graph.table, expected.table)


def test_quantized_operators_count_as_what_they_stand_for() -> None:
    zero, scale = numpy_helper.from_array(np.uint8(0), "z"), numpy_helper.from_array(np.float32(0.1).reshape(()), "s")
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.uint8), "w")
    matrix = numpy_helper.from_array(np.ones((8, 4), np.uint8), "m")
    bias = numpy_helper.from_array(np.ones(8, np.int32), "b")
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z", "b"], ["c"], pads=[1, 1, 1, 1]),
        node("DequantizeLinear", ["c", "s", "z"], ["f"]),
        node("GlobalAveragePool", ["f"], ["p"]),
        node("Flatten", ["p"], ["v"]),
        node("DynamicQuantizeLinear", ["v"], ["vq", "vs", "vz"]),
        node("MatMulInteger", ["vq", "m", "vz"], ["i"]),
        node("Cast", ["i"], ["if"], to=FLOAT),
        node("Mul", ["if", "vs"], ["y"]),
    ]
    graph = graph_from_model(model_of(nodes, [zero, scale, weight, matrix, bias]))
    assert graph.kinds == ["conv", "global_pool", "linear", "mul"]
    assert graph.macs == 8 * 3 * 9 * 32 * 32 + 8 * 4
    assert list(graph.column("bias")) == [1, 0, 0, 0]


# --- detectors


def detector() -> ModelProto:
    """Backbone, pyramid, heads, decoding, the best of the boxes, and suppression of overlapping ones."""
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], strides=[4, 4]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], strides=[2, 2]),
        node("Resize", ["c2", "", "scales"], ["up"], mode="nearest"),
        node("Add", ["up", "r1"], ["p1"]),
    ]
    for level, source in (("1", "p1"), ("2", "c2")):
        for head, width in (("box", 4), ("cls", 5)):
            nodes += [
                node("Conv", [source, head], [f"{head}{level}_map"]),
                node("Shape", [f"{head}{level}_map"], [f"{head}{level}_shape"]),
                node("Gather", [f"{head}{level}_shape", "zero"], [f"{head}{level}_n"]),
                node("Concat", [f"{head}{level}_n", f"rest{width}"], [f"{head}{level}_flat"], axis=0),
                node("Reshape", [f"{head}{level}_map", f"{head}{level}_flat"], [f"{head}{level}"]),
            ]
    nodes += [
        node("Concat", ["box1", "box2"], ["deltas"], axis=2),
        node("Transpose", ["deltas"], ["turned"], perm=[0, 2, 1]),
        node("Sigmoid", ["turned"], ["unit"]),
        node("Mul", ["unit", "anchors"], ["boxes"]),
        node("Concat", ["cls1", "cls2"], ["logits"], axis=2),
        node("Sigmoid", ["logits"], ["scores"]),
        node("ReduceMax", ["scores", "one"], ["best"], keepdims=0),
        node("Shape", ["best"], ["best_shape"]),
        node("Gather", ["best_shape", "one"], ["count"]),
        node("Min", ["count", "limit"], ["k"]),
        node("TopK", ["best", "k"], ["top", "top_index"], axis=1),
        node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["kept"]),
        node("Gather", ["kept", "column"], ["kept_box"], axis=1),
        node("Gather", ["boxes", "kept_box"], ["y"], axis=1),
    ]
    constants = [
        floats("w1", 8, 3, 4, 4), floats("w2", 8, 8, 2, 2), floats("box", 4, 8, 1, 1), floats("cls", 5, 8, 1, 1),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"), floats("anchors", 80, 4),
        ints("zero", 0), ints("one", 1), ints("limit", 100), ints("most", 20), whole("column", 2),
        ints("rest4", 4, -1), ints("rest5", 5, -1), floats("iou", 1), floats("least", 1),
    ]  # fmt: skip
    return model_of(nodes, constants, outputs=["top", "y"])


def test_a_detector_with_all_that_follows_its_heads() -> None:
    graph = graph_from_model(detector())
    convs = [row for row, kind in enumerate(graph.kinds) if kind == "conv"]
    assert len(convs) == 6 and graph.macs == (8 * 48 * 64 + 8 * 32 * 16) + (64 + 16) * 8 * 9
    assert graph.kinds.count("resize") == 1 and graph.kinds.count("concat") == 2
    top, suppression = (row for row, kind in enumerate(graph.kinds) if kind == "other")
    assert graph.column("cout")[top] == 80  # all there are, fewer than the limit
    assert graph.column("outputs")[suppression] == 5 * 20 * 3  # at most so many of each class


def test_an_if_takes_the_branch_that_its_condition_says() -> None:
    long = subgraph([node("Conv", ["x", "w"], ["t"]), node("Relu", ["t"], ["t2"])], ["t2"])
    short = subgraph([node("Sigmoid", ["x"], ["t"])], ["t"])
    after = [node("Tanh", ["i"], ["y"])]

    def kinds(*condition: NodeProto) -> list[str]:
        test = node("If", ["c"], ["i"], then_branch=long, else_branch=short)
        return graph_from_model(
            model_of([*condition, test, *after], [floats("w", 4, 3, 1, 1), whole("three", 3)])
        ).kinds

    counted = (node("Shape", ["x"], ["s"]), node("Gather", ["s", "three"], ["d"]))
    assert kinds(*counted, node("Equal", ["d", "d"], ["c"])) == ["conv", "relu", "tanh"]
    assert kinds(*counted, node("Less", ["d", "d"], ["c"])) == ["sigmoid", "tanh"]
    by_data = (node("ReduceMax", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["c"], to=TensorProto.BOOL))
    assert kinds(*by_data) == ["reduce", "conv", "relu", "tanh"]  # the longer one


def test_branches_may_use_the_same_names() -> None:
    nodes, constants = [], [numpy_helper.from_array(np.array(True), "c")]
    for place, (op, cout) in enumerate((("Relu", 4), ("Sigmoid", 8))):
        constants.append(floats(f"w{place}", cout, 3, 1, 1))
        then = subgraph([node("Conv", ["x", f"w{place}"], ["t"]), node(op, ["t"], ["u"])], ["u"])
        nodes.append(node("If", ["c"], [f"b{place}"], then_branch=then, else_branch=subgraph([], ["x"])))
    nodes += [node("Tanh", ["b0"], ["y"]), node("Tanh", ["b1"], ["z"])]
    graph = graph_from_model(model_of(nodes, constants, outputs=["y", "z"]))
    assert graph.kinds == ["conv", "relu", "conv", "sigmoid", "tanh", "tanh"]
    assert graph.inputs_of()[-2:] == [[1], [3]]
    assert list(graph.column("cout")[-2:]) == [4, 8]


def test_a_loop_reads_what_its_body_reads() -> None:
    body = subgraph(
        [node("Identity", ["go"], ["on"]), node("Add", ["v", "r"], ["next"]), node("Relu", ["next"], ["each"])],
        ["on", "next", "each"],
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("v", [1, 3, 32, 32])],
    )
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Loop", ["turns", "", "start"], ["last", "all"], body=body),
        node("Sigmoid", ["last"], ["y"]),
        node("Tanh", ["all"], ["z"]),
    ]
    constants = [whole("turns", 5), floats("start", 1, 3, 32, 32)]
    graph = graph_from_model(model_of(nodes, constants, outputs=["y", "z"]))
    assert graph.kinds == ["relu", "other", "sigmoid", "tanh"]
    assert graph.inputs_of() == [[-1], [0], [1], [1]]
    assert list(graph.column("outputs")[2:]) == [3 * 32 * 32, 5 * 3 * 32 * 32]


def test_sizes_that_depend_on_data_count_as_the_largest() -> None:
    nodes = [
        node("Reshape", ["x", "flat"], ["f"]),
        node("ReduceMax", ["f"], ["m"], keepdims=0),
        node("Cast", ["m"], ["k0"], to=TensorProto.INT64),
        node("Unsqueeze", ["k0", "zero"], ["k"]),
        node("TopK", ["f", "k"], ["t", "i"]),
        node("Slice", ["t", "zero", "k", "one"], ["s"]),
        node("Relu", ["s"], ["y"]),
    ]
    graph = graph_from_model(model_of(nodes, [ints("flat", 0, -1), ints("zero", 0), ints("one", 1)]))
    assert graph.kinds[-1] == "relu" and graph.column("outputs")[-1] == 3 * 32 * 32


# --- files that are wrong


def refused(path: Path, pattern: str | None = None) -> str:
    """The message with which a file is refused; it names the file and takes one line."""
    with pytest.raises(ValueError, match=pattern) as caught:
        op_graph_from_onnx(path)
    message = str(caught.value)
    assert type(caught.value) is ValueError and message.isprintable() and path.name in message
    return message


def saved(model: ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def external(location: str, where: str, folder: Path) -> Path:
    """A file whose weight is said to lie at `location`."""
    weight = TensorProto(name="w", data_type=FLOAT, dims=[8, 3, 3, 3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    conv = node("Conv", ["x", "w"], ["y"])
    if where == "initializer":
        return saved(model_of([conv], [weight]), folder)
    made = node("Constant", [], ["w"], value=weight)
    if where == "constant":
        return saved(model_of([made, conv]), folder)
    if where == "branch":
        branches = {name: subgraph([made, conv], ["y"]) for name in ("then_branch", "else_branch")}
        chosen = node("If", ["c"], ["y"], **branches)
        return saved(model_of([chosen], [numpy_helper.from_array(np.array(True), "c")]), folder)
    function = helper.make_function("local", "Inner", ["x"], ["y"], [made, conv], [helper.make_opsetid("", 20)])
    return saved(model_of([node("Inner", ["x"], ["y"], domain="local")], functions=[function]), folder)


@pytest.mark.parametrize("where", ["initializer", "constant", "branch", "function"])
def test_external_data_stays_in_the_models_folder(where: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "inner").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(864))
    (home / "link").symlink_to(tmp_path / "secret")
    (home / "away").symlink_to(tmp_path)
    (home / "round").symlink_to("round")
    locations = ["../secret", "inner/../../secret", str(tmp_path / "secret"), "/etc/passwd", "link", "away/secret"]
    for location in [*locations, "round", "a\0b"]:
        refused(external(location, where, home), "outside of the model's folder")
    for location in ("weights.bin", "inner/weights.bin"):  # not opened, so they need not be there
        assert op_graph_from_onnx(external(location, where, home)).kinds == ["conv"]


def stretched(value: int) -> dict[str, ModelProto]:
    """Models whose tensors would have about `value` elements."""
    x = ("n", 4, 8, 8)
    size, one = ints("size", value), ints("one", 1)
    scales = numpy_helper.from_array(np.array([1, 1, value / 64, value / 64], np.float32), "scales")
    whole_size, whole_0, whole_1 = whole("size", value), whole("zero", 0), whole("one", 1)
    weight = TensorProto(name="w", data_type=FLOAT, dims=[value, 4, 1, 1])
    last = node("Add", ["x", "t"], ["y"])
    lie = model_of([node("Expand", ["one", "size"], ["t"]), node("Add", ["x", "t"], ["y"])], [one, size], opset=7)
    lie.graph.value_info.append(info("t", [1], TensorProto.INT64))  # Expand came with opset 8: nothing is inferred
    return {
        "constant": model_of([node("ConstantOfShape", ["size"], ["t"]), last], [size], image=x),
        "expand": model_of([node("Expand", ["one", "size"], ["t"]), last], [size, one], image=x),
        "expand_image": model_of([node("Expand", ["x", "size"], ["y"])], [ints("size", value, 1, 1, 1)], image=x),
        "tile": model_of([node("Tile", ["one", "size"], ["t"]), last], [size, one], image=x),
        "tile_image": model_of([node("Tile", ["x", "size"], ["y"])], [ints("size", 1, value, 1, 1)], image=x),
        "range": model_of(
            [node("Range", ["zero", "size", "one"], ["t"]), last], [whole_size, whole_0, whole_1], image=x
        ),
        "pad": model_of([node("Pad", ["x", "size"], ["y"])], [ints("size", *[value] * 8)], image=x),
        "resize": model_of([node("Resize", ["x", "", "scales"], ["y"])], [scales], image=x),
        "resize_to": model_of([node("Resize", ["x", "", "", "size"], ["y"])], [ints("size", 1, 4, value, 1)], image=x),
        "one_hot": model_of([node("OneHot", ["x", "size", "pair"], ["y"])], [size, floats("pair", 2)], image=x),
        "eye": model_of([node("ConstantOfShape", ["size"], ["t"]), node("EyeLike", ["t"], ["y"])], [size], image=x),
        "split": model_of([node("Split", ["x"], ["y"], axis=1, num_outputs=value)], image=x),
        "weight": model_of([node("Conv", ["x", "w"], ["y"])], [weight], image=x),
        "unheld": model_of(
            [node("MatMul", ["x", "w"], ["y"])], [TensorProto(name="w", data_type=FLOAT, dims=[10**6, 10**6])]
        ),
        "image": model_of([node("Relu", ["x"], ["y"])], image=("n", 3, value, value)),
        "lie": lie,
    }


READ_IN_LITTLE_MEMORY = """
import json, resource, sys, time
from pathlib import Path
from lownas.search_space import op_graph_from_onnx

resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outcome = str(op_graph_from_onnx(path).bytes >= 0)
    except ValueError as error:
        outcome = str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([path.stem, outcome, grown, time.perf_counter() - start]))
"""


def test_sizes_in_a_file_allocate_nothing(tmp_path: Path) -> None:
    for value in (1 << 26, 1 << 40, 1 << 62):  # the first would fit into the memory that there is, and be seen
        for name, model in stretched(value).items():
            saved(model, tmp_path, f"{name}_{value.bit_length()}.onnx")
    run = subprocess.run(
        [sys.executable, "-c", READ_IN_LITTLE_MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == 3 * len(stretched(1))
    for name, outcome, grown_kib, seconds in results:
        assert outcome == "True" or (outcome.isprintable() and name in outcome), (name, outcome)
        assert grown_kib < 64 * 1024, name
        assert seconds < 2, name
        if name.startswith(("weight", "unheld")):
            assert "does not hold what its shape says" in outcome or "too large" in outcome


def test_a_network_too_large_to_sum_up_is_refused() -> None:
    square = 1 << 20
    nodes = [node("Reshape", ["x", "shape"], ["t0"])]
    nodes += [node("MatMul", [f"t{i}", f"t{i}"], [f"t{i + 1}"]) for i in range(16)]  # 2**60 each
    model = model_of(nodes, [ints("shape", square, square)], image=("n", square, square), outputs=["t16"])
    with pytest.raises(ValueError, match="too large to count"):
        graph_from_model(model)


def test_many_dimensions_are_refused_before_they_are_multiplied() -> None:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[1 << 62] * 200_000)
    start = time.perf_counter()
    with pytest.raises(ValueError, match="200000 dimensions"):
        graph_from_model(model_of([node("Add", ["x", "w"], ["y"])], [weight]))
    assert time.perf_counter() - start < 2


def local(name: str, body: Sequence[NodeProto]) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["a"], ["b"], list(body), imports)


def calls_in_a_branch(*names: str) -> list[NodeProto]:
    """Functions called one after another, inside of an If."""
    tensors = ["a", *(f"t{i}" for i in range(len(names)))]
    steps = [
        node(name, [before], [after], domain="local")
        for name, before, after in zip(names, tensors, tensors[1:], strict=False)
    ]
    branch = subgraph(steps, tensors[-1:])
    always = numpy_helper.from_array(np.array(True), "always")
    return [
        node("Constant", [], ["c"], value=always),
        node("If", ["c"], ["b"], then_branch=branch, else_branch=branch),
    ]


def test_local_functions_cannot_multiply_without_end() -> None:
    call = [node("F", ["x"], ["y"], domain="local")]
    plain = local("F", calls_in_a_branch("G")), local("G", [node("Sigmoid", ["a"], ["b"])])
    assert graph_from_model(model_of(call, functions=plain)).kinds == ["sigmoid"]
    with pytest.raises(ValueError, match="calls itself"):
        graph_from_model(model_of(call, functions=[local("F", calls_in_a_branch("F"))]))
    doubling = [local("F0", [node("Relu", ["a"], ["b"])])]
    doubling += [local(f"F{i}", calls_in_a_branch(f"F{i - 1}", f"F{i - 1}")) for i in range(1, 30)]
    with pytest.raises(ValueError, match="functions of more than"):
        graph_from_model(model_of([node("F29", ["x"], ["y"], domain="local")], functions=doubling))
    heavy = numpy_helper.from_array(np.zeros(1 << 18, np.float32), "heavy")
    shared = local("F", [node("Constant", [], ["k"], value=heavy), node("Identity", ["a"], ["b"])])
    many = [node("F", ["x"], [f"y{i}"], domain="local") for i in range(1000)]
    with pytest.raises(ValueError, match="functions of more than"):
        graph_from_model(model_of(many, outputs=["y0"], functions=[shared]))


def nested(depth: int) -> NodeProto:
    inner = node("Relu", ["x"], ["y"])
    for _ in range(depth):
        inner = node("If", ["c"], ["y"], then_branch=subgraph([inner], ["y"]), else_branch=subgraph([], ["x"]))
    return inner


def test_branches_within_branches(tmp_path: Path) -> None:
    always = numpy_helper.from_array(np.array(True), "c")
    assert op_graph_from_onnx(saved(model_of([nested(20)], [always]), tmp_path)).kinds == ["relu"]
    data = model_of([node("Relu", ["x"], ["y"])], [always]).SerializeToString()
    deep = b""
    for _ in range(2000):  # graph { node { attribute { g: ... } } }, deeper than any library would write it
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            size, length = len(deep), b""
            while size > 127:
                length, size = length + bytes([size & 127 | 128]), size >> 7
            deep = tag + length + bytes([size]) + deep
    size, length = len(deep), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    path = tmp_path / "deep.onnx"
    path.write_bytes(data + b"\x3a" + length + bytes([size]) + deep)
    refused(path)


def with_attribute(op: str, inputs: Sequence[str], name: str, **value: Any) -> NodeProto:
    step = node(op, list(inputs), ["y"])
    step.attribute.append(onnx.AttributeProto(name=name, **value))
    return step


BAD_NODES: dict[str, list[NodeProto]] = {
    "cycle": [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])],
    "itself": [node("Add", ["x", "y"], ["y"])],
    "twice": [node("Relu", ["x"], ["y"]), node("Sigmoid", ["x"], ["y"])],
    "over_input": [node("Relu", ["x"], ["x"])],
    "over_weight": [node("Relu", ["x"], ["w"])],
    "control": [node("\x1b[2J\nrm", ["nowhere"], ["y"])],
    "empty_if": [node("If", ["flag"], ["y"])],
    "hollow_if": [node("If", ["flag"], ["y"], then_branch=subgraph([], []), else_branch=subgraph([], []))],
    "alone": [node("Conv", ["x"], ["y"])],
    "no_inputs": [node("Add", [], ["y"])],
    "no_kernel": [node("MaxPool", ["x"], ["y"])],
    "stride_0": [node("Conv", ["x", "w"], ["y"], strides=[0, 0])],
    "stride_text": [node("Conv", ["x", "w"], ["y"], strides="ab")],
    "stride_real": [node("Conv", ["x", "w"], ["y"], strides=[1.5, 1.5])],
    "group_0": [node("Conv", ["x", "w"], ["y"], group=0)],
    "group_below_0": [node("Conv", ["x", "w"], ["y"], group=-1)],
    "group_text": [node("Conv", ["x", "w"], ["y"], group="one")],
    "few_pads": [node("Conv", ["x", "w"], ["y"], pads=[1])],
    "reference": [with_attribute("Conv", ["x", "w"], "strides", ref_attr_name="outer", type=onnx.AttributeProto.INTS)],
    "strides_tensor": [with_attribute("Conv", ["x", "w"], "strides", t=ints("t", 2), type=onnx.AttributeProto.TENSOR)],
    "no_type": [with_attribute("Conv", ["x", "w"], "group", i=1)],
    "unknown_type": [with_attribute("Conv", ["x", "w"], "group", f=1.0, type=onnx.AttributeProto.TYPE_PROTO)],
    "perm": [node("Transpose", ["x"], ["t"], perm=[0, 1, 2, 99]), node("Relu", ["t"], ["y"])],
    "axis": [node("Concat", ["x", "x"], ["t"], axis=99), node("Relu", ["t"], ["y"])],
    "parts": [
        node("Constant", [], ["sizes"], value_ints=[-5, 8]),
        node("SplitToSequence", ["x", "sizes"], ["s"], axis=1),
        node("Constant", [], ["last"], value_int=0),
        node("SequenceAt", ["s", "last"], ["t"]),
        node("Relu", ["t"], ["y"]),
    ],
    "block": [node("DepthToSpace", ["x"], ["t"], blocksize=0), node("Relu", ["t"], ["y"])],
    "equation": [node("Einsum", ["x", "x"], ["t"], equation="->,->"), node("Relu", ["t"], ["y"])],
    "constant": [node("Constant", [], ["t"]), node("Add", ["x", "t"], ["y"])],
}


@pytest.mark.parametrize("name", BAD_NODES)
def test_nodes_that_make_no_sense(name: str, tmp_path: Path) -> None:
    constants = [floats("w", 4, 3, 3, 3), numpy_helper.from_array(np.array(True), "flag")]
    path = saved(model_of(BAD_NODES[name], constants), tmp_path)
    if name in ("no_type", "constant"):  # what an attribute without a type holds is plain; a constant may be unknown
        return outcome_of(path)
    assert "cannot be read (" not in refused(path)


def outcome_of(path: Path) -> None:
    """Reads a file, which gives a graph that is usable or a ValueError of one line, soon."""
    start = time.perf_counter()
    try:
        graph = op_graph_from_onnx(path)
        assert isinstance(graph, OpGraph) and len(graph) and (graph.table >= 0).all() and graph.macs >= 0
    except ValueError as error:
        assert type(error) is ValueError and str(error).isprintable() and path.name in str(error)
        assert "cannot be read (" not in str(error)  # the net below all checks
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "image", [("n", 3, 0, 32), ("n", 3, -1, 32), ("n", 0, 32, 32), (-1, 3, 32, 32), (2, 3, 32, 32)]
)
def test_an_image_of_no_size_is_refused(image: Sequence[int | str], tmp_path: Path) -> None:
    refused(saved(model_of([node("Relu", ["x"], ["y"])], image=image), tmp_path))


@pytest.mark.parametrize("dims", [[0, 3, 1, 1], [4, 3, 0, 0], [-4, 3, 1, 1], [1 << 62, 0, 1 << 62, 1]])
def test_weights_of_no_size(dims: list[int], tmp_path: Path) -> None:
    weight = TensorProto(name="w", data_type=FLOAT, dims=dims)
    outcome_of(saved(model_of([node("Conv", ["x", "w"], ["y"])], [weight]), tmp_path))


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for name, content in {
        "empty": b"",
        "text": b"not a model\n",
        "json": b'{"irVersion": 8, "graph": {}}',
        "zeros": bytes(10_000),
        "zip": b"PK\x03\x04" + bytes(100),
        "noise": random.Random(0).randbytes(10_000),
        "no_graph": helper.make_model(GraphProto()).SerializeToString(),
    }.items():
        for suffix in (".onnx", ".json", ".textproto", ""):  # whose content the suffix does not change
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(content)
            refused(path)
    for name in ("folder.onnx", "missing.onnx"):
        refused(tmp_path / name, "no ONNX file")
    path = tmp_path / "big.onnx"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # takes no space
    refused(path, "2 GiB")
    good = saved(plain_cnn(17, 1), tmp_path, "model.json")
    assert "conv" in op_graph_from_onnx(good).kinds


def damaged() -> list[bytes]:
    """Small valid files with a bit of everything."""
    body = subgraph(
        [node("Identity", ["go"], ["on"]), node("Add", ["v", "x"], ["next"])],
        ["on", "next"],
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("v")],
    )
    relu = subgraph([node("Relu", ["u"], ["t"])], ["t"])
    mixed = [
        node("Loop", ["turns", "", "x"], ["v0"], body=body),
        node("Resize", ["v0", "", "scales"], ["u"], mode="nearest"),
        node("If", ["c"], ["i"], then_branch=relu, else_branch=relu),
        node("F", ["i"], ["f"], domain="local"),
        node("Shape", ["f"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "rest"], ["flat"], axis=0),
        node("Reshape", ["f", "flat"], ["t0"]),
        node("Einsum", ["t0", "t0"], ["e"], equation="bij,bkj->bik"),
        node("Pad", ["e", "pads"], ["p"]),
        node("Range", ["r0", "r1", "r2"], ["r"]),
        node("TopK", ["p", "one"], ["y", "index"]),
    ]
    constants = [
        whole("turns", 2), whole("r0", 0), whole("r1", 9), whole("r2", 1), ints("zero", 0), ints("rest", 3, -1),
        ints("pads", 0, 0, 0, 0, 0, 1), ints("one", 1), numpy_helper.from_array(np.array(True), "c"),
        numpy_helper.from_array(np.array([1, 1, 0.5, 0.5], np.float32), "scales"),
    ]  # fmt: skip
    models = [plain_cnn(20, "n"), model_of(mixed, constants, functions=[local("F", [node("Sigmoid", ["a"], ["b"])])])]
    assert [graph_from_model(model).kinds[0] for model in models] == ["conv", "other"]
    return [model.SerializeToString() for model in models]


def test_files_cut_off_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    for content in damaged():
        for end in range(0, len(content), 23):
            path.write_bytes(content[:end])
            outcome_of(path)


def test_files_with_wrong_bits(tmp_path: Path) -> None:
    path, rng = tmp_path / "flipped.onnx", random.Random(0)
    for content in damaged():
        for _ in range(400):
            wrong = bytearray(content)
            for _ in range(rng.choice([1, 1, 1, 3, 16])):
                wrong[rng.randrange(len(wrong))] ^= 1 << rng.randrange(8)
            path.write_bytes(wrong)
            outcome_of(path)


def test_what_a_file_computes_in(tmp_path: Path) -> None:
    def precision(operator: str, kind: int) -> str:
        weight = helper.make_tensor("w", kind, [2, 2], [1.0] * 4)
        graph = helper.make_graph([helper.make_node(operator, ["x", "w"], ["y"])], "g", [], [], [weight])
        return precision_of(helper.make_model(graph))

    assert precision("MatMul", TensorProto.FLOAT) == "fp32"
    assert precision("MatMul", TensorProto.FLOAT16) == precision("MatMul", TensorProto.BFLOAT16) == "fp16"
    assert precision("QuantizeLinear", TensorProto.FLOAT) == precision("MatMulInteger", TensorProto.FLOAT) == "int8"
