"""Translates single ONNX operators: one function for each kind of operator, found in the table `OPERATORS`.

Each function is given the translation so far and a node, and gives the row of the operator graph that stands for the
node's outputs: a new one, or that of an operator to which the node belongs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod

from .onnx_file import UnreadableModel
from .onnx_network import COPIES, POINTWISE, VIEWS, Node
from .onnx_patterns import Pattern
from .onnx_rearrangements import copy, pad, view
from .onnx_translation import Translation, channels_first_shape
from .operators import COLUMN, KIND

Operator = Callable[[Translation, Node], int]

_NUMBERED = re.compile(r"(onnx::Conv(Transpose)?_)?\d+")


def translate_pattern(t: Translation, pattern: Pattern) -> int:
    """Translates an operator that is spelled out in smaller ones."""
    norm = pattern.kind == "layer_norm"
    shape = t.channels_last_shape(pattern.output) if norm else t.map_shape(pattern.output)
    params = t.elements(pattern.constants)
    return t.build.pointwise(pattern.kind, [t.rows[pattern.source]], shape, params=params)


def _convolution(t: Translation, node: Node) -> int:
    if len(node.inputs) < 2 or node.inputs[0] not in t.rows:
        raise UnreadableModel(f"{node.op} whose image or weight is missing")
    source, extra = node.inputs[0], [0, 0, 0, 0]
    if source in t.padded:
        source, extra = t.padded[source]
    image, out, weight = (t.network.tensors.shape(name) for name in (source, node.output, node.inputs[1]))
    if not len(image) == len(out) == len(weight) >= 3:
        raise UnreadableModel(f"{node.op} of {list(image)} with weights of {list(weight)}")
    rank, groups = len(weight) - 2, node.integer("group", 1)
    if groups < 1:
        raise UnreadableModel(f"{node.op} in {groups} groups")
    strides = node.integers("strides", [1] * rank)
    pads = node.integers("pads", [0] * (2 * rank))
    begin, end = pads[0] + extra[0], pads[len(pads) // 2] + extra[2]
    if node.attribute("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        total = max(0, (out[2] - 1) * strides[0] + weight[2] - image[2])
        begin, end = total // 2, total - total // 2
    transposed = node.op == "ConvTranspose"
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
    weights = prod(weight) + out[1] * has_bias
    return t.build.add_op(
        "conv_transpose" if transposed else "conv",
        [t.rows[source]],
        shape_in=channels_first_shape(image),
        shape_out=channels_first_shape(out),
        kernel=(weight[2], prod(weight[3:])),
        stride=strides[0],
        # What was moved into the batch (heads, windows) counts as groups with one weight.
        groups=groups * image[0],
        pad=(begin, end),
        bias=has_bias,
        macs=prod(weight) * prod((image if transposed else out)[2:]) * image[0],
        weights=weights,
        # A folded BatchNorm left one bias of its two parameters a channel.
        params=weights + out[1] * (has_bias and _norm_was_folded(*node.inputs[1:3])),
    )


def _norm_was_folded(weight: str, bias: str) -> bool:
    """Whether the names of a convolution's constants are those that exporters give where they fold a BatchNorm.

    PyTorch's older exporter numbers both (`onnx::Conv_497`, `497`) where it keeps the names of what it leaves as it is;
    that of `dynamo=True` calls the bias after the weight (`conv1.weight_bias`), and tf2onnx says so (`..._fused_bn`).
    """
    numbered = all(_NUMBERED.fullmatch(name) for name in (weight, bias))
    return numbered or bias == f"{weight}_bias" or bias.endswith("_fused_bn")


def _matrix_product(t: Translation, node: Node) -> int:
    """A linear layer if one factor is a constant, otherwise a product of activations."""
    if len(node.inputs) < 2:
        raise UnreadableModel(f"{node.op} with a single factor")
    left, right, out = (t.network.tensors.shape(name) for name in (*node.inputs[:2], node.output))
    if node.op == "Gemm" and node.integer("transA", 0):
        left = left[::-1]
    if node.op == "Gemm" and node.integer("transB", 0):
        right = right[::-1]
    left = left if len(left) > 1 else (1, *left)
    right = right if len(right) > 1 else (*right, 1)
    if len(left) < 2 or len(right) < 2:
        raise UnreadableModel(f"{node.op} of {list(left)} and {list(right)}")
    rows, contracted, columns = left[-2], left[-1], right[-1]
    factors = [name for name in node.inputs[:2] if name in t.rows]
    if len(factors) == 2:
        heads = prod(out) // max(1, rows * columns)
        return t.build.matmul(t.rows[factors[0]], t.rows[factors[1]], heads, rows, contracted, columns)
    by_right = node.inputs[0] in t.rows
    weight = right if by_right else left
    # A weight per head or token is as many products side by side; one for all of them is one product.
    groups = prod(weight[:-2])
    fan_out = columns if by_right else rows
    tokens = prod(out) // max(1, fan_out * groups)
    has_bias = node.op == "Gemm" and len(node.inputs) > 2 and bool(node.inputs[2])
    return _linear(t, node, groups, contracted, fan_out, tokens, prod(weight), has_bias)


def _einsum(t: Translation, node: Node) -> int:
    equation = node.attribute("equation", b"")
    text = equation.decode(errors="replace").replace(" ", "") if isinstance(equation, bytes) else ""
    terms = text.split("->")[0].split(",")
    shapes = [t.network.tensors.shape(name) for name in node.inputs]
    readable = len(terms) == len(shapes) == 2 and "->" in text and "." not in text
    if not readable or any(len(term) != len(shape) for term, shape in zip(terms, shapes, strict=True)):
        return t.plain("other", node)
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    kept = set(text.split("->")[1])
    left, right = (set(term) for term in terms)

    def count(letters: set[str]) -> int:
        return prod(sizes[letter] for letter in letters)

    heads, contracted = count(left & right & kept), count((left | right) - kept)
    rows, columns = count((left - right) & kept), count((right - left) & kept)
    sources = t.active(node)
    if len(sources) == 2:
        return t.build.matmul(t.rows[sources[0]], t.rows[sources[1]], heads, rows, contracted, columns)
    tokens, fan_out = (rows, columns) if node.inputs[0] in t.rows else (columns, rows)
    return _linear(t, node, heads, contracted, fan_out, tokens, heads * contracted * fan_out, False)


def _linear(
    t: Translation, node: Node, groups: int, fan_in: int, fan_out: int, tokens: int, weight: int, has_bias: bool
) -> int:
    """`groups` linear layers side by side, with `weight` elements in all."""
    weights = weight + fan_out * has_bias
    return t.build.add_op(
        "linear",
        [t.rows[name] for name in t.active(node)],
        shape_in=(fan_in * groups, tokens, 1),
        shape_out=(fan_out * groups, tokens, 1),
        groups=groups,
        bias=has_bias,
        macs=weight * tokens,
        weights=weights,
        params=weights,
    )


def _attention(t: Translation, node: Node) -> int:
    """Attention as one operator (opset 23 on), which becomes product, softmax, product."""
    sources = [name for name in node.inputs[:3] if name in t.rows]
    if len(sources) != 3:
        return t.plain("other", node)
    query, key, value = (t.network.tensors.shape(name) for name in sources)
    heads = query[1] if len(query) == 4 else node.integer("q_num_heads", 1)
    value_heads = query[1] if len(query) == 4 else node.integer("kv_num_heads", heads)
    if min(len(query), len(key), len(value)) < 3 or min(heads, value_heads) < 1:
        return t.plain("other", node)
    rows, columns = query[-2], key[-2]
    width = query[-1] if len(query) == 4 else query[-1] // heads
    value_width = value[-1] if len(value) == 4 else value[-1] // value_heads
    heads *= query[0]
    scores = t.build.matmul(t.rows[sources[0]], t.rows[sources[1]], heads, rows, width, columns)
    weights = t.build.pointwise("softmax", [scores], (heads, rows, columns))
    return t.build.matmul(weights, t.rows[sources[2]], heads, rows, columns, value_width)


def _softmax(t: Translation, node: Node) -> int:
    shape = t.network.tensors.shape(node.output)
    rows, columns = (int(size) for size in (shape[-2:] if len(shape) > 1 else (1, *shape)))
    whole = (prod(shape) // max(1, rows * columns), rows, columns)
    return t.build.pointwise("softmax", [t.rows[t.active(node)[0]]], whole)


def _pointwise(t: Translation, node: Node) -> int:
    kind = POINTWISE[node.op]
    sources = t.active(node)
    rows = [t.rows[name] for name in sources]
    if kind in ("add", "mul"):  # torch writes residual sums as (branch, shortcut); the order carries no meaning
        rows.sort(reverse=True)
    constants = t.known_elements(t.fixed(node))
    norm = kind.endswith("norm")
    shape = t.channels_last_shape(node.output) if kind == "layer_norm" else t.map_shape(node.output)
    weights = constants if norm or (kind in ("add", "mul") and constants > 1) else 0
    return t.build.add_op(
        kind,
        rows,
        shape_in=shape if norm or len(sources) == 1 else t.map_shape(sources[0]),
        shape_out=shape,
        inputs=t.elements(sources),
        bias=norm and weights > 0,
        weights=weights,
        params=weights,
    )


def _batch_norm(t: Translation, node: Node) -> int:
    """BatchNorm folds into the operator before it, which has a bias from then on."""
    source = t.active(node)[0]
    if not _folds(t, source):
        return _pointwise(t, node)
    row = t.rows[source]
    op = list(t.build.rows[row])
    cout = op[COLUMN["cout"]]
    if not op[COLUMN["bias"]]:
        op[COLUMN["weights"]] += cout
    op[COLUMN["bias"]] = 1
    op[COLUMN["params"]] += 2 * cout
    t.build.rows[row] = tuple(op)
    return row


def _addition(t: Translation, node: Node) -> int:
    """The addition of a bias to a product or convolution without one belongs to that."""
    sources, fixed = t.active(node), t.fixed(node)
    if len(sources) != 1 or len(fixed) != 1 or not _folds(t, sources[0]):
        return _pointwise(t, node)
    row = t.rows[sources[0]]
    op = list(t.build.rows[row])
    cout = op[COLUMN["cout"]]
    if op[COLUMN["bias"]] or t.elements(fixed) != cout:
        return _pointwise(t, node)
    op[COLUMN["bias"]] = 1
    op[COLUMN["weights"]] += cout
    op[COLUMN["params"]] += cout
    t.build.rows[row] = tuple(op)
    return row


def _folds(t: Translation, source: str) -> bool:
    """Tells whether what is done to a tensor can be folded into the operator that made it: nothing else reads it."""
    row = t.rows[source]
    return (
        row >= 0
        and t.build.rows[row][COLUMN["kind"]] in (KIND["conv"], KIND["conv_transpose"], KIND["linear"])
        and len(t.network.users(source)) == 1
    )


def _scaling(t: Translation, node: Node) -> int:
    """Scaling by one number right before or after a product of two activations is part of an attention."""
    sources, fixed = t.active(node), t.fixed(node)
    if len(sources) != 1 or len(fixed) != 1 or t.elements(fixed) != 1:
        return _pointwise(t, node)
    users = t.network.users(node.output)
    if t.kind_of(sources[0]) == "matmul" or (users and all(map(t.network.only_leads_to_product, users))):
        return t.rows[sources[0]]
    return _pointwise(t, node)


def _global_pool(t: Translation, node: Node) -> int:
    source = t.active(node)[0]
    shape = t.map_shape(source)
    return t.build.add_op("global_pool", [t.rows[source]], shape_in=shape, shape_out=(shape[0], 1, 1))


def _mean(t: Translation, node: Node) -> int:
    """The mean over height and width is global pooling."""
    shape = t.network.tensors.shape(t.active(node)[0])
    value = t.network.tensors.value(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    axes = node.integers("axes", []) if value is None else [int(axis) for axis in value.reshape(-1)]
    pools = len(shape) == 4 and {axis % 4 for axis in axes} == {2, 3}
    return _global_pool(t, node) if pools else _reduction(t, node)


def _reduction(t: Translation, node: Node) -> int:
    return t.plain("reduce", node)


def _window_pool(t: Translation, node: Node) -> int:
    source = t.active(node)[0]
    shape = t.map_shape(source)
    kernel = node.integers("kernel_shape", shape[1:])
    pads = node.integers("pads", [0, 0])
    return t.build.add_op(
        "avg_pool" if node.op == "AveragePool" else "max_pool",
        [t.rows[source]],
        shape_in=shape,
        shape_out=t.map_shape(node.output),
        kernel=(kernel[0], kernel[-1]),
        stride=node.integers("strides", [1])[0],
        pad=(pads[0], pads[-1]),
    )


def _resize(t: Translation, node: Node) -> int:
    source = t.active(node)[0]
    before, after = t.map_shape(source), t.map_shape(node.output)
    scale = max(1, after[1] // max(1, before[1]))
    return t.build.add_op("resize", [t.rows[source]], shape_in=before, shape_out=after, stride=scale)


def _concatenation(t: Translation, node: Node) -> int:
    return t.plain("concat", node)


def _unmodelled(t: Translation, node: Node) -> int:
    return t.plain("other", node)


_REDUCTIONS = ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ArgMax", "ArgMin")

OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(VIEWS, view),
    **dict.fromkeys(COPIES, copy),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("Gemm", "MatMul"), _matrix_product),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool"), _window_pool),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    **dict.fromkeys(("Mul", "Div"), _scaling),
    "Add": _addition,
    "Attention": _attention,
    "BatchNormalization": _batch_norm,
    "Concat": _concatenation,
    "Einsum": _einsum,
    "GlobalAveragePool": _global_pool,
    "Pad": pad,
    "ReduceMean": _mean,
}
"""What translates an ONNX operator, by the operator's name. Operators that are not listed become rows "other"."""


def translate_operator(t: Translation, node: Node) -> int:
    """Translates one operator; at least one of its inputs depends on the network's inputs."""
    return OPERATORS.get(node.op, _unmodelled)(t, node)
