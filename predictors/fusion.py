"""Which kernels a runtime executes for an operator graph.

Rules per runtime, each held against the real thing where a test can:
- "onnxruntime": its CPU provider, as `sess_options.optimized_model_filepath` shows for version 1.32: convolutions run
  in a blocked layout (NCHWc, `block` channels: 16 with AVX-512, 8 with AVX2) where their channels allow it, with
  activation and residual addition merged, and reorders stand wherever the layout changes.
- "tensorrt" (and "torch-compile"): convolutions and matrix products take the pointwise chain that follows them along;
  remaining chains run as one kernel.
- "torch" (and "torch-graph"): every operator is a kernel, BatchNorm one of its own.

Fusion never reaches across a unit's end (`search_space.graph.units`) except through the layout of the tensor handed on,
so a graph's kernels are its units' kernels, given the layout in which each unit's input arrives.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..search_space.config import LowFormerConfig
from ..search_space.graph import COLUMN, GRAPH_INPUT, KINDS, OpGraph, Unit, unit_graph, units

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

RUNTIMES: tuple[str, ...] = ("onnxruntime", "tensorrt", "torch", "torch-graph", "torch-compile")

PLAIN, BLOCKED = 0, 1
"""Layouts of a tensor: NCHW, and onnxruntime's NCHWc."""

_ACTIVATIONS = frozenset({"hardswish", "gelu", "relu", "sigmoid", "silu", "hardsigmoid", "tanh"})
_BLOCKED_ACTIVATIONS = frozenset({"gelu", "relu", "sigmoid", "hardsigmoid", "tanh"})
_MERGED_ACTIVATIONS = frozenset({"hardswish", "relu", "sigmoid", "hardsigmoid", "tanh"})
_MERGED_UNBLOCKED = frozenset({"relu", "sigmoid", "hardsigmoid", "tanh"})
_POINTWISE = _ACTIVATIONS | {"add", "mul", "batch_norm"}
_OTHER_CLASSES = {
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
} | {name: "activation" for name in _ACTIVATIONS - {"gelu"}}


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
        """One name per kernel, (row, "op" | "reorder_in" | "reorder_out"), unique within a graph."""
        roles = {KERNEL_CLASS["reorder_in"]: "reorder_in", KERNEL_CLASS["reorder_out"]: "reorder_out"}
        codes, rows = self.column("class").tolist(), self.column("row").tolist()
        return [(row, roles.get(code, "op")) for code, row in zip(codes, rows, strict=True)]


def fuse(graph: OpGraph, runtime: str, block: int = 16) -> Kernels:
    """The kernels that `runtime` executes for `graph`.

    Args:
        graph: any operator graph.
        runtime: one of `RUNTIMES`.
        block: channels of onnxruntime's blocked layout on the device; 0 where it has none. Other runtimes ignore it.
    """
    return _fuse(graph, runtime, block, PLAIN)[0]


def fuse_config(config: LowFormerConfig, runtime: str, block: int = 16) -> Kernels:
    """`fuse(op_graph(config), ...)` through the cached kernels of its units; the order of rows may differ."""
    layout, start, tables = PLAIN, 0, []
    for unit in units(config):
        kernels, layout = fuse_unit(unit, runtime, block, layout)
        table = kernels.table.copy()
        table[:, KERNEL_COLUMN["row"]] += start
        tables.append(table)
        start += len(unit_graph(unit))
    return Kernels(np.concatenate(tables))


@lru_cache(maxsize=65536)
def fuse_unit(unit: Unit, runtime: str, block: int, layout: int) -> tuple[Kernels, int]:
    """Kernels of one unit whose input arrives in `layout`, and the layout of its output."""
    return _fuse(unit_graph(unit), runtime, block, layout)


def _fuse(graph: OpGraph, runtime: str, block: int, layout: int) -> tuple[Kernels, int]:
    if runtime == "onnxruntime":
        return _OnnxRuntime(graph, block, layout).run()
    if runtime in ("tensorrt", "torch-compile"):
        return _merge_chains(graph), PLAIN
    if runtime in ("torch", "torch-graph"):
        return _eager(graph), PLAIN
    raise ValueError(f"unknown runtime {runtime!r}; known are {', '.join(RUNTIMES)}")


def _conv_class(op: list[int]) -> str:
    cin, cout, groups = op[COLUMN["cin"]], op[COLUMN["cout"]], op[COLUMN["groups"]]
    if groups == 1:
        return "conv_pointwise" if op[COLUMN["kh"]] == op[COLUMN["kw"]] == 1 else "conv_dense"
    return "conv_depthwise" if groups == cin and cout % groups == 0 else "conv_grouped"


