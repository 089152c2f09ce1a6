"""What torch executes eagerly, replayed from a CUDA graph, and under autocast."""

from __future__ import annotations

from ....search_space.graph import COLUMN, GRAPH_INPUT, KINDS, OpGraph
from ..kernels import INPUTS, KERNEL_CLASS, OUTPUTS, PLAIN, WRITTEN, Fuser, Kernels, class_of, is_normed, norm_of
from .base import Runtime
from .torch_fuser import PRODUCTS, TorchFuser

AUTOCAST_FUSION = "torch-amp"
FP32, FP16 = 0, 1
"""The width of a tensor under autocast, handed on between units in the place of a layout."""

_COMPUTED_IN_FP32 = frozenset({"layer_norm", "group_norm", "softmax"})
"""Operators whose inputs autocast converts to fp32."""


class TorchEager(Runtime):
    """torch's eager mode: every operator is a kernel, BatchNorm one of its own.

    At "amp" the rules of `AutocastFuser` apply: norms and softmax in fp32, products in fp16, attention as one kernel.
    """

    name = "torch"
    library = "torch"

    def fusion(self, precision: str) -> str:
        return AUTOCAST_FUSION if precision == "amp" else self.name

    def fuse(self, graph: OpGraph, fusion: str, block: int, layout: int) -> tuple[Kernels, int]:
        if fusion == AUTOCAST_FUSION:
            return AutocastFuser(graph, layout).run()
        return _one_kernel_per_operator(graph), PLAIN


class TorchGraph(Runtime):
    """torch's eager mode recorded in a CUDA graph: the same kernels, launched without Python in between."""

    name = "torch-graph"
    library = "torch"

    def fuse(self, graph: OpGraph, fusion: str, block: int, layout: int) -> tuple[Kernels, int]:
        return _one_kernel_per_operator(graph), PLAIN


def _one_kernel_per_operator(graph: OpGraph) -> Kernels:
    """One kernel per operator; a convolution trained with BatchNorm is followed by the kernel of that."""
    fuser = Fuser(graph)
    for row, op in enumerate(fuser.ops):
        fuser.emit(row, class_of(op))
        if is_normed(op):
            fuser.rows.append(norm_of(row, op, "batch_norm"))
    return fuser.kernels()


class AutocastFuser(TorchFuser):
    """Replays which tensors autocast keeps in fp16 and which in fp32, and the conversions between them.

    Sums of fp16 and fp32, and sums with fp32 parameters, are fp32. Elements are counted in units of fp16.
    """

    def __init__(self, graph: OpGraph, layout: int) -> None:
        super().__init__(graph)
        self.widths: dict[int, int] = {GRAPH_INPUT: FP16 if layout == FP16 else FP32}  # by the row that computes it
        self.copies: set[int] = set()  # tensors that exist in the other width as well

    def run(self) -> tuple[Kernels, int]:
        """The kernels, and the width of the graph's output in the place of its layout."""
        row = 0
        while row < len(self.ops):
            row = self.operator(row) + 1
        return self.kernels(), self.widths[len(self.ops) - 1]

    def operator(self, row: int) -> int:
        """Emits the kernels of `row`, and returns the last row that they compute."""
        op, kind, sources = self.ops[row], KINDS[self.ops[row][0]], self.sources[row]
        if kind in PRODUCTS:
            last = row + 2 if self.is_attention(row) else row
            for source in dict.fromkeys(sources + (self.sources[last][1:] if last > row else [])):
                self.need(source, FP16, row)
            if last > row:
                self.attention(row)
            else:
                self.emit(row, self.class_of(row, op))
            self.widths |= dict.fromkeys(range(row, last + 1), FP16)
            if is_normed(op):
                self.rows.append(norm_of(row, op, "batch_norm"))
            return last
        if kind in _COMPUTED_IN_FP32:
            for source in dict.fromkeys(sources):
                self.need(source, FP32, row)
        widths = [self.widths[source] for source in sources] or [FP16]
        in_fp32 = kind in _COMPUTED_IN_FP32 or FP32 in widths or (kind in ("add", "mul") and op[COLUMN["weights"]] > 1)
        kernel = self.rows[self.emit(row, self.class_of(row, op))]
        if kind in ("add", "mul"):
            kernel[INPUTS] = sum(
                min(self.elements(source, row), op[OUTPUTS]) * (2 if width == FP32 else 1)
                for source, width in zip(sources, widths, strict=False)
            )
        elif kind in _COMPUTED_IN_FP32 or FP32 in widths:
            kernel[INPUTS] *= 2
        kernel[WRITTEN] *= 2 if in_fp32 else 1
        self.widths[row] = FP32 if in_fp32 else FP16
        return row

    def need(self, source: int, width: int, consumer: int) -> None:
        """Emits a conversion unless the output of `source` exists in `width`."""
        if self.widths[source] == width or source in self.copies:
            return
        self.copies.add(source)
        elements = self.elements(source, consumer)
        op = self.ops[consumer if source == GRAPH_INPUT else source]
        shape = [
            op[COLUMN[name]] for name in (("cin", "hin", "win") if source == GRAPH_INPUT else ("cout", "hout", "wout"))
        ]
        read, written = (2, 1) if width == FP16 else (1, 2)
        counts = [read * elements, written * elements, 0, 0]
        self.rows.append([KERNEL_CLASS["cast"], source, *shape, *shape, 1, 1, 1, 1, 0, *counts])
