"""ONNX files of others as operator graphs: exporters, opsets, kinds of networks."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from lownas.search_space.graph.onnx_reader import graph_from_model
from lownas.search_space.graph.torch_tracer import op_graph_from_torch

from .conftest import FLOAT, floats, ints, model_of, node, plain_cnn, whole

NEWEST = onnx.defs.onnx_opset_version()


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
    stems = [int(found.column("params")[0]) for found in (graph, expected)]
    assert stems == [3 * 9 * 16 + 2 * 16] * 2  # with both of the BatchNorm's, which the exporter folded


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


@pytest.mark.parametrize(
    ("perm", "kind"),
    [
        ([0, 1, 3, 5, 2, 4], "permute"),  # element by element
        ([0, 1, 2, 4, 3, 5], "move"),  # rows stay together
        ([0, 1, 2, 3, 5, 4], "move"),  # one dimension goes elsewhere
    ],
)
def test_permutations_of_elements_are_told_apart(perm: list[int], kind: str) -> None:
    nodes = [
        node("Reshape", ["x", "apart"], ["a"]),
        node("Transpose", ["a"], ["b"], perm=perm),
        node("Relu", ["b"], ["y"]),
    ]
    model = model_of(nodes, [ints("apart", 1, 3, 16, 2, 16, 2)], image=(1, 3, 32, 32))
    assert graph_from_model(model).kinds == [kind, "relu"]


def test_a_product_with_a_scalar_is_refused() -> None:
    nodes = [node("ReduceMean", ["x"], ["scalar"], keepdims=0), node("Gemm", ["scalar", "w"], ["y"], transB=1)]
    model = model_of(nodes, [floats("w", 8, 4)])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8]))
    with pytest.raises(ValueError, match=r"Gemm of \[1\] and \[4, 8\]"):
        graph_from_model(model)


def test_a_hardswish_in_four_operators_stays_four_as_in_onnxruntime(tmp_path) -> None:
    import onnxruntime

    nodes = [
        node("Conv", ["x", "w"], ["a"], kernel_shape=[1, 1]),
        node("Add", ["a", "three"], ["b"]),
        node("Clip", ["b", "zero", "six"], ["c"]),
        node("Div", ["c", "six"], ["d"]),
        node("Mul", ["a", "d"], ["e"]),
        node("Conv", ["e", "v"], ["y"], kernel_shape=[1, 1]),
    ]
    numbers = {"zero": 0.0, "three": 3.0, "six": 6.0}
    constants = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in numbers.items()]
    model = model_of(
        nodes, [floats("w", 16, 3, 1, 1), floats("v", 8, 16, 1, 1), *constants], image=(1, 3, 8, 8), opset=13
    )
    assert graph_from_model(model).kinds == ["conv", "add", "relu", "mul", "mul", "conv"]
    onnx.save(model, tmp_path / "model.onnx")
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 3
    onnxruntime.InferenceSession(tmp_path / "model.onnx", settings, providers=["CPUExecutionProvider"])
    run = [each.op_type for each in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert [name for name in run if name in ("Add", "Clip", "Div", "Mul")] == ["Add", "Clip", "Div", "Mul"]
