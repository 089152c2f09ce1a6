"""Asynchronous successive halving: every candidate trains a little, the better ones go on.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934. Optuna's own pruner of
that kind serves studies with one objective only; here candidates are ranked by as many as there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..objectives.pareto import order

RungScores = Mapping[int, Sequence[float]]
RungComparison = Callable[[int, Sequence[int]], NDArray[np.float64]]

MOST_COMPARED = 500  # of a rung the latest are compared, so that what a decision costs is bounded


@dataclass(frozen=True)
class Rungs:
    """Shares of a whole training at which candidates are compared; of those that reach one, 1 in `factor` goes on.

    Attributes:
        count: rungs, the whole training included; 1 trains every candidate to the end.
        factor: of two neighbouring shares, and of the candidates that reach them.
        least: at least so many go on from every rung in the end, if as many reached it.
    """

    count: int = 3
    factor: int = 3
    least: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or self.factor < 2 or self.least < 1:
            raise ValueError(f"rungs: at least 1, a factor of at least 2 and one that goes on, given {self}")

    @property
    def shares(self) -> tuple[float, ...]:
        """Ascending; the last is 1."""
        return tuple(float(self.factor) ** (rung + 1 - self.count) for rung in range(self.count))

    @property
    def last(self) -> int:
        return self.count - 1

    def trainings(self, candidates: int) -> float:
        """What so many candidates cost, in whole trainings, when all have gone as far as they may."""
        total, reach, before = 0.0, candidates, 0.0
        for share in self.shares:
            total += reach * (share - before)
            reach, before = self.allowed(reach, closing=True), share
        return total

    def reach_end(self, candidates: int) -> int:
        """How many of so many candidates are trained to the end."""
        for _ in range(self.last):
            candidates = self.allowed(candidates, closing=True)
        return candidates

    def allowed(self, reached: int, *, closing: bool) -> int:
        """How many may go on of the candidates that reached a rung; rounded up once no more will come (`closing`)."""
        if not closing:
            return reached // self.factor
        return min(reached, max(self.least, -(-reached // self.factor)))

    def promotable(
        self,
        judged: Sequence[RungScores],
        training: Mapping[int, int] | None = None,
        *,
        closing: bool = False,
        worth: RungComparison | None = None,
    ) -> int | None:
        """The candidate that should go on next, or None: from the highest rung where one may.

        Once no new candidates come (`closing`), from the lowest: a rung closes when nothing below can still reach it.

        Args:
            judged: for each rung the objectives, higher is better, of all candidates judged there, by number, in the
                order in which they came.
            training: the candidates that train now, and the rung that each will be judged at.
            worth: (n, objectives) of n candidates of a rung, to compare them by; as they were judged, if None.
        """
        training = training or {}

        def as_judged(rung: int, names: Sequence[int]) -> NDArray[np.float64]:
            return np.array([judged[rung][name] for name in names], dtype=np.float64)

        worth = worth or as_judged
        for rung in range(self.last - 1, -1, -1):
            if (found := self._best_left(rung, judged, training, worth, closing=False)) is not None:
                return found
        for rung in range(self.last if closing else 0):
            if any(next_rung <= rung for next_rung in training.values()):
                return None
            if (found := self._best_left(rung, judged, training, worth, closing=True)) is not None:
                return found
        return None

    def _best_left(
        self,
        rung: int,
        judged: Sequence[RungScores],
        training: Mapping[int, int],
        worth: RungComparison,
        *,
        closing: bool,
    ) -> int | None:
        here, above = judged[rung], judged[rung + 1]
        allowed = self.allowed(len(here), closing=closing)
        gone = len(here.keys() & above.keys()) + sum(name in here and name not in above for name in training)
        # No more go on than a share, even where each new candidate is better than all before: the cost is as planned.
        if gone >= allowed:
            return None
        names = list(here)[-MOST_COMPARED:]
        best_first = order(worth(rung, names))
        return next(
            (
                names[index]
                for index in best_first[:allowed]
                if names[index] not in above and names[index] not in training
            ),
            None,
        )
