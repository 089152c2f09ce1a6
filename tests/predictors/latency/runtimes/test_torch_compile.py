from lownas.predictors.latency.fusion import fuse
from lownas.search_space.graph import GraphBuilder


def test_compiled_chains_are_one_kernel_and_norms_merge_them():
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
