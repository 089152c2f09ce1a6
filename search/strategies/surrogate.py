"""Candidates by what a surrogate of the accuracies seen so far expects of them, and by how sure it is.

A few span the sizes and a few are the best by the prior; then each is, of some hundreds within the budget (mutants
of the best so far, and what evolution found by the prior), the one with the greatest expected improvement, of the best
or of the front.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...predictors.accuracy.surrogate import Observation
from ...search_space.config import LowFormerConfig
from ..objectives.pareto import expected_front_improvement, expected_improvement, order
from ..trials.history import Proposal
from ..trials.records import Role
from .base import Proposer, stream
from .feasible import children

OF_A_RUNG = 40  # so many of each rung may be the best of all
PARENTS = 8
MUTANTS = 200
FOUND = 100  # of those that evolution found by the prior, drawn anew each time


def initial(trials: int) -> int:
    """How many of `trials` candidates are chosen before the surrogate is asked; half of them span the sizes."""
    return min(trials, max(4, min(16, trials // 4)))


class Learned(Proposer):
    """The default on the user's data."""

    def next_one(self, number: int) -> Proposal | None:
        count = self.journal.roles
        chosen = sum(count[role] for role in ("explore", "exploit", "child", "enqueued"))
        if chosen >= self.settings.trials:
            return self.second_seed(number)
        first = initial(self.settings.trials)
        explore = -(-first // 2) if first > 1 else 0
        role: Role = "child"
        if count["explore"] < min(explore, first - count["enqueued"]):
            config, role = self.exploring(count["explore"], explore), "explore"
        elif chosen < first:
            config, role = self.exploiting(), "exploit"
        else:
            config = self._promising(number) or self.exploiting()
        return None if config is None else Proposal(config, role, self.training_seed(number))

    def _promising(self, number: int) -> LowFormerConfig | None:
        seen = self.experience.observations()
        if len(seen) < 2:
            return None
        surrogate = self.experience.surrogate()
        known = {observation.config.id for observation in seen}
        blind = [proposal.config for proposal in self.journal.open.values() if proposal.config.id not in known]
        surrogate = surrogate.believing(blind)
        trained = [*self._best_trained(seen), *blind]
        means = surrogate.mean(trained)
        rng = stream(self.settings, "children", number)
        seen_ms = self.latency_ms(trained) if self.settings.pareto else None
        ranking = means[:, None] if seen_ms is None else np.column_stack([means, -np.log(seen_ms)])
        best_first = [trained[i] for i in order(ranking)]
        candidates, _ = children(
            self.space,
            self.predictor,
            best_first[:PARENTS],
            self.settings.latency_budget_ms,
            rng,
            confidence=self.settings.confidence,
            count=MUTANTS,
        )
        drawn = rng.choice(len(self.front.configs), min(FOUND, len(self.front.configs)), replace=False)
        tried = self.journal.tried
        fresh = {config.id: config for config in (*candidates, *(self.front.configs[i] for i in drawn))}
        candidates = [config for name, config in fresh.items() if name not in tried]
        if not candidates:
            return None
        mean, spread = surrogate.predict(candidates)
        if seen_ms is None:
            gain = expected_improvement(mean, spread, float(means.max()))
        else:
            budget_ms = self.settings.latency_budget_ms
            gain = expected_front_improvement(mean, spread, self.latency_ms(candidates), means, seen_ms, budget_ms)
        return candidates[int(np.argmax(gain))]

    def _best_trained(self, seen: Sequence[Observation]) -> list[LowFormerConfig]:
        """At each rung the best, of which the best of all and parents are chosen."""
        best: dict[str, LowFormerConfig] = {}
        for rung in {observation.rung for observation in seen}:
            here = [observation for observation in seen if observation.rung == rung]
            ranked = self.best_first([o.config for o in here], [o.accuracy for o in here])
            best |= {config.id: config for config in ranked[:OF_A_RUNG]}
        return list(best.values())
