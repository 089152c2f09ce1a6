"""The units that a backbone is made of, and what each of them costs: operator graphs, without torch.

A network is a sequence of units, each with one input and one output: the stem's convolution, local blocks, attention,
MLPs, and those of a head (`heads`). The operator graph (`graph.from_config`) and the torch module (`model`) are both
built from them. The same units appear in many networks of a space, so their graphs are cached.

To add a kind of block: give `StageConfig` a field for it (config.py); write its unit class here, with its operators,
and put it where it belongs in `_section_of_stage`; build its torch module in blocks.py (`MODULES`). Nothing else has to
know it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

from .config import LowFormerConfig, StageConfig, blocks_after_downsampler
from .graph.operators import GRAPH_INPUT, GraphBuilder, OpGraph, same_padding

CACHED_GRAPHS = 8192
CACHED_SECTIONS = 8192
CHANNELS_PER_ATTENTION_HEAD = 30
"""LowFormer (arXiv 2409.03460), section 3."""


class Unit(Protocol):
    """A part of a network with one input and one output, which describes itself completely.

    A unit is a hashable value that says everything on which its operators depend, its input's size included. The units
    here are NamedTuples, because hashing them is fast. Two NamedTuples of different classes are equal if their fields
    are, and equal units share cached costs: hence the constant field `kind`, which is different in each class.
    """

    @property
    def kind(self) -> str:
        """Name of the unit's class; in a LowFormer block also the name of its torch module."""

    def graph(self, build: GraphBuilder) -> None:
        """Adds the unit's operators. Its input is `GRAPH_INPUT`; the operator added last gives its output."""

    def __hash__(self) -> int: ...


@lru_cache(maxsize=CACHED_GRAPHS)
def unit_graph(unit: Unit) -> OpGraph:
    """Gives the operators of one unit as a graph of its own; its arrays are shared and cannot be written to."""
    build = GraphBuilder()
    unit.graph(build)
    graph = build.build()
    graph.table.setflags(write=False)
    graph.edges.setflags(write=False)
    return graph


# --- kinds of units --------------------------------------------------------------------------------------------------


class StemUnit(NamedTuple):
    """The first convolution of the image (3x3, stride 2), with BatchNorm and Hardswish."""

    resolution: int
    width: int
    kind: str = "stem"

    def graph(self, build: GraphBuilder) -> None:
        row, shape = build.conv(GRAPH_INPUT, (3, self.resolution, self.resolution), self.width, 3, stride=2, norm=True)
        build.pointwise("hardswish", [row], shape)


class LocalUnit(NamedTuple):
    """A local block: a downsampler, a block of the stem or of stages 1 and 2, or the last part of a LowFormer block.

    `in_block` is true for a part of a LowFormer block: its expanding convolutions have a bias.
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
    kind: str = "local"

    def graph(self, build: GraphBuilder) -> None:
        shape = (self.cin, self.size, self.size)
        middle = self.cin * self.expansion
        bias = self.in_block
        if self.fused:
            row, shape = build.conv(
                GRAPH_INPUT, shape, middle, self.kernel, stride=self.stride, groups=self.groups, norm=True, bias=bias
            )
        else:
            row, shape = build.conv(GRAPH_INPUT, shape, middle, groups=self.groups, bias=bias)
            row = build.pointwise("hardswish", [row], shape)
            row, shape = build.conv(row, shape, middle, self.kernel, stride=self.stride, groups=middle, bias=bias)
        row = build.pointwise("hardswish", [row], shape)
        row, shape = build.conv(row, shape, self.cout, norm=True)
        if self.residual:
            build.pointwise("add", [row, GRAPH_INPUT], shape)


class AttentionUnit(NamedTuple):
    """The first part of a LowFormer block: x + Lowtention(x), with a GroupNorm before the attention if `norm`."""

    width: int
    size: int
    kernel: int
    stride: int
    reduction: float
    upsampling: str
    norm: bool
    kind: str = "attn"

    def graph(self, build: GraphBuilder) -> None:
        shape = (self.width, self.size, self.size)
        row = build.pointwise("group_norm", [GRAPH_INPUT], shape, params=2 * self.width) if self.norm else GRAPH_INPUT
        build.pointwise("add", [self._attention(build, row), GRAPH_INPUT], shape)

    def _attention(self, build: GraphBuilder, source: int) -> int:
        width, size, stride = self.width, self.size, self.stride
        heads, head_dim = attention_heads(width, self.reduction)
        kernel = attention_kernel(self.kernel, stride)
        pad = attention_padding(kernel, stride, size)
        shape = (width, size, size)
        row, shape = build.conv(source, shape, width, kernel, stride=stride, groups=width, pad=pad, norm=True)
        qkv, _ = build.conv(row, shape, 3 * heads * head_dim)
        tokens = shape[1] * shape[2]
        scores = build.matmul(qkv, qkv, heads, tokens, head_dim, tokens)
        weights = build.pointwise("softmax", [scores], (heads, tokens, tokens))
        row = build.matmul(weights, qkv, heads, tokens, tokens, head_dim)
        return self._upsampled(build, row, (heads * head_dim, shape[1], shape[2]))

    def _upsampled(self, build: GraphBuilder, row: int, shape: tuple[int, int, int]) -> int:
        """Adds what brings the attention's result back to the unit's channels and size."""
        width, size, stride = self.width, self.size, self.stride
        kernel, pad = upsampling_kernel(stride)
        if self.upsampling == "transposed":
            row, shape = build.conv_transpose(row, shape, width, kernel, stride=stride, pad=pad)
        else:
            row, shape = build.conv(row, shape, width, bias=True)
            if self.upsampling == "separable":
                row, shape = build.conv_transpose(row, shape, width, kernel, stride=stride, pad=pad, groups=width)
            elif stride > 1:
                larger = (width, shape[1] * stride, shape[2] * stride)
                row, shape = build.add_op("resize", [row], shape_in=shape, shape_out=larger, stride=stride), larger
        if shape[1:] != (size, size):
            row = build.add_op("crop", [row], shape_in=shape, shape_out=(width, size, size))
        return row


class MlpUnit(NamedTuple):
    """The second part of a LowFormer block: x + MLP(GroupNorm(x))."""

    width: int
    size: int
    ratio: int
    kind: str = "mlp"

    def graph(self, build: GraphBuilder) -> None:
        shape = (self.width, self.size, self.size)
        row = build.pointwise("group_norm", [GRAPH_INPUT], shape, params=2 * self.width)
        row, hidden = build.conv(row, shape, self.width * self.ratio, bias=True)
        row = build.pointwise("gelu", [row], hidden)
        row, _ = build.conv(row, hidden, self.width, bias=True)
        build.pointwise("add", [row, GRAPH_INPUT], shape)


# --- sizes that the graph and the torch module of an attention share -------------------------------------------------


def attention_heads(width: int, reduction: float) -> tuple[int, int]:
    """Gives (heads, channels of each head) of an attention in a block of `width` channels."""
    heads = max(1, int(reduction * width / CHANNELS_PER_ATTENTION_HEAD))
    return heads, int(width // heads * reduction)


def attention_kernel(kernel: int, stride: int) -> int:
    """Gives the size of the attention's reducing convolution in a stage whose local blocks use `kernel`."""
    return 2 if kernel == 2 else 5 if stride > 1 else 3


