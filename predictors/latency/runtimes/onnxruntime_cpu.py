"""What onnxruntime's CPU provider executes for models in float.

Convolutions run in a blocked layout (NCHWc) where their channels allow it, with activation and residual addition
merged, and reorders stand wherever the layout changes: as `SessionOptions.optimized_model_filepath` shows for
onnxruntime 1.32, and tests compare.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....search_space.graph import COLUMN, GRAPH_INPUT, KINDS, OpGraph
from ..kernels import (
    ACTIVATIONS,
    CLASS_OF_KIND,
    KERNEL_CLASS,
    KERNEL_COLUMN,
    OUTPUTS,
    PLAIN,
    POINTWISE,
    Fuser,
    Kernels,
    class_of,
    conv_class,
)

BLOCKED, CHANNELS_LAST, EITHER = 1, 2, 3
"""Layouts beside `PLAIN`: NCHWc; tokens, whose channels come last; and the output of an attention product, whose own
transposition gives maps and tokens alike. The end of a unit has one of the first two."""

_MERGED_INTO_BLOCKED = frozenset({"hardswish", "relu", "sigmoid", "hardsigmoid", "tanh"})
_MERGED_INTO_UNBLOCKED = frozenset({"relu", "sigmoid", "hardsigmoid", "tanh"})
_TAILS = {"relu": 1, "add": 1}
"""What merged operators take, in halves of what a hard-swish or a sigmoid takes."""
_OTHER_TAIL = 2
PROFILED_NODES: Mapping[str, int] = {"group_norm": 5, "matmul": 3, "activation": 2, "pool": 2}
"""`Runtime.profiled_nodes`: what the networks that we write are optimized to (of a matrix product, mostly)."""
_CPU_CLASSES = CLASS_OF_KIND | {
    "silu": "silu",
    "sigmoid": "sigmoid",
    "tanh": "sigmoid",
    "max_pool": "pool_local",
    "avg_pool": "pool_local",
}


class CpuFuser(Fuser):
    """Replays the CPU provider's layout transformation (nchwc_transformer.cc) and fusions in the graph's order.

    Graphs leave out the transpositions between maps and tokens, so these follow from what each operator works on:
    convolutions, pooling and GroupNorm on maps, matrix products and LayerNorm on tokens, the others on either.
    """

    def __init__(self, graph: OpGraph, block: int, layout: int) -> None:
        super().__init__(graph)
        self.block = block
        # Tensors go by the row that computes them.
        self.layouts: dict[int, set[int]] = {GRAPH_INPUT: {layout}}  # tensor -> the layouts in which it exists
        self.native: dict[int, int] = {GRAPH_INPUT: layout}  # tensor -> the layout in which it was computed
        self.sizes: dict[int, tuple[int, int]] = {}  # tensor -> (channels, pixels or tokens)
        self.open: dict[int, int] = {}  # tensor -> the convolution that computes it and can merge an activation
        self.summed: set[int] = set()  # convolutions that have merged a sum

    def need(self, source: int, layout: int, consumer: int) -> None:
        """Emits a reorder or transposition unless the output of `source` exists in `layout`."""
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
            if layout == CHANNELS_LAST and shape[2] > 1 and self.ops[consumer][COLUMN["win"]] == 1:
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
        """The kernels, and the layout of the graph's output."""
        for row, op in enumerate(self.ops):
            layout = self.operator(row, op)
            self.layouts[row] = {PLAIN, CHANNELS_LAST} if layout == EITHER else {layout}
            self.native[row] = layout
            if row not in self.sizes:
                self.sizes[row] = self._size(row, op)
        return self.kernels(), self.native[len(self.ops) - 1]

    def _size(self, row: int, op: list[int]) -> tuple[int, int]:
        """(channels, pixels or tokens) of the output of `row`."""
        size = (op[COLUMN["cout"]], op[COLUMN["hout"]] * op[COLUMN["wout"]])
        if KINDS[op[0]] in POINTWISE:  # tables do not say which dimension of a pointwise operator the channels are
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
        if kind in ACTIVATIONS:
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
            self.need(self.sources[row][0], CHANNELS_LAST, row)
            self.emit(row, kind)
            return CHANNELS_LAST
        if kind in ("matmul", "softmax", "permute"):
            return self.settled(row, kind)
        if kind == "reduce":
            return self.reduce(row, op)
        if kind == "concat":
            aligned = not op[COLUMN["weights"]] and all(
                self.is_blocked(s) and s != GRAPH_INPUT and self.ops[s][COLUMN["cout"]] % self.block == 0
                for s in self.sources[row]
            )
            return self.follow(row, "move") if aligned else self.tokens_or_plain(row, "move")
        if kind == "move":
            return self.move(row, op)
        if kind in ("other", "layer_norm"):
            return self.tokens_or_plain(row, CLASS_OF_KIND[kind])
        return self.plain(row, class_of(op))

    def plain(self, row: int, class_name: str) -> int:
        """An operator that reads and writes the plain layout."""
        for source in dict.fromkeys(self.sources[row]):
            self.need(source, PLAIN, row)
        self.emit(row, class_name)
        return PLAIN

    def follow(self, row: int, class_name: str) -> int:
        """An operator that runs in the layout of its first input, unless it turns a map into tokens."""
        if self.is_blocked(self.sources[row][0]) and not self.makes_tokens(row):
            self.emit(row, class_name)
            return BLOCKED
        return self.tokens_or_plain(row, class_name)

    def tokens_or_plain(self, row: int, class_name: str) -> int:
        """An operator on tokens if it reads tokens or turns a map into them, and on plain maps otherwise."""
        if self.makes_tokens(row):
            for source in dict.fromkeys(self.sources[row]):
                self.need(source, CHANNELS_LAST, row)
            self.emit(row, class_name)
            return CHANNELS_LAST
        natives = {self.native[source] for source in self.sources[row]}
        if not natives or natives - {CHANNELS_LAST, EITHER}:
            return self.plain(row, class_name)
        self.emit(row, class_name)
        return CHANNELS_LAST if CHANNELS_LAST in natives else EITHER

    def makes_tokens(self, row: int) -> bool:
        """Whether an input is a map, and the output its pixels in one row with the same channels."""
        op = self.ops[row]
        if op[COLUMN["wout"]] > 1 or op[COLUMN["hout"]] == 1:
            return False
        for source in self.sources[row]:
            before = self.ops[source] if source != GRAPH_INPUT else None
            if before and before[COLUMN["wout"]] > 1 and before[COLUMN["cout"]] == op[COLUMN["cout"]]:
                return self.native[source] in (PLAIN, BLOCKED)
        return False

    def move(self, row: int, op: list[int]) -> int:
        """A rearrangement: slices keep the layout, permutations give whichever layout is read next."""
        source = self.sources[row][0]
        self.settled(row, "move")
        before, after = op[COLUMN["cin"] : COLUMN["win"] + 1], op[COLUMN["cout"] : COLUMN["wout"] + 1]
        if op[COLUMN["inputs"]] == op[OUTPUTS] and before != after:
            return EITHER
        return PLAIN if self.is_blocked(source) else self.native[source]

    def settled(self, row: int, class_name: str) -> int:
        """An operator that reads any layout but the blocked one."""
        for source in dict.fromkeys(self.sources[row]):
            if self.is_blocked(source):
                self.need(source, PLAIN, row)
        self.emit(row, class_name)
        return EITHER

    def reduce(self, row: int, op: list[int]) -> int:
        """A sum or mean over channels or over pixels: across memory, unless it is over the last dimension."""
        layout = self.tokens_or_plain(row, "reduce")
        over_channels = op[COLUMN["cout"]] < op[COLUMN["cin"]]
        if over_channels == (layout == PLAIN):
            self.rows[self.kernel_of[row]][0] = KERNEL_CLASS["reduce_across"]
        return layout

    def linear(self, row: int, op: list[int]) -> int:
        """A linear layer: on a vector, on the channels of tokens, or across tokens."""
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
            self.need(source, CHANNELS_LAST, row)
        self.emit(row, "linear_tokens")
        return CHANNELS_LAST

    def pool(self, row: int, op: list[int], kind: str) -> int:
        """Pooling over windows: blocked wherever the channels allow it."""
        blocked = self.block > 0 and op[COLUMN["cin"]] % self.block == 0
        self.need(self.sources[row][0], BLOCKED if blocked else PLAIN, row)
        kernel = self.emit(row, _CPU_CLASSES[kind])
        self.rows[kernel][KERNEL_COLUMN["macs"]] = op[OUTPUTS] * op[COLUMN["kh"]] * op[COLUMN["kw"]]
        return BLOCKED if blocked else PLAIN

    def conv(self, row: int, op: list[int]) -> int:
        """A convolution: blocked where its channels allow it; the first one reads the plain layout."""
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
            self.open[row] = self.emit(row, "conv_unblocked" if self.block else class_of(op))
            return PLAIN
        self.need(source, blocked_in, row)
        self.open[row] = self.emit(row, "conv_first" if blocked_in == PLAIN else conv_class(op))
        return BLOCKED

    def merges_into(self, source: int) -> int | None:
        """The kernel of the convolution that computes `source`, if it can merge the only reader of it; else None."""
        return self.open.get(source) if source != GRAPH_INPUT and self.uses[source] == 1 else None

    def activation(self, row: int, kind: str) -> int:
        """An activation: merged into the convolution before it where the provider does so."""
        source = self.sources[row][0]
        kernel = None if self.makes_tokens(row) else self.merges_into(source)
        blocked = self.is_blocked(source)
        if kernel is not None and kind in (_MERGED_INTO_BLOCKED if blocked else _MERGED_INTO_UNBLOCKED):
            self.merge(row, kernel, _TAILS.get(kind, _OTHER_TAIL))
            return BLOCKED if blocked else PLAIN
        return self.follow(row, _CPU_CLASSES[kind])

    def binary(self, row: int, kind: str) -> int:
        """A sum or product of two tensors, or of a tensor and a constant."""
        sources, op = self.sources[row], self.ops[row]
        same_shape = op[COLUMN["inputs"]] == len(sources) * op[OUTPUTS]
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
        if not same_shape or self.native[sources[0]] in (CHANNELS_LAST, EITHER) or len(sources) != 2:
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
        """Merges sum `row` into a convolution, which can merge an activation afterwards."""
        self.merge(row, kernel, _TAILS["add"])
        self.summed.add(kernel)
        self.open[row] = kernel
        return layout
