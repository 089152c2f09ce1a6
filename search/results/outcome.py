"""What a search tells: how far it is, and what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...search_space.config import LowFormerConfig
from ..objectives.estimates import Reliability
from ..objectives.pareto import pareto_front
from ..settings import SearchSettings
from ..trials.records import EvaluationResult


class Prediction(Protocol):
    """What the search needs of a `LatencyPrediction`."""

    @property
    def latency_ms(self) -> float: ...
    @property
    def low_ms(self) -> float: ...
    @property
    def high_ms(self) -> float: ...


class Predictor(Protocol):
    """What the search needs of a `LatencyPredictor`."""

    def predict(self, items: Sequence[LowFormerConfig], /) -> Sequence[Prediction]: ...
    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float, /) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Candidate:
    """A trained candidate, as known when the search ended.

    Attributes:
        trial: of its first training.
        objective: what was maximized, in percent: without the user's data the prior, else the proxy accuracy as all
            trainings tell, larger networks raised and smaller ones lowered by what a longer training adds.
        accuracy: mean proxy accuracy over its seeds, 0 to 1.
        prior_top1: ImageNet top-1 in percent that the prior expects; `extrapolated` if outside the published models.
        latency_ms, low_ms, high_ms: measured (median and range of the rounds' medians) or predicted (with the interval
            at coverage 0.9), as `latency_source` says.
        predicted_ms: predicted latency.
        quantile_ms: what is held against the budget: the predicted quantile of the latency, or where it was measured
            what a further round stays below.
    """

    trial: int
    config: LowFormerConfig
    objective: float
    accuracy: float
    prior_top1: float
    extrapolated: bool
    latency_ms: float
    low_ms: float
    high_ms: float
    latency_source: str
    predicted_ms: float
    quantile_ms: float
    macs: int
    params: int
    seeds: int


@dataclass(frozen=True)
class SearchOutcome:
    """What a search found.

    Attributes:
        answer: the best candidate within the budget, or None (nothing was trained, or nothing fits when measured).
        candidates: all trained candidates, the best objective first.
        reliability: of the proxy, measured in this run.
        notes: what a reader must know, in plain sentences.
        counts: results by status.
        interrupted: stopped by Ctrl-C or the time budget before all trials were done.
    """

    run: Path
    settings: SearchSettings
    answer: Candidate | None
    candidates: tuple[Candidate, ...]
    reliability: Reliability
    notes: tuple[str, ...]
    counts: Mapping[str, int]
    interrupted: bool
    seconds: float

    @property
    def front(self) -> list[Candidate]:
        """The candidates within the budget that no other one beats in objective without being slower, the fastest
        first."""
        return pareto_front(self.candidates, self.settings.latency_budget_ms)


@dataclass(frozen=True)
class SearchStatus:
    """How far a search is. `phase` is one of "propose", "plan", "train", "measure", "done"; `done` counts trials that
    were trained, at least to a rung."""

    phase: str
    done: int
    total: int
    running: int
    failed: int
    best: EvaluationResult | None
    elapsed_s: float
    left_s: float | None
