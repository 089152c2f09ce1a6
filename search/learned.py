"""Candidates by what a surrogate of the accuracies seen so far expects of them, and by how sure it is.

A few span the sizes and a few are the best by the prior; then each is, of some hundreds within the budget (mutants
of the best so far, and what evolution found by the prior), the one with the greatest expected improvement, of the best
or of the front.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..predictors.surrogate import AccuracySurrogate, Observation
from ..search_space.config import LowFormerConfig
from ..search_space.space import SearchSpace
from .halving import Rungs
from .journal import Proposal
from .pareto import expected_front_improvement, expected_improvement, order
from .proposals import Proposer, stream
from .result import Role
from .strategy import children

Floats = NDArray[np.float64]

HYPERPARAMETER_OBSERVATIONS = 150  # they change little with more, and a fit costs the cube

OF_A_RUNG = 60  # so many of each rung may be the best of all
PARENTS = 8
MUTANTS = 300
FOUND = 200  # of those that evolution found by the prior, drawn anew each time


def initial(trials: int) -> int:
    """How many of `trials` candidates are chosen before the surrogate is asked; half of them span the sizes."""
    return min(trials, max(4, min(16, trials // 4)))


class Learned(Proposer):
    """The default on the user's data."""

    @cached_property
    def _encoded(self) -> dict[str, tuple[Floats, Floats]]:
        """By configuration what the surrogate knows of it, kept from one surrogate to the next."""
        return {}

    def next_one(self, number: int, count: Counter[str], under_way: Mapping[int, Proposal]) -> Proposal | None:
        chosen = sum(count[role] for role in ("explore", "exploit", "child", "enqueued"))
        if chosen >= self.settings.trials:
            return self.second_seed(number, under_way)
        first = initial(self.settings.trials)
        explore = -(-first // 2)
        role: Role = "child"
        if count["explore"] < min(explore, first - count["enqueued"]):
            config, role = self.exploring(count["explore"], explore, under_way), "explore"
        elif chosen < first:
            config, role = self.exploiting(under_way), "exploit"
        else:
            config = self._promising(number, under_way) or self.exploiting(under_way)
        return None if config is None else Proposal(config, role, self.training_seed(number))

    def _promising(self, number: int, under_way: Mapping[int, Proposal]) -> LowFormerConfig | None:
        seen = self.observations(under_way)
        if len(seen) < 2:
            return None
        rungs = Rungs.of(self.settings).count
        surrogate = learn(self.space, seen, rungs, self._encoded)
        known = {observation.config.id for observation in seen}
        blind = [proposal.config for proposal in under_way.values() if proposal.config.id not in known]
        if blind:
            seen = [*seen, *believing(surrogate, blind)]
            surrogate = AccuracySurrogate(
                self.space, seen, rungs=rungs, hyperparameters=surrogate.hyperparameters, fit=False, known=self._encoded
            )
        trained = self._best_trained(seen)
        means, _ = surrogate.predict(trained)
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
        tried = self.tried(under_way)
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
        """At each rung the best: who could be the best of all, or a parent."""
        best: dict[str, LowFormerConfig] = {}
        for rung in {observation.rung for observation in seen}:
            here = [observation for observation in seen if observation.rung == rung]
            ranked = self.best_first([o.config for o in here], [o.accuracy for o in here])
            best |= {config.id: config for config in ranked[:OF_A_RUNG]}
        return list(best.values())

    def observations(self, under_way: Mapping[int, Proposal]) -> list[Observation]:
        """All accuracies so far, at rungs and at the end, in the order of the trials."""
        last = Rungs.of(self.settings).last
        configs = {trial: proposal.config for trial, proposal in under_way.items()}
        results = self.journal.results
        configs |= {
            trial: result.config for trial, result in results.items() if result.status in ("complete", "pruned")
        }
        seen = []
        for trial in sorted(configs):
            for entry in self.journal.rungs.get(trial, ()):
                seen.append(Observation(configs[trial], entry["rung"], entry["accuracy"]))
            known = results.get(trial)
            if known is not None and known.accuracy is not None and not known.reason:
                seen.append(Observation(known.config, last, known.accuracy))
        return seen


def learn(
    space: SearchSpace,
    observations: Sequence[Observation],
    rungs: int,
    known: dict[str, tuple[Floats, Floats]] | None = None,
) -> AccuracySurrogate:
    """The surrogate of `observations`, its hyperparameters fitted on at most `HYPERPARAMETER_OBSERVATIONS` of them.

    A function of what is given, and of nothing else. Raises ValueError for fewer than 2 observations.
    """
    step = -(-len(observations) // HYPERPARAMETER_OBSERVATIONS)
    few = AccuracySurrogate(space, observations[::-step][::-1] if step > 1 else observations, rungs=rungs, known=known)
    if step == 1:
        return few
    return AccuracySurrogate(
        space, observations, rungs=rungs, hyperparameters=few.hyperparameters, fit=False, known=known
    )


def believing(surrogate: AccuracySurrogate, under_way: Sequence[LowFormerConfig]) -> list[Observation]:
    """What candidates under way are taken to reach while nobody knows, so that the next one differs from them.

    Source: Ginsbourger et al., "Kriging is well-suited to parallelize optimization" (2010), the kriging believer.
    """
    if not under_way:
        return []
    means, _ = surrogate.predict(under_way)
    accuracies = 1 / (1 + np.exp(-means))
    return [
        Observation(config, surrogate.highest_rung, float(accuracy))
        for config, accuracy in zip(under_way, accuracies, strict=True)
    ]
