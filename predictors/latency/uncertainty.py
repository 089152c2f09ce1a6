"""The predictive distribution of latency on a log scale, from errors on networks that were held out of fitting.

Conformal: with n held-out errors, the q-quantile of a new one is the error of rank q * (n + 1) (CV+ with the errors
of all folds pooled; Barber et al. 2021). Ranks below the first and above the last error come from Student's tails with
a robust spread, so that ten errors suffice for a 90 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMALLEST_SPREAD = 0.005
"""Least log spread of errors: measurements of one network differ by as much."""
FARTHEST_SPREADS = 1.95
"""How far from their median errors of few networks may lie, in geometric means of a robust and a plain spread."""
MAD_TO_SIGMA = 1.4826
"""Standard deviation over the median absolute deviation, of normal errors."""
_FARTHEST_SIGMAS = 6.0
_TAIL_STEP_SIGMAS = 0.25
"""The tails are tabulated up to so many standard deviations, in such steps."""
_VECTORIZE_FROM = 64
"""Values from which on the normal distribution function is approximated for all at once."""


def without_stragglers(errors: ArrayLike) -> NDArray[np.float64]:
    """(n,) errors of few networks left out, with those far from the others drawn in, for intervals.

    A network that lies apart is left out with more harm than a new one among the others will have, and of twenty errors
    the largest one makes the 90 % interval. `experiments/latency/few_shot.py` has what this does to coverage.
    """
    values = np.asarray(errors, dtype=np.float64)
    center = float(np.median(values))
    deviation = MAD_TO_SIGMA * float(np.median(np.abs(values - center)))
    spread = float(np.sqrt(max(deviation, SMALLEST_SPREAD) * max(float(values.std()), SMALLEST_SPREAD)))
    drawn_in: NDArray[np.float64] = np.clip(
        values, center - FARTHEST_SPREADS * spread, center + FARTHEST_SPREADS * spread
    )
    return drawn_in


@dataclass(frozen=True)
class LogErrors:
    """The distribution of log(measured / predicted) on networks that were not fitted on.

    Attributes:
        errors: held-out log errors.
    """

    errors: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.errors) < 2 or not np.isfinite(self.errors).all():
            raise ValueError(f"an error distribution needs at least two finite errors, given {self.errors[:5]}")

    @cached_property
    def _sorted(self) -> NDArray[np.float64]:
        return np.sort(np.asarray(self.errors, dtype=np.float64))

    @cached_property
    def _center(self) -> float:
        return float(np.median(self._sorted))

    @cached_property
    def _spread(self) -> float:
        mad = float(np.median(np.abs(self._sorted - self._center)))
        return max(MAD_TO_SIGMA * mad, float(np.std(self._sorted)), SMALLEST_SPREAD)

    def quantile(self, q: ArrayLike) -> NDArray[np.float64]:
        """The log error that a share `q` (0-1) of new networks stays below."""
        q = np.asarray(q, dtype=np.float64)
        if ((q <= 0) | (q >= 1)).any():
            raise ValueError(f"quantiles are between 0 and 1, given {q.tolist()}")
        levels, values = self._steps
        return np.interp(self._stretch(q), self._stretch(levels), values)

    def cdf(self, log_error: ArrayLike) -> NDArray[np.float64]:
        """The share of new networks whose log error stays below `log_error`."""
        levels, values = self._steps
        scores = np.interp(np.asarray(log_error, dtype=np.float64), values, self._stretch(levels))
        normal = NormalDist()
        flat = np.atleast_1d(scores).ravel()
        return (
            np.array([normal.cdf(z) for z in flat]).reshape(np.shape(scores))
            if flat.size <= _VECTORIZE_FROM
            else _phi(scores)
        )

    @cached_property
    def _steps(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Levels and values of the quantile function: errors at their ranks, Student's tails outside of them."""
        n = len(self._sorted)
        levels = np.arange(1, n + 1) / (n + 1)
        normal = NormalDist()
        far = np.array(
            [z for z in np.arange(0.0, _FARTHEST_SIGMAS + 0.01, _TAIL_STEP_SIGMAS) if z > normal.inv_cdf(levels[-1])]
        )
        # Quantiles of Student's t from normal ones (first term of Cornish and Fisher), and of a new observation.
        reach = (far + (far**3 + far) / (4 * (n - 1))) * np.sqrt(1 + 1 / n) * self._spread
        upper = np.maximum(self._center + reach, self._sorted[-1])
        lower = np.minimum(self._center - reach, self._sorted[0])
        tail = np.array([normal.cdf(z) for z in far])
        tail = np.minimum(tail, 1 - 1e-12)
        values = np.concatenate([lower[::-1], self._sorted, upper])
        # Strictly increasing, so that quantile and cdf are each other's inverse.
        values = np.maximum.accumulate(values) + np.arange(len(values)) * 1e-9
        return np.concatenate([1 - tail[::-1], levels, tail]), values

    @staticmethod
    def _stretch(levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Levels as normal scores, in which the quantile function is close to a straight line."""
        normal = NormalDist()
        return np.array([normal.inv_cdf(level) for level in np.atleast_1d(levels)]).reshape(np.shape(levels))

    def interval(self, coverage: float) -> tuple[float, float]:
        """The log errors between which a share `coverage` of new networks lies, as many below as above."""
        if not 0 < coverage < 1:
            raise ValueError(f"coverage is between 0 and 1, given {coverage}")
        low, high = self.quantile([(1 - coverage) / 2, (1 + coverage) / 2])
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"log_errors": [round(e, 6) for e in self.errors]}

    @classmethod
    def from_errors(cls, errors: Sequence[float] | NDArray[np.float64]) -> LogErrors:
        """The distribution of any sequence of log errors."""
        return cls(tuple(float(e) for e in errors))


def _phi(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """The normal distribution function on arrays (Abramowitz and Stegun 7.1.26; error below 1e-7)."""
    x = np.abs(z) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * poly * np.exp(-(x**2))
    return np.where(z >= 0, 1 - tail, tail)
