"""The base class of all objectives: what a search maximizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...evaluators.tasks import Metric
from ...predictors.accuracy.prior import AccuracyPrior
from ...search_space.config import LowFormerConfig
from ..feasible_pool import FeasiblePool
from ..trials.candidate import Candidate
from ..trials.history import History
from ..trials.records import EvaluationResult
from .estimates import Estimates, TrainedCandidate, trained_candidates
from .goal import Goal
from .run_surrogate import RunSurrogate

Floats = NDArray[np.float64]

# Before anything is trained, candidates are compared by the ImageNet top-1 that they stay below with this probability,
# as the prior has it. Evolution finds where an estimate errs upwards; what it is unsure of must not win by that.
LOWER_QUANTILE = 0.1


class Objective(ABC):
    """What is maximized, in percent; it is chosen once for a run, together with a goal.

    To write another one, derive from this class, set the class attributes, and implement `estimates_of`: from the
    trained candidates (their configurations, accuracies and what the ImageNet prior expects of them) to the value of
    each. Then register the class (`lownas.search.register_objective`) and name it (`objective="..."`), or pass the
    class itself. Everything else has a default that uses these values:

    - `before_training` is what evolution maximizes before anything is trained, in points; a lower quantile of the
      ImageNet prior unless you know better.
    - `controls` are networks that train beside the candidates where there is no data, for `estimates` to compare by.
    - `at_rung` is what decides who goes on from a rung.
    - `ranked` is the order of the candidates at the end, of which the answer is the first that is within the budget.
    - `notes` and `notes_on_answer` are sentences for whoever reads the result.

    An objective keeps no state of a run: it is asked with the run's history, and must give the same again for the same
    history, so that a run that was interrupted goes on as if it had not been.

    Attributes:
        name: in run.json and on the command line.
        label: of its values in tables, with the unit.
        axis: of its values in figures.
        is_imagenet_top1: whether its values are ImageNet top-1, so that published models can stand beside them.
        learns: whether its values are accuracies of trainings on the user's data. Then a surrogate can learn them: the
            strategy "surrogate" serves it, and decides who goes on from a rung. One that depends on accuracy and on
            something else leaves this False, and `estimates_of` decides.
        needs_training: whether candidates must be trained to have a value. Where they need not, a run trains only if it
            is asked to.
        default_strategy: who proposes candidates if nobody is named.
        stand_in_data: what is trained on where the user gives no data.
        goal: the best within the budget, or the front.
        prior: of ImageNet top-1.
        metric: of the task, whose score of 0 to 1 "accuracy" stands for; of a classification they are the same.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    axis: ClassVar[str]
    is_imagenet_top1: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    needs_training: ClassVar[bool] = True
    default_strategy: ClassVar[str] = "evolution"
    stand_in_data: ClassVar[str] = "formula"

    def __init__(self, goal: Goal, prior: AccuracyPrior, metric: Metric) -> None:
        self.goal, self.prior, self.metric = goal, prior, metric

    @property
    def default_rungs(self) -> int:
        """How many rungs a run has if it does not say."""
        return self.goal.default_rungs if self.learns else 1

    @abstractmethod
    def estimates_of(
        self, trained: Sequence[TrainedCandidate], learned: Mapping[str, float] | None = None
    ) -> Estimates:
        """The value of each trained candidate.

        `learned` are accuracies (0 to 1) by id as a surrogate of all trainings has them, where there is one.
        """

    # --- before anything is trained

    def before_training(self, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n,) an estimate in points, which evolution maximizes."""
        return self.prior.quantile(configs, LOWER_QUANTILE)

    def details(self, config: LowFormerConfig) -> dict[str, Any]:
        """What results.jsonl says of a candidate beside its value, as JSON values.

        Of ImageNet top-1 that is the interval of the estimate, and the published model that is most like it.
        """
        if not self.is_imagenet_top1:
            return {}
        expected = self.prior.predict([config])[0]
        return {"low_top1": expected.low_top1, "high_top1": expected.high_top1, "nearest": expected.nearest}

    # --- of what was trained

    def controls(self, most_pixels: int) -> Sequence[LowFormerConfig]:
        """Networks to train beside the candidates, which `estimates` compares trainings by; none by default.

        `most_pixels` is the largest resolution of the space.
        """
        return ()

    def expected(self, estimates: Estimates, parent_id: str, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n,) the value that untrained children of a trained candidate may be expected to have."""
        return estimates.expected(parent_id, self.prior.imagenet_top1(configs))

    def estimates(self, history: History, surrogate: RunSurrogate) -> Estimates:
        """The values as all trainings so far tell."""
        trained = trained_candidates(history.results[number] for number in sorted(history.results))
        return self.estimates_of(trained, surrogate.accuracies() if self.learns else None)

    def estimates_at_first_rung(self, history: History) -> Estimates:
        """The values as far as the first rung tells, where all candidates can be compared."""
        configs = {trial: result.config for trial, result in history.results.items()}
        configs |= {trial: proposal.config for trial, proposal in history.open.items()}
        judged = [trial for trial in history.rungs if trial in configs]
        prior_top1 = self.prior.imagenet_top1([configs[trial] for trial in judged])
        seen = {
            configs[trial].id: TrainedCandidate(configs[trial], float(top1), (history.rungs[trial][0].accuracy,))
            for trial, top1 in zip(judged, prior_top1, strict=True)
        }
        return self.estimates_of(list(seen.values()))

    def reached(self, result: EvaluationResult, history: History) -> float:
        """The value of a candidate when its trial ends, by its own trainings alone: what the study is told."""
        results = {**history.results, result.trial: result}
        trained = trained_candidates(results[number] for number in sorted(results))
        return self.estimates_of(trained).value(result.config_id)

    def value_at_first_rung(self, config: LowFormerConfig, accuracy: float) -> float:
        """The value of a candidate that reached an accuracy (0 to 1) at the first rung, for Optuna's samplers."""
        return float(self._values([config], [accuracy])[0])

    def _values(self, configs: Sequence[LowFormerConfig], accuracies: Sequence[float] | Floats) -> Floats:
        """(n,) the values of candidates with these (n,) accuracies."""
        prior = self.prior.imagenet_top1(configs).tolist()
        known = zip(configs, prior, accuracies, strict=True)
        estimates = self.estimates_of([TrainedCandidate(one, top1, (float(reached),)) for one, top1, reached in known])
        return np.array([estimates.value(config.id) for config in configs])

    def at_rung(self, configs: Sequence[LowFormerConfig], accuracies: Floats, surrogate: RunSurrogate) -> Floats:
        """(n,) what candidates judged at a rung are compared by, from their (n,) accuracies there."""
        return self._values(configs, accuracies)

    def ranked(self, history: History, estimates: Estimates, pool: FeasiblePool) -> list[EvaluationResult]:
        """The first trial of each trained candidate, the best first."""
        first: dict[str, EvaluationResult] = {}
        for result in history.complete():
            first.setdefault(result.config_id, result)
        return sorted(first.values(), key=lambda result: (-estimates.value(result.config_id), result.trial))

    def leaders(self, history: History, surrogate: RunSurrogate, pool: FeasiblePool) -> list[LowFormerConfig]:
        """The trained candidates, the best first; then those at rungs, by the highest rung and their accuracy there.

        Where a front is wanted, the best are those on the front, then those behind it.
        """
        estimates = self.estimates(history, surrogate)
        trained = self.ranked(history, estimates, pool)
        leaders = [result.config for result in trained]
        if self.goal.front:
            values = [estimates.value(result.config_id) for result in trained]
            leaders = self.goal.best_first(values, leaders, pool.latency_ms)
        waiting = [history.rungs[trial][-1] for trial in history.open if trial in history.rungs]
        for rung in sorted({entry.rung for entry in waiting}, reverse=True):
            here = sorted((entry for entry in waiting if entry.rung == rung), key=lambda e: (e.trial, e.accuracy))
            accuracies = [entry.accuracy for entry in here]
            leaders += self.goal.best_first(accuracies, [entry.config for entry in here], pool.latency_ms)
        return leaders

    def second_seed_choice(
        self,
        once: Mapping[str, EvaluationResult],
        position: int,
        of: int,
        history: History,
        surrogate: RunSurrogate,
        pool: FeasiblePool,
    ) -> LowFormerConfig:
        """The candidate to train with a second seed: the best, so that the answer is not just the luckiest one.

        Args:
            once: the results of the candidates that were trained once, by id; at least one.
            position, of: the how manieth second seed of how many it is.
        """
        fresh = sorted(once.values(), key=lambda result: result.trial)
        estimates = self.estimates(history, surrogate)
        values = [estimates.value(result.config_id) for result in fresh]
        return self.goal.best_first(values, [result.config for result in fresh], pool.latency_ms)[0]

    # --- for whoever reads the result

    def notes(self, history: History, estimates: Estimates) -> list[str]:
        """Sentences on what the values are and how far they can be trusted."""
        return []

    def notes_on_answer(self, answer: Candidate) -> list[str]:
        """Sentences on the answer."""
        return []
