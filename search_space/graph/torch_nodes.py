"""The operators that a trace of a torch module recorded, and how they become an operator graph.

BatchNorm, zero padding and separate bias additions are folded into the convolution or linear layer that they belong to,
and what does not reach an output is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .operators import GraphBuilder, OpGraph

Shape = tuple[int, int, int]

_FOLDS_NORM = frozenset({"conv", "conv_transpose", "linear"})
_TAKEN_OVER = -2
"""Marks a padding that the convolution after it has taken over."""


@dataclass
class TracedNode:
    """An operator of a trace, with the fields of `GraphBuilder.add_op`.

    Attributes:
        sources: nodes that it reads, by their place in the trace; -1 is the network's input.
        names: the parameters that it reads.
        label: of a node of kind "other", what torch calls it.
        spatial_pad: of a "pad" that a convolution can take over, the pixels before and after in height and width.
    """

    kind: str
    sources: list[int]
    shape_in: Shape
    shape_out: Shape
    inputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    groups: int = 1
    pad: tuple[int, int] = (0, 0)
    bias: bool = False
    macs: int = 0
    weights: int = 0
    names: frozenset[str] = field(default_factory=frozenset)
    label: str = ""
    spatial_pad: tuple[int, int] | None = None


def graph_of_nodes(nodes: list[TracedNode], ends: list[int], sizes: dict[str, int]) -> OpGraph:
    """Makes the operator graph of a trace.

    Args:
        nodes: in the order in which they ran; they are changed.
        ends: the nodes that give the outputs.
        sizes: elements of the parameters, by name.
    """
    readers: list[list[int]] = [[] for _ in nodes]
    for row, node in enumerate(nodes):
        for source in node.sources:
            if source >= 0:
                readers[source].append(row)
    needed = _reachable(nodes, ends)
    stands_for = list(range(len(nodes)))

    def only_reader(row: int) -> bool:
        return row >= 0 and row not in ends and len({reader for reader in readers[row] if needed[reader]}) == 1

    for row, node in enumerate(nodes):
        if not needed[row] or not node.sources:
            continue
        original = node.sources[0]
        before = nodes[stands_for[original]] if original >= 0 else None
        if before is None or not only_reader(original) or len(node.sources) != 1:
            continue
        if _folds(before, node):
            before.bias = True
            before.weights += 0 if before.weights > _kernel_weights(before) else before.shape_out[0]
            before.names |= node.names
            stands_for[row] = stands_for[original]
        elif node.kind == "conv" and before.spatial_pad is not None:
            node.pad = (node.pad[0] + before.spatial_pad[0], node.pad[1] + before.spatial_pad[1])
            node.shape_in, node.inputs, node.sources = before.shape_in, before.inputs, list(before.sources)
            stands_for[stands_for[original]] = _TAKEN_OVER
    return _table(nodes, needed, stands_for, sizes)


def _folds(before: TracedNode, node: TracedNode) -> bool:
    if before.kind not in _FOLDS_NORM or len(before.sources) != 1:
        return False
    if node.kind == "batch_norm":
        return True
    return node.kind == "add" and before.kind == "linear" and not before.bias and node.weights == before.shape_out[0]


def _kernel_weights(node: TracedNode) -> int:
    """Counts the elements of a layer's weight, without those of its bias."""
    if node.kind == "linear":
        return node.shape_in[0] * node.shape_out[0] // node.groups
    return node.shape_in[0] * node.shape_out[0] // node.groups * node.kernel[0] * node.kernel[1]


def _reachable(nodes: list[TracedNode], ends: list[int]) -> list[bool]:
    needed = [False] * len(nodes)
    for end in ends:
        if end >= 0:
            needed[end] = True
    for row in range(len(nodes) - 1, -1, -1):
        if needed[row]:
            for source in nodes[row].sources:
                if source >= 0:
                    needed[source] = True
    return needed


def _table(nodes: list[TracedNode], needed: list[bool], stands_for: list[int], sizes: dict[str, int]) -> OpGraph:
    build = GraphBuilder()
    rows: dict[int, int] = {}
    counted: set[str] = set()
    for row, node in enumerate(nodes):
        if not needed[row] or stands_for[row] != row:
            continue
        names = node.names - counted
        counted |= names
        if node.kind == "other":
            build.unmodelled.add(node.label)
        rows[row] = build.add_op(
            node.kind,
            [source if source < 0 else rows[stands_for[source]] for source in node.sources],
            shape_in=node.shape_in,
            shape_out=node.shape_out,
            kernel=node.kernel,
            stride=node.stride,
            groups=node.groups,
            pad=node.pad,
            bias=node.bias,
            macs=node.macs,
            inputs=node.inputs,
            weights=node.weights,
            params=sum(sizes.get(name, 0) for name in names),
        )
    return build.build()
