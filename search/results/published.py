"""The published models as a run predicts them, to stand beside its candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...predictors.accuracy.prior import AccuracyPrior
from ...search_space.graph.from_config import op_graph
from ...search_space.presets import PRESETS, published_top1
from ..feasible_pool import over_budget
from ..latency.tracker import LatencyTracker
from ..settings import SearchSettings


@dataclass(frozen=True)
class PublishedRow:
    """A published model under the same predictor and prior as the candidates.

    Attributes:
        name: of the preset.
        top1: published ImageNet top-1 in percent, at the preset's resolution; None if none is published.
        prior_top1, low_top1, high_top1: what the prior expects of it, and the interval of that at coverage 0.9.
        latency_ms, low_ms, high_ms: predicted for the run's target, as corrected by the run's measurements.
        over_budget: whether it is not within the run's budget and limits at the asked confidence.
        params, macs: its costs.
    """

    name: str
    top1: float | None
    prior_top1: float
    low_top1: float
    high_top1: float
    latency_ms: float
    low_ms: float
    high_ms: float
    over_budget: bool
    params: int
    macs: int


def published_rows(settings: SearchSettings, latency: LatencyTracker, prior: AccuracyPrior) -> list[PublishedRow]:
    """The published models, the fastest first."""
    names, configs = list(PRESETS), list(PRESETS.values())
    used = np.asarray(latency.budget_use.quantile_ms(configs, settings.confidence), float)
    predicted = zip(
        prior.predict(configs, coverage=0.9),
        latency.predictor.predict(configs),
        over_budget(used, settings.latency_budget_ms).tolist(),
        strict=True,
    )
    rows = []
    for name, config, (expected, predicted_ms, over) in zip(names, configs, predicted, strict=True):
        graph = op_graph(config)
        rows.append(
            PublishedRow(
                name=name,
                top1=published_top1(config),
                prior_top1=expected.top1,
                low_top1=expected.low_top1,
                high_top1=expected.high_top1,
                latency_ms=float(predicted_ms.latency_ms),
                low_ms=float(predicted_ms.low_ms),
                high_ms=float(predicted_ms.high_ms),
                over_budget=over,
                params=graph.params,
                macs=graph.macs,
            )
        )
    return sorted(rows, key=lambda row: row.latency_ms)
