"""The kernels that a runtime executes, as a table, and what the fusion rules of all runtimes share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...search_space.graph import COLUMN, GRAPH_INPUT, KINDS, OpGraph

KERNEL_CLASSES: tuple[str, ...] = (
    "conv_first",  # dense convolution that reads few channels in the plain layout
    "conv_dense",
    "conv_pointwise",
    "conv_depthwise",
    "conv_grouped",
    "conv_unblocked",  # onnxruntime: channels do not allow the blocked layout (im2col and matrix product)
    "conv_transpose",
    "conv_transpose_grouped",
    "linear",
    "matmul",
    "softmax",
    "group_norm",
    "layer_norm",
    "batch_norm",
    "activation",
    "gelu",
    "add",
    "pool",
    "reduce",
    "resize",
    "move",
    "reorder_in",
    "reorder_out",
    "other",
    # Told apart from similar classes above for onnxruntime:
    "linear_tokens",  # one weight for many tokens, where "linear" has a single one
    "transpose",  # between maps and tokens
    "silu",
    "sigmoid",
    "broadcast",  # sums and products of operands that differ in size
    "pool_local",  # over windows, where "pool" is over the whole map
    # For torch under autocast and compiled:
    "attention",  # both products and the softmax between them
    "conv_depthwise_5",  # by size of the kernel, where "conv_depthwise" is up to 3x3
    "conv_depthwise_7",
    "conv_depthwise_large",
    "cast",  # from fp32 to fp16 or back
    # Told apart for onnxruntime:
    "permute",  # element by element, where "transpose" and "move" go by rows or columns
    "reduce_across",  # sums of elements that lie apart, where those of "reduce" lie side by side
)
KERNEL_CLASS: dict[str, int] = {name: code for code, name in enumerate(KERNEL_CLASSES)}

KERNEL_COLUMNS: tuple[str, ...] = (
    "class",
    "row",
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
    "macs",
    "inputs",
    "outputs",
    "weights",
    "tail",
)
KERNEL_COLUMN: dict[str, int] = {name: index for index, name in enumerate(KERNEL_COLUMNS)}

PLAIN = 0
"""The layout of a network's input: NCHW. Runtimes with other layouts number those themselves."""

ACTIVATIONS = frozenset({"hardswish", "gelu", "relu", "sigmoid", "silu", "hardsigmoid", "tanh"})
POINTWISE = ACTIVATIONS | {"add", "mul", "batch_norm"}
CLASS_OF_KIND = {
    "linear": "linear",
    "matmul": "matmul",
    "softmax": "softmax",
    "group_norm": "group_norm",
    "layer_norm": "layer_norm",
    "batch_norm": "batch_norm",
    "gelu": "gelu",
    "add": "add",
    "mul": "add",
    "global_pool": "pool",
    "max_pool": "pool",
    "avg_pool": "pool",
    "reduce": "reduce",
    "resize": "resize",
    "crop": "move",
    "concat": "move",
    "pad": "move",
    "move": "move",
    "permute": "move",
    "other": "other",
} | {name: "activation" for name in ACTIVATIONS - {"gelu"}}


@dataclass(frozen=True, eq=False)
class Kernels:
    """The kernels that a runtime executes for a graph, one row each.

    Attributes:
        table: (kernels, len(KERNEL_COLUMNS)) int64. Columns:
            class: index into `KERNEL_CLASSES`.
            row: row of the operator graph that the kernel computes (its first operator); for a reorder, the row whose
                output it rearranges (-1: the graph's input).
            cin to groups: as in `OpGraph`, of the first operator.
            macs: multiply-accumulates.
            inputs, outputs, weights: elements read as activations, written, and read as constants.
            tail: pointwise operators merged into the kernel; some runtimes count those twice that take twice as long.
    """

    table: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> NDArray[np.int64]:
        """(kernels,) the values of one of `KERNEL_COLUMNS`."""
        return self.table[:, KERNEL_COLUMN[name]]

    @property
    def classes(self) -> list[str]:
        """The class of each kernel, by name."""
        return [KERNEL_CLASSES[code] for code in self.column("class")]

    @property
    def keys(self) -> list[tuple[int, str]]:
        """One name per kernel: (row, "op" | "reorder_in" | "reorder_out" | "transpose" | "cast")."""
        roles = {KERNEL_CLASS[name]: name for name in ("reorder_in", "reorder_out", "transpose", "cast")}
        codes, rows = self.column("class").tolist(), self.column("row").tolist()
        return [(row, roles.get(code, "op")) for code, row in zip(codes, rows, strict=True)]


