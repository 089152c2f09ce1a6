"""Fits every kernel class to the times of single kernels, where a runtime reports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..kernel_model import KernelModel
from ..kernel_terms import COEFFICIENTS, SHAPE_FEATURES, Array, cold_share, physical_ms, physical_terms, shape_features
from ..kernels import KERNEL_CLASS, KERNEL_CLASSES, Kernels

PRIOR_KERNELS = 4.0
"""How many kernels' worth of weight the pooled fit of a family has in the fit of each of its classes."""
LEAST_COEFFICIENT = 1e-9
"""Coefficients and times below count as this, since logarithms are taken."""

REWEIGHTINGS = 5
"""Rounds of least squares, between which the weights of outliers are lowered."""
MEDIAN_TO_SIGMA = 1.5
"""Standard deviation over the median absolute error (1.4826 for normal errors)."""
OUTLIER_SIGMAS = 3.0
"""Errors above so many standard deviations count less (Huber's weights)."""
LOG_ERROR_SCALE = 0.1
"""Log error from which on `least_squares` counts errors less (soft L1)."""
KERNEL_ERROR = 0.1
"""Relative error of a kernel's time about the formula, against which the profiler's uncertainty is weighed."""
PULL_TO_START = 1e-3
"""Weight that holds a log coefficient at its start where the kernels say nothing about it."""

KERNEL_FAMILIES: tuple[tuple[str, ...], ...] = (
    (
        "conv_first",
        "conv_dense",
        "conv_pointwise",
        "conv_grouped",
        "conv_unblocked",
        "conv_transpose",
        "linear",
        "matmul",
        "attention",
    ),
    (
        "conv_depthwise",
        "conv_depthwise_5",
        "conv_depthwise_7",
        "conv_depthwise_large",
        "conv_transpose_grouped",
    ),
    tuple(
        name
        for name in KERNEL_CLASSES
        if not name.startswith("conv") and name not in ("linear", "matmul", "attention", "reorder_in", "reorder_out")
    ),
    ("reorder_in", "reorder_out"),
)
"""Kernel classes that are limited by the same parts of a device, so that a fit of all says something of each."""


def fit_kernels(
    graphs: Sequence[Kernels],
    times_ms: Sequence[Array],
    fusion: str,
    *,
    block: int = 0,
    sharpness: float = 1.0,
    slowdowns: Array | None = None,
    totals_ms: Array | None = None,
    prior_strength: float = PRIOR_KERNELS,
    uncertainty_ms: float = 0.0,
    kept: int = 0,
) -> KernelModel:
    """Fits the coefficients of every kernel class to the times of single kernels.

    Args:
        graphs: kernels of each measured graph.
        times_ms: for each graph the times of its kernels, NaN where unknown.
        fusion, block, sharpness: as in `KernelModel`.
        slowdowns: (graphs,) factor by which the machine was slower than usual during each; 1 by default.
        totals_ms: (graphs,) times of which a kernel's share is its weight; by default the sum of the graph's kernels.
        prior_strength: weight of the pooled fit of the class's family, in kernels.
        uncertainty_ms: what each time is uncertain by, however short it is: kernels that take less count less.
        kept: as in `KernelModel`.

    Raises:
        ValueError: no kernel has a time.
    """
    table = np.concatenate([graph.table for graph in graphs])
    times = np.concatenate(times_ms)
    slow = np.ones(len(graphs)) if slowdowns is None else slowdowns
    totals = [np.nansum(t) for t in times_ms] if totals_ms is None else totals_ms
    share = np.concatenate([t / total for t, total in zip(times_ms, totals, strict=True)])
    times = times / np.repeat(slow, [len(graph) for graph in graphs])
    known = np.isfinite(times) & (times > 0)
    everything = Kernels(table[known])
    times, share = times[known], share[known]
    if not len(times):
        raise ValueError("no kernel times to fit on")
    codes = everything.column("class")
    compute, memory = physical_terms(everything, block, cold=cold_shares(graphs, kept)[known])
    weights = np.sqrt(share / share.mean() / (1 + (uncertainty_ms / (KERNEL_ERROR * times)) ** 2))
    coefficients = np.zeros((len(KERNEL_CLASSES), len(COEFFICIENTS)))
    for family in KERNEL_FAMILIES:
        members = [KERNEL_CLASS[name] for name in family]
        rows = np.isin(codes, members)
        if not rows.any():
            continue
        pooled = fit_class(compute[rows], memory[rows], times[rows], weights[rows], 1.0, None, 0.0)
        for code in members:
            mine = codes == code
            # A class without kernels takes the pooled coefficients, which its count of 0 marks as a guess.
            coefficients[code] = (
                fit_class(compute[mine], memory[mine], times[mine], weights[mine], sharpness, pooled, prior_strength)
                if mine.any()
                else pooled
            )
    model = KernelModel(fusion=fusion, block=block, coefficients=coefficients, sharpness=sharpness, kept=kept)
    return with_ranges(model, graphs)


