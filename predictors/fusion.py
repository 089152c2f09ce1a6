"""Which kernels a runtime executes for an operator graph.

Rules per runtime, each held against the real thing where a test can:
- "onnxruntime": its CPU provider, as `sess_options.optimized_model_filepath` shows for version 1.32: convolutions run
  in a blocked layout (NCHWc, `block` channels: 16 with AVX-512, 8 with AVX2) where their channels allow it, with
  activation and residual addition merged, and reorders stand wherever the layout changes.
- "onnxruntime-int8": the same provider with models quantized as `evaluators.quantize` does it: integer convolutions are
  channels-last and merge nothing, transpositions stand wherever the layout changes, and operators in float convert what
  they read and write.
- "tensorrt" (and "onnxruntime-tensorrt"): convolutions and matrix products take the pointwise chain that follows them
  along; remaining chains run as one kernel.
- "torch-compile": Inductor calls libraries for convolutions, matrix products and attention, and makes one kernel of
  each pointwise chain between them, BatchNorm included; a norm takes the chain that follows it along.
- "onnxruntime-cuda": every operator is a kernel, in NCHW, but a ReLU after a convolution. From onnxruntime's source;
  neither this nor "onnxruntime-tensorrt" was ever held against a GPU.
- "torch" (and "torch-graph"): every operator is a kernel, BatchNorm one of its own.
- "torch-amp": the same under autocast, which computes norms and softmax in fp32, the other products in fp16, and
  converts between them; attention is one kernel. Elements are counted in units of fp16.

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

RUNTIMES: tuple[str, ...] = (
    "onnxruntime",
    "onnxruntime-int8",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "tensorrt",
    "torch",
    "torch-amp",
    "torch-graph",
    "torch-compile",
)

PLAIN, BLOCKED, LAST, EITHER = 0, 1, 2, 3
"""Layouts of a tensor: NCHW, and onnxruntime's own of convolutions: NCHWc, of int8 ones NHWC; tokens, whose channels
come last; and what an attention gives, whose own transposition serves maps and tokens alike."""
FULL, HALF = 0, 1
"""Of a tensor under autocast, in the place of a layout: fp32 and fp16."""

_ACTIVATIONS = frozenset({"hardswish", "gelu", "relu", "sigmoid", "silu", "hardsigmoid", "tanh"})
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
_CPU_CLASSES = _OTHER_CLASSES | {
    "silu": "silu",
    "sigmoid": "sigmoid",
    "tanh": "sigmoid",
    "max_pool": "pool_local",
    "avg_pool": "pool_local",
}


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
    if runtime == "onnxruntime-int8":
        return _OnnxRuntimeInt8(graph, layout).run()
    if runtime == "onnxruntime-cuda":
        return _onnxruntime_cuda(graph), PLAIN
    if runtime in ("tensorrt", "onnxruntime-tensorrt"):
        return _merge_chains(graph), PLAIN
    if runtime == "torch-compile":
        return _inductor(graph), PLAIN
    if runtime == "torch-amp":
        return _Autocast(graph, layout).run()
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
_ROW = KERNEL_COLUMN["row"]
_INPUTS, _WRITTEN, _WEIGHTS, _TAIL = (KERNEL_COLUMN[name] for name in ("inputs", "outputs", "weights", "tail"))


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
    """The CPU provider's layout transformation (nchwc_transformer.cc) and fusions, replayed in the graph's order.

    Graphs leave out the transpositions between maps and tokens, so these follow from what each operator works on:
    convolutions, pooling and GroupNorm on maps, matrix products and LayerNorm on tokens, the others on what they get.
    """

    def __init__(self, graph: OpGraph, block: int, layout: int) -> None:
        super().__init__(graph)
        self.block = block
        self.layouts: dict[int, set[int]] = {GRAPH_INPUT: {layout}}  # tensor (by producing row) -> where it exists
        self.native: dict[int, int] = {GRAPH_INPUT: layout}
        self.sizes: dict[int, tuple[int, int]] = {}  # tensor -> (channels, pixels or tokens)
        self.open: dict[int, int] = {}  # tensor -> the convolution that gives it and can take an activation
        self.summed: set[int] = set()  # those that already take a sum

    def need(self, source: int, layout: int, consumer: int) -> None:
        """Makes sure that the output of `source` exists in `layout`, by a reorder or transposition if it does not."""
        known = self.layouts[source]
        if layout in known:
            return
        if source == GRAPH_INPUT:
            op = self.ops[consumer]
            shape = [op[COLUMN[name]] for name in ("cin", "hin", "win")]
        else:
            op = self.ops[source]
            shape = [op[COLUMN[name]] for name in ("cout", "hout", "wout")]
        elements = shape[0] * shape[1] * shape[2]
        if BLOCKED in known and len(known) == 1:
            # Straight to channels-last, unless height and width become one dimension in between.
            names = ["reorder_out"]
            if layout == LAST and shape[2] > 1 and self.ops[consumer][COLUMN["win"]] == 1:
                names.append("transpose")
                known.add(PLAIN)
        elif layout == BLOCKED:
            names = ["reorder_in"]
        else:
            names = ["transpose"]
        known.add(layout)
        for name in names:
            self.rows.append([KERNEL_CLASS[name], source, *shape, *shape, 1, 1, 1, 1, 0, elements, elements, 0, 0])

    def is_blocked(self, source: int) -> bool:
        """Whether `source` was computed in the blocked layout; a reordered copy serves convolutions only."""
        return self.native[source] == BLOCKED

    def run(self) -> tuple[Kernels, int]:
        for row, op in enumerate(self.ops):
            layout = self.operator(row, op)
            self.layouts[row] = {PLAIN, LAST} if layout == EITHER else {layout}
            self.native[row] = layout
            if row not in self.sizes:
                self.sizes[row] = self._size(row, op)
        return self.kernels(), self.native[len(self.ops) - 1]

    def _size(self, row: int, op: list[int]) -> tuple[int, int]:
        size = (op[COLUMN["cout"]], op[COLUMN["hout"]] * op[COLUMN["wout"]])
        if KINDS[op[0]] in _POINTWISE:  # tables do not say which dimension of a pointwise operator the channels are
            for source in self.sources[row]:
                before = self.sizes.get(source, size)
                if before[0] * before[1] == size[0] * size[1]:
                    return before
        return size

    def operator(self, row: int, op: list[int]) -> int:
        """Emits the kernels of `row` and gives the layout of its output."""
        kind = KINDS[op[0]]
        if kind == "conv":
            return self.conv(row, op)
        if kind in _ACTIVATIONS:
            return self.activation(row, kind)
        if kind in ("add", "mul"):
            return self.binary(row, kind)
        if kind in ("max_pool", "avg_pool"):
            return self.pool(row, op, kind)
        if kind == "global_pool":
            # A gate's pooling is a mean, which has no blocked form.
            gates = self.sources[row][0] != GRAPH_INPUT and self.uses[self.sources[row][0]] > 1
            return self.plain(row, "reduce") if gates else self.follow(row, "pool")
        if kind == "batch_norm":
            layout = self.follow(row, kind)
            if layout == BLOCKED:  # it becomes a depthwise 1x1 convolution
                self.open[row] = self.kernel_of[row]
            return layout
        if kind == "resize":
            return self.follow(row, kind)
        if kind == "linear":
            return self.linear(row, op)
        if kind == "layer_norm" and op[COLUMN["hin"]] * op[COLUMN["win"]] > 1:
            self.need(self.sources[row][0], LAST, row)
            self.emit(row, kind)
            return LAST
        if kind in ("matmul", "softmax"):
            return self.settled(row, kind)
        if kind == "concat":
            aligned = not op[COLUMN["weights"]] and all(
                self.is_blocked(s) and s != GRAPH_INPUT and self.ops[s][COLUMN["cout"]] % self.block == 0
                for s in self.sources[row]
            )
            return self.follow(row, "move") if aligned else self.tokens_or_plain(row, "move")
        if kind == "move":
            return self.move(row, op)
        if kind in ("reduce", "other", "layer_norm"):
            return self.tokens_or_plain(row, _OTHER_CLASSES[kind])
        return self.plain(row, _class_of(op))

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
        return self.tokens_or_plain(row, class_name)

    def tokens_or_plain(self, row: int, class_name: str) -> int:
        """An operator on tokens if its inputs are tokens or it makes such of a map, and on plain maps otherwise."""
        if self.makes_tokens(row):
            for source in dict.fromkeys(self.sources[row]):
                self.need(source, LAST, row)
            self.emit(row, class_name)
            return LAST
        natives = {self.native[source] for source in self.sources[row]}
        if not natives or natives - {LAST, EITHER}:
            return self.plain(row, class_name)
        self.emit(row, class_name)
        return LAST if LAST in natives else EITHER

    def makes_tokens(self, row: int) -> bool:
        """Whether some input is a map and the output one row of its pixels, with the same channels."""
        op = self.ops[row]
        if op[COLUMN["wout"]] > 1 or op[COLUMN["hout"]] == 1:
            return False
        for source in self.sources[row]:
            before = self.ops[source] if source != GRAPH_INPUT else None
            if before and before[COLUMN["wout"]] > 1 and before[COLUMN["cout"]] == op[COLUMN["cout"]]:
                return self.native[source] in (PLAIN, BLOCKED)
        return False

    def move(self, row: int, op: list[int]) -> int:
        """A rearrangement: slices keep the layout, and permutations give what is asked for next."""
        source = self.sources[row][0]
        self.settled(row, "move")
        before, after = op[COLUMN["cin"] : COLUMN["win"] + 1], op[COLUMN["cout"] : COLUMN["wout"] + 1]
        if op[COLUMN["inputs"]] == op[_OUTPUTS] and before != after:
            return EITHER
        return PLAIN if self.is_blocked(source) else self.native[source]

    def settled(self, row: int, class_name: str) -> int:
        """An operator whose inputs only must not be blocked."""
        for source in dict.fromkeys(self.sources[row]):
            if self.is_blocked(source):
                self.need(source, PLAIN, row)
        self.emit(row, class_name)
        return EITHER

    def linear(self, row: int, op: list[int]) -> int:
        cin, tokens = op[COLUMN["cin"]] // op[COLUMN["groups"]], op[COLUMN["hin"]] * op[COLUMN["win"]]
        source = self.sources[row][0]
        if tokens == 1:
            self.settled(row, "linear")
            return PLAIN
        channels, pixels = self.sizes.get(source, (cin, tokens))
        if channels != cin and pixels == cin:  # it mixes tokens, not channels
            self.need(source, PLAIN, row)
            self.emit(row, "linear_tokens")
            self.sizes[row] = (tokens, op[COLUMN["cout"]])
            return PLAIN
        if channels != pixels or self.native[source] == BLOCKED:
            self.need(source, LAST, row)
        self.emit(row, "linear_tokens")
        return LAST

    def pool(self, row: int, op: list[int], kind: str) -> int:
        """Pooling over windows: blocked wherever the channels allow it."""
        blocked = self.block > 0 and op[COLUMN["cin"]] % self.block == 0
        self.need(self.sources[row][0], BLOCKED if blocked else PLAIN, row)
        kernel = self.emit(row, _CPU_CLASSES[kind])
        self.rows[kernel][KERNEL_COLUMN["macs"]] = op[_OUTPUTS] * op[COLUMN["kh"]] * op[COLUMN["kw"]]
        return BLOCKED if blocked else PLAIN

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
            self.open[row] = self.emit(row, "conv_unblocked" if self.block else _class_of(op))
            return PLAIN
        self.need(source, blocked_in, row)
        self.open[row] = self.emit(row, "conv_first" if blocked_in == PLAIN else _conv_class(op))
        return BLOCKED

    def merges_into(self, source: int) -> int | None:
        """The convolution whose output `source` is, for one consumer alone and without an activation yet, or None."""
        return self.open.get(source) if source != GRAPH_INPUT and self.uses[source] == 1 else None

    def activation(self, row: int, kind: str) -> int:
        source = self.sources[row][0]
        kernel = self.merges_into(source)
        blocked = self.is_blocked(source)
        if kernel is not None and kind in (_MERGED_ACTIVATIONS if blocked else _MERGED_UNBLOCKED):
            self.merge(row, kernel)
            return BLOCKED if blocked else PLAIN
        return self.follow(row, _CPU_CLASSES[kind])

    def binary(self, row: int, kind: str) -> int:
        sources, op = self.sources[row], self.ops[row]
        same_shape = op[COLUMN["inputs"]] == len(sources) * op[_OUTPUTS]
        kernels = {source: self.merges_into(source) for source in sources}
        if self.makes_tokens(row):
            return self.tokens_or_plain(row, "add" if same_shape and len(sources) > 1 else "broadcast")
        if len(sources) == 1:
            kernel = kernels[sources[0]]
            if kernel is not None and kernel not in self.summed and op[COLUMN["weights"]] in (0, op[COLUMN["cout"]]):
                # A factor or bias per channel becomes part of the weights.
                self.kernel_of[row] = self.open[row] = kernel
                return self.native[sources[0]]
            if kind == "mul" and self.is_blocked(sources[0]) and op[COLUMN["weights"]] == op[COLUMN["cout"]]:
                self.open[row] = self.emit(row, "batch_norm")  # as above
                return BLOCKED
            return self.tokens_or_plain(row, "broadcast")
        if not same_shape or self.native[sources[0]] in (LAST, EITHER) or len(sources) != 2:
            return self.tokens_or_plain(row, "add" if same_shape else "broadcast")
        if kind == "add":
            for kernel in kernels.values():
                # im2col convolutions add into their output, whatever the layout of the other one
                if kernel is None or kernel in self.summed or self.rows[kernel][0] != KERNEL_CLASS["conv_unblocked"]:
                    continue
                for other in sources:
                    self.need(other, PLAIN, row)
                return self.add_into(row, kernel, PLAIN)
        if not all(self.is_blocked(source) for source in sources):
            return self.plain(row, "add")
        if kind == "add":
            for kernel in kernels.values():
                if kernel is not None and kernel not in self.summed:
                    return self.add_into(row, kernel, BLOCKED)
        self.emit(row, "add")
        return BLOCKED

    def add_into(self, row: int, kernel: int, layout: int) -> int:
        self.merge(row, kernel)
        self.summed.add(kernel)
        self.open[row] = kernel
        return layout


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
"""What int8 models compute in integers, or move as such."""
_FOLLOWING = _POINTWISE | {"resize", "max_pool", "avg_pool", "concat", "crop"}


class _OnnxRuntimeInt8(_Fuser):
    """Integer convolutions are channels-last (`BLOCKED` here), and so is what lies between them; the rest is plain.

    Operators in float count the conversions of what they read and write as their tail. A ReLU is no operator: it is
    the range of the tensor before it.
    """

    def __init__(self, graph: OpGraph, layout: int) -> None:
        super().__init__(graph)
        self.layouts: dict[int, set[int]] = {GRAPH_INPUT: {layout}}
        self.native: dict[int, int] = {GRAPH_INPUT: layout}
        self.integer = [KINDS[op[0]] in _INTEGER for op in self.ops] + [True]  # the last is the graph's input, -1
        self.consumers: list[list[int]] = [[] for _ in self.ops]
        for row, sources in enumerate(self.sources):
            for source in sources:
                if source != GRAPH_INPUT:
                    self.consumers[source].append(row)

    def run(self) -> tuple[Kernels, int]:
        for row, op in enumerate(self.ops):
            kind, sources = KINDS[op[0]], self.sources[row]
            if kind == "relu" and sources[0] in self.kernel_of and self.integer[sources[0]]:
                self.kernel_of[row] = self.kernel_of[sources[0]]
                self.layouts[row], self.native[row] = self.layouts[sources[0]], self.native[sources[0]]
                continue
            last = kind == "conv" or (kind in _FOLLOWING and self.stays_last(row))
            self.native[row] = BLOCKED if last else PLAIN
            self.layouts[row] = {self.native[row]}
            for source in dict.fromkeys(sources):
                self.need(source, self.native[row], row)
            kernel = self.emit(row, _class_of(op))
            if not self.integer[row]:
                read = sum(self.integer[source] for source in set(sources))
                readers = self.consumers[row]  # none at the end of a unit, which a convolution follows
                self.rows[kernel][_TAIL] = read + (not readers or any(self.integer[reader] for reader in readers))
        return self.kernels(), self.native[len(self.ops) - 1]

    def stays_last(self, row: int) -> bool:
        """Whether all inputs are channels-last, and not nothing but pooling to one pixel reads the output."""
        readers = {KINDS[self.ops[consumer][0]] for consumer in self.consumers[row]}
        return all(self.native[source] == BLOCKED for source in self.sources[row]) and readers != {"global_pool"}

    def need(self, source: int, layout: int, consumer: int) -> None:
        """Makes sure that the output of `source` exists in `layout`, by a transposition if it does not."""
        if layout in self.layouts[source]:
            return
        self.layouts[source].add(layout)
        op = self.ops[consumer if source == GRAPH_INPUT else source]
        names = ("cin", "hin", "win") if source == GRAPH_INPUT else ("cout", "hout", "wout")
        shape = [op[COLUMN[name]] for name in names]
        elements = shape[0] * shape[1] * shape[2]
        name = "reorder_in" if layout == BLOCKED else "reorder_out"
        self.rows.append([KERNEL_CLASS[name], source, *shape, *shape, 1, 1, 1, 1, 0, elements, elements, 0, 0])


def _onnxruntime_cuda(graph: OpGraph) -> Kernels:
    """The CUDA provider (conv_activation_fusion.cc): a ReLU, alone or after a sum, joins the convolution before it."""
    fuser = _Fuser(graph)
    kinds = graph.kinds
    summed = {sources[0] for row, sources in enumerate(fuser.sources) if kinds[row] == "relu"}
    for row, op in enumerate(fuser.ops):
        if kinds[row] == "relu":  # after a convolution, or after a sum that one has taken
            alone = [s for s in fuser.sources[row] if s != GRAPH_INPUT and fuser.uses[s] == 1]
            heads = [s for s in alone if kinds[fuser.rows[fuser.kernel_of[s]][_ROW]] == "conv"]
        elif kinds[row] == "add" and row in summed and fuser.uses[row] == 1:
            heads = [s for s in fuser.sources[row] if s != GRAPH_INPUT and fuser.uses[s] == 1 and kinds[s] == "conv"]
        else:
            heads = []
        if heads:
            fuser.merge(row, fuser.kernel_of[heads[0]])
        else:
            fuser.emit(row, _class_of(op))
    return fuser.kernels()


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
        if _normed(op):
            fuser.rows.append(_norm_of(row, op, "batch_norm"))
    return fuser.kernels()


def _normed(op: list[int]) -> bool:
    """Whether an operator is a convolution that was trained with BatchNorm."""
    return KINDS[op[0]] == "conv" and op[COLUMN["params"]] > op[COLUMN["weights"]]


def _norm_of(row: int, op: list[int], class_name: str) -> list[int]:
    """The row of the table for the BatchNorm behind a convolution."""
    outputs = op[_OUTPUTS]
    shape = [op[COLUMN[name]] for name in ("cout", "hout", "wout")]
    return [KERNEL_CLASS[class_name], row, *shape, *shape, 1, 1, 1, 1, 0, outputs, outputs, 2 * shape[0], 0]


class _Torch(_Fuser):
    """What torch's libraries compute under autocast and compiled alike: attention as one kernel, and finer classes."""

    def class_of(self, row: int, op: list[int]) -> str:
        kind, name = KINDS[op[0]], _class_of(op)
        if name == "conv_depthwise":
            size = max(op[COLUMN["kh"]], op[COLUMN["kw"]])
            return name + ("" if size <= 3 else "_5" if size <= 5 else "_7" if size <= 7 else "_large")
        if kind == "linear" and op[COLUMN["hin"]] * op[COLUMN["win"]] > 1:
            return "linear_tokens"
        if kind in ("add", "mul"):
            elements = [self.elements(source, row) for source in self.sources[row]]
            return "add" if min(elements, default=0) >= op[_OUTPUTS] else "broadcast"
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
            return self.ops[source][_OUTPUTS]
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


