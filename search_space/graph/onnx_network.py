"""The operators of an ONNX model once shapes are known, with who reads what, and the families that operators belong to.

`onnx_shapes` makes an `OnnxNetwork` of a model; `onnx_reader` turns it into an operator graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx import helper

from .onnx_file import UnreadableModel
from .onnx_tensors import Tensors

POINTWISE = {
    "Add": "add",
    "Sub": "add",
    "Sum": "add",
    "Mul": "mul",
    "Div": "mul",
    "Pow": "mul",
    "Sqrt": "mul",
    "Reciprocal": "mul",
    "Neg": "mul",
    "Abs": "mul",
    "Relu": "relu",
    "Clip": "relu",
    "LeakyRelu": "relu",
    "PRelu": "relu",
    "Elu": "relu",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "hardsigmoid",
    "HardSwish": "hardswish",
    "Gelu": "gelu",
    "Tanh": "tanh",
    "Swish": "silu",
    "BatchNormalization": "batch_norm",
    "LayerNormalization": "layer_norm",
    "SimplifiedLayerNormalization": "layer_norm",
    "RMSNormalization": "layer_norm",
    "GroupNormalization": "group_norm",
    "InstanceNormalization": "group_norm",
}
"""Operators whose output has the shape of their input, and the canonical kind of each."""
VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "SplitToSequence", "SequenceAt"}
"""Rearrangements that only rename what lies in memory, or that belong to the operator beside them."""
COPIES = {
    "Slice", "Split", "Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "Tile", "ScatterND",
    "ScatterElements", "Where", "ReverseSequence",
}  # fmt: skip
"""Rearrangements that copy."""
_WITHIN_ATTENTION = VIEWS | {
    "Slice", "Split", "Gather", "Mul", "Div", "Relu", "Softmax", "LayerNormalization", "ReduceL2",
}  # fmt: skip
"""Operators through which a factor may go on its way into an attention's product."""

# Bounds of the searches for an attention near a node: operators in a row, and operators looked at beside each other.
_STEPS_BEFORE_PRODUCT = 10
_STEPS_AFTER_PRODUCT = 6
_STEPS_TO_PRODUCT = 4
_MOST_NEIGHBOURS = 200


@dataclass(frozen=True, eq=False)
class Node:
    """An operator that reads activations. `inputs` are "" where one was left out."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def output(self) -> str:
        return self.outputs[0]

    def attribute(self, name: str, default: Any) -> Any:
        if name not in self.attributes:
            return default
        try:
            value = helper.get_attribute_value(self.attributes[name])
        except ValueError:
            value = None
        if value is None:  # of an unknown type, or a reference to an attribute of a function outside of any
            raise UnreadableModel(f"{self.op!r:.40} has a broken attribute {name!r:.80}")
        return value

    def integer(self, name: str, default: int) -> int:
        value = self.attribute(name, default)
        if not isinstance(value, int):
            raise UnreadableModel(f"{self.op!r:.40}: {name} is no whole number")
        return value

    def integers(self, name: str, default: Sequence[int]) -> list[int]:
        values = self.attribute(name, default)
        if not isinstance(values, list | tuple) or not all(isinstance(value, int) for value in values):
            raise UnreadableModel(f"{self.op!r:.40}: {name} are no whole numbers")
        return [int(value) for value in values] or list(default)


class OnnxNetwork:
    """A model's operators in order, with the shapes of all tensors.

    Attributes:
        nodes: operators that depend on the inputs' values, not on their shapes alone.
        tensors: what is known of all tensors.
        inputs: names of what the network reads.
        outputs: names of what it gives.
        producers: for each output of a node that node.
        consumers: for each tensor the nodes that read it.
    """

    def __init__(self, nodes: list[Node], tensors: Tensors, inputs: list[str], outputs: list[str]) -> None:
        self.nodes = nodes
        self.tensors = tensors
        self.inputs = inputs
        self.outputs = set(outputs)
        self.producers: dict[str, Node] = {}
        self.consumers: dict[str, list[Node]] = {}
        for node in nodes:
            for name in node.outputs:
                self.producers[name] = node
            for name in dict.fromkeys(node.inputs):
                self.consumers.setdefault(name, []).append(node)

    def users(self, name: str) -> list[Node]:
        """Gives the nodes that read a tensor."""
        return self.consumers.get(name, [])

    def is_constant(self, name: str) -> bool:
        return name in self.tensors.constants

    def is_product(self, node: Node) -> bool:
        """Tells whether a node is a product of two activations, as attention has them."""
        if node.op == "Attention":
            return True
        return node.op in ("MatMul", "Einsum") and not any(map(self.is_constant, node.inputs))

    def precedes_product(self, node: Node) -> bool:
        """Tells whether a node's outputs reach a product of activations through operators on its factors."""
        frontier, seen = list(node.outputs), set(node.outputs)
        for _ in range(_STEPS_BEFORE_PRODUCT):
            names, frontier = frontier, []
            for user in (user for name in names for user in self.users(name)[:_MOST_NEIGHBOURS]):
                if self.is_product(user):
                    return True
                if user.op in _WITHIN_ATTENTION and len(seen) < _MOST_NEIGHBOURS:
                    frontier.extend(name for name in user.outputs if name not in seen)
                    seen.update(user.outputs)
            if not frontier:
                return False
        return False

    def follows_product(self, name: str) -> bool:
        """Tells whether a tensor is a product of activations, seen through views."""
        for _ in range(_STEPS_AFTER_PRODUCT):
            made_by = self.producers.get(name)
            if made_by is None:
                return False
            if self.is_product(made_by):
                return True
            if made_by.op not in VIEWS:
                return False
            name = made_by.inputs[0]
        return False

    def only_leads_to_product(self, node: Node) -> bool:
        """Tells whether a node is a product of activations, or a rearrangement that only such a product reads."""
        for _ in range(_STEPS_TO_PRODUCT):
            if self.is_product(node):
                return True
            users = self.users(node.output)
            if node.op not in VIEWS | COPIES or len(users) != 1:
                return False
            node = users[0]
        return False
