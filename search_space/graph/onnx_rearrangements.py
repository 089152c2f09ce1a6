"""ONNX operators that only rearrange data: which of them cost something, and which belong to an operator beside them.

Slices, splits and other rearrangements that copy data are operators "move", or "permute" where they go element by
element. Reshapes, the transposes of an attention, those between maps and tokens, and padding that a convolution takes
over are none.
"""

from __future__ import annotations

from math import prod

import numpy as np

from .onnx_file import SMALL_ELEMENTS
from .onnx_network import Node
from .onnx_translation import Translation
from .operators import COLUMN

_END_OF_AXIS = 2**31 - 1
"""From here on, the end of a slice means the end of the axis to exporters."""
_MAX_INFERRED = 64
"""Operators after a sequence whose shapes are inferred."""


def view(t: Translation, node: Node) -> int:
    """Translates a rearrangement that copies nothing, but for transposes that belong to nothing else."""
    if node.op == "SplitToSequence":
        _split_to_sequence(t, node)
    elif node.op == "SequenceAt" and len(node.inputs) > 1:
        _take_from_sequence(t, node)
    elif node.op == "Transpose" and _permutes(t, node):
        return t.plain("permute", node)
    elif node.op == "Transpose" and _moves(t, node):
        return t.plain("move", node)
    return t.rows[t.active(node)[0]]


def copy(t: Translation, node: Node) -> int:
    """Translates a rearrangement that copies: a crop of a map, a move, or a part of an attention."""
    source = t.active(node)[0]
    row = t.rows[source]
    before, after = t.network.tensors.shape(source), t.network.tensors.shapes.get(node.output, ())
    if (
        node.op == "Slice"
        and t.kind_of(source) in ("conv_transpose", "resize", "crop")
        and len(before) == len(after) == 4
        and before[:2] == after[:2]
        and before != after
    ):
        if t.kind_of(source) == "crop":  # of the height first, then of the width: one crop
            op = list(t.build.rows[row])
            op[COLUMN["hout"]], op[COLUMN["wout"]] = after[2:]
            op[COLUMN["outputs"]] = prod(after)
            t.build.rows[row] = tuple(op)
            return row
        return t.build.add_op("crop", [row], shape_in=before[1:], shape_out=after[1:])
    return t.plain("move", node) if _moves(t, node) else row


def pad(t: Translation, node: Node) -> int:
    """Translates padding: a part of the convolutions that read it, nothing at all, or an operator of its own."""
    tensors = t.network.tensors
    if _convolutions_take_over(t, node) or tensors.shapes.get(node.output) == tensors.shape(node.inputs[0]):
        return t.rows[t.active(node)[0]]
    return t.plain("pad", node)


def _moves(t: Translation, node: Node) -> bool:
    """Tells whether a rearrangement is an operator of its own: neither part of an attention nor a change of layout."""
    source = t.active(node)[0]
    before, after = t.network.tensors.shape(source), t.network.tensors.shapes.get(node.output, ())
    if before == after and not (node.op == "Slice" and _slices_channels(t, node)):
        return False
    if t.network.precedes_product(node) or t.network.follows_product(source):
        return False
    if node.op != "Transpose":
        return len(before) > 2
    perm = node.integers("perm", list(range(len(before)))[::-1])
    order = [place for place, size in zip(perm, after, strict=False) if size != 1]
    # Channels to the end or back to the front is a change between maps and tokens.
    unturned = sorted(order)
    swaps = {tuple(unturned[1:] + unturned[:1]), tuple(unturned[-1:] + unturned[:-1])}
    return bool(order) and order != unturned and tuple(order) not in swaps


def _permutes(t: Translation, node: Node) -> bool:
    """Tells whether a transpose moves single elements: more than one dimension changes place, the last one among them.

    Wherever else it stands, such a transpose is an operator of its own: it takes ten times as long per element.
    """
    shape = t.network.tensors.shape(t.active(node)[0])
    perm = node.integers("perm", list(range(len(shape)))[::-1])
    if sorted(perm) != list(range(len(shape))) or perm[-1:] == [len(perm) - 1]:
        return False
    moved_alone = any([a for a in perm if a != axis] == sorted(set(perm) - {axis}) for axis in perm)
    order = [axis for axis in perm if shape[axis] != 1]
    return not moved_alone and order != sorted(order)