def cold_shares(graphs: Sequence[Kernels], kept: int) -> Array:
    """For each kernel of all graphs in a row, the `cold_share` of its graph."""
    weights = [graph.column("weights").sum() for graph in graphs]
    return np.repeat(cold_share(weights, kept), [len(graph) for graph in graphs])


def fit_class(
    compute: Array,
    memory: Array,
    times_ms: Array,
    weights: Array,
    sharpness: float,
    prior: Array | None,
    strength: float,
) -> Array:
    """Fits the coefficients of one class to the times of its kernels: (len(COEFFICIENTS),), relative error minimized.

    Args:
        compute, memory: `physical_terms` of its kernels.
        times_ms: (K,) measured times.
        weights: (K,) of the kernels' errors.
        sharpness: p in `kernel_terms.physical_ms`.
        prior: (len(COEFFICIENTS),) coefficients to be drawn towards, or None.
        strength: how many kernels' worth of weight the prior has.
    """
    design = np.concatenate([np.ones((len(compute), 1)), compute, memory], axis=1)
    added, used = _additive_coefficients(design, times_ms, weights, prior, strength)
    if sharpness == 1:
        return added
    return _overlapping_coefficients(design, compute, memory, times_ms, weights, sharpness, added, used)


def _additive_coefficients(
    design: Array, times_ms: Array, weights: Array, prior: Array | None, strength: float
) -> tuple[Array, NDArray[np.bool_]]:
    """Robust non-negative least squares where compute and memory add up.

    Args:
        design: (K, len(COEFFICIENTS)) a one and the terms of each kernel.
        times_ms, weights, prior, strength: as in `fit_class`.

    Returns:
        (len(COEFFICIENTS),) coefficients, and which of them the kernels or the prior say something about.
    """
    from scipy.optimize import nnls

    root = np.sqrt(weights)
    rows = design / times_ms[:, None]
    matrix, goal = rows * root[:, None], root.copy()
    if prior is not None:
        # The prior as one observation per term: its share of the class's typical kernel.
        share = np.median(rows, axis=0) * np.sqrt(strength * weights.mean())
        matrix = np.concatenate([matrix, np.diag(share)])
        goal = np.concatenate([goal, share * prior])
    used = np.abs(matrix).sum(0) > 0
    coefficients = np.zeros(design.shape[1])
    size = np.abs(matrix[:, used]).max(axis=0)
    for _ in range(REWEIGHTINGS):
        solution, _ = nnls(matrix[:, used] / size, goal)
        coefficients[used] = solution / size
        error = np.abs(np.log(np.maximum(design @ coefficients, LEAST_COEFFICIENT) / times_ms))
        typical = MEDIAN_TO_SIGMA * np.median(error) + 1e-3
        trust = root * np.sqrt(np.minimum(1, OUTLIER_SIGMAS * typical / np.maximum(error, 1e-12)))
        matrix[: len(rows)] = rows * trust[:, None]
        goal[: len(rows)] = trust
    return coefficients, used


def _overlapping_coefficients(
    design: Array,
    compute: Array,
    memory: Array,
    times_ms: Array,
    weights: Array,
    sharpness: float,
    start: Array,
    used: NDArray[np.bool_],
) -> Array:
    """Robust least squares of log times where compute and memory overlap.

    Args:
        design, compute, memory, times_ms, weights, sharpness: as above.
        start: (len(COEFFICIENTS),) coefficients to begin with.
        used: which of them are fitted; the others are 0.
    """
    from scipy.optimize import least_squares

    root = np.sqrt(weights)
    free = np.flatnonzero(used)
    largest = design[:, free].max(axis=0)
    least = 1e-4 * np.median(times_ms) / np.maximum(largest, LEAST_COEFFICIENT)
    begin = np.log(np.maximum(start[free], least))

    def residuals(logs: Array) -> Array:
        coefficients = np.zeros(design.shape[1])
        coefficients[free] = np.exp(logs)
        fitted = physical_ms(compute, memory, np.broadcast_to(coefficients, design.shape), sharpness)
        errors = root * np.log(np.maximum(fitted, LEAST_COEFFICIENT) / times_ms)
        return np.concatenate([errors, PULL_TO_START * (logs - begin)])

    solved = least_squares(residuals, begin, loss="soft_l1", f_scale=LOG_ERROR_SCALE, max_nfev=40)
    result = np.zeros(design.shape[1])
    result[free] = np.exp(solved.x)
    return result


def with_ranges(model: KernelModel, graphs: Sequence[Kernels]) -> KernelModel:
    """`model` with the counts and shape ranges of the kernels of `graphs`, on which it was fitted."""
    everything = Kernels(np.concatenate([graph.table for graph in graphs]))
    codes = everything.column("class")
    features = shape_features(everything)
    low = np.full((len(KERNEL_CLASSES), len(SHAPE_FEATURES)), np.inf)
    high = np.full_like(low, -np.inf)
    np.minimum.at(low, codes, features)
    np.maximum.at(high, codes, features)
    counts = np.bincount(codes, minlength=len(KERNEL_CLASSES)).astype(np.int64)
    return replace(model, counts=counts, low=low, high=high)
