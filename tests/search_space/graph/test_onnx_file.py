"""ONNX files that are wrong, by accident or on purpose: refused in one line, soon, and without much memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lownas.search_space import op_graph_from_onnx
from lownas.search_space.graph.onnx_file import precision_of
from lownas.search_space.graph.onnx_reader import graph_from_model

from .conftest import FLOAT, floats, info, ints, model_of, node, outcome_of, plain_cnn, refused, saved, subgraph, whole


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
        [sys.executable, "-c", READ_IN_LITTLE_MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == 3 * len(stretched(1))
    for name, outcome, grown_kib, seconds in results:
        assert outcome == "True" or (outcome.isprintable() and name in outcome), (name, outcome)
        assert grown_kib < 64 * 1024, name
        assert seconds < 20, name
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
    assert time.perf_counter() - start < 20


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


@pytest.mark.parametrize("image", [("n", 3, 0, 32), ("n", 3, -1, 32), ("n", 0, 32, 32), (2, 3, 32, 32)])
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
