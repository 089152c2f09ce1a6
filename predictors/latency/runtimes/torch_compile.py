"""What torch.compile executes."""

from __future__ import annotations

from ....search_space.graph import KINDS, OpGraph
from ..kernels import OUTPUTS, PLAIN, POINTWISE, WEIGHTS, Kernels, is_normed, norm_of
from .base import Runtime
from .torch_fuser import PRODUCTS, TorchFuser


class TorchCompile(Runtime):
    """torch.compile on a CPU, without freezing of weights.

    Inductor calls libraries for convolutions, matrix products and attention, and makes one kernel of each pointwise
    chain between them, BatchNorm included; a norm merges the chain that follows it.
    """

    name = "torch-compile"
    library = "torch"

    def fuse(self, graph: OpGraph, fusion: str, block: int, layout: int) -> tuple[Kernels, int]:
        return _merge_between_library_calls(graph), PLAIN


def _merge_between_library_calls(graph: OpGraph) -> Kernels:
    """Library calls, and one kernel of class "activation" for each pointwise chain between them."""
    fuser = TorchFuser(graph)
    chains: dict[int, int] = {}  # row of the graph -> the kernel of the pointwise chain that computes it
    row = -1
    while (row := row + 1) < len(fuser.ops):
        op, kind = fuser.ops[row], KINDS[fuser.ops[row][0]]
        if kind in PRODUCTS:
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
