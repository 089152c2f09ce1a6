"""Fusion rules against what onnxruntime really executes, and units against whole graphs."""

import numpy as np
import onnx
import onnxruntime
import pytest

from lownas.evaluators.kernel_times import kernel_names
from lownas.predictors.fit import BLOCKS, Sample, blocked_channels
from lownas.predictors.fusion import (
    KERNEL_CLASS,
    RUNTIMES,
    Kernels,
    fuse,
    fuse_config,
)
from lownas.search_space import PRESETS, SearchSpace, op_graph
from lownas.search_space.graph import GraphBuilder
from lownas.search_space.onnx_graph import onnx_model


def executed_kernels(config, tmp_path) -> set[str]:
    """Names of the kernels in onnxruntime's optimized graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(onnx_model(config).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return set(kernel_names(onnx.load(tmp_path / "optimized.onnx").graph.node))


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
    return blocked_channels([Sample(config, 1.0, 0.0, measured)])


@pytest.mark.parametrize("name", ["lowformer_b1", "lowformer_e3", "lowformer_e1", "cpubone_t0", "cpubone_s0"])
def test_presets_have_the_kernels_that_onnxruntime_executes(name, tmp_path, block):
    config = small(PRESETS[name])
    assert names(fuse(op_graph(config), "onnxruntime", block)) == executed_kernels(config, tmp_path)


@pytest.mark.parametrize("config", sampled(6, seed=3), ids=lambda c: c.id)
def test_samples_have_the_kernels_that_onnxruntime_executes(config, tmp_path, block):
    config = small(config)
    assert names(fuse(op_graph(config), "onnxruntime", block)) == executed_kernels(config, tmp_path)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_units_fuse_as_their_whole_graph(runtime):
    for config in [*sampled(25, seed=1), *PRESETS.values()]:
        for block in BLOCKS if runtime == "onnxruntime" else (0,):
            whole = fuse(op_graph(config), runtime, block).table
            parts = fuse_config(config, runtime, block).table
            assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, parts.tolist()))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_fusion_keeps_macs_and_weights(runtime):
    for config in sampled(5, seed=2):
        graph = op_graph(config)
        kernels = fuse(graph, runtime)
        assert kernels.column("macs").sum() == graph.macs
        extra = 2 * sum(
            row[5] for row in kernels.table.tolist() if row[0] == KERNEL_CLASS["batch_norm"]
        )  # eager torch's own scale and shift
        assert kernels.column("weights").sum() - extra == graph.column("weights").sum()


def test_kernel_keys_are_unique():
    for config in sampled(10, seed=4):
        keys = fuse(op_graph(config), "onnxruntime").keys
        assert len(set(keys)) == len(keys)


def test_tensorrt_takes_activation_and_residual_along():
    build = GraphBuilder()
    first, shape = build.conv(-1, (32, 8, 8), 32, 3, norm=True)
    row = build.pointwise("hardswish", [first], shape)
    row, shape = build.conv(row, shape, 32, norm=True)
    build.pointwise("add", [row, -1], shape)
    kernels = fuse(build.build(), "tensorrt")
    assert kernels.classes == ["conv_dense", "conv_pointwise"]
    assert kernels.column("tail").tolist() == [1, 1]
    # The residual is read by the kernel that adds it.
    assert kernels.column("inputs").tolist() == [32 * 64, 2 * 32 * 64]
    assert fuse(build.build(), "torch").classes.count("batch_norm") == 2


def test_cuda_provider_takes_only_relu_along():
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


def test_unknown_runtime():
    with pytest.raises(ValueError, match="tensorrt"):
        fuse(op_graph(PRESETS["lowformer_b0"]), "tvm")
