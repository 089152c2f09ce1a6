"""What a runtime executes, as a table of kernels, and what the fusion rules of all runtimes share."""

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
    # onnxruntime tells these apart from their likes above:
    "linear_tokens",  # one weight for many tokens, where "linear" has a single one
    "transpose",  # between maps and tokens
    "silu",
    "sigmoid",
    "broadcast",  # sums and products of operands that differ in size
    "pool_local",  # over windows, where "pool" is over the whole map
    # torch under autocast and compiled:
    "attention",  # both products and the softmax between them
    "conv_depthwise_5",  # by size of the kernel, where "conv_depthwise" is up to 3x3
    "conv_depthwise_7",
    "conv_depthwise_large",
    "cast",  # from fp32 to fp16 or back
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

PLAIN, BLOCKED, LAST, EITHER = 0, 1, 2, 3
"""Layouts of a tensor: NCHW, and onnxruntime's own of convolutions: NCHWc, of int8 ones NHWC; tokens, whose channels
come last; and what an attention gives, whose own transposition serves maps and tokens alike."""
FULL, HALF = 0, 1
"""Of a tensor under autocast, in the place of a layout: fp32 and fp16."""

ACTIVATIONS = frozenset({"hardswish", "gelu", "relu", "sigmoid", "silu", "hardsigmoid", "tanh"})
_MERGED_ACTIVATIONS = frozenset({"hardswish", "relu", "sigmoid", "hardsigmoid", "tanh"})
_MERGED_UNBLOCKED = frozenset({"relu", "sigmoid", "hardsigmoid", "tanh"})
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
    "other": "other",
} | {name: "activation" for name in ACTIVATIONS - {"gelu"}}


@dataclass(frozen=True, eq=False)
class Kernels:
    """What a runtime executes, as a table.

    Attributes:
        table: (kernels, len(KERNEL_COLUMNS)) int64. Columns:
            class: index into `KERNEL_CLASSES`.
            row: row of the operator graph that the kernel computes (its first operator); of a reorder, the row whose
                output it rearranges (-1: the graph's input).
            cin to groups: as in `OpGraph`, of the first operator.
            macs: multiply-accumulates.
            inputs, outputs, weights: elements read as activations, written, and read as constants.
            tail: pointwise operators merged into the kernel.
    """

    table: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> NDArray[np.int64]:
        return self.table[:, KERNEL_COLUMN[name]]

    @property
    def classes(self) -> list[str]:
        return [KERNEL_CLASSES[code] for code in self.column("class")]

    @property
    def keys(self) -> list[tuple[int, str]]:
        """One name per kernel, (row, "op" | "reorder_in" | "reorder_out" | "transpose")."""
        roles = {KERNEL_CLASS[name]: name for name in ("reorder_in", "reorder_out", "transpose", "cast")}
        codes, rows = self.column("class").tolist(), self.column("row").tolist()
        return [(row, roles.get(code, "op")) for code, row in zip(codes, rows, strict=True)]


def conv_class(op: list[int]) -> str:
    cin, cout, groups = op[COLUMN["cin"]], op[COLUMN["cout"]], op[COLUMN["groups"]]
    if groups == 1:
        return "conv_pointwise" if op[COLUMN["kh"]] == op[COLUMN["kw"]] == 1 else "conv_dense"
    return "conv_depthwise" if groups == cin and cout % groups == 0 else "conv_grouped"


def class_of(op: list[int]) -> str:
    kind = KINDS[op[0]]
    if kind == "conv":
        return "conv_first" if op[COLUMN["groups"]] == 1 and op[COLUMN["cin"]] <= 4 else conv_class(op)
    if kind == "conv_transpose":
        return "conv_transpose" if op[COLUMN["groups"]] == 1 else "conv_transpose_grouped"
    return CLASS_OF_KIND[kind]


_COPIED = [COLUMN[name] for name in ("cin", "hin", "win", "cout", "hout", "wout", "kh", "kw", "stride", "groups")]
_COUNTED = [COLUMN[name] for name in ("macs", "inputs", "outputs", "weights")]
OUTPUTS = COLUMN["outputs"]
ROW = KERNEL_COLUMN["row"]
INPUTS, WRITTEN, WEIGHTS, TAIL = (KERNEL_COLUMN[name] for name in ("inputs", "outputs", "weights", "tail"))


class Fuser:
    """What all rules share: the graph's rows, their sources and consumers, and the kernels so far."""

    def __init__(self, graph: OpGraph) -> None:
        self.ops: list[list[int]] = graph.table.tolist()
        self.sources = graph.inputs_of()
        self.uses = [0] * len(self.ops)
        for sources in self.sources:
            for source in sources:
                if source != GRAPH_INPUT:
                    self.uses[source] += 1
        self.rows: list[list[int]] = []
        self.kernel_of: dict[int, int] = {}  # row of the graph -> its kernel

    def emit(self, row: int, class_name: str) -> int:
        op = self.ops[row]
        self.rows.append([KERNEL_CLASS[class_name], row, *(op[i] for i in _COPIED), *(op[i] for i in _COUNTED), 0])
        self.kernel_of[row] = len(self.rows) - 1
        return len(self.rows) - 1

    def merge(self, row: int, kernel: int) -> None:
        """Makes the pointwise operator `row` part of `kernel`, which then also reads what else the operator reads."""
        op, into = self.ops[row], self.rows[kernel]
        into[TAIL] += 1
        into[INPUTS] += max(0, op[COLUMN["inputs"]] - op[COLUMN["outputs"]])
        into[WEIGHTS] += op[COLUMN["weights"]]
        self.kernel_of[row] = kernel

    def kernels(self) -> Kernels:
        return Kernels(np.array(self.rows, dtype=np.int64).reshape(-1, len(KERNEL_COLUMNS)))


def is_normed(op: list[int]) -> bool:
    """Whether an operator is a convolution that was trained with BatchNorm."""
    return KINDS[op[0]] == "conv" and op[COLUMN["params"]] > op[COLUMN["weights"]]


def norm_of(row: int, op: list[int], class_name: str) -> list[int]:
    """The row of the table for the BatchNorm behind a convolution."""
    outputs = op[OUTPUTS]
    shape = [op[COLUMN[name]] for name in ("cout", "hout", "wout")]
    return [KERNEL_CLASS[class_name], row, *shape, *shape, 1, 1, 1, 1, 0, outputs, outputs, 2 * shape[0], 0]
