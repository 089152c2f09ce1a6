"""Shapes that are inferred here against those that onnxruntime gives, over generated attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lownas.search_space.graph.onnx_shapes import infer_shapes

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))
AUTOMATIC = st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
SIDES = st.tuples(st.integers(3, 9), st.integers(3, 9))


def model(
    nodes: list[onnx.NodeProto], shape: list[int], constants: list[onnx.TensorProto], opset: int
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", infos, outputs, constants)
    sets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=8)


def agrees(made: onnx.ModelProto) -> None:
    """Compares the shape of "y"; models that onnxruntime does not run say nothing."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    shape = [dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim]
    try:
        session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
        real = session.run(None, {"x": np.zeros(shape, np.float32)})[0].shape
    except Exception:  # onnxruntime's, which share no narrower base class
        return
    tensors = infer_shapes(made).tensors
    assert tensors.shapes[tensors.resolve("y")] == real


def windows(draw: Any) -> dict[str, Any]:
    """Attributes that a convolution and a pooling have."""
    found: dict[str, Any] = {"strides": draw(PAIRS), "dilations": draw(st.tuples(*[st.integers(1, 2)] * 2))}
    if (automatic := draw(AUTOMATIC)) == "NOTSET":
        found["pads"] = draw(st.tuples(*[st.integers(0, 1)] * 4))
    else:
        found["auto_pad"] = automatic
    return found


@settings(max_examples=150, deadline=None)
@given(st.data(), SIDES, st.tuples(st.integers(1, 4), st.integers(1, 4)), st.sampled_from([11, 13, 17, 20]))
def test_transposed_convolutions(
    data: st.DataObject, sides: tuple[int, int], kernel: tuple[int, int], opset: int
) -> None:
    attributes = windows(data.draw) | {"group": data.draw(st.sampled_from([1, 2]))}
    strides = attributes["strides"]
    if data.draw(st.booleans()):
        attributes["output_padding"] = [data.draw(st.integers(0, stride - 1)) for stride in strides]
    if data.draw(st.integers(0, 4)) == 0:
        attributes["output_shape"] = [
            side * stride + data.draw(st.integers(-1, 1)) for side, stride in zip(sides, strides, strict=True)
        ]
    weight = numpy_helper.from_array(np.zeros((4, 2, *kernel), np.float32), "w")
    agrees(model([helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)], [1, 4, *sides], [weight], opset))


@settings(max_examples=150, deadline=None)
@given(
    st.data(),
    st.sampled_from(["MaxPool", "AveragePool", "LpPool", "Conv"]),
    SIDES,
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from([11, 13, 17, 19, 20]),
)
def test_pooling_and_convolutions(
    data: st.DataObject, kind: str, sides: tuple[int, int], kernel: tuple[int, int], opset: int
) -> None:
    attributes = windows(data.draw)
    constants = []
    if kind == "Conv":
        constants = [numpy_helper.from_array(np.zeros((6, 4, *kernel), np.float32), "w")]
    else:
        attributes |= {"kernel_shape": kernel}
        if kind != "MaxPool" and opset < 19:
            attributes.pop("dilations")
        if kind != "LpPool" and data.draw(st.booleans()):
            attributes["ceil_mode"] = 1
    inputs = ["x", *(constant.name for constant in constants)]
    agrees(model([helper.make_node(kind, inputs, ["y"], **attributes)], [1, 4, *sides], constants, opset))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([2, 3, 5]), min_size=2, max_size=4),
    st.sampled_from(["QuickGelu", "FastGelu", "BiasGelu"]),
)
def test_operators_of_onnxruntime(sizes: list[int], kind: str) -> None:
    constants, inputs = [], ["x"]
    if kind == "BiasGelu":
        constants, inputs = [numpy_helper.from_array(np.zeros(sizes[-1], np.float32), "b")], ["x", "b"]
    agrees(model([helper.make_node(kind, inputs, ["y"], domain="com.microsoft")], [1, *sizes], constants, 17))


@settings(max_examples=40, deadline=None)
@given(st.integers(40, 90), st.integers(1, 12), st.integers(4, 33), st.booleans(), st.booleans(), st.booleans())
def test_short_fourier_transforms(samples: int, step: int, length: int, half: bool, window: bool, said: bool) -> None:
    constants = [numpy_helper.from_array(np.array(step, np.int64), "step")]
    constants.append(numpy_helper.from_array(np.ones(length, np.float32), "window"))
    constants.append(numpy_helper.from_array(np.array(length, np.int64), "length"))
    inputs = ["x", "step", "window" if window else "", "length" if said or not window else ""]
    node = helper.make_node("STFT", inputs if inputs[-1] else inputs[:-1], ["y"], onesided=int(half))
    agrees(model([node], [1, samples, 1], constants, 17))
