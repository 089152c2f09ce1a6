"""What onnxruntime's CPU provider executes for models quantized as `evaluators.device.quantize` does it.

Integer convolutions are channels-last and merge nothing, transpositions stand wherever the layout changes, and
operators in float convert what they read and write.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....search_space.graph import COLUMN, GRAPH_INPUT, KINDS, OpGraph
from ..kernels import KERNEL_CLASS, PLAIN, POINTWISE, TAIL, Fuser, Kernels, class_of

CHANNELS_LAST = 1
"""Layout beside `PLAIN`: NHWC."""

_INTEGER = frozenset(
    {
        "conv",
        "linear",
        "matmul",
        "add",
        "relu",
        "global_pool",
        "max_pool",
        "avg_pool",
        "resize",
        "concat",
        "crop",
        "move",
    }
)
"""Operators that int8 models compute in integers, or move as integers."""
PROFILED_NODES: Mapping[str, int] = {
    "group_norm": 7,
    "conv_transpose": 5,
    "conv_transpose_grouped": 5,
    "matmul": 4,
    "activation": 4,
    "gelu": 3,
    "layer_norm": 2,
    "pool": 2,
}
"""`Runtime.profiled_nodes`, with the conversions of operators in float (of a matrix product, on average)."""
_KEEPS_LAYOUT = POINTWISE | {"resize", "max_pool", "avg_pool", "concat", "crop"}


class Int8Fuser(Fuser):
    """Keeps integer convolutions and what lies between them channels-last, and everything else plain.

    An operator in float counts the conversions of what it reads and writes as merged operators. A ReLU after an
    operator in integers is no kernel: it is the range of the tensor.
    """

    def __init__(self, graph: OpGraph, layout: int) -> None:
        super().__init__(graph)
        self.layouts: dict[int, set[int]] = {GRAPH_INPUT: {layout}}
        self.native: dict[int, int] = {GRAPH_INPUT: layout}
        self.integer = [KINDS[op[0]] in _INTEGER for op in self.ops] + [True]  # the last is the network's input, -1
        self.consumers: list[list[int]] = [[] for _ in self.ops]
        for row, sources in enumerate(self.sources):
            for source in sources:
                if source != GRAPH_INPUT:
                    self.consumers[source].append(row)

    def run(self) -> tuple[Kernels, int]:
        """The kernels, and the layout of the graph's output."""
        for row, op in enumerate(self.ops):
            kind, sources = KINDS[op[0]], self.sources[row]
            if kind == "relu" and sources[0] in self.kernel_of and self.integer[sources[0]]:
                self.kernel_of[row] = self.kernel_of[sources[0]]
                self.layouts[row], self.native[row] = self.layouts[sources[0]], self.native[sources[0]]
                continue
            last = kind == "conv" or (kind in _KEEPS_LAYOUT and self.stays_last(row))
            self.native[row] = CHANNELS_LAST if last else PLAIN
            self.layouts[row] = {self.native[row]}
            for source in dict.fromkeys(sources):
                self.need(source, self.native[row], row)
            kernel = self.emit(row, class_of(op))
            if not self.integer[row]:
                read = sum(self.integer[source] for source in set(sources))
                readers = self.consumers[row]  # none at the end of a unit, after which a convolution follows
                self.rows[kernel][TAIL] = read + (not readers or any(self.integer[reader] for reader in readers))
        return self.kernels(), self.native[len(self.ops) - 1]

    def stays_last(self, row: int) -> bool:
        """Whether all inputs are channels-last, and not only global pooling reads the output."""
        readers = {KINDS[self.ops[consumer][0]] for consumer in self.consumers[row]}
        return all(self.native[source] == CHANNELS_LAST for source in self.sources[row]) and readers != {"global_pool"}

    def need(self, source: int, layout: int, consumer: int) -> None:
        """Emits a transposition unless the output of `source` exists in `layout`."""
        if layout in self.layouts[source]:
            return
        self.layouts[source].add(layout)
        op = self.ops[consumer if source == GRAPH_INPUT else source]
        names = ("cin", "hin", "win") if source == GRAPH_INPUT else ("cout", "hout", "wout")
        shape = [op[COLUMN[name]] for name in names]
        elements = shape[0] * shape[1] * shape[2]
        name = "reorder_in" if layout == CHANNELS_LAST else "reorder_out"
        self.rows.append([KERNEL_CLASS[name], source, *shape, *shape, 1, 1, 1, 1, 0, elements, elements, 0, 0])
