"""What TensorRT executes."""

from __future__ import annotations

from ....search_space.graph import GRAPH_INPUT, KINDS, OpGraph
from ..kernels import OUTPUTS, PLAIN, POINTWISE, ROW, Fuser, Kernels, class_of
from .base import Runtime

_TAKES_POINTWISE_CHAIN = frozenset({"conv", "conv_transpose", "linear", "matmul"}) | POINTWISE


class TensorRt(Runtime):
    """TensorRT: convolutions and matrix products merge the pointwise operators that follow them.

    A chain of pointwise operators that follows something else runs as one kernel. The shipped RTX 3090 profile, which
    was fitted with these rules, predicts published times of trtexec (experiments/published/).
    """

    name = "tensorrt"
    library = "tensorrt"

    def fuse(self, graph: OpGraph, fusion: str, block: int, layout: int) -> tuple[Kernels, int]:
        return merge_pointwise_chains(graph), PLAIN


def merge_pointwise_chains(graph: OpGraph) -> Kernels:
    """Kernels where each pointwise operator joins the kernel that computes its input, if nothing else reads that."""
    fuser = Fuser(graph)
    for row, op in enumerate(fuser.ops):
        kernel = _kernel_before(fuser, row) if KINDS[op[0]] in POINTWISE else None
        if kernel is None:
            fuser.emit(row, class_of(op))
        else:
            fuser.merge(row, kernel)
    return fuser.kernels()


def _kernel_before(fuser: Fuser, row: int) -> int | None:
    """The kernel that pointwise operator `row` can join, or None."""
    for source in fuser.sources[row]:
        # A channel gate (squeeze-excitation) cannot join the small kernel that computes it.
        same_size = source != GRAPH_INPUT and fuser.ops[source][OUTPUTS] == fuser.ops[row][OUTPUTS]
        if same_size and fuser.uses[source] == 1:
            kernel = fuser.kernel_of[source]
            first_operator = fuser.rows[kernel][ROW]
            if KINDS[fuser.ops[first_operator][0]] in _TAKES_POINTWISE_CHAIN:
                return kernel
    return None
