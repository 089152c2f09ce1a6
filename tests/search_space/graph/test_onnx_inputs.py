"""Sizes that ONNX files leave open: what is said of them, how they are given, and shapes computed from shapes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lownas.search_space import OnnxFile, op_graph_from_onnx
from lownas.search_space.graph.onnx_inputs import input_shapes, shapes_of
from lownas.search_space.graph.onnx_reader import graph_from_model
from lownas.search_space.graph.shaped_file import parse_shapes


def test_shapes_on_a_command_line() -> None:
    assert parse_shapes(["1x3x640x640"]) == {"": (1, 3, 640, 640)}
    assert parse_shapes(["a=1x3", "b:0=7", "c=d=2x2"]) == {"a": (1, 3), "b:0": (7,), "c=d": (2, 2)}
    for wrong in ("", "x", "1x", "x3", "1,3", "a=", "=1x3", "1x-3", "1x3.5", "a=b", "1x" * 200):
        with pytest.raises(ValueError, match="sizes with x between them"):
            parse_shapes([wrong])
    with pytest.raises(ValueError, match="given twice"):
        parse_shapes(["a=1", "a=2"])


def test_a_symbol_has_one_size_and_an_open_first_one_is_the_batch() -> None:
    inputs = {"x": ["n", "t", 8], "mask": ["n", "t"], "state": [2, "n", 8], "rate": []}
    assert shapes_of(inputs, {"x": (1, 50, 8)}) == {"x": (1, 50, 8), "mask": (1, 50), "state": (2, 1, 8), "rate": ()}
    assert shapes_of({"x": ["n", 3, 8, 8]}, {}, batch=4) == {"x": (4, 3, 8, 8)}
    with pytest.raises(ValueError, match="'t' is 50 and 60: a symbol has one size"):
        shapes_of(inputs, {"x": (1, 50, 8), "mask": (1, 60)})


@pytest.mark.parametrize(
    ("inputs", "given", "said"),
    [
        ({"x": [None, 3, None, None]}, {}, "open sizes (?, 3, ?, ?): say them, for example --input-shape 1x3x224x224"),
        ({"x": ["n", "h", "w", 3]}, {}, "--input-shape 1x224x224x3"),
        ({"x": ["n", "t"], "s": [2, "n", 8]}, {}, "--input-shape x=1x512 --input-shape s=2x1x8"),
        ({"x": None}, {}, "input 'x' has no shape"),
        ({"x": ["n", 3, "h", "w"]}, {"": (1, 1, 8, 8)}, "has sizes (n, 3, h, w), which (1, 1, 8, 8) do not fit"),
        ({"x": ["n", 3, "h", "w"]}, {"": (1, 3, 8)}, "do not fit"),
        ({"x": ["n", 3, "h", "w"]}, {"y": (1, 3, 8, 8)}, "it has no input 'y'; there are x"),
        ({"x": ["n", "t"], "y": ["n", "u"]}, {"": (1, 8)}, "say which shape is whose"),
        ({"x": ["n", "t"]}, {"": (1, 0)}, "sizes are at least 1"),
    ],
)  # fmt: skip
def test_what_is_open_or_wrong_is_said_with_a_way_out(inputs: dict, given: dict, said: str) -> None:
    with pytest.raises(ValueError) as error:
        shapes_of(inputs, given)
    assert said in str(error.value)


def test_a_file_without_inputs_has_no_sizes_to_say() -> None:
    with pytest.raises(ValueError, match="it has no inputs"):
        shapes_of({}, {"": (1, 3)})


def test_a_shape_without_a_name_is_that_of_the_only_open_input() -> None:
    assert shapes_of({"x": ["n", 3, "h", "w"], "scale": [1]}, {"": (1, 3, 8, 8)})["x"] == (1, 3, 8, 8)


def convolution(path: Path, shape: list[int | str | None]) -> Path:
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in (("x", shape), ("y", None))]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", infos[:1], infos[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_a_file_with_given_sizes_is_that_of_those_sizes(tmp_path: Path) -> None:
    free = convolution(tmp_path / "free.onnx", ["n", 3, "h", "w"])
    fixed = convolution(tmp_path / "fixed.onnx", [1, 3, 40, 24])
    given = op_graph_from_onnx(free, {"x": (1, 3, 40, 24)})
    assert (given.table == op_graph_from_onnx(fixed).table).all()
    assert (op_graph_from_onnx(OnnxFile(free, {"": (1, 3, 40, 24)})).table == given.table).all()
    assert input_shapes(OnnxFile(free, {"": (2, 3, 40, 24)})) == {"x": (2, 3, 40, 24)}
    with pytest.raises(ValueError, match=r"free.onnx: input 'x' has open sizes"):
        op_graph_from_onnx(free)
    negative = onnx.load(free)
    negative.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert len(graph_from_model(negative, {"": (1, 3, 8, 8)})) == 1


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 18])
def test_shapes_computed_from_shapes_are_followed_in_older_operator_sets(opset: int) -> None:
    """x -> its last two sizes as one, by Shape, Gather, Identity, Squeeze, Mul, Unsqueeze and Concat."""

    def axes(kind: str, source: str, out: str) -> onnx.NodeProto:
        if opset < 13:
            return helper.make_node(kind, [source], [out], axes=[0])
        return helper.make_node(kind, [source, "zero"], [out])

    nodes = [helper.make_node("Shape", ["x"], ["shape"])]
    for place in (2, 3):
        nodes.append(helper.make_node("Gather", ["shape", f"at{place}"], [f"size{place}"], axis=0))
        nodes.append(helper.make_node("Identity", [f"size{place}"], [f"same{place}"]))
        nodes.append(axes("Squeeze", f"same{place}", f"number{place}"))
    nodes.append(helper.make_node("Mul", ["number2", "number3"], ["product"]))
    nodes.append(axes("Unsqueeze", "product", "pixels"))
    nodes.append(helper.make_node("Concat", ["one", "channels", "pixels"], ["wanted"], axis=0))
    nodes += [helper.make_node("Reshape", ["x", "wanted"], ["flat"]), helper.make_node("Relu", ["flat"], ["y"])]
    values = {"at2": [2], "at3": [3], "zero": [0], "one": [1], "channels": [4]}
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in values.items()]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, "h", "w"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", infos, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    found = graph_from_model(model, {"x": (1, 4, 6, 5)})
    assert found.kinds[-1] == "relu" and found.column("outputs")[-1] == 120
    ran = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert ran.run(None, {"x": np.zeros((1, 4, 6, 5), np.float32)})[0].shape == (1, 4, 30)


def test_operators_of_onnxruntime_itself_are_those_that_they_stand_for() -> None:
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    nodes = [
        helper.make_node("FusedConv", ["x", "w"], ["a"], domain="com.microsoft", activation="Relu", pads=[1, 1, 1, 1]),
        helper.make_node("QuickGelu", ["a"], ["y"], domain="com.microsoft", alpha=1.7),
    ]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    sets = [helper.make_opsetid("", 12), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", infos, outputs, [weight]), opset_imports=sets, ir_version=7)
    found = graph_from_model(model)
    assert found.kinds == ["conv", "silu"] and found.macs == 8 * 27 * 256


def test_a_quantized_recurrent_layer_has_its_size() -> None:
    shapes = {"w": (2, 16, 48), "r": (2, 12, 48), "b": (2, 96)}
    constants = [numpy_helper.from_array(np.ones(shape, np.int8), name) for name, shape in shapes.items()]
    inputs = ["x", "w", "r", "b", *[""] * 4, "ws", "wz", "rs", "rz"]
    for name in inputs[-4:]:
        constants.append(numpy_helper.from_array(np.ones(2, np.float32), name))
    nodes = [
        helper.make_node(
            "DynamicQuantizeLSTM", inputs, ["y"], domain="com.microsoft", hidden_size=12, direction="bidirectional"
        ),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 1, 16])]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    sets = [helper.make_opsetid("", 12), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", infos, outputs, constants)
    found = graph_from_model(helper.make_model(graph, opset_imports=sets, ir_version=7))
    assert found.unmodelled == ("LSTM",) and found.column("outputs")[-1] == 5 * 2 * 12


def test_small_numbers_in_external_data_are_read_or_missed(tmp_path: Path) -> None:
    """A reshape whose shape is kept beside the model."""
    wanted = numpy_helper.from_array(np.array([1, 2, 32], np.int64), "wanted")
    nodes = [helper.make_node("Reshape", ["x", "wanted"], ["flat"]), helper.make_node("Relu", ["flat"], ["y"])]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", infos, outputs, [wanted]), opset_imports=[helper.make_opsetid("", 13)]
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="numbers.bin", size_threshold=0)
    assert op_graph_from_onnx(path).column("outputs")[-1] == 64
    (tmp_path / "numbers.bin").write_bytes(b"\0" * 3)
    with pytest.raises(ValueError, match="cannot be determined"):
        op_graph_from_onnx(path)
    (tmp_path / "numbers.bin").unlink()
    with pytest.raises(ValueError, match=r"'numbers\.bin' beside it is missing") as error:
        op_graph_from_onnx(path)
    assert "\n" not in str(error.value)
    os.mkfifo(tmp_path / "numbers.bin")
    with pytest.raises(ValueError, match=r"'numbers\.bin' beside it is missing"):
        op_graph_from_onnx(path)


def test_operators_in_any_order(tmp_path: Path) -> None:
    path = convolution(tmp_path / "model.onnx", [1, 3, 16, 16])
    model = onnx.load(path)
    model.graph.node[0].output[0] = "a"
    model.graph.node.insert(0, helper.make_node("Relu", ["b"], ["y"]))
    model.graph.node.insert(0, helper.make_node("Sigmoid", ["a"], ["b"]))
    assert graph_from_model(model).kinds == ["conv", "sigmoid", "relu"]
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    model.graph.node[0].input[0] = "y"
    with pytest.raises(ValueError, match="which nothing before it makes"):
        graph_from_model(model)
