from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernels import KERNEL_CLASSES
from lownas.search_space.graph import GraphBuilder


def test_tensorrt_merges_activation_and_residual():
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


def test_a_channel_gate_does_not_join_the_layer_that_computes_it() -> None:
    build = GraphBuilder()
    first, shape = build.conv(-1, (16, 32, 32), 16, 3, norm=True)
    pooled = build.add_op("global_pool", [first], shape_in=shape, shape_out=(16, 1, 1))
    gate, small = build.conv(pooled, (16, 1, 1), 16, bias=True)
    gate = build.pointwise("sigmoid", [gate], small)
    build.add_op("mul", [first, gate], shape_in=shape, shape_out=shape, inputs=16 * 32 * 32 + 16)
    kernels = fuse(build.build(), "tensorrt")
    assert kernels.classes == ["conv_dense", "pool", "conv_pointwise", "add"]
    assert kernels.column("outputs").tolist() == [16 * 32 * 32, 16, 16, 16 * 32 * 32]
    assert set(kernels.classes) <= set(KERNEL_CLASSES)
