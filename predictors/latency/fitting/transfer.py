"""Fits a new device to few measurements, with the known devices' predictions as the prior (stacking).

    latency = overhead + sum over known devices of weight * predicted latency there

Weights and overhead are non-negative, so that more work never costs less, and each known device is drawn towards the
same share of the whole: with nothing measured but a scale, the new device is the mean of the known ones. Errors are
relative and Student-t, so that one disturbed measurement among 20 does not change the fit. How strongly shares are
drawn together is chosen on folds of the measurements.

A device unlike all known ones is no such sum: where latency is nearly linear in the operations, say, differences of
known devices tell it. A ridge stack, whose weights have signs, is taken where measurements left out say that it is far
better. `experiments/latency/few_shot.py` compares the two, and others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from ..kernel_terms import Array
from ..uncertainty import MAD_TO_SIGMA, SMALLEST_SPREAD

MIN_MEASUREMENTS = 4
"""Measurements of a new device below which no transfer is fitted."""
PENALTIES: tuple[float, ...] = (3e-5, 3e-4, 0.003, 0.03, 0.3)
"""Weights of the pull towards equal shares that are tried, in units of the measurements' information about one share: a
strong pull is right where the known devices are alike, a weak one where only some are like the new one."""
FOLDS = 4
RIDGES: tuple[float, ...] = tuple(np.logspace(-3, 4, 15).tolist())
"""Penalties of the ridge stack that are tried, on standardized latencies."""
SIGNS_MUST_REDUCE_ERROR_TO = 0.7
"""Error of the ridge stack over that without signs, up to which it is taken: root mean squares, of what is left out."""
STUDENT_FREEDOM = 4.0
"""Degrees of freedom of the errors' Student distribution; infinite is normal."""

REWEIGHTINGS = 20
"""Rounds of least squares at most, between which the weights of outliers are lowered."""
LEAST_LATENCY = 0.03
"""Share of the typical latency; errors of predictions below it are taken relative to it."""


@dataclass(frozen=True)
class Transfer:
    """The latency of a new device as a weighted sum of those predicted for known devices, and an overhead.

    Attributes:
        weights: ms on the new device per ms on the known one, by name of the known device; those of 0 are left out.
        overhead_ms: time of every network beside that.
        shares: by name of the known device, its share of the typical measured network's latency; with the overhead's
            share they sum to 1.
        least_ms: no network takes less; above 0 where weights have signs.
    """

    weights: Mapping[str, float]
    overhead_ms: float
    shares: Mapping[str, float]
    least_ms: float = 0.0

    def __post_init__(self) -> None:
        values = [*self.weights.values(), self.overhead_ms, self.least_ms]
        positive = all(weight > 0 for weight in self.weights.values()) and self.overhead_ms >= 0
        possible = all(map(math.isfinite, values)) and self.least_ms >= 0 and (positive or self.least_ms > 0)
        if not possible or self.weights.keys() != self.shares.keys():
            raise ValueError(
                "a transfer has positive weights, a share of each and an overhead of at least 0 ms, or signs and a "
                f"least latency, given {dict(self.weights)}, {dict(self.shares)}, {self.overhead_ms}, {self.least_ms}"
            )


def fit_transfer(
    known_ms: Mapping[str, ArrayLike],
    latency_ms: ArrayLike,
    *,
    penalty: float | None = None,
    freedom: float = STUDENT_FREEDOM,
) -> Transfer:
    """Fits a transfer to measurements of a new device.

    Args:
        known_ms: by name of the known device, (n,) latencies predicted for it, of the networks that were measured. A
            model of the new device itself may be among them, with predictions by fits without the network in question.
        latency_ms: (n,) measured latencies, n at least `MIN_MEASUREMENTS`.
        penalty: one of `PENALTIES`; by default the one with the least error on folds left out.
        freedom: as `STUDENT_FREEDOM`.

    Raises:
        ValueError: too few measurements, no known device, or values that are no latencies.
    """
    names, known, target = _checked(known_ms, latency_ms)
    weights, overhead = _solve(known, target, _penalty(known, target, freedom) if penalty is None else penalty, freedom)
    parts = weights * np.median(known, axis=0)
    total = float(parts.sum()) + overhead
    kept = np.flatnonzero(weights)
    return Transfer(
        {names[i]: float(weights[i]) for i in kept}, overhead, {names[i]: float(parts[i] / total) for i in kept}
    )


def leave_one_out(
    known_ms: Mapping[str, ArrayLike],
    latency_ms: ArrayLike,
    *,
    penalty: float | None = None,
    freedom: float = STUDENT_FREEDOM,
) -> Array:
    """(n,) logs of measured over predicted latency, each by a transfer fitted without that measurement.

    Arguments and errors are those of `fit_transfer`, which needs one measurement less.
    """
    _, known, target = _checked(known_ms, latency_ms, left_out=1)
    predicted = np.empty(len(target))
    for i in range(len(target)):
        kept = np.arange(len(target)) != i
        chosen = _penalty(known[kept], target[kept], freedom) if penalty is None else penalty
        weights, overhead = _solve(known[kept], target[kept], chosen, freedom)
        predicted[i] = overhead + known[i] @ weights
    return np.log(target / predicted)


