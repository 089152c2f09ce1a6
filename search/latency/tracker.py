"""What candidates cost in a run: the one place for predictions, limits, measurements and what is learned from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...search_space.config import LowFormerConfig
from ...search_space.space import SearchSpace
from ..feasible_pool import check_budget, over_budget
from ..objectives.goal import Goal
from ..randomness import stream
from ..settings import SearchSettings
from ..trials.candidate import Candidate
from ..trials.records import MeasurementRole
from ..trials.run_folder import RunFolder
from .correction import CorrectedPredictor, Prediction, Predictor
from .finalists import FINALIST_ROUNDS, Conclusion, measured_finalists, measured_front, predicted_answer
from .limits import BudgetUse, Limits
from .looks import Measuring
from .measurements import Measurements

ANCHORS = 3  # networks that are measured before anything trains, where the device is at hand
LEADERS = 3  # of the best so far, measured half-way
ROUNDS = 3  # measurements of each anchor and leader
LIKELY = 0.6
"""Probability of being within the budget from which on a candidate trains, where the best are measured in the end."""


@dataclass(frozen=True)
class Cost:
    """What a candidate is predicted to cost when its trial begins.

    Attributes:
        predicted: its latency, with an interval.
        quantile_ms: the latency quantile that is held against the budget.
    """

    predicted: Prediction
    quantile_ms: float


class LatencyTracker:
    """Predicts what candidates cost, and corrects itself by what is measured in the run.

    Attributes:
        given: the predictor of the target's latency.
        confidence: with which a candidate has to be predicted within the budget; `admit_likely` lowers it.
        predictor: the same, corrected by the run's measurements.
        limits: beside the latency budget.
        budget_use: latency and limits as one number, in ms of the budget.
        measurements: of this run.
    """

    def __init__(
        self,
        settings: SearchSettings,
        run: RunFolder,
        predictor: Predictor,
        limits: Limits,
        measuring: Measuring | None = None,
    ) -> None:
        """`measuring` is how a network is measured where the device is at hand."""
        self.settings, self.limits, self.given = settings, limits, predictor
        self.confidence = settings.confidence
        self.predictor = CorrectedPredictor(predictor)
        self.budget_use = BudgetUse(self.predictor, limits, settings.latency_budget_ms)
        self.uncorrected_use = BudgetUse(predictor, limits, settings.latency_budget_ms)
        self.measurements = Measurements(run, settings.target, measuring, settings.budget_on)
        self._log = run.log
        self._leaders_measured = self.measurements.has_role("leader") or not self.measurements.possible

    def check_budget(self, space: SearchSpace) -> None:
        """Raises NothingFits if by the predictor alone no candidate of the space is within the budget and limits."""
        check_budget(
            space,
            self.uncorrected_use,
            self.settings.latency_budget_ms,
            stream(self.settings.seed, "fastest"),
            confidence=self.settings.confidence,
            limits=str(self.limits),
        )

    def admit_likely(self) -> None:
        """Admits candidates that are only likely to be within the budget, if the best are measured in the end.

        What is uncertain of a prediction need not be kept free then: the answer is one that was measured within the
        budget.
        """
        if self.measurements.possible:
            self.confidence = min(self.settings.confidence, LIKELY)

    # --- predicting

    def cost(self, config: LowFormerConfig) -> Cost:
        """What a candidate is predicted to cost now."""
        quantile_ms = float(self.predictor.quantile_ms([config], self.confidence)[0])
        return Cost(self.predictor.predict([config])[0], quantile_ms)

    def known_latency(self, config: LowFormerConfig, cost: Cost) -> dict[str, Any]:
        """The undisturbed latency of a candidate for its result: as measured in this run, or as predicted."""
        predicted_ms = float(cost.predicted.latency_ms)
        if measured := self.measurements.latency(config, self.settings.confidence):
            values = measured.undisturbed_ms, measured.low_ms, measured.high_ms
        else:
            values = predicted_ms, float(cost.predicted.low_ms), float(cost.predicted.high_ms)
        source = "measured" if measured else "predicted"
        known = dict(zip(("latency_ms", "low_ms", "high_ms"), values, strict=True))
        return {**known, "latency_source": source, "predicted_ms": predicted_ms}

    def excess(self, config: LowFormerConfig, cost: Cost) -> dict[str, float]:
        """By how much a candidate exceeds the budget and each limit, as shares of them; negative where it is within."""
        budget_ms = self.settings.latency_budget_ms
        return {"latency": (cost.quantile_ms - budget_ms) / budget_ms, **self.limits.excess(config)}

    def infeasible(self, config: LowFormerConfig, cost: Cost) -> str:
        """Why a candidate is not within the budget and limits, in words; empty if it is."""
        if over_budget(np.array([cost.quantile_ms]), self.settings.latency_budget_ms)[0]:
            return f"latency {cost.quantile_ms:.4g} ms at confidence {self.confidence:g} is over the budget"
        return self.limits.reason(config)

    # --- measuring, and learning from it

    def learn_known(self) -> None:
        """Takes into account what an earlier process of the run has measured."""
        for config, latency in self.measurements.known():
            self.predictor.learn(config, latency.undisturbed_ms, latency.repeatability)
        self.predictor.load_factor = self.measurements.load_factor

    def measure_anchors(self, anchors: Sequence[LowFormerConfig]) -> bool:
        """Measures a few good candidates before anything trains; whether that worked for any."""
        self._measure(anchors, "anchor")
        return self.predictor.measured > 0

    @property
    def leaders_due(self) -> bool:
        """Whether the best so far are still to be measured, half-way."""
        return not self._leaders_measured

    def measure_leaders(self, leaders: Sequence[LowFormerConfig]) -> None:
        """Measures the best so far, once in a run."""
        self._leaders_measured = True
        distinct = {config.id: config for config in leaders}
        self._measure(list(distinct.values())[:LEADERS], "leader")

    def _measure(self, configs: Sequence[LowFormerConfig], role: MeasurementRole) -> None:
        self.measurements.measure(configs, ROUNDS, role)
        self.learn_known()  # of those before too: how fast the machine can be may have shown only now
        self._log.info(
            "%d networks measured: predictions are multiplied by %.3f", self.predictor.measured, self.predictor.factor
        )

    # --- the end

    def finalists_s(self) -> float:
        """What measuring the finalists will take, in seconds."""
        return self.measurements.expected_s(self.settings.finalists, FINALIST_ROUNDS)

    def conclude(self, candidates: Sequence[Candidate], goal: Goal, *, measure: bool) -> Conclusion:
        """Chooses the answer among ranked candidates, measuring finalists where that is possible and wanted."""
        if not (measure and self.measurements.possible):
            return predicted_answer(candidates, self.measurements, self.predictor, self.settings, self.confidence)
        if goal.front:
            return measured_front(candidates, self.measurements, self.predictor, self.settings)
        return measured_finalists(candidates, self.measurements, self.predictor, self.settings, self.confidence)
