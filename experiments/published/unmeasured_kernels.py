"""Priors for the kernels of LowFormer and CPUBone that no batch-1 measurement covers, and the interval they leave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from batch1 import Batch1
from measurements import Anchors

from lownas.predictors.latency.fitting.kernel_times import with_ranges
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import KernelModel
from lownas.predictors.latency.kernel_terms import COEFFICIENTS
from lownas.predictors.latency.kernels import KERNEL_CLASS, KERNEL_CLASSES, Kernels
from lownas.search_space import PRESETS, op_graph

UNMEASURED = (
    "conv_grouped",
    "conv_transpose",
    "conv_transpose_grouped",
    "group_norm",
    "matmul",
    "softmax",
    "resize",
    "move",
)
"""Classes of LowFormer and CPUBone that no batch-1 measurement has, or (attention) only of far larger size."""
UNMEASURED_SPREAD = 0.5  # standard deviation of the log of their time
UNSEEN_SHAPE_SPREAD = 0.25  # the same of other classes whose shapes go beyond those of the measurements
TRANSPOSE_FACTOR = 1.5  # a dense transposed convolution over a plain one of the same MACs
GROUP_NORM_LAUNCHES = 3.0  # a change of layout, statistics, the normalization


def with_priors(model: Batch1, anchors: Anchors) -> KernelModel:
    """Turns `model` into the kernel model of static engines, with priors for the kernels that no anchor has.

    Its shape ranges are those of the anchors.
    """
    coefficients = model.kernels.coefficients.copy()
    column = {name: index for index, name in enumerate(COEFFICIENTS)}
    transposed = coefficients[KERNEL_CLASS["conv_dense"]].copy()
    compute = [column[name] for name in COEFFICIENTS if name.startswith("macs")]
    transposed[compute] *= TRANSPOSE_FACTOR
    coefficients[KERNEL_CLASS["conv_transpose"]] = transposed
    coefficients[KERNEL_CLASS["conv_transpose_grouped"]] = coefficients[KERNEL_CLASS["conv_depthwise"]]
    coefficients[KERNEL_CLASS["group_norm"], column["launch"]] *= GROUP_NORM_LAUNCHES
    factor = float(np.exp(model.log_static))
    fitted = replace(
        model.kernels, coefficients=coefficients, overhead_ms=model.kernels.overhead_ms * factor, scale=factor
    )
    return with_ranges(fitted, [Kernels(anchors.kernels.table)])


def spread_of_priors(model: KernelModel) -> float:
    """Log standard deviation that the priors add to the latency of a preset; the largest one among all presets."""
    spreads = []
    for config in PRESETS.values():
        kernels = fuse(op_graph(config), model.fusion)
        class_ms = np.bincount(kernels.column("class"), model.kernel_ms(kernels), minlength=len(KERNEL_CLASSES))
        shares = class_ms * (model.scale / model.graph_ms(kernels))
        outside = {name.partition(" ")[0] for name in model.outside(kernels)}
        spreads.append(
            sum(
                share * (UNMEASURED_SPREAD if name in UNMEASURED else UNSEEN_SHAPE_SPREAD)
                for name, share in zip(KERNEL_CLASSES, shares, strict=True)
                if name in UNMEASURED or name in outside
            )
        )
    return float(max(spreads))


def allowed_outside() -> list[str]:
    """What the profile predicts beyond its measurements: every kernel class of the space, in every shape."""
    classes = {name for config in PRESETS.values() for name in fuse(op_graph(config), "tensorrt").classes}
    classes |= set(UNMEASURED)
    return sorted(classes | {f"{name} (shape)" for name in classes})
