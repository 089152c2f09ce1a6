"""Which channels of a network's tensors stand for which of another's, and copying by such an index.

An index (n,) says for each channel of the target which one of the source it is, or `NEW`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...search_space.units import attention_padding

NEW = -1
"""In an index: the source has no channel for this one."""

Reading = nn.Conv2d | nn.Linear
"""Layers that weigh their inputs."""


def every(count: int) -> Tensor:
    """The index of all channels, in their order."""
    return torch.arange(count)


def kept_channels(count: int, importance: Tensor, groups: int = 1) -> Tensor:
    """(count,) which channels of the source: the most important ones in their order, then `NEW`, group by group.

    Args:
        importance: (channels of the source,).
        groups: divides both counts. Grouped convolutions read the channels of a group together.
    """
    size, parts = count // groups, []
    for group, part in enumerate(importance.chunk(groups)):
        best = part.topk(min(size, len(part))).indices.sort().values + group * len(part)
        parts.append(nn.functional.pad(best, (0, size - len(best)), value=NEW))
    return torch.cat(parts)


def input_importance(reading: Tensor) -> Tensor:
    """(in,) the L1 norm of what each input weighs in (out, in, ...)."""
    return reading.abs().transpose(0, 1).flatten(1).sum(dim=1)


def kernel_taps(target: nn.Conv2d, source: nn.Conv2d) -> Tensor:
    """(k,) for each row of the target's kernel the one of the source's that sees the same pixels; columns are alike."""
    begin, old_begin = (attention_padding(conv.kernel_size[0], conv.stride[0], 0)[0] for conv in (target, source))
    index = torch.arange(target.kernel_size[0]) - begin + old_begin
    return torch.where((index >= 0) & (index < source.kernel_size[0]), index, NEW)


def take(target: Tensor, source: Tensor, indices: Sequence[Tensor], out: int = 0) -> int:
    """Fills `target`: outputs that the source has do not listen to inputs that it lacks; other outputs stay.

    Args:
        indices: for each of the first axes (n,) which place of the source's axis it is, or `NEW`.
        out: the axis of the outputs; the others with an index are inputs (or a kernel's rows and columns).

    Returns:
        How many numbers of `target` are the source's.
    """
    values = source
    for axis, index in enumerate(indices):
        values = values.index_select(axis, index.clamp(min=0))
        if axis != out:
            values.movedim(axis, 0)[index == NEW] = 0
    known = indices[out] != NEW
    target.movedim(out, 0)[known] = values.movedim(out, 0)[known]
    return math.prod(int((index != NEW).sum()) for index in indices) * math.prod(target.shape[len(indices) :])


def dense_weight(layer: Reading) -> Tensor:
    """(out, in, ...) the weight of a layer as if it read all inputs."""
    return dense_kernel(layer.weight, layer.groups) if isinstance(layer, nn.Conv2d) else layer.weight


def dense_kernel(weight: Tensor, groups: int) -> Tensor:
    """(out, in, k, k) of a convolution in groups, whose weight is (out, in / groups, k, k); zero between groups."""
    if groups == 1:
        return weight
    size_out, size_in = len(weight) // groups, weight.shape[1]
    dense = weight.new_zeros(len(weight), size_in * groups, *weight.shape[2:])
    for group in range(groups):
        rows, columns = (slice(group * size, (group + 1) * size) for size in (size_out, size_in))
        dense[rows, columns] = weight[rows]
    return dense


def grouped_kernel(dense: Tensor, groups: int) -> Tensor:
    """The weight (out, in / groups, k, k) of a convolution in groups, cut out of (out, in, k, k)."""
    size_in = dense.shape[1] // groups
    parts = dense.chunk(groups)
    return torch.cat([part[:, group * size_in : (group + 1) * size_in] for group, part in enumerate(parts)])
