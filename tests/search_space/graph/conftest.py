"""ONNX models made node by node, and what reading a file may give."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lownas.search_space import OpGraph, op_graph_from_onnx

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


def outcome_of(path: Path) -> None:
    """Reads a file, which gives a graph that is usable or a ValueError of one line, soon."""
    start = time.perf_counter()
    try:
        graph = op_graph_from_onnx(path)
        assert isinstance(graph, OpGraph) and len(graph) and (graph.table >= 0).all() and graph.macs >= 0
    except ValueError as error:
        assert type(error) is ValueError and str(error).isprintable() and path.name in str(error)
        assert "cannot be read (" not in str(error)  # the net below all checks
    assert time.perf_counter() - start < 20
