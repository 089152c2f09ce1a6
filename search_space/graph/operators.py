"""Operator graphs: networks as tables of canonical operators, from which everything that they cost is computed.

An `OpGraph` holds one row for each operator that computes something. BatchNorm is folded into the convolution before
it. Operators that only rearrange data (reshape, transpose, split, casts, scaling by a constant beside a matrix product)
are left out, and the operators around them are joined. So the same network gives the same graph, whether it comes from
a configuration (`from_config.op_graph`), an ONNX file (`onnx_reader.op_graph_from_onnx`) or a torch module
(`torch_tracer.op_graph_from_torch`).
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
    # These occur only in networks outside the LowFormer space.
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
    "permute",
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
"""The network's input, where a row of the table would give the producer of a tensor."""
FP32_BYTES = 4


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
            params: parameters of the network as trained, those of a folded BatchNorm included.
        edges: (edges, 2) int32, (producer, consumer) rows of the table in the order of the consumer's inputs; producer
            -1 is the network's input.
        unmodelled: names of the operators of kind "other" in their file or module.
        precision: "fp16" or "int8" if a file computes in it, else "fp32".
    """

    table: NDArray[np.int64]
    edges: NDArray[np.int32]
    unmodelled: tuple[str, ...] = ()
    precision: str = "fp32"

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> NDArray[np.int64]:
        """Gives one of `COLUMNS`, (operators,)."""
        return self.table[:, COLUMN[name]]

    @property
    def kinds(self) -> list[str]:
        """The name of each operator's kind."""
        return [KINDS[code] for code in self.column("kind")]

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return int(self.column("macs").sum())

    @cached_property
    def params(self) -> int:
        """Parameters of the network as trained, BatchNorm included."""
        return int(self.column("params").sum())

    @cached_property
    def bytes(self) -> int:
        """Bytes that all operators read and write in fp32 for one image, none of them fused."""
        return FP32_BYTES * int(self.table[:, [COLUMN["inputs"], COLUMN["outputs"], COLUMN["weights"]]].sum())

    def inputs_of(self) -> list[list[int]]:
        """Gives for each operator the rows that it reads, in the order of its inputs."""
        sources: list[list[int]] = [[] for _ in range(len(self))]
        for source, consumer in self.edges.tolist():
            sources[consumer].append(source)
        return sources


class GraphBuilder:
    """Builds an operator graph row by row; the methods that add an operator give its row.

    Shapes are (channels, height, width). Kernel, stride, groups and padding are those of convolutions and pooling.
    """

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
        """Adds any operator, as `OpGraph` describes them. By default it reads all of an input for each source."""
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
        """Adds a convolution, with `norm` one into which a BatchNorm is folded. Gives its row and output shape."""
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
        """Adds a transposed convolution with bias. Gives its row and output shape."""
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
        """Adds a linear layer that is applied to each token."""
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
        """Adds a product of two activations, (heads, rows, contracted) x (heads, contracted, columns)."""
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
        """Adds an operator whose output has the shape of its inputs; normalizations have `params`."""
        return self.add_op(
            kind, sources, shape_in=shape, shape_out=shape, weights=params, params=params, bias=params > 0
        )


def same_padding(kernel: int) -> tuple[int, int]:
    """Gives the padding (top and left, bottom and right) that keeps a map's size at stride 1.

    A 2x2 kernel pads the top and left alone.
    """
    return kernel // 2, (kernel - 1) // 2