def _class_of(op: list[int]) -> str:
    kind = KINDS[op[0]]
    if kind == "conv":
        return "conv_first" if op[COLUMN["groups"]] == 1 and op[COLUMN["cin"]] <= 4 else _conv_class(op)
    if kind == "conv_transpose":
        return "conv_transpose" if op[COLUMN["groups"]] == 1 else "conv_transpose_grouped"
    return _OTHER_CLASSES[kind]


_COPIED = [COLUMN[name] for name in ("cin", "hin", "win", "cout", "hout", "wout", "kh", "kw", "stride", "groups")]
_COUNTED = [COLUMN[name] for name in ("macs", "inputs", "outputs", "weights")]
_OUTPUTS = COLUMN["outputs"]
_INPUTS, _WEIGHTS, _TAIL = KERNEL_COLUMN["inputs"], KERNEL_COLUMN["weights"], KERNEL_COLUMN["tail"]


class _Fuser:
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
        into[_TAIL] += 1
        into[_INPUTS] += max(0, op[COLUMN["inputs"]] - op[COLUMN["outputs"]])
        into[_WEIGHTS] += op[COLUMN["weights"]]
        self.kernel_of[row] = kernel

    def kernels(self) -> Kernels:
        return Kernels(np.array(self.rows, dtype=np.int64).reshape(-1, len(KERNEL_COLUMNS)))


