"""What a search is after: the best network within the budget, or the whole front of accuracy against latency."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...search_space.config import LowFormerConfig
from ..feasible_pool import FULL_USE, FeasiblePool, FeasibleSet, most_varied
from ..trials.candidate import Candidate
from .pareto import expected_front_improvement, expected_improvement, order, pareto_front

Floats = NDArray[np.float64]
LatencyMs = Callable[[Sequence[LowFormerConfig]], Floats]

# Points of the objective that an estimate without an error of its own is taken to be uncertain by, where a front is
# looked for. With none at all a front would be enlarged only by what is already certain to beat it.
FRONT_SPREAD = 0.2
_MOST_ANCHORS_COMPARED = 64  # of the best near the budget, among which anchors are chosen by variety


class Goal(ABC):
    """What candidates are wanted for, given what is maximized: how they compare, and what is proposed and measured."""

    front: ClassVar[bool]  # whether a front is wanted, of which the latency is an objective too
    directions: ClassVar[tuple[str, ...]]  # of the Optuna study's objectives
    default_rungs: ClassVar[int]  # on the user's data
    title: ClassVar[str]  # added to "TARGET within BUDGET"

    @abstractmethod
    def told(self, objective: float, latency_ms: float) -> tuple[float, ...]:
        """The values of the study's objectives."""

    @abstractmethod
    def comparable(self, value: float, latency_ms: float) -> tuple[float, ...]:
        """What candidates are compared by at a rung, higher is better."""

    @abstractmethod
    def ranking(self, values: Floats, configs: Sequence[LowFormerConfig], latency_ms: LatencyMs) -> Floats:
        """(n, objectives) what `order` ranks candidates by, from (n,) values of what is maximized."""

    def best_first(
        self, values: Sequence[float] | Floats, configs: Sequence[LowFormerConfig], latency_ms: LatencyMs
    ) -> list[LowFormerConfig]:
        """The candidates sorted by what is wanted; ties keep the order given."""
        if not len(configs):
            return []
        return [configs[i] for i in order(self.ranking(np.asarray(values, float), configs, latency_ms))]

    @abstractmethod
    def improvement(
        self,
        mean: Floats,
        spread: Floats | None,
        configs: Sequence[LowFormerConfig],
        seen: Floats,
        seen_configs: Sequence[LowFormerConfig],
        pool: FeasiblePool,
    ) -> Floats:
        """(n,) what untrained candidates are expected to add to what is known.

        Args:
            mean, spread: (n,) of what is maximized, normal variables; None where the estimate has no error of its own.
            configs: n candidates.
            seen, seen_configs: (m,) known values of what is maximized, and whose they are; m at least 1.
        """

    @abstractmethod
    def exploiting(
        self, pool: FeasiblePool, tried: Collection[str], chosen: Sequence[LowFormerConfig]
    ) -> LowFormerConfig | None:
        """The candidate to try next by what evolution found alone, or None if all were tried.

        Args:
            tried: ids of all candidates so far.
            chosen: those that were chosen to exploit the budget.
        """

    @abstractmethod
    def typical_exploiting(self, found: FeasibleSet, count: int) -> list[LowFormerConfig]:
        """Candidates as `count` of those that exploit the budget will be, for planning the trainings."""

    @abstractmethod
    def anchors(self, found: FeasibleSet, pool: FeasiblePool, count: int) -> list[LowFormerConfig]:
        """Different good candidates to measure before anything is trained."""

    @abstractmethod
    def shown(self, candidates: Sequence[Candidate], answer: Candidate | None, budget_ms: float) -> list[Candidate]:
        """The candidates that the table at the end shows."""


