"""A configuration as a sequence of units, and what each of them costs: the operator graph, without torch.

A configuration is a sequence of units (stem, local block, attention, MLP, head), each with one input and one output.
The torch model and the operator graph are both built from them. Units repeat across a space, so their graphs are
cached, and a whole graph is a concatenation of cached tables.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .config import LowFormerConfig, StageConfig, blocks_after_downsampler
from .graph.operators import GRAPH_INPUT, GraphBuilder, OpGraph, same_padding


def attention_heads(width: int, reduction: float) -> tuple[int, int]:
    """(heads, head_dim) of Lowtention on `width` channels (LowFormer, section 3)."""
    heads = max(1, int(reduction * width / 30))
    return heads, int(width // heads * reduction)


def attention_kernel(kernel: int, stride: int) -> int:
    """Kernel size of the attention's depthwise convolution in a stage whose local blocks use `kernel`."""
    return 2 if kernel == 2 else 5 if stride > 1 else 3


def attention_padding(kernel: int, stride: int, size: int) -> tuple[int, int]:
    """Its padding on a map of `size` pixels; a strided 2x2 pads only what makes the size a multiple of the stride."""
    if kernel == 2 and stride > 1:
        return 0, -size % stride
    return same_padding(kernel)


class Stem(NamedTuple):
    """3x3 stride-2 convolution of the image, BatchNorm, Hardswish."""

    resolution: int
    width: int


class LocalUnit(NamedTuple):
    """A local block: a downsampler, one of the stem or of stages 1 and 2, or the last part of a LowFormer block.

    `in_block` tells the last kind: its expanding convolutions have a bias.
    """

    cin: int
    size: int
    cout: int
    stride: int
    expansion: int
    kernel: int
    groups: int
    fused: bool
    residual: bool
    in_block: bool


class AttentionUnit(NamedTuple):
    """The first part of a LowFormer block: x + Lowtention(x), with a GroupNorm inside where `norm`."""

    width: int
    size: int
    kernel: int
    stride: int
    reduction: float
    upsampling: str
    norm: bool


class MlpUnit(NamedTuple):
    """The second part of a LowFormer block: x + MLP(GroupNorm(x))."""

    width: int
    size: int
    ratio: int


class Head(NamedTuple):
    """1x1 convolution, global pooling, hidden linear layer with LayerNorm, classifier."""

    cin: int
    size: int
    widths: tuple[int, int]
    classes: int


Unit = Stem | LocalUnit | AttentionUnit | MlpUnit | Head


def units(config: LowFormerConfig) -> list[Unit]:
    """The units of `config` in order. The torch model and the operator graph are both built from them."""
    size = (config.resolution + 1) // 2
    width = config.stem_width
    result: list[Unit] = [Stem(config.resolution, width)]
    stem_block = LocalUnit(width, size, width, 1, config.stem_expansion, 3, config.stem_groups, True, True, False)
    result.extend([stem_block] * config.stem_depth)
    for number, stage in enumerate(config.stages, start=1):
        result.extend(_stage_units(number, width, size, stage))
        width = stage.width
        size = (size + 1) // 2
    result.append(Head(width, size, config.head_widths, config.classes))
    return result


@lru_cache(maxsize=8192)
def _stage_units(number: int, in_width: int, in_size: int, stage: StageConfig) -> tuple[Unit, ...]:
    width, size = stage.width, (in_size + 1) // 2
    down = LocalUnit(in_width, in_size, width, 2, stage.down_expansion, 3, stage.groups, True, False, False)
    blocks = blocks_after_downsampler(number, stage)
    attention = stage.attention
    in_block = number >= 3 or attention is not None or stage.mlp_ratio > 0
    local = LocalUnit(
        width, size, width, 1, stage.expansion, stage.kernel, stage.groups, stage.local == "fused", True, in_block
    )
    mlp = [MlpUnit(width, size, stage.mlp_ratio)] if stage.mlp_ratio else []
    result: list[Unit] = [down]
    for attends in attention.attends(blocks) if attention else (False,) * blocks:
        if attention and attends:
            result.append(
                AttentionUnit(
                    width,
                    size,
                    stage.kernel,
                    attention.stride,
                    attention.reduction,
                    attention.upsampling,
                    norm=stage.mlp_ratio > 0,
                )
            )
        result.extend([*mlp, local])
    return tuple(result)


@lru_cache(maxsize=8192)  # what is computed of one is kept elsewhere
def unit_graph(unit: Unit) -> OpGraph:
    """The operators of one unit, as a graph of its own."""
    build = GraphBuilder()
    if isinstance(unit, Stem):
        row, shape = build.conv(GRAPH_INPUT, (3, unit.resolution, unit.resolution), unit.width, 3, stride=2, norm=True)
        build.pointwise("hardswish", [row], shape)
    elif isinstance(unit, LocalUnit):
        row, shape = _local(build, unit)
        if unit.residual:
            build.pointwise("add", [row, GRAPH_INPUT], shape)
    elif isinstance(unit, AttentionUnit):
        shape = (unit.width, unit.size, unit.size)
        row = build.pointwise("group_norm", [GRAPH_INPUT], shape, params=2 * unit.width) if unit.norm else GRAPH_INPUT
        build.pointwise("add", [_attention(build, row, unit), GRAPH_INPUT], shape)
    elif isinstance(unit, MlpUnit):
        _mlp(build, unit)
    else:
        _head(build, unit)
    graph = build.build()
    graph.table.setflags(write=False)
    graph.edges.setflags(write=False)
    return graph