class _Autocast(_Torch):
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
            if _normed(op):
                self.rows.append(_norm_of(row, op, "batch_norm"))
            return last
        if kind in _IN_FULL:
            for source in dict.fromkeys(sources):
                self.need(source, FULL, row)
        widths = [self.widths[source] for source in sources] or [HALF]
        full = kind in _IN_FULL or FULL in widths or (kind in ("add", "mul") and op[COLUMN["weights"]] > 1)
        kernel = self.rows[self.emit(row, self.class_of(row, op))]
        if kind in ("add", "mul"):
            kernel[_INPUTS] = sum(
                min(self.elements(source, row), op[_OUTPUTS]) * (2 if width == FULL else 1)
                for source, width in zip(sources, widths, strict=False)
            )
        elif kind in _IN_FULL or FULL in widths:
            kernel[_INPUTS] *= 2
        kernel[_WRITTEN] *= 2 if full else 1
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


def _inductor(graph: OpGraph) -> Kernels:
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
            if _normed(op):
                fuser.rows.append(_norm_of(row, op, "activation"))
                fuser.rows[-1][_WEIGHTS] = 0
                chains[row] = len(fuser.rows) - 1
        elif kind in _POINTWISE:
            for source in fuser.sources[row]:
                if source in chains and fuser.uses[source] == 1 and fuser.ops[source][_OUTPUTS] == op[_OUTPUTS]:
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