class BestWithinBudget(Goal):
    """The candidate with the highest objective within the budget."""

    front = False
    directions = ("maximize",)
    default_rungs = 3
    title = ""
    rows = 5  # of the table at the end

    def told(self, objective: float, latency_ms: float) -> tuple[float, ...]:
        return (objective,)

    def comparable(self, value: float, latency_ms: float) -> tuple[float, ...]:
        return (value,)

    def ranking(self, values: Floats, configs: Sequence[LowFormerConfig], latency_ms: LatencyMs) -> Floats:
        return values[:, None]

    def improvement(
        self,
        mean: Floats,
        spread: Floats | None,
        configs: Sequence[LowFormerConfig],
        seen: Floats,
        seen_configs: Sequence[LowFormerConfig],
        pool: FeasiblePool,
    ) -> Floats:
        """As in `Goal`; without errors the estimates themselves, which sort candidates alike."""
        return mean if spread is None else expected_improvement(mean, spread, float(seen.max()))

    def exploiting(
        self, pool: FeasiblePool, tried: Collection[str], chosen: Sequence[LowFormerConfig]
    ) -> LowFormerConfig | None:
        """Of the best that evolution found for the budget, the best, then the most different ones."""
        candidates = pool.found.near_best_left(tried)
        return most_varied(pool.space, candidates, chosen) if candidates else pool.found.best_left(tried)

    def typical_exploiting(self, found: FeasibleSet, count: int) -> list[LowFormerConfig]:
        return [found.configs[found.best_index()]] * count

    def anchors(self, found: FeasibleSet, pool: FeasiblePool, count: int) -> list[LowFormerConfig]:
        """Different ones of the best near the budget."""
        near = np.flatnonzero(found.quantile_ms >= FULL_USE * found.budget_ms)
        near = near if len(near) >= count else np.arange(len(found.configs))
        by_score = near[np.argsort(-found.score[near], kind="stable")[:_MOST_ANCHORS_COMPARED]]
        best = [found.configs[i] for i in by_score]
        anchors: list[LowFormerConfig] = []
        while len(anchors) < min(count, len(best)):
            anchors.append(most_varied(pool.space, [config for config in best if config not in anchors], anchors))
        return anchors

    def shown(self, candidates: Sequence[Candidate], answer: Candidate | None, budget_ms: float) -> list[Candidate]:
        """The answer and the next best."""
        first = [answer] if answer else []
        return first + [candidate for candidate in candidates if candidate != answer][: max(self.rows - len(first), 0)]


class ParetoFront(Goal):
    """The front of the objective against latency, up to the budget."""

    front = True
    directions = ("maximize", "minimize")
    default_rungs = 2  # a front consists of what was trained to the end: see experiments/strategies/
    title = ", accuracy against latency"

    def told(self, objective: float, latency_ms: float) -> tuple[float, ...]:
        return (objective, latency_ms)

    def comparable(self, value: float, latency_ms: float) -> tuple[float, ...]:
        return (value, -latency_ms)

    def ranking(self, values: Floats, configs: Sequence[LowFormerConfig], latency_ms: LatencyMs) -> Floats:
        return np.column_stack([values, -np.log(latency_ms(configs))])

    def improvement(
        self,
        mean: Floats,
        spread: Floats | None,
        configs: Sequence[LowFormerConfig],
        seen: Floats,
        seen_configs: Sequence[LowFormerConfig],
        pool: FeasiblePool,
    ) -> Floats:
        """As in `Goal`: the area that is expected to be added under the front of objective over ln latency."""
        spread = np.full(len(mean), FRONT_SPREAD) if spread is None else spread
        return expected_front_improvement(
            mean, spread, pool.latency_ms(configs), seen, pool.latency_ms(seen_configs), pool.budget_ms
        )

    def exploiting(
        self, pool: FeasiblePool, tried: Collection[str], chosen: Sequence[LowFormerConfig]
    ) -> LowFormerConfig | None:
        """The best for latencies that are spread evenly over the front."""
        return pool.found.best_within(evenly(len(chosen)), tried)

    def typical_exploiting(self, found: FeasibleSet, count: int) -> list[LowFormerConfig]:
        return _spread(found, count)

    def anchors(self, found: FeasibleSet, pool: FeasiblePool, count: int) -> list[LowFormerConfig]:
        """Good ones along the front."""
        return list({config.id: config for config in _spread(found, count)}.values())

    def shown(self, candidates: Sequence[Candidate], answer: Candidate | None, budget_ms: float) -> list[Candidate]:
        """The front."""
        return pareto_front(candidates, budget_ms)


def _spread(found: FeasibleSet, count: int) -> list[LowFormerConfig]:
    chosen = [found.best_within(evenly(position), ()) for position in range(count)]
    return [config for config in chosen if config is not None]


def evenly(position: int) -> float:
    """Shares of the way from one end to the other, each as far from those before as can be: 1, 0, 1/2, 1/4, 3/4, ..."""
    if position < 2:
        return 1.0 - position
    share, step = 0.0, 0.5
    number = position - 1
    while number:
        share += step * (number & 1)
        number, step = number >> 1, step / 2
    return share
