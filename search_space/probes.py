"""Probes: small networks with operators that LowFormers lack, measured by a calibration beside configurations.

They have squeeze-excitation, large depthwise kernels, grouped and unaligned convolutions, LayerNorm on maps and tokens,
attention over many tokens, pooling, gates, concatenations and slices. Once the times of these kernels are known, the
latency of networks far from the LowFormer space can be predicted too. Each probe is one or two blocks as published
networks have them (`DEEP` ones have more), takes a few milliseconds, and ends in a global mean, so that all its kernels
but the last one stand inside the network.
"""

from __future__ import annotations

from .graph.operators import GRAPH_INPUT, GraphBuilder, OpGraph

Shape = tuple[int, int, int]
DEEP = 14_400_000
"""Weights of the probes "deep" (58 MB): beyond the caches, so that they are read from memory in every run."""
CHAINS = tuple(2**n for n in (19, 20, 21, 22, 23))
"""Weights of the probes "chain" (2 to 32 MB), which show how many of them the caches keep."""


def probe_graphs() -> dict[str, OpGraph]:
    """Gives the operator graphs of all probes by name; `write_onnx` can write all of them."""
    probes: dict[str, OpGraph] = {}
    for width, size, kernel, stride, act, gate, reduced in (
        (16, 112, 3, 2, "silu", "sigmoid", 4),
        (24, 56, 5, 2, "relu", "hardsigmoid", 24),
        (40, 28, 3, 1, "hardswish", "hardsigmoid", 64),
        (80, 14, 5, 1, "silu", "sigmoid", 20),
        (112, 14, 5, 2, "hardswish", "hardsigmoid", 168),
        (192, 7, 3, 1, "silu", "sigmoid", 48),
        (101, 7, 3, 1, "silu", "sigmoid", 51),
    ):
        probes[f"gated{width}"] = _inverted(width, size, kernel, stride, 6 if width > 16 else 1, act, gate, reduced)
    for width, size, kernel, stride, act in (
        (16, 112, 3, 2, "relu"),
        (32, 28, 3, 1, "relu"),
        (96, 14, 3, 1, "relu"),
        (27, 56, 3, 1, "silu"),
        (50, 28, 3, 2, "silu"),
        (90, 14, 5, 1, "relu"),
        (8, 56, 3, 2, "relu"),
    ):
        probes[f"inverted{width}"] = _inverted(width, size, kernel, stride, 4, act, None, 0)
    for width, size, kernel in ((40, 56, 7), (80, 28, 7), (160, 14, 7), (320, 7, 7), (64, 28, 9), (192, 14, 11)):
        probes[f"tokens{width}"] = _large_kernel(width, size, kernel)
    for width, size in ((32, 56), (80, 28), (192, 14)):
        probes[f"map_norm{width}"] = _map_norm(width, size)
    for width, heads, size, norm_first in (
        (64, 2, 28, True),
        (192, 3, 14, True),
        (144, 4, 16, True),
        (384, 6, 7, True),
        (128, 4, 14, False),
        (96, 3, 20, True),
    ):
        probes[f"attention{width}"] = _transformer(width, heads, size, "gelu" if norm_first else "hardswish", 1)
    probes["deep384"] = _transformer(384, 6, 7, "gelu", DEEP // (12 * 384**2))
    probes["deep512"] = _deep(512, 7)
    for weights in CHAINS:
        probes[f"chain{weights >> 18}"] = _chain(512, weights)
    for width, size in ((24, 56), (96, 28)):
        probes[f"permuted{width}"] = _permuted(width, size)
    for width, size, groups in ((32, 56, 4), (64, 28, 8), (96, 28, 6), (128, 14, 8), (160, 14, 20), (384, 14, 16)):
        probes[f"grouped{width}x{groups}"] = _bottleneck(width, size, groups)
    for width, size in ((64, 56), (128, 28), (256, 14)):
        probes[f"basic{width}"] = _basic(width, size)
    for width, size in ((64, 56), (256, 14)):
        probes[f"pooled{width}"] = _pooled(width, size)
    for width, size in ((16, 56), (40, 28), (112, 14)):
        probes[f"ghost{width}"] = _ghost(width, size)
    for width, size in ((64, 28), (128, 14)):
        probes[f"dense{width}"] = _dense(width, size)
    for width, size in ((24, 56), (64, 28), (192, 14)):
        probes[f"product{width}"] = _product(width, size)
    probes["stem32"] = _stem(32, 3, False)
    probes["stem64"] = _stem(64, 7, True)
    probes["patches192"] = _patches(192)
    probes["classifier1280"] = _classifier(1280)
    probes["classifier2048"] = _classifier(2048)
    return probes


def _end(build: GraphBuilder, row: int, shape: Shape) -> OpGraph:
    """Adds the global mean and finishes the graph."""
    build.add_op("global_pool", [row], shape_in=shape, shape_out=(shape[0], 1, 1))
    return build.build()


def _act(build: GraphBuilder, kind: str, row: int, shape: Shape) -> int:
    return build.pointwise(kind, [row], shape)


def _gate(build: GraphBuilder, row: int, shape: Shape, reduced: int, gate: str) -> int:
    """Adds squeeze-excitation with `reduced` inner channels."""
    width = shape[0]
    pooled = build.add_op("global_pool", [row], shape_in=shape, shape_out=(width, 1, 1))
    inner, small = build.conv(pooled, (width, 1, 1), reduced, bias=True)
    inner = _act(build, "silu" if gate == "sigmoid" else "relu", inner, small)
    inner, _ = build.conv(inner, small, width, bias=True)
    inner = _act(build, gate, inner, (width, 1, 1))
    elements = shape[0] * shape[1] * shape[2]
    return build.add_op("mul", [row, inner], shape_in=shape, shape_out=shape, inputs=elements + width)


def _inverted(
    width: int, size: int, kernel: int, stride: int, expansion: int, act: str, gate: str | None, reduced: int
) -> OpGraph:
    """MBConv (pointwise, depthwise, gate, pointwise) with a residual sum, after one with a stride if `stride` > 1."""
    build = GraphBuilder()
    row, shape = build.conv(GRAPH_INPUT, (width, size, size), width)
    for step in (stride, 1):
        shortcut = row
        row, shape = build.conv(row, shape, width * expansion, norm=True)
        row = _act(build, act, row, shape)
        row, shape = build.conv(row, shape, shape[0], kernel, stride=step, groups=shape[0], norm=True)
        row = _act(build, act, row, shape)
        if gate is not None:
            row = _gate(build, row, shape, reduced, gate)
        row, shape = build.conv(row, shape, width, norm=True)
        if step == 1:
            row = build.pointwise("add", [row, shortcut], shape)
        if stride == 1:
            break
    return _end(build, row, shape)


def _scale(build: GraphBuilder, row: int, shape: Shape) -> int:
    """Adds a learned factor for each channel."""
    return build.add_op("mul", [row], shape_in=shape, shape_out=shape, weights=shape[0], params=shape[0])


def _large_kernel(width: int, size: int, kernel: int) -> OpGraph:
    """ConvNeXt's block: a large depthwise kernel, then LayerNorm and an MLP with the channels last."""
    build = GraphBuilder()
    shape = (width, size, size)
    first, _ = build.conv(GRAPH_INPUT, shape, width)
    row, _ = build.conv(first, shape, width, kernel, groups=width, bias=True)
    row = build.pointwise("layer_norm", [row], shape, params=2 * width)
    row = build.linear(row, width, 4 * width, bias=True, tokens=size * size)
    row = _act(build, "gelu", row, (4 * width, size * size, 1))
    row = build.linear(row, 4 * width, width, bias=True, tokens=size * size)
    row = _scale(build, row, (width, size * size, 1))
    row = build.pointwise("add", [row, first], shape)
    return _end(build, row, shape)


def _map_norm(width: int, size: int) -> OpGraph:
    """ConvNeXt's block with 1x1 convolutions, and LayerNorm spelled out on the map, as older files have it."""
    build = GraphBuilder()
    shape = (width, size, size)
    elements, pixels = width * size * size, size * size

    def mean(row: int) -> int:
        return build.add_op("reduce", [row], shape_in=shape, shape_out=(1, size, size))

    first, _ = build.conv(GRAPH_INPUT, shape, width, 7, groups=width, bias=True)
    average = mean(first)
    centered = build.add_op("add", [first, average], shape_in=shape, shape_out=shape, inputs=elements + pixels)
    variance = mean(build.pointwise("mul", [centered, centered], shape))
    row = build.add_op("mul", [centered, variance], shape_in=shape, shape_out=shape, inputs=elements + pixels)
    row = _scale(build, row, shape)
    row = build.add_op("add", [row], shape_in=shape, shape_out=shape, weights=width, params=width)
    row, wide = build.conv(row, shape, 4 * width, bias=True)
    row = _act(build, "gelu", row, wide)
    row, _ = build.conv(row, wide, width, bias=True)
    return _end(build, row, shape)


def _transformer(width: int, heads: int, size: int, act: str, blocks: int) -> OpGraph:
    """Patch embedding, blocks of a vision transformer, and a convolution of the tokens as a map again."""
    build = GraphBuilder()
    tokens, map_shape = size * size, (width, size, size)
    shape = (width, tokens, 1)
    head = width // heads
    row, _ = build.conv(GRAPH_INPUT, map_shape, width, bias=True)
    row = build.pointwise("layer_norm", [row], shape, params=2 * width)
    first = build.add_op("add", [row], shape_in=shape, shape_out=shape, weights=width * tokens, params=width * tokens)
    for _ in range(blocks):
        row = build.pointwise("layer_norm", [first], shape, params=2 * width)
        qkv = build.linear(row, width, 3 * width, bias=True, tokens=tokens)
        scores = build.matmul(qkv, qkv, heads, tokens, head, tokens)
        weights = build.pointwise("softmax", [scores], (heads, tokens, tokens))
        row = build.matmul(weights, qkv, heads, tokens, tokens, head)
        row = build.linear(row, width, width, bias=True, tokens=tokens)
        first = build.pointwise("add", [row, first], shape)
        row = build.pointwise("layer_norm", [first], shape, params=2 * width)
        row = build.linear(row, width, 4 * width, bias=True, tokens=tokens)
        row = _act(build, act, row, (4 * width, tokens, 1))
        row = build.linear(row, 4 * width, width, bias=True, tokens=tokens)
        first = build.pointwise("add", [row, first], shape)
    row = build.pointwise("layer_norm", [first], shape, params=2 * width)
    row, _ = build.conv(row, map_shape, width, bias=True)
    return _end(build, row, map_shape)


def _deep(width: int, size: int) -> OpGraph:
    """Convolutions with many weights on a small map: blocks of a dense one and four pointwise ones."""
    build = GraphBuilder()
    row, shape = build.conv(GRAPH_INPUT, (width, size, size), width)
    for _ in range(DEEP // (13 * width**2)):
        for kernel in (3, 1, 1, 1, 1):
            row, shape = build.conv(row, shape, width, kernel, norm=True)
            row = _act(build, "relu", row, shape)
    return _end(build, row, shape)


def _chain(width: int, weights: int) -> OpGraph:
    """Linear layers of a vector, one after the other, with so many weights in all."""
    build = GraphBuilder()
    row, shape = build.conv(GRAPH_INPUT, (width, 7, 7), width)
    row = build.add_op("global_pool", [row], shape_in=shape, shape_out=(width, 1, 1))
    for _ in range(weights // width**2):
        row = build.linear(row, width, width, bias=True)
    return build.build()


def _permuted(width: int, size: int) -> OpGraph:
    """2x2 pixels moved into the channels by a permutation, as windows and patches are."""
    build = GraphBuilder()
    row, shape = build.conv(GRAPH_INPUT, (width, size, size), width)
    apart = (4 * width, size // 2, size // 2)
    row = build.add_op("permute", [row], shape_in=shape, shape_out=apart)
    row, shape = build.conv(row, apart, width, bias=True)
    return _end(build, row, shape)


def _bottleneck(width: int, size: int, groups: int) -> OpGraph:
    """RegNet's block: pointwise, grouped, pointwise, sum, ReLU."""
    build = GraphBuilder()
    shape = (width, size, size)
    first, _ = build.conv(GRAPH_INPUT, shape, width)
    row, _ = build.conv(first, shape, width, 3, groups=groups, norm=True)
    row = _act(build, "relu", row, shape)
    row, _ = build.conv(row, shape, width, norm=True)
    row = _act(build, "relu", build.pointwise("add", [row, first], shape), shape)
    return _end(build, row, shape)


def _basic(width: int, size: int) -> OpGraph:
    """ResNet's block, with max pooling after it."""
    build = GraphBuilder()
    shape = (width, size, size)
    first, _ = build.conv(GRAPH_INPUT, shape, width)
    row, _ = build.conv(first, shape, width, 3, norm=True)
    row = _act(build, "relu", row, shape)
    row, _ = build.conv(row, shape, width, 3, norm=True)
    row = _act(build, "relu", build.pointwise("add", [row, first], shape), shape)
    row, shape = _pool(build, "max_pool", row, shape, 3, 2)
    return _end(build, row, shape)


def _pool(build: GraphBuilder, kind: str, row: int, shape: Shape, kernel: int, stride: int) -> tuple[int, Shape]:
    size = (shape[1] + 2 * (kernel // 2) - kernel) // stride + 1
    out = (shape[0], size, size)
    pad = (kernel // 2, kernel // 2)
    return build.add_op(
        kind, [row], shape_in=shape, shape_out=out, kernel=(kernel, kernel), stride=stride, pad=pad
    ), out


def _pooled(width: int, size: int) -> OpGraph:
    """PoolFormer's block: GroupNorm, average pooling, a factor per channel, sum."""
    build = GraphBuilder()
    shape = (width, size, size)
    first, _ = build.conv(GRAPH_INPUT, shape, width)
    row = build.pointwise("group_norm", [first], shape, params=2 * width)
    row, _ = _pool(build, "avg_pool", row, shape, 3, 1)
    row = _scale(build, row, shape)
    row = build.pointwise("add", [row, first], shape)
    row, wide = build.conv(row, shape, 4 * width, bias=True)
    row = _act(build, "gelu", row, wide)
    row, _ = build.conv(row, wide, width, bias=True)
    return _end(build, row, shape)


def _ghost(width: int, size: int) -> OpGraph:
    """GhostNet's module: a depthwise convolution makes half of the channels; then a slice takes half of all."""
    build = GraphBuilder()
    shape = (width, size, size)
    elements = width * size * size
    first, half = build.conv(GRAPH_INPUT, (width, size, size), width // 2, norm=True)
    first = _act(build, "relu", first, half)
    cheap, _ = build.conv(first, half, half[0], 3, groups=half[0], norm=True)
    cheap = _act(build, "relu", cheap, half)
    row = build.add_op("concat", [first, cheap], shape_in=half, shape_out=shape, inputs=elements)
    row = build.add_op("move", [row], shape_in=shape, shape_out=half)
    row, shape = build.conv(row, half, 2 * width, bias=True)
    row = _act(build, "relu", row, shape)
    return _end(build, row, shape)


def _dense(width: int, size: int) -> OpGraph:
    """DenseNet's layer: BatchNorm before the convolution, concatenation after it."""
    build = GraphBuilder()
    shape = (width, size, size)
    first, _ = build.conv(GRAPH_INPUT, shape, width)
    row = build.add_op("batch_norm", [first], shape_in=shape, shape_out=shape, weights=4 * width, params=4 * width)
    row = _act(build, "relu", row, shape)
    row, _ = build.conv(row, shape, 32, 3, bias=True)
    joined = (width + 32, size, size)
    row = build.add_op("concat", [first, row], shape_in=shape, shape_out=joined, inputs=joined[0] * size * size)
    row, _ = build.conv(row, joined, width)
    row, shape = _pool(build, "avg_pool", row, shape, 2, 2)
    return _end(build, row, shape)


def _product(width: int, size: int) -> OpGraph:
    """StarNet's block: the product of two branches, one with an activation; and a gate of all pixels."""
    build = GraphBuilder()
    shape = (width, size, size)
    first, _ = build.conv(GRAPH_INPUT, shape, width)
    left, wide = build.conv(first, shape, 2 * width, norm=True)
    right, _ = build.conv(first, shape, 2 * width, norm=True)
    row = build.pointwise("mul", [_act(build, "relu", left, wide), right], wide)
    row = _act(build, "silu", row, wide)
    row, _ = build.conv(row, wide, width, norm=True)
    row = build.pointwise("add", [row, first], shape)
    row = _act(build, "sigmoid", row, shape)
    row = build.pointwise("mul", [row, first], shape)
    return _end(build, row, shape)


def _stem(width: int, kernel: int, pooled: bool) -> OpGraph:
    """A strided convolution of the image."""
    build = GraphBuilder()
    row, shape = build.conv(GRAPH_INPUT, (3, 224, 224), width, kernel, stride=2, norm=True)
    row = _act(build, "relu" if pooled else "silu", row, shape)
    if pooled:
        row, shape = _pool(build, "max_pool", row, shape, 3, 2)
    return _end(build, row, shape)


def _patches(width: int) -> OpGraph:
    """A patch embedding, normalized and averaged over the tokens."""
    build = GraphBuilder()
    row, _ = build.conv(GRAPH_INPUT, (3, 224, 224), width, 16, stride=16, pad=(0, 0), bias=True)
    row = build.pointwise("layer_norm", [row], (width, 196, 1), params=2 * width)
    row = build.add_op("reduce", [row], shape_in=(width, 196, 1), shape_out=(width, 1, 1))
    build.linear(row, width, 1000, bias=True)
    return build.build()


def _classifier(width: int) -> OpGraph:
    """A classifier: pointwise convolution, global pooling and a linear layer on a network's last map."""
    build = GraphBuilder()
    row, shape = build.conv(GRAPH_INPUT, (width // 4, 7, 7), width, norm=True)
    row = _act(build, "relu", row, shape)
    row = build.add_op("global_pool", [row], shape_in=shape, shape_out=(width, 1, 1))
    build.linear(row, width, 1000, bias=True)
    return build.build()
