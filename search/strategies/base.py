"""What is trained next, given what is known so far: what all strategies share, and evolution.

A run has some candidates that span the sizes, some that evolution finds best for the budget, then those that its
strategy proposes by what was trained so far, and a few that are trained again with a second seed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...predictors.accuracy.prior import AccuracyPrior
from ...search_space.config import LowFormerConfig
from ...search_space.space import SearchSpace
from ..objectives.estimates import Objective, Observation, observations
from ..objectives.experience import Experience
from ..objectives.pareto import expected_front_improvement, order
from ..settings import SearchSettings
from ..trials.history import Journal, Proposal
from ..trials.records import EvaluationResult
from .feasible import Front, Predictor, children, most_varied, surely_over

USED = 0.9  # without the user's data, the answer uses at least this share of the budget where a good candidate does

FRONT_SPREAD = 0.2  # points that the objective expected of a child of the front is taken to be uncertain by

_STREAMS = ("front", "fastest", "slowest", "children", "training", "dry run", "sampler")


def stream(settings: SearchSettings, name: str, trial: int = 0) -> np.random.Generator:
    """Randomness comes from (seed, what for, trial number), never from stored state."""
    return np.random.default_rng([settings.seed, _STREAMS.index(name), trial])


def division(trials: int) -> tuple[int, int, int]:
    """How many of `trials` distinct candidates explore the sizes, exploit the budget, and are children of the best."""
    explore = trials * 3 // 8
    exploit = (trials - explore + 1) // 2
    return explore, exploit, trials - explore - exploit


class Proposer(ABC):
    """Chooses by what evolution found (`front`) and what was trained (`journal`)."""

    def __init__(
        self,
        settings: SearchSettings,
        space: SearchSpace,
        predictor: Predictor,
        prior: AccuracyPrior,
        front: Front,
        journal: Journal,
    ) -> None:
        self.settings, self.space, self.predictor = settings, space, predictor
        self.prior, self.front, self.journal = prior, front, journal
        self.experience = Experience(settings, space, journal)
        self.nothing_fits = False  # as measured on the way: then nothing more is proposed

    def latency_ms(self, configs: Sequence[LowFormerConfig]) -> NDArray[np.float64]:
        """(n,) predicted latency, or as much of the budget as a limit takes."""
        return np.asarray(self.predictor.quantile_ms(configs, 0.5), float)

    def training_seed(self, number: int) -> int:
        """Of trial `number`."""
        return int(stream(self.settings, "training", number).integers(2**31))

    def propose(self, number: int) -> Proposal | None:
        """The candidate for trial `number`; None if there is none (now)."""
        return None if self._hopeless or self.nothing_fits else self.next_one(number)

    @property
    def _hopeless(self) -> bool:
        """Whether so much has failed that more will."""
        return self.journal.statuses["failed"] > 2 + (self.settings.trials + self.settings.repeats) // 4

    @abstractmethod
    def next_one(self, number: int) -> Proposal | None:
        """The candidate for trial `number`, whatever has failed."""

    def repeat(self, number: int) -> Proposal | None:
        """A candidate to train with a second seed, or None if that is done or there is none.

        With the user's data the best ones, so that the answer is not the luckiest one; without, some that lie evenly
        in size, since the proxy's reliability is measured with them.
        """
        complete = self.journal.complete()
        repeated = sum(result.role == "repeat" for result in complete)
        repeated += sum(proposal.role == "repeat" for proposal in self.journal.open.values())
        # A second training that failed counts too: it is not tried a third time.
        times = Counter(r.config_id for r in self.journal.results.values() if r.status in ("complete", "failed"))
        times.update(proposal.config.id for proposal in self.journal.open.values())
        once = {result.config_id: result for result in complete if times[result.config_id] == 1}
        if once:  # what was measured meanwhile may have shown that some do not fit
            quantile = self.predictor.quantile_ms([r.config for r in once.values()], self.settings.confidence)
            over = surely_over(np.asarray(quantile, float), self.settings.latency_budget_ms)
            once = {name: result for (name, result), out in zip(once.items(), over, strict=True) if not out}
        if repeated >= self.settings.repeats or not once or self._hopeless:
            return None
        seed = self.training_seed(number)
        if self.settings.data is not None:
            fresh, objective = sorted(once.values(), key=lambda result: result.trial), self.objective()
            best_first = self.best_first([r.config for r in fresh], [objective.value(r.config_id) for r in fresh])
            return Proposal(best_first[0], "repeat", seed)
        distinct = list({result.config_id: result for result in complete}.values())
        distinct.sort(key=lambda result: (result.macs, result.trial))
        place = (len(distinct) - 1) * repeated / max(self.settings.repeats - 1, 1)
        ranked = sorted(range(len(distinct)), key=lambda i: (abs(i - place), i))
        return Proposal(next(distinct[i].config for i in ranked if distinct[i].config_id in once), "repeat", seed)

    def second_seed(self, number: int) -> Proposal | None:
        """`repeat`, where it is time for that: with rungs the driver says when, else once all others are trained."""
        if self.settings.rung_count > 1 or any(proposal.role != "repeat" for proposal in self.journal.open.values()):
            return None
        return self.repeat(number)

    def exploring(self, position: int, of: int) -> LowFormerConfig | None:
        """The `position`-th of those that span the sizes."""
        return self.front.nearest_in_size(self.front.size_target(position, of), self.journal.tried)

    def aimed(self) -> list[LowFormerConfig]:
        """The candidates for the budget so far, finished or under way."""
        roles = ("exploit", "child")
        done = [result.config for result in self.journal.results.values() if result.role in roles]
        return done + [proposal.config for proposal in self.journal.open.values() if proposal.role in roles]

    def exploiting(self) -> LowFormerConfig | None:
        """Of the best that evolution found for the budget, the best, then the most different ones; of a front's, those
        for latencies spread evenly."""
        tried = self.journal.tried
        if self.settings.pareto:
            return self.front.best_within(evenly(len(self.aimed())), tried)
        band = self.front.band()
        by_score = band[np.argsort(-self.front.score[band], kind="stable")]
        candidates = [self.front.configs[i] for i in by_score[:512] if self.front.configs[i].id not in tried]
        if candidates:
            return most_varied(self.space, candidates, self.aimed())
        for i in np.argsort(-self.front.score, kind="stable"):
            if self.front.configs[i].id not in tried:
                return self.front.configs[i]
        return None

    def objective(self) -> Objective:
        """What is maximized, as all that was trained tells."""
        return self._objective(self.journal.results, self.experience.accuracies() if self.settings.data else None)

    def reached(self, result: EvaluationResult) -> float:
        """What is maximized, in percent, as far as `result` and those before tell; on the user's data the candidate's
        own trainings alone, not what others tell of it."""
        return self._objective({**self.journal.results, result.trial: result}).value(result.config_id)

    def _objective(
        self, results: Mapping[int, EvaluationResult], learned: Mapping[str, float] | None = None
    ) -> Objective:
        return Objective(
            observations(results[number] for number in sorted(results)),
            on_user_data=self.settings.data is not None,
            learned=learned,
        )

    def ranked(self, objective: Objective) -> list[EvaluationResult]:
        """First trial of each trained candidate that may be the answer, the best objective first.

        Without the user's data, accuracy within the family is bought with compute; so candidates rank behind that
        leave more than a tenth of the budget unused or that random search would beat by the prior, as long as there
        are others.
        """
        first: dict[str, EvaluationResult] = {}
        for result in self.journal.complete():
            first.setdefault(result.config_id, result)
        candidates = list(first.values())
        using = set(first)
        if self.settings.data is None and not self.settings.pareto:
            enough_ms = USED * self.settings.latency_budget_ms
            taken_ms = self.predictor.quantile_ms([result.config for result in candidates], self.settings.confidence)
            using = {
                result.config_id
                for result, taken in zip(candidates, taken_ms, strict=True)
                if taken >= enough_ms and (result.prior_top1 or 0.0) > self.front.random_best
            }
        return sorted(
            candidates,
            key=lambda result: (result.config_id not in using, -objective.value(result.config_id), result.trial),
        )

    def leaders(self) -> list[LowFormerConfig]:
        """The trained candidates, the best first; then those at rungs, by the highest rung and their accuracy there.

        With `pareto` the best are those on the front, then those behind it.
        """
        objective = self.objective()
        trained = self.ranked(objective)
        leaders = [result.config for result in trained]
        if self.settings.pareto:
            leaders = self.best_first(leaders, [objective.value(result.config_id) for result in trained])
        judged = [
            (self.journal.rungs[trial][-1], proposal.config)
            for trial, proposal in self.journal.open.items()
            if trial in self.journal.rungs
        ]
        for rung in sorted({entry["rung"] for entry, _ in judged}, reverse=True):
            here = sorted((e["trial"], e["accuracy"], config) for e, config in judged if e["rung"] == rung)
            leaders += self.best_first([config for *_, config in here], [accuracy for _, accuracy, _ in here])
        return leaders

    def best_first(self, configs: Sequence[LowFormerConfig], objective: Sequence[float]) -> list[LowFormerConfig]:
        """By what is maximized, or with `pareto` by fronts; ties as given."""
        ranking = np.asarray(objective, float)[:, None]
        if self.settings.pareto and len(configs):
            ranking = np.column_stack([ranking, -np.log(self.latency_ms(configs))])
        return [configs[i] for i in order(ranking)]


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


class Evolution(Proposer):
    """Mutants of the best so far, by the prior and by what their parents reached beyond it."""

    def next_one(self, number: int) -> Proposal | None:
        count = self.journal.roles
        explore, exploit, child = division(self.settings.trials)
        # Candidates from outside take the places of children.
        child -= count["enqueued"]
        seed = self.training_seed(number)
        if count["explore"] < explore:
            config = self.exploring(count["explore"], explore)
            return None if config is None else Proposal(config, "explore", seed)
        if count["exploit"] < exploit:
            config = self.exploiting()
            return None if config is None else Proposal(config, "exploit", seed)
        # With rungs nothing is complete yet: then second seeds come last, see `repeat`.
        if self.settings.rung_count == 1 and (repeated := self.repeat(number)) is not None:
            return repeated
        if self.settings.rung_count == 1 and count["repeat"] < self.settings.repeats and self.journal.open:
            return None
        if count["child"] < child:
            config = self._child(number) or self.exploiting()
            return None if config is None else Proposal(config, "child", seed)
        return None

    def _child(self, number: int) -> LowFormerConfig | None:
        """A promising, different mutant of the best so far."""
        objective = self.objective() if self.settings.rung_count == 1 else self._at_first_rung()
        parents = self.leaders()[:3]
        if not parents:
            return None
        configs, origin = children(
            self.space,
            self.predictor,
            parents,
            self.settings.latency_budget_ms,
            stream(self.settings, "children", number),
            confidence=self.settings.confidence,
            excluded=self.prior.beyond,
        )
        tried = self.journal.tried
        fresh = [i for i, config in enumerate(configs) if config.id not in tried]
        if not fresh:
            return None
        configs, origin = [configs[i] for i in fresh], origin[fresh]
        prior_top1 = self.prior.imagenet_top1(configs)
        expected = np.empty(len(configs))
        for index, parent in enumerate(parents):
            expected[origin == index] = objective.estimate(parent.id, prior_top1[origin == index])
        gain = expected
        if self.settings.pareto:
            known = list(objective.observed)
            by_id = {config.id: config for config in self._trained()}
            gain = expected_front_improvement(
                expected,
                np.full(len(expected), FRONT_SPREAD),
                self.latency_ms(configs),
                np.array([objective.value(name) for name in known]),
                self.latency_ms([by_id[name] for name in known]),
                self.settings.latency_budget_ms,
            )
        promising = np.argsort(-gain, kind="stable")[: max(5, len(configs) // 20)]
        return most_varied(self.space, [configs[i] for i in promising], self.aimed())

    def _trained(self) -> list[LowFormerConfig]:
        return [r.config for r in self.journal.results.values()] + [p.config for p in self.journal.open.values()]

    def _at_first_rung(self) -> Objective:
        """What is maximized as far as the first rung tells, where all candidates can be compared."""
        configs = {trial: result.config for trial, result in self.journal.results.items()}
        configs |= {trial: proposal.config for trial, proposal in self.journal.open.items()}
        judged = [trial for trial in self.journal.rungs if trial in configs]
        prior_top1 = self.prior.imagenet_top1([configs[trial] for trial in judged])
        seen = {
            configs[trial].id: Observation(configs[trial].id, float(top1), (self.journal.rungs[trial][0]["accuracy"],))
            for trial, top1 in zip(judged, prior_top1, strict=True)
        }
        return Objective(
            list(seen.values()),
            on_user_data=self.settings.data is not None,
        )


def typical(front: Front, trials: int, *, front_wanted: bool = False) -> Sequence[LowFormerConfig]:
    """The sizes that a run will train, in their proportions, for planning the proxy training."""
    explore = division(trials)[0]
    explored = [front.nearest_in_size(front.size_target(position, explore), ()) for position in range(explore)]
    best = front.configs[front.best_index()]
    if front_wanted:
        spread = [front.best_within(evenly(position), ()) for position in range(trials - explore)]
        return [config for config in (*explored, *spread) if config is not None]
    return [config for config in explored if config is not None] + [best] * (trials - explore)