def _slices_channels(t: Translation, node: Node) -> bool:
    """Tells whether a slice of all channels names their number, so that a runtime copies all the same."""
    if len(node.inputs) < 4:
        return False
    ends, axes = (t.network.tensors.value(name) for name in node.inputs[2:4])
    if ends is None or axes is None:
        return False
    return axes.reshape(-1).tolist() == [1] and bool((ends < _END_OF_AXIS).all())


# --- padding ---------------------------------------------------------------------------------------------------------


def _convolutions_take_over(t: Translation, node: Node) -> bool:
    """Tells whether padding is zeros around height and width that only convolutions read; then it is noted for them."""
    pads = _padding(t, node)
    users = t.network.users(node.output)
    fill = t.network.tensors.value(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1)
    if (
        pads is None
        or len(pads) != 8
        or any(pads[i] for i in (0, 1, 4, 5))
        or min(pads) < 0
        or fill is None
        or bool(np.any(fill != 0))
        or node.attribute("mode", b"constant") != b"constant"
        or not users
        or node.output in t.network.outputs
        or any(user.op != "Conv" or user.inputs[0] != node.output for user in users)
    ):
        return False
    t.padded[node.output] = (node.inputs[0], [pads[2], pads[3], pads[6], pads[7]])
    return True


def _padding(t: Translation, node: Node) -> list[int] | None:
    if "pads" in node.attributes:
        return node.integers("pads", [])
    value = t.network.tensors.value(node.inputs[1]) if len(node.inputs) > 1 else None
    if value is None or value.dtype.kind not in "iu" or len(node.inputs) > 3:
        return None
    return [int(size) for size in value.reshape(-1)]


# --- sequences -------------------------------------------------------------------------------------------------------
# torch's newer exporter may split q, k and v into a sequence, which onnx's shape inference does not see through.


def _split_to_sequence(t: Translation, node: Node) -> None:
    shape = t.network.tensors.shape(node.inputs[0])
    axis = node.integer("axis", 0)
    split = t.network.tensors.value(node.inputs[1]) if len(node.inputs) > 1 else np.ones((), np.int64)
    if split is None or not -len(shape) <= axis < len(shape):
        return
    axis %= len(shape)
    if split.ndim == 0:
        size = max(1, int(split))
        starts = range(0, min(shape[axis], SMALL_ELEMENTS), size)
        sizes: list[int] = [min(size, shape[axis] - start) for start in starts]
    else:
        sizes = [int(part) for part in split.reshape(-1)[:SMALL_ELEMENTS]]
        if min(sizes, default=0) < 0 or sum(sizes) != shape[axis]:
            return
    t.sequences[node.output] = [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _take_from_sequence(t: Translation, node: Node) -> None:
    place = t.network.tensors.value(node.inputs[1])
    parts = t.sequences.get(t.active(node)[0], [])
    if place is not None and place.size == 1 and -len(parts) <= int(place.item()) < len(parts):
        t.network.tensors.shapes[node.output] = parts[int(place.item())]
        _infer_shapes_after(t, node)


def _infer_shapes_after(t: Translation, known: Node) -> None:
    """Infers the shapes of the operators after a node, whose output's shape became known just now."""
    frontier = list(t.network.users(known.output))
    shapes = t.network.tensors.shapes
    for _ in range(_MAX_INFERRED):
        if not frontier:
            return
        node = frontier.pop(0)
        if node.output in shapes or not all(name in shapes for name in node.inputs if name):
            continue
        if node.op == "Transpose":
            shape = shapes[node.inputs[0]]
            perm = node.integers("perm", list(range(len(shape)))[::-1])
            if sorted(perm) != list(range(len(shape))):
                continue
            shapes[node.output] = tuple(shape[place] for place in perm)
        elif node.op == "MatMul":
            left, right = shapes[node.inputs[0]], shapes[node.inputs[1]]
            shapes[node.output] = (*left[:-1], *right[-1:])
        elif node.op in ("Mul", "Div", "Softmax", "Add"):
            shapes[node.output] = max((shapes[name] for name in node.inputs), key=len)
        else:
            continue
        frontier.extend(t.network.users(node.output))
