from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from lownas.search_space import (
    PRESETS,
    LowFormerConfig,
    OpGraph,
    SearchSpace,
    build_model,
    op_graph,
    op_graph_from_onnx,
    write_onnx,
)
from lownas.search_space.graph import COLUMN, COLUMNS
from lownas.search_space.graph.onnx_reader import graph_from_model
from lownas.search_space.graph.onnx_writer import random_weights

COMPARED = [COLUMN[name] for name in COLUMNS if name != "params"]  # a bias before a BatchNorm is not told by a file


def normed(graph: OpGraph) -> list[bool]:
    return (graph.column("params") > graph.column("weights")).tolist()


def assert_same(graph: OpGraph, expected: OpGraph) -> None:
    assert graph.kinds == expected.kinds
    assert np.array_equal(graph.table[:, COMPARED], expected.table[:, COMPARED])
    assert normed(graph) == normed(expected)
    assert np.array_equal(graph.edges, expected.edges)
    assert (graph.macs, graph.bytes) == (expected.macs, expected.bytes)


def exported(config: LowFormerConfig, *, dynamo: bool, opset: int) -> onnx.ModelProto:
    torch.manual_seed(0)
    model = build_model(config).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("bias", "running_mean")):
            nn.init.normal_(tensor)  # exporters drop what is zero
    x = torch.zeros(1, 3, config.resolution, config.resolution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            program = torch.onnx.export(model, (x,), dynamo=True, opset_version=opset, verbose=False)
            assert program is not None
            return program.model_proto
        file = io.BytesIO()
        axes = {"x": {0: "batch"}}
        torch.onnx.export(model, (x,), file, dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes)
        return onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize("name", PRESETS)
def test_our_files_give_the_graph_they_were_written_from(name: str, tmp_path: Path) -> None:
    config = PRESETS[name]
    write_onnx(config, tmp_path / "model.onnx", batch="batch")
    assert_same(op_graph_from_onnx(tmp_path / "model.onnx"), op_graph(config))


@pytest.mark.parametrize("seed", range(20))
def test_so_do_those_of_samples(seed: int, tmp_path: Path) -> None:
    config = SearchSpace.load("tiny").sample(np.random.default_rng(seed))
    write_onnx(config, tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    assert_same(op_graph_from_onnx(tmp_path / "model.onnx"), op_graph(config))


@pytest.mark.parametrize(("dynamo", "opset"), [(False, 17), (True, 18)])
@pytest.mark.parametrize("seed", [1, 4])
def test_so_do_both_of_torchs_exporters(seed: int, dynamo: bool, opset: int) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    config = SearchSpace.load("tiny").sample(np.random.default_rng(seed))
    assert_same(graph_from_model(exported(config, dynamo=dynamo, opset=opset)), op_graph(config))


def test_a_cpubone_of_odd_size_from_torch() -> None:
    config = PRESETS["cpubone_nano"].replace(resolution=200)
    assert_same(graph_from_model(exported(config, dynamo=False, opset=17)), op_graph(config))


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07\x12\x02\xff\xff" * 5])
def test_broken_files_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.onnx") as caught:
        op_graph_from_onnx(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no ONNX file"):
        op_graph_from_onnx(tmp_path / "none.onnx")


def one_op(kind: str, inputs: list[list[int | str]], **attributes: object) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(len(inputs))]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in zip(names, inputs, strict=True)]
    node = helper.make_node(kind, names, ["y"], **attributes)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph([node], "g", infos, [out]), opset_imports=[helper.make_opsetid("", 20)])


def test_operators_outside_the_space_are_kept() -> None:
    graph = graph_from_model(one_op("MaxPool", [["n", 8, 32, 32]], kernel_shape=[2, 2], strides=[2, 2]))
    assert graph.kinds == ["max_pool"] and graph.column("hout")[0] == 16
    assert graph_from_model(one_op("Cos", [[1, 8, 4, 4]])).kinds == ["other"]


def test_a_symbolic_image_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"open sizes \(n, 8, h, w\): say them, for example --input-shape 1x8x224x224"):
        graph_from_model(one_op("Relu", [["n", 8, "h", "w"]]))


def test_a_fixed_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="has a batch of 8; predicted is batch 1"):
        graph_from_model(one_op("Relu", [[8, 3, 4, 4]]))


def test_absurd_sizes_allocate_nothing() -> None:
    with pytest.raises(ValueError, match="too large"):
        graph_from_model(one_op("Relu", [[1, 1 << 30, 1 << 30, 4]]))


def test_no_two_operators_have_the_same_constants() -> None:
    """Runtimes would keep them once, so that fewer weights were read than in a trained network."""
    arrays = [array for constants in random_weights(op_graph(PRESETS["lowformer_b1"])) for array in constants]
    assert len({array.tobytes() for array in arrays}) == len(arrays)
