"""The network as canonical operators: what a configuration costs, without a forward pass and without torch.

An `OpGraph` holds one row per operator that computes something; BatchNorm is folded into the convolution before it, and
operators that only rearrange data (reshape, transpose, split, casts, scaling by a constant beside a matrix product) are
left out, their edges joined. So the same network gives the same graph whether it comes from a configuration
(`search_space.units.op_graph`), an ONNX file (`op_graph_from_onnx`) or a torch module (`op_graph_from_torch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

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
