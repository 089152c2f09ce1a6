"""What torch's libraries execute under autocast and compiled alike."""

from __future__ import annotations

from ....search_space.graph import COLUMN, GRAPH_INPUT, KINDS
from ..kernels import KERNEL_CLASS, KERNEL_COLUMN, OUTPUTS, Fuser, class_of

PRODUCTS = frozenset({"conv", "conv_transpose", "linear", "matmul"})
"""Operators for which torch calls a library (cuDNN, cuBLAS, oneDNN); autocast computes them in fp16."""


class TorchFuser(Fuser):
    """Emits attention as one kernel, and tells apart classes of kernels that torch runs at different efficiency."""

    def class_of(self, row: int, op: list[int]) -> str:
        """The kernel class of operator `row`."""
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
        """Emits the kernel of `row`; matrix products get the channels of all heads, as convolutions of all groups."""
        kernel, op = super().emit(row, class_name), self.ops[row]
        if class_name == "matmul":
            self.rows[kernel][KERNEL_COLUMN["cin"]] = op[COLUMN["groups"]] * op[COLUMN["cin"]]
            self.rows[kernel][KERNEL_COLUMN["cout"]] = op[COLUMN["groups"]] * op[COLUMN["wout"]]
        return kernel

    def elements(self, source: int, consumer: int) -> int:
        """Number of elements in the tensor that row `source` computes and row `consumer` reads."""
        if source != GRAPH_INPUT:
            return self.ops[source][OUTPUTS]
        op = self.ops[consumer]
        return op[COLUMN["cin"]] * op[COLUMN["hin"]] * op[COLUMN["win"]]

    def is_attention(self, row: int) -> bool:
        """Whether a product, its softmax and the product with that begin at `row`, and nothing else reads them."""
        if [KINDS[op[0]] for op in self.ops[row : row + 3]] != ["matmul", "softmax", "matmul"]:
            return False
        scores, weights = self.sources[row + 1], self.sources[row + 2]
        alone = self.uses[row] == self.uses[row + 1] == 1
        return alone and scores == [row] and weights[:1] == [row + 1]

    def attention(self, row: int) -> int:
        """Emits the attention that begins at `row`, and returns its last row.

        Its channels are the queries and keys of all heads, its map is the width of a head.
        """
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
