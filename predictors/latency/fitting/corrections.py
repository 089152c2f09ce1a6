"""Learns what the physical formula misses on shapes that were measured: a correction per kernel class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..kernel_model import Correction, KernelModel, gaussian_kernel
from ..kernel_terms import Array, shape_features
from ..kernels import Kernels
from .kernel_times import LEAST_COEFFICIENT, cold_shares

MIN_SHAPES = 20
"""Different shapes of a class below which it gets no correction."""
MAX_POINTS = 250
"""Shapes that are kept of a class, the most frequent first."""
REACH = 1.5
"""Length scale of the interpolation, in standard deviations of the log shape features."""
NOISE = 0.05
"""Standard deviation of a shape's log time about its interpolation."""
AMPLITUDE = 0.15
"""Standard deviation of the log ratios that are interpolated."""
COMMON_NOISE = 0.3
"""Share of the noise's variance that all kernels of one shape have in common."""
LEAST_FEATURE_SPREAD = 0.2
"""Standard deviation below which a log shape feature counts as if it varied by this much."""
MOST_RATIO = 3.0
"""Factor, up or down, to which measured over physical times are limited before the fit."""


def fit_corrections(
    model: KernelModel,
    graphs: Sequence[Kernels],
    times_ms: Sequence[Array],
    *,
    slowdowns: Array | None = None,
    reach: float = REACH,
    noise: float = NOISE,
    max_points: int = MAX_POINTS,
) -> KernelModel:
    """`model` with a correction for every class that has at least `MIN_SHAPES` different shapes.

    Args:
        model: fitted by `fit_kernels`.
        graphs, times_ms, slowdowns: as given to `fit_kernels`.
        reach: length scale of the interpolation, in standard deviations of the log shape features.
        noise: standard deviation of a shape's log time about its interpolation.
        max_points: shapes kept of a class, the most frequent first.
    """
    slow = np.ones(len(graphs)) if slowdowns is None else slowdowns
    everything = Kernels(np.concatenate([graph.table for graph in graphs]))
    times = np.concatenate(times_ms) / np.repeat(slow, [len(graph) for graph in graphs])
    bare = replace(model, corrections={})
    expected = bare.kernel_ms(everything, cold_shares(graphs, model.kept))
    ratio = np.log(times / np.maximum(expected, LEAST_COEFFICIENT))
    codes = everything.column("class")
    features = shape_features(everything)
    corrections = {}
    for code in np.unique(codes):
        rows = np.flatnonzero((codes == code) & np.isfinite(ratio))
        if not len(rows):
            continue
        found = _fit_correction(features[rows], ratio[rows], reach, noise, max_points)
        if found is not None:
            corrections[int(code)] = found
    return replace(model, corrections=corrections)


def _fit_correction(
    features: Array, log_ratios: Array, reach: float, noise: float, max_points: int
) -> Correction | None:
    """The correction of one class from (K, F) shape features and (K,) log ratios of its kernels; None of few shapes."""
    shapes, inverse, counts = np.unique(features.round(6), axis=0, return_inverse=True, return_counts=True)
    if len(shapes) < MIN_SHAPES:
        return None
    inverse = inverse.reshape(-1)
    targets = np.array([np.median(log_ratios[inverse == i]) for i in range(len(shapes))])
    if len(shapes) > max_points:
        kept = np.argsort(-counts, kind="stable")[:max_points]
        shapes, targets, counts = shapes[kept], targets[kept], counts[kept]
    center, scale = shapes.mean(0), np.maximum(shapes.std(0), LEAST_FEATURE_SPREAD)
    points = (shapes - center) / scale
    gram = gaussian_kernel(points, points, reach)
    # The part of a shape's noise that more kernels of the same shape do not average out is `COMMON_NOISE`.
    gram[np.diag_indices(len(points))] += (noise / AMPLITUDE) ** 2 * (COMMON_NOISE + (1 - COMMON_NOISE) / counts)
    weights = np.linalg.solve(gram, np.clip(targets, -np.log(MOST_RATIO), np.log(MOST_RATIO)))
    return Correction(points, weights, center, scale, reach)
