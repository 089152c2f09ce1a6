"""Names the times of single kernels from onnxruntime's profiler after the rows of the operator graph.

`write_onnx` names every node `op{row}_{kind}...`; onnxruntime's optimizer keeps most of these names, and those of the
tensors between them, so every node of the optimized graph can be told its row. Nodes it leaves without a name are
told by what consumes their output. The optimized graph is profiled as it is (`agent`), with no further optimization.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from .agent.models import Node

_ROW = re.compile(r"op(\d+)_")
_OF = re.compile(r"op\d+_[a-z]+_of(\d+)")  # an activation that may be merged into that row's convolution
_TRANSPOSED = re.compile(r"op(\d+)_transpose$")
TRUNCATION_MS = 0.0005
"""The profiler cuts durations to whole microseconds; this much is lost on average."""


def kernel_names(nodes: Sequence[Node]) -> list[str]:
    """The kernel of each node of an optimized model: "ROW:op", "ROW:reorder_in", "ROW:reorder_out" or "ROW:transpose".

    Several nodes may share a kernel (the five of a GroupNorm, say). Of int8 models an operator in float counts with the
    conversions of its inputs and its output. Nodes that came from no row are "-1:other".
    """
    names = [""] * len(nodes)
    quantized = any(node.op_type == "QuantizeLinear" for node in nodes)
    consumer: dict[str, int] = {}
    producer: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            consumer.setdefault(name, index)
        for name in node.output:
            producer[name] = index
    for index in reversed(range(len(names))):
        node = nodes[index]
        if node.op_type in ("ReorderInput", "ReorderOutput"):
            # A reorder keeps the name of the tensor in the plain layout on the side where that is.
            plain = node.input[0] if node.op_type == "ReorderInput" else node.output[0]
            role = "reorder_in" if node.op_type == "ReorderInput" else "reorder_out"
            match = _ROW.match(plain)
            names[index] = f"{match[1] if match else -1}:{role}"
        elif node.op_type == "Transpose" and (match := _TRANSPOSED.match(node.name)):  # between maps and tokens
            names[index] = f"{match[1]}:transpose"
        elif node.op_type in ("Conv", "FusedConv") and (match := _OF.match(node.name) or _OF.match(node.output[0])):
            names[index] = f"{match[1]}:op"
        elif quantized and node.op_type == "Transpose" and not _ROW.match(node.name):
            # int8 convolutions are channels-last
            back = _ROW.match(node.output[0])
            match = back or _ROW.match(node.input[0])
            names[index] = f"{match[1] if match else -1}:{'reorder_out' if back else 'reorder_in'}"
        elif node.op_type == "DequantizeLinear":  # for its consumer, or of the model's output
            follower = consumer.get(node.output[0])
            source = nodes[producer.get(node.input[0], index)]
            match = _ROW.match(source.name) or _ROW.match(source.output[0])
            names[index] = names[follower] if follower is not None else f"{match[1] if match else -1}:op"
        elif match := _ROW.match(node.name) or _ROW.match(node.output[0]):
            names[index] = f"{match[1]}:op"
        else:  # a node made by the optimizer within an operator: it belongs to the one that consumes its output
            follower = consumer.get(node.output[0])
            names[index] = names[follower] if follower is not None else "-1:other"
    return names


def kernel_times_ms(nodes: Sequence[Node]) -> dict[str, float]:
    """Time of every kernel in ms, of the profiled nodes of an optimized model."""
    result: dict[str, float] = defaultdict(float)
    for name, node in zip(kernel_names(nodes), nodes, strict=True):
        if node.ms is not None:
            result[name] += node.ms + TRUNCATION_MS
    return dict(result)
