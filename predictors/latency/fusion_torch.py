"""What torch executes: eagerly, under autocast, and compiled."""

from __future__ import annotations

from ...search_space.graph import COLUMN, GRAPH_INPUT, KINDS, OpGraph
from .kernels import (
    FULL,
    HALF,
    INPUTS,
    KERNEL_CLASS,
    KERNEL_COLUMN,
    OUTPUTS,
    POINTWISE,
    WEIGHTS,
    WRITTEN,
    Fuser,
    Kernels,
    class_of,
    is_normed,
    norm_of,
)


def eager(graph: OpGraph) -> Kernels:
    """One kernel per operator; a convolution trained with BatchNorm is followed by it."""
    fuser = Fuser(graph)
    for row, op in enumerate(fuser.ops):
        fuser.emit(row, class_of(op))
        if is_normed(op):
            fuser.rows.append(norm_of(row, op, "batch_norm"))
    return fuser.kernels()


class _Torch(Fuser):
    """What torch's libraries compute under autocast and compiled alike: attention as one kernel, and finer classes."""

    def class_of(self, row: int, op: list[int]) -> str:
        kind, name = KINDS[op[0]], class_of(op)
        if name == "conv_depthwise":
            size = max(op[COLUMN["kh"]], op[COLUMN["kw"]])
            return name + ("" if size <= 3 else "_5" if size <= 5 else "_7" if size <= 7 else "_large")
        if kind == "linear" and op[COLUMN["hin"]] * op[COLUMN["win"]] > 1:
            return "linear_tokens"
        if kind in ("add", "mul"):
            elements = [self.elements(source, row) for source in self.sources[row]]
            return "add" if min(elements, default=0) >= op[OUTPUTS] else "broadcast"
        return "pool_local" if kind in ("max_pool", "avg_pool") else name

    def emit(self, row: int, class_name: str) -> int:
        """As ever, but products have the channels of all heads, as other classes have those of all groups."""
        kernel, op = super().emit(row, class_name), self.ops[row]
        if class_name == "matmul":
            self.rows[kernel][KERNEL_COLUMN["cin"]] = op[COLUMN["groups"]] * op[COLUMN["cin"]]
            self.rows[kernel][KERNEL_COLUMN["cout"]] = op[COLUMN["groups"]] * op[COLUMN["wout"]]
        return kernel

    def elements(self, source: int, consumer: int) -> int:
        """Of the tensor that row `source` gives."""
        if source != GRAPH_INPUT:
            return self.ops[source][OUTPUTS]
        op = self.ops[consumer]
        return op[COLUMN["cin"]] * op[COLUMN["hin"]] * op[COLUMN["win"]]

    def is_attention(self, row: int) -> bool:
        """Whether a product, a softmax and a product begin at `row`, with nothing in between."""
        if [KINDS[op[0]] for op in self.ops[row : row + 3]] != ["matmul", "softmax", "matmul"]:
            return False
        scores, weights = self.sources[row + 1], self.sources[row + 2]
        alone = self.uses[row] == self.uses[row + 1] == 1
        return alone and scores == [row] and weights[:1] == [row + 1]

    def attention(self, row: int) -> int:
        """Emits it. Its channels are the queries and the keys of each head, its map the width of a head."""
        first, last = self.ops[row], self.ops[row + 2]
        heads, queries, keys = (first[COLUMN[name]] for name in ("groups", "hout", "wout"))
        width, values = first[COLUMN["cin"]], last[COLUMN["wout"]]
        read, written = heads * (queries * width + keys * (width + values)), heads * queries * values
        macs = first[COLUMN["macs"]] + last[COLUMN["macs"]]
        shape_in, shape_out = (heads * queries, width, 1), (heads * keys, width, 1)
        kernel = [KERNEL_CLASS["attention"], row, *shape_in, *shape_out, 1, 1, 1, heads, macs, read, written, 0, 0]
        self.rows.append(kernel)
        self.kernel_of[row] = self.kernel_of[row + 1] = self.kernel_of[row + 2] = len(self.rows) - 1
        return row + 2


_IN_HALF = frozenset({"conv", "conv_transpose", "linear", "matmul"})
_IN_FULL = frozenset({"layer_norm", "group_norm", "softmax"})


