"""The network as canonical operators: what a configuration costs, without a forward pass and without torch.

An `OpGraph` holds one row per operator that computes something; BatchNorm is folded into the convolution before it, and
operators that only rearrange data (reshape, transpose, split, casts, scaling by a constant beside a matrix product) are
left out, their edges joined. So the same network gives the same graph whether it comes from a configuration
(`op_graph`), an ONNX file (`op_graph_from_onnx`) or a torch module.

A configuration is a sequence of units (stem, local block, attention, MLP, head), each with one input and one output.
Units repeat across a space, so their graphs are cached, and a whole graph is a concatenation of cached tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .config import LowFormerConfig, StageConfig, blocks_after_downsampler

KINDS: tuple[str, ...] = (
    "conv",
    "conv_transpose",
    "linear",
    "matmul",
    "softmax",
    "group_norm",
    "layer_norm",
    "hardswish",
    "gelu",
    "add",
    "global_pool",
    "resize",
    "crop",
    # What networks outside the space bring along:
    "batch_norm",
    "relu",
    "sigmoid",
    "silu",
    "hardsigmoid",
    "tanh",
    "mul",
    "max_pool",
    "avg_pool",
    "reduce",
    "concat",
    "pad",
    "move",
    "other",
)
KIND: dict[str, int] = {name: code for code, name in enumerate(KINDS)}

COLUMNS: tuple[str, ...] = (
    "kind",
    "cin",
    "hin",
    "win",
    "cout",
    "hout",
    "wout",
    "kh",
    "kw",
    "stride",
    "groups",
    "pad_begin",
    "pad_end",
    "bias",
    "macs",
    "inputs",
    "outputs",
    "weights",
    "params",
)
COLUMN: dict[str, int] = {name: index for index, name in enumerate(COLUMNS)}
GRAPH_INPUT = -1


@dataclass(frozen=True, eq=False)
class OpGraph:
    """A network as a table of operators, at batch size 1.

    Attributes:
        table: (operators, len(COLUMNS)) int64. Columns:
            kind: index into `KINDS`.
            cin, hin, win, cout, hout, wout: channels and map size of the first input and of the output. For "matmul",
                `groups` products (heads) of hout x wout each contract over `cin`; "softmax" runs over `wout`.
            kh, kw, stride, groups, pad_begin, pad_end: of convolutions and pooling; padding in pixels at the top and
                left, and at the bottom and right. "resize": stride is the scale.
            bias: 1 if the operator adds a bias once BatchNorm is folded into it.
            macs: multiply-accumulates of convolutions and matrix products (torch's FlopCounterMode / 2).
            inputs, outputs, weights: elements read as activations, written, and read as constants (BatchNorm folded).
            params: parameters as trained, those of a folded BatchNorm included.
        edges: (edges, 2) int32, (producer, consumer) rows of the table in the order of the consumer's inputs; producer
            -1 is the network's input.
        unmodelled: operators of kind "other", as their file or module calls them.
        precision: "fp16" or "int8" where a file computes in it, else "fp32".
    """

    table: NDArray[np.int64]
    edges: NDArray[np.int32]
    unmodelled: tuple[str, ...] = ()
    precision: str = "fp32"

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> NDArray[np.int64]:
        return self.table[:, COLUMN[name]]

    @property
    def kinds(self) -> list[str]:
        return [KINDS[code] for code in self.column("kind")]

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return int(self.column("macs").sum())

    @cached_property
    def params(self) -> int:
        """Parameters as trained, BatchNorm included."""
        return int(self.column("params").sum())

    @cached_property
    def bytes(self) -> int:
        """Bytes that all operators read and write in fp32 for one image, each on its own (no fusion)."""
        return 4 * int(self.table[:, [COLUMN["inputs"], COLUMN["outputs"], COLUMN["weights"]]].sum())

    def inputs_of(self) -> list[list[int]]:
        """For each operator the rows that feed it, in order."""
        sources: list[list[int]] = [[] for _ in range(len(self))]
        for source, consumer in self.edges.tolist():
            sources[consumer].append(source)
        return sources


class GraphBuilder:
    """Collects operators row by row; every method returns the row of the operator that it added."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []
        self.edges: list[tuple[int, int]] = []
        self.unmodelled: set[str] = set()
        self.precision = "fp32"

    def add_op(
        self,
        kind: str,
        sources: Sequence[int],
        *,
        shape_in: tuple[int, int, int],
        shape_out: tuple[int, int, int],
        kernel: tuple[int, int] = (1, 1),
        stride: int = 1,
        groups: int = 1,
        pad: tuple[int, int] = (0, 0),
        bias: bool = False,
        macs: int = 0,
        inputs: int | None = None,
        weights: int = 0,
        params: int = 0,
    ) -> int:
        row = len(self.rows)
        elements_in = shape_in[0] * shape_in[1] * shape_in[2]
        elements_out = shape_out[0] * shape_out[1] * shape_out[2]
        self.rows.append(
            (
                KIND[kind],
                *shape_in,
                *shape_out,
                *kernel,
                stride,
                groups,
                *pad,
                int(bias),
                macs,
                elements_in * len(sources) if inputs is None else inputs,
                elements_out,
                weights,
                params,
            )
        )
        self.edges.extend((source, row) for source in sources)
        return row

    def build(self) -> OpGraph:
        table = np.array(self.rows, dtype=np.int64).reshape(-1, len(COLUMNS))
        edges = np.array(self.edges, dtype=np.int32).reshape(-1, 2)
        return OpGraph(table, edges, tuple(sorted(self.unmodelled)), self.precision)

    def conv(
        self,
        source: int,
        shape: tuple[int, int, int],
        cout: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        pad: tuple[int, int] | None = None,
        norm: bool = False,
        bias: bool = False,
    ) -> tuple[int, tuple[int, int, int]]:
        """A convolution, with `norm` followed by a BatchNorm that is folded into it."""
        cin, h, w = shape
        begin, end = pad if pad is not None else same_padding(kernel)
        out = (cout, (h + begin + end - kernel) // stride + 1, (w + begin + end - kernel) // stride + 1)
        weight = cout * (cin // groups) * kernel * kernel
        row = self.add_op(
            "conv",
            [source],
            shape_in=shape,
            shape_out=out,
            kernel=(kernel, kernel),
            stride=stride,
            groups=groups,
            pad=(begin, end),
            bias=norm or bias,
            macs=weight * out[1] * out[2],
            weights=weight + cout * (norm or bias),
            params=weight + cout * bias + 2 * cout * norm,
        )
        return row, out

    def conv_transpose(
        self,
        source: int,
        shape: tuple[int, int, int],
        cout: int,
        kernel: int,
        *,
        stride: int,
        pad: int,
        groups: int = 1,
    ) -> tuple[int, tuple[int, int, int]]:
        """A transposed convolution with bias."""
        cin, h, w = shape
        out = (cout, (h - 1) * stride - 2 * pad + kernel, (w - 1) * stride - 2 * pad + kernel)
        weight = cin * (cout // groups) * kernel * kernel
        row = self.add_op(
            "conv_transpose",
            [source],
            shape_in=shape,
            shape_out=out,
            kernel=(kernel, kernel),
            stride=stride,
            groups=groups,
            pad=(pad, pad),
            bias=True,
            macs=weight * h * w,
            weights=weight + cout,
            params=weight + cout,
        )
        return row, out

    def linear(self, source: int, fan_in: int, fan_out: int, *, bias: bool, tokens: int = 1) -> int:
        weight = fan_in * fan_out
        return self.add_op(
            "linear",
            [source],
            shape_in=(fan_in, tokens, 1),
            shape_out=(fan_out, tokens, 1),
            bias=bias,
            macs=weight * tokens,
            weights=weight + fan_out * bias,
            params=weight + fan_out * bias,
        )

    def matmul(self, left: int, right: int, heads: int, rows: int, contracted: int, columns: int) -> int:
        return self.add_op(
            "matmul",
            [left, right],
            shape_in=(contracted, rows, columns),
            shape_out=(heads, rows, columns),
            groups=heads,
            macs=heads * rows * contracted * columns,
            inputs=heads * contracted * (rows + columns),
        )

    def pointwise(self, kind: str, sources: Sequence[int], shape: tuple[int, int, int], *, params: int = 0) -> int:
        """An operator whose output has the shape of its inputs; normalizations carry `params`."""
        return self.add_op(
            kind, sources, shape_in=shape, shape_out=shape, weights=params, params=params, bias=params > 0
        )


def same_padding(kernel: int) -> tuple[int, int]:
    """Padding (top and left, bottom and right) that keeps the map's size at stride 1; a 2x2 pads top and left."""
    return kernel // 2, (kernel - 1) // 2


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
