from lownas.predictors.latency.fusion import fuse
from lownas.search_space.graph import GraphBuilder


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