class Autocast(_Torch):
    """torch's eager mode under autocast on a GPU. Sums of fp16 and fp32, and with fp32 parameters, are fp32."""

    def __init__(self, graph: OpGraph, layout: int) -> None:
        super().__init__(graph)
        self.widths: dict[int, int] = {GRAPH_INPUT: HALF if layout == HALF else FULL}
        self.copies: set[int] = set()  # tensors that exist in the other width as well

    def run(self) -> tuple[Kernels, int]:
        row = 0
        while row < len(self.ops):
            row = self.operator(row) + 1
        return self.kernels(), self.widths[len(self.ops) - 1]

    def operator(self, row: int) -> int:
        """Emits the kernels of `row`, and gives the last row that they compute."""
        op, kind, sources = self.ops[row], KINDS[self.ops[row][0]], self.sources[row]
        if kind in _IN_HALF:
            last = row + 2 if self.is_attention(row) else row
            for source in dict.fromkeys(sources + (self.sources[last][1:] if last > row else [])):
                self.need(source, HALF, row)
            if last > row:
                self.attention(row)
            else:
                self.emit(row, self.class_of(row, op))
            self.widths |= dict.fromkeys(range(row, last + 1), HALF)
            if is_normed(op):
                self.rows.append(norm_of(row, op, "batch_norm"))
            return last
        if kind in _IN_FULL:
            for source in dict.fromkeys(sources):
                self.need(source, FULL, row)
        widths = [self.widths[source] for source in sources] or [HALF]
        full = kind in _IN_FULL or FULL in widths or (kind in ("add", "mul") and op[COLUMN["weights"]] > 1)
        kernel = self.rows[self.emit(row, self.class_of(row, op))]
        if kind in ("add", "mul"):
            kernel[INPUTS] = sum(
                min(self.elements(source, row), op[OUTPUTS]) * (2 if width == FULL else 1)
                for source, width in zip(sources, widths, strict=False)
            )
        elif kind in _IN_FULL or FULL in widths:
            kernel[INPUTS] *= 2
        kernel[WRITTEN] *= 2 if full else 1
        self.widths[row] = FULL if full else HALF
        return row

    def need(self, source: int, width: int, consumer: int) -> None:
        """Makes sure that the output of `source` exists in `width`, by a conversion if it does not."""
        if self.widths[source] == width or source in self.copies:
            return
        self.copies.add(source)
        elements = self.elements(source, consumer)
        op = self.ops[consumer if source == GRAPH_INPUT else source]
        shape = [
            op[COLUMN[name]] for name in (("cin", "hin", "win") if source == GRAPH_INPUT else ("cout", "hout", "wout"))
        ]
        read, written = (2, 1) if width == HALF else (1, 2)
        counts = [read * elements, written * elements, 0, 0]
        self.rows.append([KERNEL_CLASS["cast"], source, *shape, *shape, 1, 1, 1, 1, 0, *counts])


def inductor(graph: OpGraph) -> Kernels:
    """torch.compile on a CPU, without freezing: library calls, and pointwise chains ("activation") between them."""
    fuser = _Torch(graph)
    chains: dict[int, int] = {}  # row of the graph -> the chain's kernel that gives it
    row = -1
    while (row := row + 1) < len(fuser.ops):
        op, kind = fuser.ops[row], KINDS[fuser.ops[row][0]]
        if kind in _IN_HALF:
            if fuser.is_attention(row):
                row = fuser.attention(row)
                continue
            fuser.emit(row, fuser.class_of(row, op))
            if is_normed(op):
                fuser.rows.append(norm_of(row, op, "activation"))
                fuser.rows[-1][WEIGHTS] = 0
                chains[row] = len(fuser.rows) - 1
        elif kind in POINTWISE:
            for source in fuser.sources[row]:
                if source in chains and fuser.uses[source] == 1 and fuser.ops[source][OUTPUTS] == op[OUTPUTS]:
                    fuser.merge(row, chains[source])
                    chains[row] = chains[source]
                    break
            else:
                chains[row] = fuser.emit(row, "activation")
        else:
            kernel = fuser.emit(row, fuser.class_of(row, op))
            if kind in ("layer_norm", "group_norm"):
                chains[row] = kernel
    return fuser.kernels()