def conv_class(op: list[int]) -> str:
    """The kernel class of a convolution, given as a row of the operator graph; "conv_first" aside."""
    cin, cout, groups = op[COLUMN["cin"]], op[COLUMN["cout"]], op[COLUMN["groups"]]
    if groups == 1:
        return "conv_pointwise" if op[COLUMN["kh"]] == op[COLUMN["kw"]] == 1 else "conv_dense"
    return "conv_depthwise" if groups == cin and cout % groups == 0 else "conv_grouped"


def class_of(op: list[int]) -> str:
    """The kernel class of an operator, given as a row of the operator graph, where nothing more is known of it."""
    kind = KINDS[op[0]]
    if kind == "conv":
        is_first = op[COLUMN["groups"]] == 1 and op[COLUMN["cin"]] <= MOST_IMAGE_CHANNELS
        return "conv_first" if is_first else conv_class(op)
    if kind == "conv_transpose":
        return "conv_transpose" if op[COLUMN["groups"]] == 1 else "conv_transpose_grouped"
    return CLASS_OF_KIND[kind]


MOST_IMAGE_CHANNELS = 4
"""Channels that an image may have: a dense convolution of at most so many is taken for a network's first."""

_COPIED = [COLUMN[name] for name in ("cin", "hin", "win", "cout", "hout", "wout", "kh", "kw", "stride", "groups")]
_COUNTED = [COLUMN[name] for name in ("macs", "inputs", "outputs", "weights")]
OUTPUTS = COLUMN["outputs"]
ROW = KERNEL_COLUMN["row"]
INPUTS, WRITTEN, WEIGHTS, TAIL = (KERNEL_COLUMN[name] for name in ("inputs", "outputs", "weights", "tail"))


class Fuser:
    """Collects the kernels of a graph row by row: what the fusion rules of all runtimes start from.

    Attributes:
        ops: rows of the operator graph.
        sources: for each row the rows that feed it, `GRAPH_INPUT` for the graph's input.
        uses: for each row how many inputs of other rows read it.
        rows: rows of the kernels' table so far.
        kernel_of: by row of the graph, the row of the kernel that computes it.
    """

    def __init__(self, graph: OpGraph) -> None:
        self.ops: list[list[int]] = graph.table.tolist()
        self.sources = graph.inputs_of()
        self.uses = [0] * len(self.ops)
        for sources in self.sources:
            for source in sources:
                if source != GRAPH_INPUT:
                    self.uses[source] += 1
        self.rows: list[list[int]] = []
        self.kernel_of: dict[int, int] = {}

    def emit(self, row: int, class_name: str) -> int:
        """Adds a kernel that computes operator `row`, and returns the kernel's row."""
        op = self.ops[row]
        self.rows.append([KERNEL_CLASS[class_name], row, *(op[i] for i in _COPIED), *(op[i] for i in _COUNTED), 0])
        self.kernel_of[row] = len(self.rows) - 1
        return len(self.rows) - 1

    def merge(self, row: int, kernel: int, tail: int = 1) -> None:
        """Makes pointwise operator `row` part of `kernel`, which then reads the operator's other inputs as well.

        Args:
            row: the operator.
            kernel: the kernel's row.
            tail: what it adds to the kernel's column of that name.
        """
        op, into = self.ops[row], self.rows[kernel]
        into[TAIL] += tail
        into[INPUTS] += max(0, op[COLUMN["inputs"]] - op[COLUMN["outputs"]])
        into[WEIGHTS] += op[COLUMN["weights"]]
        self.kernel_of[row] = kernel

    def kernels(self) -> Kernels:
        """The table of all kernels added."""
        return Kernels(np.array(self.rows, dtype=np.int64).reshape(-1, len(KERNEL_COLUMNS)))


def is_normed(op: list[int]) -> bool:
    """Whether an operator, given as a row of the operator graph, is a convolution that was trained with BatchNorm."""
    return KINDS[op[0]] == "conv" and op[COLUMN["params"]] > op[COLUMN["weights"]]


def norm_of(row: int, op: list[int], class_name: str) -> list[int]:
    """The row of the table for the BatchNorm behind a convolution."""
    outputs = op[OUTPUTS]
    shape = [op[COLUMN[name]] for name in ("cout", "hout", "wout")]
    return [KERNEL_CLASS[class_name], row, *shape, *shape, 1, 1, 1, 1, 0, outputs, outputs, 2 * shape[0], 0]
