"""A candidate as known when its search ended: trained, or predicted only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...search_space.config import LowFormerConfig
from ...search_space.presets import published_name, published_top1
from .records import LatencySource

if TYPE_CHECKING:
    from ...search_space.model import LowFormer


@dataclass(frozen=True)
class Candidate:
    """A candidate, as known when the search ended: trained, or where nothing trains predicted only.

    Attributes:
        trial: of its first training; where it was predicted only, its number in results.jsonl.
        config: its architecture.
        objective: what was maximized, in percent; where that is ImageNet top-1, a lower quantile of what is expected.
        accuracy: mean proxy accuracy over its seeds, 0 to 1; None if it was predicted only.
        prior_top1: ImageNet top-1 in percent that is expected (the median); `extrapolated` if far from what was
            published.
        low_top1, high_top1: the interval of that, at coverage 0.9.
        nearest: the published model that is most like it.
        latency_ms, low_ms, high_ms: undisturbed, with the interval at coverage 0.9; measured or predicted, as
            `latency_source` says.
        predicted_ms: predicted latency.
        quantile_ms: what is held against the budget: the predicted quantile of the latency, or where it was measured
            what a further measurement stays below.
        under_load: where it was measured, median, p90 and p99 in ms beside whatever else ran, as "p50", "p90", "p99".
        macs, params: multiply-accumulates of one image, and parameters.
        seeds: with how many seeds it was trained; 0 if it was predicted only.
    """

    trial: int
    config: LowFormerConfig
    objective: float
    accuracy: float | None
    prior_top1: float
    low_top1: float
    high_top1: float
    nearest: str
    extrapolated: bool
    latency_ms: float
    low_ms: float
    high_ms: float
    latency_source: LatencySource
    predicted_ms: float
    quantile_ms: float
    macs: int
    params: int
    seeds: int
    under_load: Mapping[str, float] | None = None

    @property
    def published(self) -> str | None:
        """The name of the published model that it is, at any resolution; None if it is none."""
        return published_name(self.config)

    @property
    def published_top1(self) -> float | None:
        """The ImageNet top-1 in percent that was published for it at its resolution; None if none was."""
        return published_top1(self.config)

    def build(self) -> LowFormer:
        """The torch model, with fresh weights."""
        from ...search_space.model import build_model

        return build_model(self.config)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the configuration among them."""
        return {
            "trial": self.trial,
            "id": self.config.id,
            "published": self.published,
            "published_top1": self.published_top1,
            "objective": self.objective,
            "accuracy": self.accuracy,
            "seeds": self.seeds,
            "prior_top1": self.prior_top1,
            "low_top1": self.low_top1,
            "high_top1": self.high_top1,
            "nearest": self.nearest,
            "extrapolated": self.extrapolated,
            "latency_ms": self.latency_ms,
            "low_ms": self.low_ms,
            "high_ms": self.high_ms,
            "latency_source": self.latency_source,
            "predicted_ms": self.predicted_ms,
            "quantile_ms": self.quantile_ms,
            "under_load": None if self.under_load is None else dict(self.under_load),
            "macs": self.macs,
            "params": self.params,
            "config": self.config.to_dict(),
        }