def choose_transfer(known_ms: Mapping[str, ArrayLike], latency_ms: ArrayLike) -> tuple[Transfer, Array]:
    """The transfer or ridge stack that predicts measurements left out better.

    Args:
        known_ms, latency_ms: as for `fit_transfer`, with one measurement more than it needs.

    Returns:
        what was chosen, and (n,) logs of measured over predicted latency, each without that measurement in the fit (the
        choice between the two is made once, with all of them).
    """
    names, known, target = _checked(known_ms, latency_ms, left_out=1)
    errors = leave_one_out(known_ms, latency_ms)
    stack = _RidgeStack.of(known, target)
    least_ms = LEAST_LATENCY * float(np.median(target))
    signed = np.log(target / np.maximum(stack.left_out, least_ms))
    parts = stack.weights * np.median(known, axis=0)
    rises = parts.sum() > 0  # more work does not take less time
    if not rises or _rms(signed) > SIGNS_MUST_REDUCE_ERROR_TO * _rms(errors):
        return fit_transfer(known_ms, latency_ms), errors
    total = float(parts.sum()) + stack.overhead
    kept = np.flatnonzero(stack.weights)
    weights = {names[i]: float(stack.weights[i]) for i in kept}
    shares = {names[i]: float(parts[i] / total) for i in kept}
    return Transfer(weights, stack.overhead, shares, least_ms), signed


def _rms(log_errors: Array) -> float:
    """Root mean square of relative errors."""
    return float(np.sqrt(np.mean(np.expm1(-log_errors) ** 2)))


@dataclass(frozen=True)
class _RidgeStack:
    """A ridge regression of latency on those of known devices.

    Attributes:
        weights: (S,) of the known devices.
        overhead: beside them, of any sign.
        left_out: (n,) predictions of the measurements, each by a fit without it.
    """

    weights: Array
    overhead: float
    left_out: Array

    @classmethod
    def of(cls, known: Array, target: Array) -> Self:
        """Of (n, S) latencies of known devices and (n,) of the new one; the penalty with the least error left out."""
        centre, spread = known.mean(axis=0), known.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        left, sizes, right = np.linalg.svd((known - centre) / spread, full_matrices=False)
        about = target - target.mean()
        best: tuple[float, float, Array] | None = None
        for ridge in RIDGES:
            fitted = (left * (sizes**2 / (sizes**2 + ridge))) @ (left.T @ about)
            leverage = np.einsum("ij,j->i", left**2, sizes**2 / (sizes**2 + ridge)) + 1 / len(target)
            residual = (about - fitted) / np.maximum(1 - leverage, 1e-3)
            error = float(np.mean(residual**2))
            if best is None or error < best[0]:
                best = error, ridge, residual
        assert best is not None
        weights = (right.T * (sizes / (sizes**2 + best[1]))) @ (left.T @ about) / spread
        return cls(weights, float(target.mean() - centre @ weights), target - best[2])


def _penalty(known: Array, target: Array, freedom: float) -> float:
    """The one of `PENALTIES` with the least mean error on folds left out."""
    fold = np.arange(len(target)) % FOLDS
    errors = []
    for penalty in PENALTIES:
        error = 0.0
        for k in range(FOLDS):
            weights, overhead = _solve(known[fold != k], target[fold != k], penalty, freedom)
            error += float(np.abs(np.log(target[fold == k] / (overhead + known[fold == k] @ weights))).sum())
        errors.append(error)
    return PENALTIES[int(np.argmin(errors))]


def _checked(
    known_ms: Mapping[str, ArrayLike], latency_ms: ArrayLike, left_out: int = 0
) -> tuple[list[str], Array, Array]:
    """Names of S known devices, (n, S) predictions and (n,) latencies. Raises ValueError as `fit_transfer` does."""
    target = np.asarray(latency_ms, dtype=np.float64)
    least = MIN_MEASUREMENTS + left_out
    if target.ndim != 1 or len(target) < least:
        raise ValueError(f"a transfer needs at least {least} measurements, given an array of shape {target.shape}")
    if not known_ms:
        raise ValueError("a transfer needs at least one known device, given none")
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in known_ms.items()}
    for name, values in (("measured", target), *columns.items()):
        if values.shape != target.shape or not np.all(np.isfinite(values) & (values > 0)):
            raise ValueError(
                f"{name}: {len(target)} positive latencies are needed, one per measurement, given shape "
                f"{values.shape} from {values.min(initial=np.inf):g} to {values.max(initial=-np.inf):g} ms"
            )
    return list(columns), np.stack(list(columns.values()), axis=1), target


def _solve(known: Array, target: Array, penalty: float, freedom: float) -> tuple[Array, float]:
    """(S,) weights and the overhead, by penalized non-negative least squares for relative Student-t errors."""
    from scipy.optimize import nnls

    units, unit = np.median(known, axis=0), float(np.median(target))
    sources, latency = known / units, target / unit
    n, count = sources.shape
    pull = math.sqrt(penalty * n * float(sources.var(axis=0).mean()) / count)
    prior = np.hstack([pull * np.eye(count), np.zeros((count, 1))])
    design = np.hstack([sources, np.ones((n, 1))])
    trust, size = np.ones(n), np.ones(n)
    spread: float | None = None
    solution = np.zeros(count + 1)
    for _ in range(REWEIGHTINGS):
        precision = trust / size**2
        root = np.sqrt(precision / precision.mean())
        matrix = np.vstack([design * root[:, None], prior])
        solution = nnls(matrix, np.concatenate([latency * root, np.full(count, pull / count)]))[0]
        fitted = design @ solution
        size = np.maximum(fitted, LEAST_LATENCY)
        errors = (latency - fitted) / size
        if spread is None:
            spread = max(MAD_TO_SIGMA * float(np.median(np.abs(errors))), SMALLEST_SPREAD)
        last = trust
        trust = (freedom + 1) / (freedom + (errors / spread) ** 2) if math.isfinite(freedom) else np.ones(n)
        spread = max(math.sqrt(float(np.mean(trust * errors**2))), SMALLEST_SPREAD)
        if np.abs(trust - last).max() < 1e-4 and np.abs(precision - trust / size**2).max() < 1e-3 * precision.max():
            break
    return solution[:-1] * unit / units, float(solution[-1]) * unit