def _local(build: GraphBuilder, unit: LocalUnit) -> tuple[int, tuple[int, int, int]]:
    shape = (unit.cin, unit.size, unit.size)
    middle = unit.cin * unit.expansion
    bias = unit.in_block
    if unit.fused:
        row, shape = build.conv(
            GRAPH_INPUT, shape, middle, unit.kernel, stride=unit.stride, groups=unit.groups, norm=True, bias=bias
        )
    else:
        row, shape = build.conv(GRAPH_INPUT, shape, middle, groups=unit.groups, bias=bias)
        row = build.pointwise("hardswish", [row], shape)
        row, shape = build.conv(row, shape, middle, unit.kernel, stride=unit.stride, groups=middle, bias=bias)
    row = build.pointwise("hardswish", [row], shape)
    return build.conv(row, shape, unit.cout, norm=True)


def _mlp(build: GraphBuilder, unit: MlpUnit) -> None:
    shape = (unit.width, unit.size, unit.size)
    row = build.pointwise("group_norm", [GRAPH_INPUT], shape, params=2 * unit.width)
    row, hidden = build.conv(row, shape, unit.width * unit.ratio, bias=True)
    row = build.pointwise("gelu", [row], hidden)
    row, _ = build.conv(row, hidden, unit.width, bias=True)
    build.pointwise("add", [row, GRAPH_INPUT], shape)


def _attention(build: GraphBuilder, source: int, unit: AttentionUnit) -> int:
    width, size, stride, upsampling = unit.width, unit.size, unit.stride, unit.upsampling
    heads, head_dim = attention_heads(width, unit.reduction)
    kernel = attention_kernel(unit.kernel, stride)
    pad = attention_padding(kernel, stride, size)
    row, shape = build.conv(source, (width, size, size), width, kernel, stride=stride, groups=width, pad=pad, norm=True)
    qkv, _ = build.conv(row, shape, 3 * heads * head_dim)
    tokens = shape[1] * shape[2]
    scores = build.matmul(qkv, qkv, heads, tokens, head_dim, tokens)
    weights = build.pointwise("softmax", [scores], (heads, tokens, tokens))
    row = build.matmul(weights, qkv, heads, tokens, tokens, head_dim)
    shape = (heads * head_dim, shape[1], shape[2])
    if upsampling == "transposed":
        kernel, pad_up = (3, 1) if stride == 1 else (2 * stride, stride // 2)
        row, shape = build.conv_transpose(row, shape, width, kernel, stride=stride, pad=pad_up)
    else:
        row, shape = build.conv(row, shape, width, bias=True)
        if upsampling == "separable":
            kernel, pad_up = (3, 1) if stride == 1 else (2 * stride, stride // 2)
            row, shape = build.conv_transpose(row, shape, width, kernel, stride=stride, pad=pad_up, groups=width)
        elif stride > 1:
            larger = (width, shape[1] * stride, shape[2] * stride)
            row, shape = build.add_op("resize", [row], shape_in=shape, shape_out=larger, stride=stride), larger
    if shape[1:] != (size, size):
        row = build.add_op("crop", [row], shape_in=shape, shape_out=(width, size, size))
    return row


def _head(build: GraphBuilder, unit: Head) -> None:
    row, shape = build.conv(GRAPH_INPUT, (unit.cin, unit.size, unit.size), unit.widths[0], norm=True)
    row = build.pointwise("hardswish", [row], shape)
    row = build.add_op("global_pool", [row], shape_in=shape, shape_out=(unit.widths[0], 1, 1))
    row = build.linear(row, *unit.widths, bias=False)
    row = build.pointwise("layer_norm", [row], (unit.widths[1], 1, 1), params=2 * unit.widths[1])
    row = build.pointwise("hardswish", [row], (unit.widths[1], 1, 1))
    build.linear(row, unit.widths[1], unit.classes, bias=True)


def op_graph(config: LowFormerConfig) -> OpGraph:
    """The operator graph of `config`, one image."""
    parts = [unit_graph(unit) for unit in units(config)]
    table = np.concatenate([part.table for part in parts])
    edges = np.concatenate([part.edges for part in parts])
    # A unit's input (-1) is the last row of the unit before it, which is exactly -1 + the row where the unit starts.
    starts = np.cumsum([0] + [len(part.table) for part in parts[:-1]], dtype=np.int32)
    edges += np.repeat(starts, [len(part.edges) for part in parts])[:, None]
    return OpGraph(table, edges)