class _OnnxRuntime(_Fuser):
    """The CPU provider's layout transformation (nchwc_transformer.cc) and fusions, replayed in the graph's order."""

    def __init__(self, graph: OpGraph, block: int, layout: int) -> None:
        super().__init__(graph)
        self.block = block
        self.layouts: dict[int, set[int]] = {GRAPH_INPUT: {layout}}  # tensor (by producing row) -> where it exists
        self.native: dict[int, int] = {GRAPH_INPUT: layout}

    def need(self, source: int, layout: int, consumer: int) -> None:
        """Makes sure that the output of `source` exists in `layout`, by a reorder if it does not."""
        if layout in self.layouts[source]:
            return
        self.layouts[source].add(layout)
        if source == GRAPH_INPUT:
            op = self.ops[consumer]
            shape = [op[COLUMN[name]] for name in ("cin", "hin", "win")]
        else:
            op = self.ops[source]
            shape = [op[COLUMN[name]] for name in ("cout", "hout", "wout")]
        elements = shape[0] * shape[1] * shape[2]
        name = "reorder_in" if layout == BLOCKED else "reorder_out"
        self.rows.append([KERNEL_CLASS[name], source, *shape, *shape, 1, 1, 1, 1, 0, elements, elements, 0, 0])

    def is_blocked(self, source: int) -> bool:
        """Whether `source` was computed in the blocked layout; a reordered copy serves convolutions only."""
        return self.native[source] == BLOCKED

    def run(self) -> tuple[Kernels, int]:
        for row, op in enumerate(self.ops):
            kind = KINDS[op[0]]
            if kind == "conv":
                layout = self.conv(row, op)
            elif kind in _ACTIVATIONS:
                layout = self.activation(row, kind)
            elif kind in ("add", "mul"):
                layout = self.binary(row, kind)
            elif kind in ("resize", "global_pool", "max_pool", "avg_pool", "batch_norm"):
                layout = self.follow(row, _class_of(op))
            elif kind == "concat":
                aligned = all(
                    self.is_blocked(s) and s != GRAPH_INPUT and self.ops[s][COLUMN["cout"]] % self.block == 0
                    for s in self.sources[row]
                )
                layout = self.plain(row, "move") if not aligned else self.follow(row, "move")
            else:
                layout = self.plain(row, _class_of(op))
            self.layouts[row] = {layout}
            self.native[row] = layout
        return self.kernels(), self.native[len(self.ops) - 1]

    def plain(self, row: int, class_name: str) -> int:
        for source in dict.fromkeys(self.sources[row]):
            self.need(source, PLAIN, row)
        self.emit(row, class_name)
        return PLAIN

    def follow(self, row: int, class_name: str) -> int:
        """An operator that runs in whatever layout its first input has."""
        if self.is_blocked(self.sources[row][0]):
            self.emit(row, class_name)
            return BLOCKED
        return self.plain(row, class_name)

    def conv(self, row: int, op: list[int]) -> int:
        source = self.sources[row][0]
        cin, cout, groups = op[COLUMN["cin"]], op[COLUMN["cout"]], op[COLUMN["groups"]]
        per_group = cin // groups
        if self.block == 0:
            blocked_in = None
        elif groups > 1:
            depthwise = per_group == 1 and cout == groups
            aligned = per_group % self.block == 0 and (cout // groups) % self.block == 0
            blocked_in = BLOCKED if cout % 4 == 0 and (depthwise or aligned) else None
        elif cin < self.block:
            blocked_in = PLAIN
        else:
            blocked_in = BLOCKED if cin % 4 == 0 else None
        if blocked_in is None:
            self.need(source, PLAIN, row)
            self.emit(row, "conv_unblocked" if self.block else _class_of(op))
            return PLAIN
        self.need(source, blocked_in, row)
        self.emit(row, "conv_first" if blocked_in == PLAIN else _conv_class(op))
        return BLOCKED

    def merges_into(self, source: int) -> int | None:
        """The convolution without a tail that computes `source` for one consumer alone, or None."""
        if source == GRAPH_INPUT or self.uses[source] != 1 or KINDS[self.ops[source][0]] != "conv":
            return None
        kernel = self.kernel_of[source]
        return kernel if self.rows[kernel][_TAIL] == 0 else None

    def activation(self, row: int, kind: str) -> int:
        source = self.sources[row][0]
        kernel = self.merges_into(source)
        blocked = self.is_blocked(source)
        if kernel is not None and kind in (_MERGED_ACTIVATIONS if blocked else _MERGED_UNBLOCKED):
            self.merge(row, kernel)
            return BLOCKED if blocked else PLAIN
        if kind in _BLOCKED_ACTIVATIONS:
            return self.follow(row, _OTHER_CLASSES[kind])
        return self.plain(row, _OTHER_CLASSES[kind])

    def binary(self, row: int, kind: str) -> int:
        sources = self.sources[row]
        same_shape = self.ops[row][COLUMN["inputs"]] == len(sources) * self.ops[row][COLUMN["outputs"]]
        if kind == "add" and same_shape and len(sources) == 2:
            for source in sources:  # im2col convolutions add into their output, whatever the layout of the other one
                kernel = self.merges_into(source)
                if kernel is not None and self.rows[kernel][0] == KERNEL_CLASS["conv_unblocked"]:
                    for other in sources:
                        self.need(other, PLAIN, row)
                    self.merge(row, kernel)
                    return PLAIN
        if not same_shape or not all(self.is_blocked(source) for source in sources):
            return self.plain(row, "add")
        if kind == "add":
            for source in sources:
                kernel = self.merges_into(source)
                if kernel is not None:
                    self.merge(row, kernel)
                    return BLOCKED
        self.emit(row, "add")
        return BLOCKED


def _merge_chains(graph: OpGraph) -> Kernels:
    """TensorRT and Inductor: pointwise operators join the kernel that computes their input for them alone."""
    fuser = _Fuser(graph)
    takes_tail = {"conv", "conv_transpose", "linear", "matmul"}
    for row, op in enumerate(fuser.ops):
        kind = KINDS[op[0]]
        if kind in _POINTWISE:
            for source in fuser.sources[row]:
                # A channel gate (squeeze-excitation) is no tail of the small kernel that computes it.
                same_size = source != GRAPH_INPUT and fuser.ops[source][_OUTPUTS] == op[_OUTPUTS]
                if same_size and fuser.uses[source] == 1:
                    head = KINDS[fuser.ops[fuser.rows[fuser.kernel_of[source]][1]][0]]
                    if head in takes_tail or head in _POINTWISE:
                        fuser.merge(row, fuser.kernel_of[source])
                        break
            else:
                fuser.emit(row, _class_of(op))
            continue
        fuser.emit(row, _class_of(op))
    return fuser.kernels()


def _eager(graph: OpGraph) -> Kernels:
    """One kernel per operator; a convolution trained with BatchNorm is followed by it."""
    fuser = _Fuser(graph)
    for row, op in enumerate(fuser.ops):
        fuser.emit(row, _class_of(op))
        if KINDS[op[0]] == "conv" and op[COLUMN["params"]] > op[COLUMN["weights"]]:
            outputs = op[COLUMN["outputs"]]
            shape = [op[COLUMN[name]] for name in ("cout", "hout", "wout")]
            norm = [KERNEL_CLASS["batch_norm"], row, *shape, *shape, 1, 1, 1, 1, 0, outputs, outputs, 2 * shape[0], 0]
            fuser.rows.append(norm)
    return fuser.kernels()
