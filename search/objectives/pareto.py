"""Pareto fronts of accuracy against latency: finding them, ranking by them, and what a candidate would add to one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # type: ignore[import-untyped, unused-ignore]

from ..trials.candidate import Candidate

Floats = NDArray[np.float64]

REFERENCE = 1.1  # the slowest latency that counts, as a share of the budget: so the slow end is worth something too


def pareto_front(candidates: Sequence[Candidate], budget_ms: float = np.inf) -> list[Candidate]:
    """The candidates within the budget that no other one beats in objective without being slower, the fastest first.

    What was measured, or corrected by measurements, may have left the budget.
    """
    front: list[Candidate] = []
    within = (candidate for candidate in candidates if candidate.quantile_ms <= budget_ms)
    for candidate in sorted(within, key=lambda c: (c.latency_ms, -c.objective, c.trial)):
        if not front or candidate.objective > front[-1].objective:
            front.append(candidate)
    return front


def order(objectives: Floats) -> NDArray[np.intp]:
    """Sorts (n, m) objectives, m at most 2, higher is better; gives their indices, the best first.

    Two objectives rank by Pareto fronts (the candidates that none dominates, then those that only these dominate,
    and so on), within a front by crowding distance, the most isolated first (Deb et al., NSGA-II, 2002). Ties keep the
    order given.
    """
    if objectives.shape[1] == 1:
        return np.argsort(-objectives[:, 0], kind="stable")
    count = len(objectives)
    rank = np.zeros(count, dtype=np.intp)
    crowding = np.zeros(count)
    # By the first objective descending, nothing is dominated by what comes after it, and of each front before only the
    # largest second objective counts; these fall from front to front.
    largest: list[float] = []
    before: tuple[float, float] | None = None
    for i in np.lexsort((-objectives[:, 1], -objectives[:, 0])).tolist():
        values = float(objectives[i, 0]), float(objectives[i, 1])
        if values != before:  # equal ones share a front
            front = bisect_right(largest, -values[1])
            largest[front : front + 1] = [-values[1]]
            before = values
        rank[i] = front
    for front in range(len(largest)):
        members = np.flatnonzero(rank == front)
        crowding[members] = _crowding(objectives[members])
    return np.lexsort((np.arange(count), -crowding, rank))


def _crowding(values: Floats) -> Floats:
    """(n,) of (n, m) objectives of one front: the sum over the objectives of the gap between a point's neighbours."""
    total = np.zeros(len(values))
    for column in values.T:
        sequence = np.argsort(column, kind="stable")
        ordered = column[sequence]
        spread = ordered[-1] - ordered[0]
        if spread > 0:
            gaps = np.full(len(values), np.inf)
            gaps[1:-1] = (ordered[2:] - ordered[:-2]) / spread
            total[sequence] += gaps
    return total


def expected_improvement(mean: Floats, spread: Floats, best: float | Floats) -> Floats:
    """(n,) by how much a normal variable is expected to exceed `best`, from (n,) means and standard deviations."""
    ahead = (mean - best) / spread
    density = np.exp(-0.5 * ahead**2) / np.sqrt(2 * np.pi)
    gain: Floats = spread * (ahead * ndtr(ahead) + density)
    return gain


def expected_front_improvement(
    mean: Floats, spread: Floats, latency_ms: Floats, seen: Floats, seen_ms: Floats, budget_ms: float
) -> Floats:
    """(n,) by how much candidates are expected to enlarge the area under a front of objective over ln latency.

    The exact expected hypervolume improvement where one objective is certain: at every latency from the candidate's own
    on, its expected improvement over the best seen that is as fast.

    Args:
        mean, spread: (n,) of each candidate's objective, a normal variable; higher is better.
        latency_ms: (n,) of each candidate.
        seen, seen_ms: (m,) objectives and latencies known, m at least 1.
        budget_ms: the slowest that is of use; the area ends a little beyond (`REFERENCE`).
    """
    by_latency = np.argsort(seen_ms, kind="stable")
    steps = np.maximum.accumulate(seen[by_latency])
    # Where nothing is as fast, the least seen is what must be beaten.
    levels = np.concatenate([[seen.min()], steps])
    end = np.log(REFERENCE * budget_ms)
    starts = np.concatenate([[-np.inf], np.log(seen_ms[by_latency])])
    ends = np.concatenate([starts[1:], [np.inf]])
    widths = np.minimum(ends, end) - np.maximum(starts, np.log(latency_ms)[:, None])
    gains = expected_improvement(mean[:, None], spread[:, None], levels[None])
    area: Floats = (np.maximum(widths, 0.0) * gains).sum(axis=1)
    return area
