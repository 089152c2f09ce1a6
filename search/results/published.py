"""The published models under the predictor and prior of a run, to stand beside its candidates."""

from __future__ import annotations

from dataclasses import dataclass

from ...predictors.accuracy.prior import AccuracyPrior
from ...search_space import op_graph
from ...search_space.presets import PRESETS, PUBLISHED
from ..latency.correction import Predictor


@dataclass(frozen=True)
class PublishedRow:
    """A published model under the same predictor and prior as the candidates.

    Attributes:
        name: of the preset.
        top1: published ImageNet top-1 in percent, at the preset's resolution; None if none is published.
        prior_top1, low_top1, high_top1: what the prior expects of it, and the interval of that at coverage 0.9.
        latency_ms, low_ms, high_ms: predicted for the run's target.
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
    params: int
    macs: int


def published_rows(predictor: Predictor, prior: AccuracyPrior | None = None) -> list[PublishedRow]:
    """The published models, the fastest first."""
    prior = prior or AccuracyPrior.load()
    names, configs = list(PRESETS), list(PRESETS.values())
    rows = []
    for name, config, expected, latency in zip(
        names, configs, prior.predict(configs, coverage=0.9), predictor.predict(configs), strict=True
    ):
        graph = op_graph(config)
        published = PUBLISHED[name].top1.get(config.resolution) if name in PUBLISHED else None
        rows.append(
            PublishedRow(
                name,
                published,
                expected.top1,
                expected.low_top1,
                expected.high_top1,
                float(latency.latency_ms),
                float(latency.low_ms),
                float(latency.high_ms),
                graph.params,
                graph.macs,
            )
        )
    return sorted(rows, key=lambda row: row.latency_ms)
