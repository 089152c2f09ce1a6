"""The latency predictor of a run, which is corrected by what the run itself measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped, unused-ignore]

from ...search_space.config import LowFormerConfig

Floats = NDArray[np.float64]

OFFSET_SHARE = 0.5  # of the predictor's log variance: what all networks are taken to have in common before measuring
PRIOR_FREEDOM = 4.0  # measured networks that the prior of the variance between networks is worth

_ONE_SIGMA = 0.8413  # the level of a normal distribution's mean plus one standard deviation


class Prediction(Protocol):
    """What a search needs of a predicted latency."""

    @property
    def latency_ms(self) -> float: ...
    @property
    def low_ms(self) -> float: ...
    @property
    def high_ms(self) -> float: ...


class Predictor(Protocol):
    """What a search needs of a latency predictor; `predictors.LatencyPredictor` has it."""

    def predict(self, items: Sequence[LowFormerConfig], /) -> Sequence[Prediction]: ...
    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float, /) -> Floats: ...


@dataclass(frozen=True)
class CorrectedPrediction:
    """A predicted latency in ms, with its interval."""

    latency_ms: float
    low_ms: float
    high_ms: float


class CorrectedPredictor:
    """A latency predictor, corrected by the latencies that were measured in this run.

    log(measured / predicted) = an offset that all networks share + one of the network. Both are normal, the prior of
    their variances is the predictor's own uncertainty (conjugate, so the predictive distribution is Student's t). What
    the predictor itself says of one network's uncertainty beside another's stays. With nothing measured it predicts as
    the predictor does.

    Attributes:
        load_factor: what the latency that a budget is held against is, over the undisturbed one, which is predicted;
            quantiles are multiplied by it.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.load_factor = 1.0
        self._predictor = predictor
        self._ratios: dict[str, tuple[float, float]] = {}  # by config id: log ratio, the predictor's log spread

    def learn(self, config: LowFormerConfig, latency_ms: float) -> None:
        """Takes a measured latency into account; of one network the last counts."""
        median, sigma = (float(self._predictor.quantile_ms([config], q)[0]) for q in (0.5, _ONE_SIGMA))
        self._ratios[config.id] = (float(np.log(latency_ms / median)), float(np.log(sigma / median)))

    @property
    def measured(self) -> int:
        """How many networks were measured."""
        return len(self._ratios)

    @property
    def factor(self) -> float:
        """What predictions are multiplied by."""
        return float(np.exp(self._posterior()[0]))

    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float, /) -> Floats:
        """(n,) latency in ms that each stays below with probability `q`."""
        raw = np.asarray(self._predictor.quantile_ms(configs, q), float)
        if not self._ratios:
            return raw * self.load_factor
        median = np.asarray(self._predictor.quantile_ms(configs, 0.5), float)
        shift, _, _ = self._posterior()
        corrected: Floats = median * np.exp(shift + self._widening(q) * np.log(raw / median))
        return corrected * self.load_factor

    def predict(self, configs: Sequence[LowFormerConfig], /) -> Sequence[Prediction]:
        predictions = self._predictor.predict(configs)
        if not self._ratios:
            return predictions
        shift, _, _ = self._posterior()
        wider = self._widening(0.95)
        return [
            CorrectedPrediction(
                p.latency_ms * float(np.exp(shift)),
                p.latency_ms * float(np.exp(shift + wider * np.log(p.low_ms / p.latency_ms))),
                p.latency_ms * float(np.exp(shift + wider * np.log(p.high_ms / p.latency_ms))),
            )
            for p in predictions
        ]

    def _posterior(self) -> tuple[float, float, float]:
        """Shift, scale and degrees of freedom of a new network's log ratio; normal-inverse-gamma."""
        if not self._ratios:
            return 0.0, 0.0, PRIOR_FREEDOM
        ratios, spreads = np.array(list(self._ratios.values())).T
        count, mean = len(ratios), float(ratios.mean())
        own = (1 - OFFSET_SHARE) * float(np.median(spreads)) ** 2
        weight = (1 - OFFSET_SHARE) / OFFSET_SHARE  # the prior of the offset, in networks
        freedom = PRIOR_FREEDOM + count
        squares = float(((ratios - mean) ** 2).sum()) + weight * count / (weight + count) * mean**2
        variance = (PRIOR_FREEDOM * own + squares) / freedom
        return count * mean / (weight + count), float(np.sqrt(variance * (1 + 1 / (weight + count)))), freedom

    def _widening(self, q: float) -> float:
        """What a log quantile's distance from the median is multiplied by."""
        _, scale, freedom = self._posterior()
        spread = float(np.median([spread for _, spread in self._ratios.values()]))
        level = q if abs(q - 0.5) > 0.01 else 0.75
        return scale / max(spread, 1e-9) * float(stdtrit(freedom, level) / ndtri(level))
