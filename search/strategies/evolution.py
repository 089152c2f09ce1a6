"""Evolution: mutants of the best so far, by the prior and by what their parents reached beyond it."""

from __future__ import annotations

import numpy as np

from ...search_space.config import LowFormerConfig
from ..feasible_pool import most_varied
from .base import Opening, SearchState, Strategy, Suggestion

PARENTS = 3
DRAWN = 2000  # mutants that are compared
PROMISING = 20  # one in so many of them is promising, at least MIN_PROMISING; of these the most different one is taken
MIN_PROMISING = 5


def division(trials: int) -> tuple[int, int, int]:
    """How many of so many candidates explore the sizes, exploit the budget, and are children of the best."""
    explore = trials * 3 // 8
    exploit = (trials - explore + 1) // 2
    return explore, exploit, trials - explore - exploit


class Evolution(Strategy):
    """Mutants of the best so far. The default where there is no data to learn from."""

    name = "evolution"

    def opening(self, state: SearchState) -> Opening:
        """Three eighths of the candidates span the sizes, a third exploits the budget; then come second seeds, by which
        the parents are chosen better. With rungs nothing is complete by then, and second seeds come last."""
        explore, exploit, _ = division(state.trials)
        return Opening(explore, exploit, second_seeds=state.rung_count == 1)

    def propose(self, state: SearchState, rng: np.random.Generator) -> Suggestion | None:
        config = self._child(state, rng) or state.objective.goal.exploiting(
            state.pool, state.history.tried, state.history.proposed_for_budget()
        )
        return None if config is None else Suggestion(config)

    def _child(self, state: SearchState, rng: np.random.Generator) -> LowFormerConfig | None:
        """A promising, different mutant of the best so far."""
        history, pool, objective = state.history, state.pool, state.objective
        if state.rung_count == 1:
            estimates = objective.estimates(history, state.surrogate)
        else:
            estimates = objective.estimates_at_first_rung(history)
        parents = objective.leaders(history, state.surrogate, pool)[:PARENTS]
        if not parents:
            return None
        configs, origin = pool.mutants(parents, rng, DRAWN)
        fresh = [i for i, config in enumerate(configs) if config.id not in history.tried]
        if not fresh:
            return None
        configs, origin = [configs[i] for i in fresh], origin[fresh]
        expected = np.empty(len(configs))
        for index, parent in enumerate(parents):
            own = np.flatnonzero(origin == index)
            if len(own):
                expected[own] = objective.expected(estimates, parent.id, [configs[i] for i in own])
        by_id = {config.id: config for config in history.configs()}
        seen = np.array([estimates.value(name) for name in estimates.trained])
        seen_configs = [by_id[name] for name in estimates.trained]
        gain = objective.goal.improvement(expected, None, configs, seen, seen_configs, pool)
        promising = np.argsort(-gain, kind="stable")[: max(MIN_PROMISING, len(configs) // PROMISING)]
        return most_varied(pool.space, [configs[i] for i in promising], history.proposed_for_budget())
