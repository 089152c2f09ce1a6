"""What depends on the shapes in an ONNX file: branches, loops, and sizes that only the data tell."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from lownas.search_space.graph.onnx_reader import graph_from_model

from .conftest import floats, info, ints, model_of, node, subgraph, whole


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
