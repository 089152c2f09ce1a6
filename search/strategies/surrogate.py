"""Proposes, out of several hundred candidates, the one with the highest expected improvement.

What is expected of a candidate, and how surely, a surrogate of the accuracies seen so far tells. The candidates are
mutants of the best so far, and some of what evolution found by the prior.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...predictors.accuracy.surrogate import AccuracyObservation
from ...search_space.config import LowFormerConfig
from ..objectives.base import Objective
from ..objectives.pareto import order
from .base import Opening, SearchState, Strategy, Suggestion

MOST_OF_A_RUNG = 40  # so many of each rung are considered for the best of all
PARENTS = 8
MUTANTS = 200
SCALED, SCALED_SHARE = 3, 5  # published models scaled to the budget, at most; one trial in so many
FOUND = 100  # of those that evolution found by the prior, drawn anew each time
MIN_OBSERVATIONS = 2  # that a surrogate needs


def initial(trials: int) -> int:
    """How many of so many candidates are chosen before the surrogate is asked; half of them span the sizes."""
    return min(trials, max(4, min(16, trials // 4)))


class SurrogateStrategy(Strategy):
    """Expected improvement under a surrogate of the accuracies so far. The default on the user's data."""

    name = "surrogate"

    def check(self, objective: Objective) -> None:
        if not objective.learns:
            raise ValueError("strategy 'surrogate' learns from accuracies on your data: it needs data (--data)")

    def opening(self, state: SearchState) -> Opening:
        """A quarter of the candidates, at most 16: half of them span the sizes, half are the best by the prior.

        Candidates that were enqueued from outside take their places. Published models scaled to the budget come on top:
        they are what a user would take without a search.
        """
        first = initial(state.trials)
        enqueued = state.history.roles["enqueued"]
        explore = max(min(-(-first // 2) if first > 1 else 0, first - enqueued), 0)
        scaled = min(SCALED, state.trials // SCALED_SHARE)
        return Opening(explore, max(first - enqueued - explore, 0), scaled)

    def propose(self, state: SearchState, rng: np.random.Generator) -> Suggestion | None:
        config = self._promising(state, rng) or state.objective.goal.exploiting(
            state.pool, state.history.tried, state.history.proposed_for_budget()
        )
        return None if config is None else Suggestion(config)

    def _promising(self, state: SearchState, rng: np.random.Generator) -> LowFormerConfig | None:
        history, pool, goal = state.history, state.pool, state.objective.goal
        seen = state.surrogate.observations()
        if len(seen) < MIN_OBSERVATIONS:
            return None
        known = {observation.config.id for observation in seen}
        # What trains now counts as if it had reached what is expected of it, so that others differ from it.
        training = [proposal.config for proposal in history.open.values() if proposal.config.id not in known]
        surrogate = state.surrogate.fitted().believing(training)
        trained = [*self._best_trained(state, seen), *training]
        means = surrogate.mean(trained)
        best_first = [trained[i] for i in order(goal.ranking(means, trained, pool.latency_ms))]
        candidates, _ = pool.mutants(best_first[:PARENTS], rng, MUTANTS)
        found = pool.found.configs
        drawn = rng.choice(len(found), min(FOUND, len(found)), replace=False)
        distinct = {config.id: config for config in (*candidates, *(found[i] for i in drawn))}
        candidates = [config for name, config in distinct.items() if name not in history.tried]
        if not candidates:
            return None
        mean, spread = surrogate.predict(candidates)
        gain = goal.improvement(mean, spread, candidates, means, trained, pool)
        return candidates[int(np.argmax(gain))]

    def _best_trained(self, state: SearchState, seen: Sequence[AccuracyObservation]) -> list[LowFormerConfig]:
        """The best at each rung, of which the best of all and the parents are chosen."""
        best: dict[str, LowFormerConfig] = {}
        for rung in {observation.rung for observation in seen}:
            here = [observation for observation in seen if observation.rung == rung]
            accuracies, configs = [o.accuracy for o in here], [o.config for o in here]
            ranked = state.objective.goal.best_first(accuracies, configs, state.pool.latency_ms)
            best |= {config.id: config for config in ranked[:MOST_OF_A_RUNG]}
        return list(best.values())
