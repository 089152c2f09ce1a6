"""Sizes of what pooling, transposed convolutions and short Fourier transforms give, as onnxruntime has them.

onnx's own inference differs where paddings are automatic and windows are dilated, where an average's last window would
begin beyond the image, where a transposed convolution adds to its output, and in the frequencies of a transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})


def window_shape(node: onnx.NodeProto, image: Sequence[int], weight: Sequence[int] | None) -> list[int] | None:
    """The shape of the output, (N, C, ...); None where the operator, its inputs or its attributes are others.

    Args:
        node: a pooling or a transposed convolution.
        image: shape of its first input.
        weight: shape of its second one.
    """
    axes = len(image) - 2
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    transposed = node.op_type == "ConvTranspose"
    kernel = list(attributes.get("kernel_shape") or (weight or ())[2:])
    if axes < 1 or len(kernel) != axes or (transposed and (weight is None or len(weight) != axes + 2)):
        return None
    strides, dilations, adjust = (
        list(attributes.get(name) or [default] * axes)
        for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    pads = list(attributes.get("pads") or [0] * 2 * axes)
    if any(len(values) != axes for values in (strides, dilations, adjust)) or len(pads) != 2 * axes or min(strides) < 1:
        return None
    automatic = attributes.get("auto_pad", b"NOTSET")
    spans = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    begins, ends = (pads[:axes], pads[axes:]) if automatic in (b"NOTSET", b"") else ([0] * axes, [0] * axes)
    if transposed:
        said = attributes.get("output_shape")
        if said:
            return [image[0], weight[1] * attributes.get("group", 1), *said[-axes:]] if weight else None
        sizes = []
        for place in range(axes):
            whole = (image[2 + place] - 1) * strides[place] + adjust[place] + spans[place]
            same = image[2 + place] * strides[place] if automatic.startswith(b"SAME") else whole
            sizes.append(min(whole, same) - begins[place] - ends[place])
        return [image[0], (weight or (0, 0))[1] * attributes.get("group", 1), *sizes]
    ceil = bool(attributes.get("ceil_mode", 0))
    sizes = []
    for place in range(axes):
        size, stride, span = image[2 + place], strides[place], spans[place]
        padding = begins[place] + ends[place]
        if automatic.startswith(b"SAME"):  # for windows without dilation
            padding = (-(-size // stride) - 1) * stride + kernel[place] - size
        sizes.append(_windows(size, stride, span, padding, begins[place], ceil=ceil))
    return [image[0], image[1], *sizes]


def spectrum_shape(
    node: onnx.NodeProto, signal: Sequence[int], step: NDArray[Any] | None, length: int
) -> list[int] | None:
    """The shape of a short Fourier transform, (N, frames, frequencies, 2); None where it cannot be told.

    Args:
        node: the STFT.
        signal: shape of the signal, (N, samples, ...).
        step: samples from one frame to the next.
        length: samples of a frame.
    """
    if len(signal) < 2 or step is None or step.size != 1 or int(step.item()) < 1 or not 0 < length <= signal[1]:
        return None
    half = next((attribute.i for attribute in node.attribute if attribute.name == "onesided"), 1)
    return [signal[0], (signal[1] - length) // int(step.item()) + 1, length // 2 + 1 if half else length, 2]


def _windows(size: int, stride: int, span: int, padding: int, begin: int, *, ceil: bool) -> int:
    """How many windows fit; with `ceil` one more that begins within the image. Quotients are cut off towards 0."""
    free = size + padding - span
    count = int(free / stride) + 1
    if ceil:
        count = -(-free // stride) + 1
        if (count - 1) * stride >= size + begin:
            count -= 1
    return count
