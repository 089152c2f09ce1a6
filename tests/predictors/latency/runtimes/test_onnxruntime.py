"""onnxruntime's fusion rules against what it really executes."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from lownas.evaluators.device.kernel_times import kernel_names
from lownas.predictors.latency.fitting.samples import Sample, block_size
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernels import Kernels
from lownas.predictors.latency.runtimes import runtime_of_fusion
from lownas.search_space import PRESETS, SearchSpace, op_graph
from lownas.search_space.graph import GraphBuilder
from lownas.search_space.graph.onnx_writer import onnx_model


def executed_nodes(config, tmp_path) -> list[str]:
    """The kernel of each node in onnxruntime's optimized graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(onnx_model(config).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return kernel_names(onnx.load(tmp_path / "optimized.onnx").graph.node)


def executed_kernels(config, tmp_path) -> set[str]:
    return set(executed_nodes(config, tmp_path))


def names(kernels: Kernels) -> set[str]:
    return {f"{row}:{role}" for row, role in kernels.keys}


def sampled(count: int, seed: int = 0):
    space = SearchSpace.load("default")
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count)]


def small(config):
    """Narrower by half (in multiples of four, so that the layouts differ from the original's), and less to write."""
    stages = [{**stage, "width": stage["width"] // 8 * 4} for stage in config.to_dict()["stages"]]
    return config.replace(stages=stages, stem_width=config.stem_width // 8 * 4, resolution=64, head_widths=(64, 64))


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """Channels of the blocked layout on the machine that runs the tests."""
    config = small(PRESETS["lowformer_b0"])
    measured = dict.fromkeys(executed_kernels(config, tmp_path_factory.mktemp("block")), 1.0)
    return block_size([Sample(config, 1.0, 0.0, measured)])


@pytest.mark.parametrize("name", ["lowformer_b1", "lowformer_e3", "lowformer_e1", "cpubone_t0", "cpubone_s0"])
def test_presets_have_the_kernels_that_onnxruntime_executes(name, tmp_path, block):
    config = small(PRESETS[name])
    assert names(fuse(op_graph(config), "onnxruntime", block)) == executed_kernels(config, tmp_path)


@pytest.mark.parametrize("config", sampled(6, seed=3), ids=lambda c: c.id)
def test_samples_have_the_kernels_that_onnxruntime_executes(config, tmp_path, block):
    config = small(config)
    assert names(fuse(op_graph(config), "onnxruntime", block)) == executed_kernels(config, tmp_path)


@pytest.mark.parametrize("config", [PRESETS["lowformer_b1"], PRESETS["cpubone_t0"]], ids=lambda c: c.id)
def test_kernels_are_as_many_nodes_as_is_said(config, tmp_path, block):
    config = small(config)
    kernels = fuse(op_graph(config), "onnxruntime", block)
    said = runtime_of_fusion("onnxruntime").profiled_nodes("onnxruntime")
    executed = Counter(executed_nodes(config, tmp_path))
    differing = {
        name
        for (row, role), name in zip(kernels.keys, kernels.classes, strict=True)
        if executed[f"{row}:{role}"] != said.get(name, 1)
    }
    assert differing <= {"matmul"}


def test_kernel_keys_are_unique():
    for config in sampled(10, seed=4):
        keys = fuse(op_graph(config), "onnxruntime").keys
        assert len(set(keys)) == len(keys)


def test_blocked_layout_depends_on_channels():
    def classes(cin: int, cout: int, groups: int = 1) -> list[str]:
        build = GraphBuilder()
        row, shape = build.conv(-1, (cin, 8, 8), cout, 3, groups=groups)
        build.pointwise("relu", [row], shape)
        return fuse(build.build(), "onnxruntime", 16).classes

    assert classes(3, 16) == ["conv_first"]
    assert classes(32, 30) == ["reorder_in", "conv_dense"]
    assert classes(18, 32) == ["conv_unblocked"]
    assert classes(32, 32, groups=2) == ["reorder_in", "conv_grouped"]
    assert classes(24, 24, groups=2) == ["conv_unblocked"]
    assert classes(24, 24, groups=24) == ["reorder_in", "conv_depthwise"]


def test_cuda_provider_merges_only_relu():
    build = GraphBuilder()
    row, shape = build.conv(-1, (32, 8, 8), 32, 3, norm=True)
    first = build.pointwise("relu", [row], shape)
    row, shape = build.conv(first, shape, 32, norm=True)
    row = build.pointwise("add", [row, first], shape)
    summed = build.pointwise("relu", [row], shape)
    row, shape = build.conv(summed, shape, 32, norm=True)
    row = build.pointwise("hardswish", [row], shape)
    row, shape = build.conv(row, shape, 32, norm=True)
    build.pointwise("add", [row, summed], shape)
    kernels = fuse(build.build(), "onnxruntime-cuda")
    convs = ["conv_dense", "conv_pointwise", "conv_pointwise"]
    assert kernels.classes == [*convs, "activation", "conv_pointwise", "add"]
    assert kernels.column("tail").tolist() == [1, 2, 0, 0, 0, 0]
    assert fuse(build.build(), "onnxruntime-tensorrt").column("tail").tolist() == [1, 2, 1, 1]


def test_what_a_merged_activation_costs_depends_on_it():
    def tail(kind: str) -> int:
        build = GraphBuilder()
        row, shape = build.conv(-1, (32, 8, 8), 32, 3)
        build.pointwise(kind, [row], shape)
        return int(fuse(build.build(), "onnxruntime", 16).column("tail").sum())

    assert (tail("relu"), tail("hardswish")) == (1, 2)


def test_sums_side_by_side_and_across():
    def classes(shape_in, shape_out) -> list[str]:
        build = GraphBuilder()
        build.add_op("reduce", [-1], shape_in=shape_in, shape_out=shape_out)
        return fuse(build.build(), "onnxruntime", 16).classes

    assert classes((16, 8, 8), (16, 1, 1)) == ["reduce"]  # over a map's pixels
    assert classes((16, 8, 8), (1, 8, 8)) == ["reduce_across"]  # over its channels


def test_a_map_that_becomes_tokens_is_transposed_first():
    build = GraphBuilder()
    row, _ = build.conv(-1, (32, 8, 8), 32, 3, groups=32)
    row = build.pointwise("gelu", [row], (32, 64, 1))
    build.linear(row, 32, 64, bias=True, tokens=64)
    classes = fuse(build.build(), "onnxruntime", 16).classes
    assert classes == ["reorder_in", "conv_depthwise", "reorder_out", "transpose", "gelu", "linear_tokens"]
