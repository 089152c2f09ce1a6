"""Fusion rules against what onnxruntime really executes, and units against whole graphs."""

import numpy as np
import onnx
import onnxruntime
import pytest

from lownas.evaluators.device.kernel_times import kernel_names
from lownas.predictors.latency.fit import BLOCKS, Sample, blocked_channels
from lownas.predictors.latency.fusion import RUNTIMES, fuse, fuse_config
from lownas.predictors.latency.kernels import KERNEL_CLASS, KERNEL_COLUMN, Kernels
from lownas.search_space import PRESETS, SearchSpace, op_graph
from lownas.search_space.graph import GraphBuilder
from lownas.search_space.graph.onnx_writer import onnx_model


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


def test_autocast_converts_between_norms_and_products():
    build = GraphBuilder()
    row, shape = build.conv(-1, (3, 32, 32), 16, 3, norm=True)
    normed = build.add_op("layer_norm", [row], shape_in=shape, shape_out=shape)
    again, shape = build.conv(normed, shape, 16, 1)
    total = build.add_op("add", [normed, again], shape_in=shape, shape_out=shape)
    build.pointwise("relu", [total], shape)
    kernels = fuse(build.build(), "torch-amp")
    assert kernels.classes == [
        "cast",  # the image
        "conv_first",
        "batch_norm",
        "cast",  # to fp32
        "layer_norm",
        "cast",  # and back
        "conv_pointwise",
        "add",
        "activation",
    ]
    n = 16 * 32 * 32
    elements = dict(zip(kernels.classes[4:], kernels.table[4:, 13:15].tolist(), strict=True))
    assert elements["layer_norm"] == [2 * n, 2 * n]  # in units of fp16
    assert elements["conv_pointwise"] == [n, n]
    assert elements["add"] == [2 * n + n, 2 * n]  # fp32 and fp16 give fp32
    assert elements["activation"] == [2 * n, 2 * n]


@pytest.mark.parametrize("runtime", ["torch-amp", "torch-compile"])
def test_attention_is_one_kernel_unless_something_stands_in_between(runtime):
    kernels = fuse(op_graph(PRESETS["lowformer_b1"]), runtime)
    assert kernels.classes.count("attention") == 10  # one a block
    assert "softmax" not in kernels.classes and "matmul" not in kernels.classes
    graph = op_graph(PRESETS["lowformer_b1"])
    heads = [int(op[10]) for op, kind in zip(graph.table, graph.kinds, strict=True) if kind == "softmax"]
    table = kernels.table[[name == "attention" for name in kernels.classes]]
    assert len(heads) == len(table)
    tokens = table[:, KERNEL_COLUMN["cin"]] // table[:, KERNEL_COLUMN["groups"]]
    assert set(tokens.tolist()) == {49}  # 7 x 7, of both stages
    assert kernels.column("macs").sum() == graph.macs

    build = GraphBuilder()
    width, shape = 32, (4, 49, 49)
    scores = build.add_op(
        "matmul", [-1, -1], shape_in=(width, 49, 49), shape_out=shape, groups=4, macs=4 * 49 * 49 * 32
    )
    masked = build.pointwise("mul", [scores], shape)
    weights = build.add_op("softmax", [masked], shape_in=shape, shape_out=shape)
    build.add_op("matmul", [weights, -1], shape_in=(49, 49, 32), shape_out=(4, 49, 32), groups=4, macs=4 * 49 * 49 * 32)
    classes = fuse(build.build(), runtime).classes
    assert classes.count("matmul") == 2 and "attention" not in classes


def test_compiled_chains_are_one_kernel_and_norms_take_them_along():
    build = GraphBuilder()
    first, shape = build.conv(-1, (16, 32, 32), 16, 3, norm=True)
    act = build.pointwise("relu", [first], shape)
    second, shape = build.conv(act, shape, 16, 7, groups=16, norm=True)
    total = build.add_op("add", [act, second], shape_in=shape, shape_out=shape)
    normed = build.add_op("layer_norm", [total], shape_in=shape, shape_out=shape)
    build.pointwise("gelu", [normed], shape)
    kernels = fuse(build.build(), "torch-compile")
    assert kernels.classes == ["conv_dense", "activation", "conv_depthwise_7", "activation", "layer_norm"]
    assert kernels.column("tail").tolist() == [0, 1, 0, 1, 1]
