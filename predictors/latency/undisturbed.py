"""The undisturbed latency of a network, from several looks at it on a machine whose speed swings.

A machine is slower for seconds at a time: other processes share its caches and memory, clocks change, a virtual
machine's neighbours work. Between the looks a small network, the sentinel, is looked at too. By how much that took
longer than it does undisturbed, says by how much the look beside it is to be shortened, and how little it counts. How
sensitive a network is to what slows the sentinel down is learned from its own looks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

SENSITIVITY = (0.75, 0.4)
"""Mean and standard deviation expected of a network's slowness over the sentinel's, both as logs.

Networks differ: some have their weights in a cache that others take from them. A few looks teach a network's own.
"""
LOOK_ERROR = 0.015
"""Relative standard error of one look on a quiet machine: sessions lie differently in memory."""
DRIFT_ERROR = 0.01
"""Relative standard error that no number of looks within a few minutes takes away: it is common to all networks."""
SLOWNESS_ERROR = 0.2
"""Share of the machine's slowness that the sentinel's looks do not tell, as a standard deviation."""
DISTURBANCE_ERROR = 0.1
"""The same, of how far the median of a look's runs is above their lower decile."""
EXPECTED_LOOKS = 3.0
"""Looks that the expected error of a look is worth beside the scatter of those made."""
REWEIGHTINGS = 6
"""Rounds of least squares, between which looks that took longer than the others count less."""
EXCESS_ERROR = 2.0
"""How far the middle look is beyond the shortest one and its error, over the number of looks: that much may be missed.

Where all looks lie apart, as those of a network whose weights come and go in a shared cache, none may be undisturbed.
"""
FRESH_S = 4.0
"""A look at the sentinel that is older says nothing of the machine now."""
SENTINEL_QUANTILE = 0.1
"""Quantile of the sentinel's looks at which it is taken to be undisturbed."""


@dataclass(frozen=True)
class Look:
    """One look at a network.

    Attributes:
        latency_ms: the lower decile of its runs, without what other processes were given in between.
        disturbance: how far the median of its runs is above that, relative.
        sentinel_ms: the sentinel's latency around the look; None if it was not looked at.
    """

    latency_ms: float
    disturbance: float = 0.0
    sentinel_ms: float | None = None


@dataclass(frozen=True)
class Undisturbed:
    """What looks say of a network while nothing slows the machine down.

    Attributes:
        latency_ms: the estimate.
        repeatability: its relative standard error over looks.
        slowness: how much slower than undisturbed the machine was during the looks, by the sentinel, relative; their
            mean.
        looks: how many.
        scatter: sum of the squares of their errors, in expected variances.
        factors: (n,) by what each look is shortened.
        weights: (n,) how much each look counts.
    """

    latency_ms: float
    repeatability: float
    slowness: float
    looks: int
    scatter: float
    factors: np.ndarray
    weights: np.ndarray


def sentinel_reference(sentinels_ms: Sequence[float], known_ms: float | None = None) -> float | None:
    """The sentinel's undisturbed latency: the lower decile of its looks, or `known_ms` if that is less.

    None where there is neither. Raises ValueError for what is no latency.
    """
    if any(not (math.isfinite(ms) and ms > 0) for ms in sentinels_ms):
        raise ValueError(f"looks at the sentinel are positive and finite, given {list(sentinels_ms)[:5]}")
    own = float(np.quantile(np.asarray(sentinels_ms), SENTINEL_QUANTILE)) if len(sentinels_ms) else None
    return min((ms for ms in (own, known_ms) if ms is not None), default=None)


def slownesses(looks: Sequence[Look], reference_ms: float | None) -> np.ndarray:
    """(n,) log of how much slower the machine was in each look than undisturbed; 0 where that is not known."""
    if reference_ms is None:
        return np.zeros(len(looks))
    ratios = [1.0 if look.sentinel_ms is None else look.sentinel_ms / reference_ms for look in looks]
    return np.log(np.maximum(ratios, 1.0))


def undisturbed(looks: Sequence[Look], reference_ms: float | None, uneven: float = 1.0) -> Undisturbed:
    """Puts looks at one network together.

    log look = log undisturbed + sensitivity * log slowness + error, by Bayesian least squares. Other work only ever
    lengthens a look, also between two looks at the sentinel: those that are too long by more than their error count
    less.

    Args:
        looks: at least one.
        reference_ms: the sentinel's undisturbed latency (`sentinel_reference`).
        uneven: variance of looks over the expected one, where other networks tell (`unevenness`).
    """
    slow = slownesses(looks, reference_ms)
    disturbances = np.minimum([look.disturbance for look in looks], 1.0)
    variances = LOOK_ERROR**2 + (SLOWNESS_ERROR * slow) ** 2 + (DISTURBANCE_ERROR * disturbances) ** 2
    variances *= uneven
    logs = np.log([look.latency_ms for look in looks])
    design = np.stack([np.ones_like(slow), slow], axis=1)
    expected, spread = SENSITIVITY
    prior = np.diag([0.0, spread**-2])
    robust = np.ones_like(slow)
    for _ in range(REWEIGHTINGS):
        precision = design.T @ (design * (robust / variances)[:, None]) + prior
        mean = np.linalg.solve(precision, design.T @ (logs * robust / variances) + prior @ np.array([0.0, expected]))
        errors = (logs - design @ mean) / np.sqrt(variances)
        robust = np.where(errors > 1, 1 / (1 + (errors - 1) ** 2), 1.0)
    scatter = float((np.sqrt(robust) * errors**2).sum())  # what counts less still says how uneven the machine is
    scale = (EXPECTED_LOOKS + scatter) / (EXPECTED_LOOKS + len(looks) - 1)
    shortened = np.sort(logs - mean[1] * slow)
    excess = float(shortened[(len(looks) - 1) // 2] - shortened[0]) - math.sqrt(float(variances.mean()))
    missed = EXCESS_ERROR * max(excess, 0.0) / len(looks)
    return Undisturbed(
        latency_ms=math.exp(mean[0]),
        repeatability=math.hypot(math.sqrt(scale * float(np.linalg.inv(precision)[0, 0])), missed),
        slowness=float(np.expm1(slow.mean())),
        looks=len(looks),
        scatter=scatter,
        factors=np.exp(-mean[1] * slow),
        weights=robust / variances,
    )


def unevenness(found: Sequence[Undisturbed]) -> float:
    """Variance of looks over the expected one, by the looks at several networks."""
    freedom = sum(each.looks - 1 for each in found)
    return (EXPECTED_LOOKS + sum(each.scatter for each in found)) / (EXPECTED_LOOKS + freedom)


class SentinelWatch:
    """Looks at the sentinel before and after each look at a network.

    Attributes:
        sentinels_ms: what the sentinel took, in order.
    """

    def __init__(self, look_at_sentinel: Callable[[], float]) -> None:
        self.sentinels_ms: list[float] = []
        self._look = look_at_sentinel
        self._looked = -math.inf

    def look(self) -> float:
        """Looks at the sentinel once."""
        self.sentinels_ms.append(self._look())
        self._looked = time.monotonic()
        return self.sentinels_ms[-1]

    def around(self, look: Callable[[], T]) -> tuple[T, float]:
        """What `look` gives, and the sentinel's latency around it: the geometric mean of before and after."""
        fresh = time.monotonic() - self._looked < FRESH_S
        before = self.sentinels_ms[-1] if fresh else self.look()
        found = look()
        return found, math.sqrt(before * self.look())
