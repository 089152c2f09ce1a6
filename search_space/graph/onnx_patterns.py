"""Recognizes operators that an ONNX file spells out in smaller ones: hardswish, GELU, SiLU, LayerNorm, GroupNorm."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .onnx_network import Node, OnnxNetwork

_LAYER_NORM = ("ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div")
_CHAINS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "HardSigmoid": (("hardswish", ("HardSigmoid", "Mul")),),
    "Sigmoid": (("silu", ("Sigmoid", "Mul")),),
    "Div": (("gelu", ("Div", "Erf", "Add", "Mul", "Mul")), ("gelu", ("Div", "Erf", "Add", "Mul"))),
    "Mul": (
        ("gelu", ("Mul", "Erf", "Add", "Mul", "Mul")),
        ("gelu", ("Mul", "Erf", "Add", "Mul")),
        ("gelu", ("Mul", "Mul", "Mul", "Add", "Mul", "Tanh", "Add", "Mul")),
    ),
    "Pow": (
        ("gelu", ("Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul")),
        ("layer_norm", ("Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul")),
        ("layer_norm", ("Pow", "ReduceMean", "Add", "Sqrt", "Reciprocal", "Mul", "Mul")),
    ),
    "InstanceNormalization": (("group_norm", ("InstanceNormalization", "Reshape", "Mul", "Add")),),
    "ReduceMean": (
        ("layer_norm", (*_LAYER_NORM, "Mul", "Add")),
        ("layer_norm", ("ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add")),
        ("layer_norm", _LAYER_NORM),
    ),
}
"""First operator -> (canonical kind, the operators in order), longer chains first.

Each operator of a chain reads the one before it. Hardswish, GELU and SiLU end by multiplying with the input. Hardswish
that is spelled out as x * clip(x + 3) / 6 is four operators: no optimizer of onnxruntime's merges them.
"""
_AFFINE = {"Mul", "Add"}
_BESIDE_A_CHAIN = ("Mul", "Add", "Sub", "ReduceMean")
"""Operators that may compute something from the input for a later step of a chain: half of the input, for example."""


@dataclass(frozen=True)
class Pattern:
    """An operator that is spelled out in smaller ones.

    Attributes:
        kind: its canonical kind.
        source: the tensor of which it computes something.
        output: the tensor that it gives.
        constants: names of a norm's scale and shift.
    """

    kind: str
    source: str
    output: str
    constants: tuple[str, ...]


class Patterns:
    """All operators of a network that are spelled out in smaller ones.

    Attributes:
        found: by the id of the node where the operator stands in the order of execution.
        channels_last: names of maps whose channels come last although they have four dimensions.
    """

    def __init__(self, network: OnnxNetwork) -> None:
        self.network = network
        self.found: dict[int, Pattern] = {}
        self.channels_last: set[str] = set()
        self._covered: set[int] = set()  # ids of nodes that belong to a chain
        self._spelled_out: set[int] = set()  # those of them that count as operators of their own all the same
        for node in network.nodes:
            for kind, chain in _CHAINS.get(node.op, ()):
                if id(node) in self._covered:
                    break
                self._find(node, kind, chain)

    def covers(self, node: Node) -> bool:
        """Tells whether a node is a part of a larger operator and none of its own."""
        return id(node) in self._covered and id(node) not in self._spelled_out

    def _find(self, node: Node, kind: str, chain: tuple[str, ...]) -> None:
        network = self.network
        for source in dict.fromkeys(name for name in node.inputs if name and not network.is_constant(name)):
            steps = self._match(node, chain, source)
            if steps is None:
                continue
            self._covered.update(id(step) for step in steps)
            transposed = source in network.producers and network.producers[source].op == "Transpose"
            if kind == "layer_norm" and transposed and steps[0].op == "ReduceMean":
                # Between two transpositions of a map, which cancel, it stays spelled out in every runtime.
                self._spelled_out.update(id(step) for step in steps)
                self.channels_last.update([source, *(step.output for step in steps)])
            else:
                self.found[id(node)] = Pattern(kind, source, steps[-1].output, self._scale_and_shift(kind, steps))
            return

    def _scale_and_shift(self, kind: str, steps: list[Node]) -> tuple[str, ...]:
        if "norm" not in kind:
            return ()
        affine = [step for step in steps if step.op in _AFFINE]
        names = dict.fromkeys(name for step in affine for name in step.inputs if self.network.is_constant(name))
        return tuple(name for name in names if prod(self.network.tensors.shapes.get(name, ())) > 1)

    def _match(self, first: Node, chain: tuple[str, ...], source: str) -> list[Node] | None:
        """Gives the nodes of a chain that starts at `first`, the last one last; None if there is no such chain.

        They have to compute something of `source` and constants alone, and nothing else may read what is inside.
        """
        network = self.network
        nodes = [first]
        for op in chain[1:]:
            users = network.users(nodes[-1].output)
            user = next((user for user in users[: len(chain)] if user.op == op), None)
            if user is None or len(users) > len(chain):  # nodes that are not in the chain read it too
                return None
            nodes.append(user)
        made = {node.output for node in nodes}
        for node in list(nodes):
            for name in node.inputs:
                if not name or name == source or name in made or network.is_constant(name):
                    continue
                beside = network.producers.get(name)
                if beside is None or beside.op not in _BESIDE_A_CHAIN or id(beside) in self._covered:
                    return None
                if any(other and other != source and not network.is_constant(other) for other in beside.inputs):
                    return None
                nodes.insert(0, beside)
                made.add(name)
        inside = {id(node) for node in nodes}
        for name in made - {nodes[-1].output}:
            if name in network.outputs or any(id(user) not in inside for user in network.users(name)):
                return None
        return nodes
