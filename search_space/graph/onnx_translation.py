"""The operator graph that an ONNX network is translated into, while it grows: what each tensor became, and its size."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from .onnx_file import MAX_TOTAL, UnreadableModel, one_line
from .onnx_network import Node, OnnxNetwork
from .onnx_patterns import Patterns
from .onnx_tensors import Shape
from .operators import COLUMN, GRAPH_INPUT, KINDS, GraphBuilder, OpGraph

MapShape = tuple[int, int, int]


class Translation:
    """An ONNX network and the rows of the operator graph that it has become so far.

    Attributes:
        network: what is translated.
        patterns: the network's operators that are spelled out in smaller ones.
        build: the operator graph so far.
        rows: for each tensor that depends on the inputs the row that made it.
        padded: output of a Pad that convolutions take over -> its input and its padding (top, left, bottom, right).
        sequences: output of a SplitToSequence -> the shapes of its parts.
    """

    def __init__(self, network: OnnxNetwork) -> None:
        self.network = network
        self.patterns = Patterns(network)
        self.build = GraphBuilder()
        self.rows: dict[str, int] = {name: GRAPH_INPUT for name in network.inputs}
        self.padded: dict[str, tuple[str, list[int]]] = {}
        self.sequences: dict[str, list[Shape]] = {}

    def graph(self) -> OpGraph:
        """Gives the finished graph. Raises OverflowError if its sums are too large to count."""
        rows = self.build.rows
        if not rows:
            raise UnreadableModel("a model that computes nothing")
        macs = sum(row[COLUMN["macs"]] for row in rows)
        moved = sum(row[COLUMN[name]] for row in rows for name in ("inputs", "outputs", "weights"))
        if max(macs, 4 * moved) > MAX_TOTAL:
            raise OverflowError
        return self.build.build()

    def active(self, node: Node) -> list[str]:
        """Gives the inputs of a node that depend on the network's inputs."""
        return [name for name in node.inputs if name in self.rows]

    def fixed(self, node: Node) -> list[str]:
        """Gives the other inputs of a node."""
        return [name for name in node.inputs if name and name not in self.rows]

    def elements(self, names: Iterable[str]) -> int:
        return sum(prod(self.network.tensors.shape(name)) for name in names)

    def known_elements(self, names: Iterable[str]) -> int:
        """Counts elements like `elements`, but a tensor of unknown shape as one."""
        return sum(prod(self.network.tensors.shapes.get(name, ())) for name in names)

    def kind_of(self, name: str) -> str:
        """Gives the canonical kind of the operator that made a tensor, or "input"."""
        row = self.rows.get(name, GRAPH_INPUT)
        return KINDS[self.build.rows[row][COLUMN["kind"]]] if row >= 0 else "input"

    def map_shape(self, name: str) -> MapShape:
        """Gives (C, H, W) of a tensor (N, C, H, W); tokens (N, T, C) count as (C, T, 1), and so on for other ranks."""
        shape = self.network.tensors.shape(name)
        if len(shape) == 4 and name in self.patterns.channels_last:
            return shape[3], shape[0] * shape[1], shape[2]
        if len(shape) == 4:
            return shape[0] * shape[1], shape[2], shape[3]
        if len(shape) >= 3:
            return shape[-1], prod(shape[:-1]), 1
        return prod(shape), 1, 1

    def channels_last_shape(self, name: str) -> MapShape:
        """Gives (C, H, W) of a tensor whose channels come last."""
        shape = self.network.tensors.shape(name)
        if len(shape) == 4:
            return shape[3], shape[0] * shape[1], shape[2]
        return (shape[-1] if shape else 1), prod(shape[:-1]), 1

    def plain(self, kind: str, node: Node) -> int:
        """Adds an operator of which only the sizes matter, and gives its row."""
        sources = self.active(node)
        if kind == "concat" and len(sources) == 1 and not self.fixed(node):
            return self.rows[sources[0]]
        if kind == "other":
            self.build.unmodelled.add(one_line(node.op))
        known = [name for name in node.outputs if name in self.network.tensors.shapes]
        out = self.map_shape(known[0]) if known and node.op != "Split" else self.map_shape(sources[0])
        return self.build.add_op(
            kind,
            [self.rows[name] for name in sources],
            shape_in=self.map_shape(sources[0]),
            shape_out=out,
            inputs=self.elements(sources),
            weights=self.known_elements(self.fixed(node)) if kind == "concat" else 0,
        )


def channels_first_shape(shape: Shape) -> MapShape:
    """Gives (C, H, W) of a tensor whose second dimension is its channels, the batch moved into them."""
    full = (*shape, 1, 1)
    return full[0] * full[1], full[2], prod(full[3:])