def attention_padding(kernel: int, stride: int, size: int) -> tuple[int, int]:
    """Gives the padding (top and left, bottom and right) of the attention's reducing convolution.

    On a map of `size` pixels, a 2x2 convolution with a stride pads only what makes the size a multiple of the stride.
    """
    if kernel == 2 and stride > 1:
        return 0, -size % stride
    return same_padding(kernel)


def upsampling_kernel(stride: int) -> tuple[int, int]:
    """Gives (kernel size, padding) of the transposed convolution that enlarges the attention's result by `stride`."""
    return (3, 1) if stride == 1 else (2 * stride, stride // 2)


# --- the units of a backbone -----------------------------------------------------------------------------------------

Block = tuple[Unit, ...]
"""The units that form one block of the torch module, in the order in which they run."""


class Section(NamedTuple):
    """The stem or one of the four stages.

    Attributes:
        blocks: its blocks in order.
        units: the units of all blocks in order.
        width, size: channels and side length in pixels of the feature map that it gives.
    """

    blocks: tuple[Block, ...]
    units: tuple[Unit, ...]
    width: int
    size: int


def backbone(config: LowFormerConfig) -> list[Section]:
    """Gives the stem and the four stages of a configuration; the last one's feature map is what its head reads."""
    section = _stem(config.resolution, config.stem_width, config.stem_depth, config.stem_expansion, config.stem_groups)
    sections = [section]
    for number, stage in enumerate(config.stages, start=1):
        section = _section_of_stage(number, section.width, section.size, stage)
        sections.append(section)
    return sections


@lru_cache(maxsize=CACHED_SECTIONS)
def _stem(resolution: int, width: int, depth: int, expansion: int, groups: int) -> Section:
    size = (resolution + 1) // 2
    block = LocalUnit(width, size, width, 1, expansion, 3, groups, True, True, False)
    blocks: tuple[Block, ...] = ((StemUnit(resolution, width),), *((block,),) * depth)
    return _section(blocks, width, size)


@lru_cache(maxsize=CACHED_SECTIONS)
def _section_of_stage(number: int, in_width: int, in_size: int, stage: StageConfig) -> Section:
    width, size = stage.width, (in_size + 1) // 2
    down = LocalUnit(in_width, in_size, width, 2, stage.down_expansion, 3, stage.groups, True, False, False)
    after = blocks_after_downsampler(number, stage)
    attention = stage.attention
    in_block = number >= 3 or attention is not None or stage.mlp_ratio > 0
    fused = stage.local == "fused"
    local = LocalUnit(width, size, width, 1, stage.expansion, stage.kernel, stage.groups, fused, True, in_block)
    mlp = [MlpUnit(width, size, stage.mlp_ratio)] if stage.mlp_ratio else []
    blocks: list[Block] = [(down,)]
    for attends in attention.attends(after) if attention else (False,) * after:
        block: list[Unit] = []
        if attention and attends:
            reduction, upsampling = attention.reduction, attention.upsampling
            norm = stage.mlp_ratio > 0
            block.append(AttentionUnit(width, size, stage.kernel, attention.stride, reduction, upsampling, norm))
        blocks.append((*block, *mlp, local))
    return _section(tuple(blocks), width, size)


def _section(blocks: tuple[Block, ...], width: int, size: int) -> Section:
    return Section(blocks, tuple(unit for block in blocks for unit in block), width, size)
