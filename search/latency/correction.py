"""The latency predictor of a run, which is corrected by what the run itself measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

from ...predictors.costs import total_macs, total_params
from ...search_space.config import LowFormerConfig

Floats = NDArray[np.float64]

SHARES = ((0.5, 0.2), (0.9, 0.05), (0.3, 0.4), (0.1, 0.2))
"""Shares of the predictor's log variance that all networks, and networks alike in size, may have in common; the rest is
of single ones. Those that make the measurements most likely are taken, the first ones where nothing tells."""
ALIKE = float(np.log(2))
"""How far apart, in logs of parameters and of MACs, networks are somewhat alike (the kernel's length scale)."""
PRIOR_FREEDOM = 4.0
"""Measured networks that the prior of the variance is worth."""
LEAST_SPREAD = 1e-6
"""Log spread that a predictor without any is taken to have."""
COMMON_ERROR = 0.5
"""Share of the measurements' error variance that they have in common: what disturbs one disturbs its like."""

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


@dataclass(frozen=True)
class _Measured:
    """A network that was measured: log ratio to its prediction, that one's log spread, the measurement's error."""

    config: LowFormerConfig
    ratio: float
    spread: float
    error: float


@dataclass(frozen=True)
class _Fit:
    """What the measured networks say: a Gaussian process over log ratios, its variance learned (Student's t).

    Attributes:
        shares: of the variance that networks have in common (`SHARES`).
        places: (m, 2) logs of the measured networks' parameters and MACs.
        spreads: (m,) log spreads of their predictions.
        inverse: (m, m) of their covariance.
        weights: (m,) the inverse times their log ratios.
        scale: what variances are multiplied by.
        freedom: degrees of freedom.
    """

    shares: tuple[float, float]
    places: Floats
    spreads: Floats
    inverse: Floats
    weights: Floats
    scale: float
    freedom: float

    def shift(self, places: Floats, spreads: Floats) -> tuple[Floats, Floats]:
        """(n,) expected log ratios of networks, and (n,) their standard errors."""
        shared = _shared(places, self.places, self.shares) * spreads[:, None] * self.spreads[None, :]
        known = np.einsum("nm,mk,nk->n", shared, self.inverse, shared)
        variance = self.scale * np.maximum(spreads**2 - known, 0.0)
        return shared @ self.weights, np.sqrt(variance)


def _places(configs: Sequence[LowFormerConfig]) -> Floats:
    """(n, 2) logs of parameters and MACs."""
    return np.log(np.stack([total_params(configs), total_macs(configs)], axis=1))


def _alike(a: Floats, b: Floats) -> Floats:
    """(n, m) how alike networks are in size, 0 to 1."""
    apart: Floats = (((a[:, None] - b[None]) / ALIKE) ** 2).sum(-1)
    return np.exp(-apart / 2)


def _shared(a: Floats, b: Floats, shares: tuple[float, float]) -> Floats:
    """(n, m) shares of the variance that networks have in common."""
    return shares[0] + shares[1] * _alike(a, b)


class CorrectedPredictor:
    """A latency predictor, corrected by the latencies that were measured in this run.

    log(measured / predicted) = an offset that all networks share + one that networks of like size share + one of the
    network, all normal. The prior of their variances is the predictor's own uncertainty; how large they are in this run
    is learned, so that the predictive distribution is Student's t. Measurements count by their errors. With nothing
    measured it predicts as the predictor does.

    Attributes:
        load_factor: what the latency that a budget is held against is, over the undisturbed one, which is predicted;
            quantiles are multiplied by it.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.load_factor = 1.0
        self._predictor = predictor
        self._known: dict[str, _Measured] = {}
        self._fit: _Fit | None = None

    def learn(self, config: LowFormerConfig, latency_ms: float, error: float = 0.0) -> None:
        """Takes a measured latency and its relative standard error into account; of one network the last counts."""
        median, spread = (float(each[0]) for each in self._uncorrected([config]))
        self._known[config.id] = _Measured(config, float(np.log(latency_ms / median)), spread, error)
        self._fit = None

    @property
    def measured(self) -> int:
        """How many networks were measured."""
        return len(self._known)

    @property
    def factor(self) -> float:
        """What predictions of the networks measured are multiplied by, in the geometric mean."""
        if not self._known:
            return 1.0
        fit = self._fitted()
        return float(np.exp(fit.shift(fit.places, fit.spreads)[0].mean()))

    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float, /) -> Floats:
        """(n,) latency in ms that each stays below with probability `q`."""
        if not self._known or not len(configs):
            return np.asarray(self._predictor.quantile_ms(configs, q), float) * self.load_factor
        median, spreads = self._uncorrected(configs)
        fit = self._fitted()
        shift, error = fit.shift(_places(configs), spreads)
        quantiles: Floats = median * np.exp(shift + stdtrit(fit.freedom, q) * error)
        return quantiles * self.load_factor

    def predict(self, configs: Sequence[LowFormerConfig], /) -> Sequence[Prediction]:
        predictions = self._predictor.predict(configs)
        if not self._known or not len(configs):
            return predictions
        fit = self._fitted()
        shift, error = fit.shift(_places(configs), self._uncorrected(configs)[1])
        wide = stdtrit(fit.freedom, 0.95) * error
        return [
            CorrectedPrediction(*(float(p.latency_ms * np.exp(each)) for each in (middle, middle - w, middle + w)))
            for p, middle, w in zip(predictions, shift, wide, strict=True)
        ]

    def _uncorrected(self, configs: Sequence[LowFormerConfig]) -> tuple[Floats, Floats]:
        """(n,) the given predictor's medians in ms, and (n,) its log spreads."""
        median, sigma = (np.asarray(self._predictor.quantile_ms(configs, q), float) for q in (0.5, _ONE_SIGMA))
        return median, np.maximum(np.log(sigma / median), LEAST_SPREAD)

    def _fitted(self) -> _Fit:
        if self._fit is None:
            self._fit = max((self._fit_with(shares) for shares in SHARES), key=lambda found: found[0])[1]
        return self._fit

    def _fit_with(self, shares: tuple[float, float]) -> tuple[float, _Fit]:
        """The log likelihood of the measurements with these shares, but for a constant, and the fit."""
        known = list(self._known.values())
        ratios, spreads, errors = np.array([(each.ratio, each.spread, each.error) for each in known]).T
        places = _places([each.config for each in known])
        covariance = (_shared(places, places, shares) + (1 - sum(shares)) * np.eye(len(known))) * np.outer(
            spreads, spreads
        )
        covariance += COMMON_ERROR * _alike(places, places) * np.outer(errors, errors)
        covariance += (1 - COMMON_ERROR) * np.diag(errors**2)
        inverse = np.linalg.inv(covariance).astype(np.float64)
        freedom, misfit = PRIOR_FREEDOM + len(known), PRIOR_FREEDOM + float(ratios @ inverse @ ratios)
        likelihood = -(np.linalg.slogdet(covariance)[1] + freedom * np.log(misfit)) / 2
        return round(float(likelihood), 6), _Fit(
            shares, places, spreads, inverse, inverse @ ratios, misfit / freedom, freedom
        )
