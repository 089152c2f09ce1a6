"""The objective without the user's data: ImageNet top-1 as far as published results support it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...evaluators.tasks import Metric
from ...predictors.accuracy.prior import AccuracyPrediction, AccuracyPrior
from ...search_space.config import LowFormerConfig
from ...search_space.presets import PUBLISHED
from ..feasible_pool import FeasiblePool
from ..trials.candidate import Candidate
from ..trials.history import History
from ..trials.records import EvaluationResult
from .base import LOWER_QUANTILE, Objective
from .controls import (
    CONTROLS,
    COVERAGE,
    MIN_CONTROLS,
    SMALLEST_RESOLUTION,
    Correction,
    controls_of,
    correct,
    predict_left_out,
)
from .estimates import INHERITED, Estimates, SeedAgreement, Top1Estimate, TrainedCandidate, trained_candidates
from .goal import Goal
from .run_surrogate import RunSurrogate


class PriorEstimates(Estimates):
    """ImageNet top-1 of the trained candidates: the prior's distribution, moved as far as controls bear it out.

    What is maximized is its lower quantile.

    Attributes:
        correction: by how much trainings move the prior.
        before: by configuration id, what the prior alone makes of it.
    """

    def __init__(
        self,
        trained: Sequence[TrainedCandidate],
        before: Sequence[Top1Estimate],
        correction: Correction,
        controls: Sequence[TrainedCandidate] = (),
    ) -> None:
        """`before` are those of the `trained`, by the prior alone; `controls` count for how far seeds agree."""
        self.correction = correction
        self.before = {one.config_id: top1 for one, top1 in zip(trained, before, strict=True)}
        self._after = {name: _corrected(name, top1, correction) for name, top1 in self.before.items()}
        super().__init__(trained, {name: top1.lower_top1 for name, top1 in self._after.items()})
        self.agreement = SeedAgreement.of([*trained, *controls])

    def top1(self, config_id: str) -> Top1Estimate:
        """ImageNet top-1 of a trained candidate, corrected."""
        return self._after[config_id]

    def moved(self, config_id: str) -> float:
        """By how many points trainings have moved the estimate (the median) of a candidate."""
        return self._after[config_id].top1 - self.before[config_id].top1

    @property
    def most_moved(self) -> float:
        """By how many points trainings have moved the estimates, up or down, at most."""
        return max((abs(self.moved(name)) for name in self.before), default=0.0)


class ImageNetPrior(Objective):
    """ImageNet top-1 by the prior: a lower quantile of its predictive distribution.

    Where trainings are asked for all the same, published models train beside the candidates as controls, and trainings
    correct the prior as far as these bear it out (`controls.correct`).
    """

    name = "imagenet"
    label = f"ImageNet top-1 %, {100 * LOWER_QUANTILE:g} % quantile"
    axis = "ImageNet top-1, estimated (%)"
    is_imagenet_top1 = True
    needs_training = False

    def __init__(self, goal: Goal, prior: AccuracyPrior, metric: Metric) -> None:
        super().__init__(goal, prior, metric)
        self._left_out: dict[str, AccuracyPrediction] = {}

    # --- values

    def estimates_of(
        self, trained: Sequence[TrainedCandidate], learned: Mapping[str, float] | None = None
    ) -> PriorEstimates:
        """By the prior alone."""
        return self._estimates(trained, ())

    def estimates(self, history: History, surrogate: RunSurrogate) -> PriorEstimates:
        """By the prior, corrected by all trainings so far."""
        trained = trained_candidates(history.results[number] for number in sorted(history.results))
        controls = trained_candidates(history.controls[number] for number in sorted(history.controls))
        return self._estimates(trained, controls)

    def _estimates(self, trained: Sequence[TrainedCandidate], controls: Sequence[TrainedCandidate]) -> PriorEstimates:
        if not trained:
            return PriorEstimates((), (), Correction(len(controls)), controls)
        configs = [one.config for one in trained]
        expected = self.prior.predict(configs, coverage=COVERAGE)
        lower = self.before_training(configs).tolist()
        before = [
            Top1Estimate(one.top1, one.low_top1, one.high_top1, quantile)
            for one, quantile in zip(expected, lower, strict=True)
        ]
        left_out = self._without_each() if len(controls) >= MIN_CONTROLS else {}
        known = controls_of(controls, left_out)
        correction = (
            correct(trained, expected, known, noise_sd=self.prior.law.noise_sd) if known else Correction(len(controls))
        )
        return PriorEstimates(trained, before, correction, controls)

    def _without_each(self) -> Mapping[str, AccuracyPrediction]:
        """By the name of each control, what the prior expects of it that was not told of it; the same at each call."""
        if not self._left_out:
            self._left_out = {name: predict_left_out(self.prior, name) for name in CONTROLS}
        return self._left_out

    def controls(self, most_pixels: int) -> Sequence[LowFormerConfig]:
        """Published models at 224 pixels, where candidates are for images about as large."""
        return [PUBLISHED[name].config for name in CONTROLS] if most_pixels >= SMALLEST_RESOLUTION else ()

    def expected(self, estimates: Estimates, parent_id: str, configs: Sequence[LowFormerConfig]) -> NDArray[np.float64]:
        """(n,) the prior's lower quantile, moved by a part of what moved the parent's estimate."""
        moved = estimates.moved(parent_id) if isinstance(estimates, PriorEstimates) else 0.0
        return self.before_training(configs) + INHERITED * moved

    def second_seed_choice(
        self,
        once: Mapping[str, EvaluationResult],
        position: int,
        of: int,
        history: History,
        surrogate: RunSurrogate,
        pool: FeasiblePool,
    ) -> LowFormerConfig:
        """Candidates that lie evenly in size: how far two seeds agree is measured with them."""
        distinct = list({result.config_id: result for result in history.complete()}.values())
        distinct.sort(key=lambda result: (result.macs, result.trial))
        place = (len(distinct) - 1) * position / max(of - 1, 1)
        nearest = sorted(range(len(distinct)), key=lambda i: (abs(i - place), i))
        return next(distinct[i].config for i in nearest if distinct[i].config_id in once)

    # --- for whoever reads the result

    def notes(self, history: History, estimates: Estimates) -> list[str]:
        notes = [
            "Nothing was trained on your data (--data): ImageNet top-1 is estimated from published results, and "
            "networks are ranked by a lower quantile of the estimate: what each exceeds with a probability of "
            f"{100 - 100 * LOWER_QUANTILE:g} %."
        ]
        if isinstance(estimates, PriorEstimates):
            notes.append(_note_on_trainings(estimates))
        return notes

    def notes_on_answer(self, answer: Candidate) -> list[str]:
        if not answer.extrapolated:
            return []
        return ["The answer lies far from what was published: its estimate is extrapolated."]


def _corrected(name: str, top1: Top1Estimate, correction: Correction) -> Top1Estimate:
    quantiles = (top1.top1, top1.low_top1, top1.high_top1, top1.lower_top1)
    return Top1Estimate(*(correction.top1(name, quantile, top1.top1) for quantile in quantiles))


def _note_on_trainings(estimates: PriorEstimates) -> str:
    """How far trainings moved the estimates, and what that rests on."""
    correction, agreement = estimates.correction, estimates.agreement
    said = "Trainings moved no estimate"
    if correction.controls < MIN_CONTROLS:
        trained = f"{correction.controls or 'none'} {'was' if correction.controls < 2 else 'were'}"
        said += f": that takes {MIN_CONTROLS} published models trained beside the candidates, and {trained}."
    elif not correction.weight:
        said += f": over {correction.controls} published models they explain nothing of what the prior misses."
    else:
        said = (
            f"Trainings moved the estimates by at most {estimates.most_moved:.2g} points: over {correction.controls} "
            f"published models they explain {100 * correction.explained:.0f} % of what the prior misses."
        )
    if agreement.kendall_tau is not None:
        said += (
            f" Between two seeds the short trainings' rank correlation is {agreement.kendall_tau:.2f}, over "
            f"{agreement.repeats} networks."
        )
    return said
