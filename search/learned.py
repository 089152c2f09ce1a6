"""Candidates by what a surrogate of the accuracies seen so far expects of them, and by how sure it is.

A few span the sizes and a few are the best by the prior; then each is, of some hundreds within the budget (mutants
of the best so far, and what evolution found by the prior), the one with the greatest expected improvement, of the best
or of the front.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..predictors.surrogate import AccuracySurrogate, Observation
from ..search_space.config import LowFormerConfig
from ..search_space.space import SearchSpace
from .halving import Rungs
from .journal import Proposal
from .pareto import expected_front_improvement, expected_improvement, order
from .proposals import Proposer, stream
from .result import EvaluationResult, Role
from .strategy import children

Floats = NDArray[np.float64]

HYPERPARAMETER_OBSERVATIONS = 150  # they change little with more, and a fit costs the cube

OF_A_RUNG = 40  # so many of each rung may be the best of all
PARENTS = 8
MUTANTS = 200
FOUND = 100  # of those that evolution found by the prior, drawn anew each time


def initial(trials: int) -> int:
    """How many of `trials` candidates are chosen before the surrogate is asked; half of them span the sizes."""
    return min(trials, max(4, min(16, trials // 4)))


class Learned(Proposer):
    """The default on the user's data."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._failed, self._counts = 0, (0, 0)  # as of what was observed, and how much of the logs that is
        self._observed: tuple[list[Observation], list[Observation]] = ([], [])
        self._encoded: dict[str, tuple[Floats, Floats]] = {}  # what surrogates know of configurations, by id
        self._fitted: tuple[tuple[int, ...], Floats] | None = None  # how much came before, and hyperparameters

    def next_one(self, number: int) -> Proposal | None:
        count = self.journal.roles
        chosen = sum(count[role] for role in ("explore", "exploit", "child", "enqueued"))
        if chosen >= self.settings.trials:
            return self.second_seed(number)
        first = initial(self.settings.trials)
        explore = -(-first // 2)
        role: Role = "child"
        if count["explore"] < min(explore, first - count["enqueued"]):
            config, role = self.exploring(count["explore"], explore), "explore"
        elif chosen < first:
            config, role = self.exploiting(), "exploit"
        else:
            config = self._promising(number) or self.exploiting()
        return None if config is None else Proposal(config, role, self.training_seed(number))

    def _promising(self, number: int) -> LowFormerConfig | None:
        seen = self.observations()
        if len(seen) < 2:
            return None
        surrogate = AccuracySurrogate(
            self.space,
            seen,
            rungs=Rungs.of(self.settings).count,
            hyperparameters=self._hyperparameters(seen),
            fit=False,
            known=self._encoded,
        )
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

    def observations(self) -> list[Observation]:
        """All accuracies so far: at rungs, then at the end, each as they came."""
        logs = self.journal.rung_log, self.journal.result_log
        failed = self.journal.statuses["failed"]
        if failed != self._failed:  # what they had reached before counts no more
            self._failed, self._counts, self._observed = failed, (0, 0), ([], [])
        self._observed[0].extend(self._at_rungs(logs[0][self._counts[0] :]))
        self._observed[1].extend(self._at_the_end(logs[1][self._counts[1] :]))
        self._counts = len(logs[0]), len(logs[1])
        return [*self._observed[0], *self._observed[1]]

    def _at_rungs(self, entries: Iterable[Mapping[str, Any]]) -> Iterator[Observation]:
        journal = self.journal
        for entry in entries:
            trial = entry["trial"]
            if trial in journal.open:
                yield Observation(journal.open[trial].config, entry["rung"], entry["accuracy"])
            elif (result := journal.results.get(trial)) is not None and result.status in ("complete", "pruned"):
                yield Observation(result.config, entry["rung"], entry["accuracy"])

    def _at_the_end(self, results: Iterable[EvaluationResult]) -> Iterator[Observation]:
        last = Rungs.of(self.settings).last
        for result in results:
            if result.status == "complete" and result.accuracy is not None and not result.reason:
                yield Observation(result.config, last, result.accuracy)

    def _hyperparameters(self, seen: Sequence[Observation]) -> Floats:
        """Fitted on what came first, up to a count that goes on in steps of a tenth: they change little, and a fit
        costs more than all else. So they depend on what came, not on when this was asked."""
        logs = self.journal.rung_log, self.journal.result_log
        at_rungs, results = (_step(len(log)) for log in logs)
        key = (at_rungs, results, self.journal.statuses["failed"])
        if self._fitted is None or self._fitted[0] != key:
            first = [*self._at_rungs(logs[0][:at_rungs]), *self._at_the_end(logs[1][:results])]
            first = first if len(first) > 1 else list(seen)
            self._fitted = key, fitted(self.space, first, Rungs.of(self.settings).count, self._encoded)
        return self._fitted[1]


def _step(count: int) -> int:
    """The last step up to `count`: all numbers up to 10, then each a tenth more than the one before."""
    step = min(count, 10)
    while step + step // 10 <= count and step >= 10:
        step += step // 10
    return step


def fitted(
    space: SearchSpace,
    observations: Sequence[Observation],
    rungs: int,
    known: dict[str, tuple[Floats, Floats]] | None = None,
) -> Floats:
    """The surrogate's hyperparameters, by at most `HYPERPARAMETER_OBSERVATIONS` of at least 2 observations."""
    thinned = observations[:: -max(1, -(-len(observations) // HYPERPARAMETER_OBSERVATIONS))][::-1]
    return AccuracySurrogate(space, thinned, rungs=rungs, known=known).hyperparameters


def learn(space: SearchSpace, observations: Sequence[Observation], rungs: int) -> AccuracySurrogate:
    """The surrogate of `observations`, of which it needs 2. A function of what is given, and of nothing else."""
    known: dict[str, tuple[Floats, Floats]] = {}
    hyperparameters = fitted(space, observations, rungs, known)
    return AccuracySurrogate(space, observations, rungs=rungs, hyperparameters=hyperparameters, fit=False, known=known)
