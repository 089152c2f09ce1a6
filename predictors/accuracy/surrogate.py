"""The accuracy surrogate: predicts accuracy from the trainings of a run, by a Gaussian process over configurations.

All observations are used, also those of candidates that were stopped at a rung. The accuracy a of configuration x at
rung r is modelled as

    logit(a) = level[r] + scale[r] * (f(x) + g[r](x) + noise)

f is smooth in a few costs (MACs, parameters, resolution, depth) and in all choices of the space; g lets rungs differ,
the more the farther they lie apart. The loss on the validation images says the same as the accuracy with noise of its
own, and with less of it: at the highest rung logit(a) is the mean of the accuracy's and of that which the loss stands
for. Levels have flat priors, everything else is set by the posterior mode. That only the better candidates reach a rung
does no harm, since the accuracies that decided it are observations too.

Larger networks are expected to be better, by as much as `SIZE_PRIOR` says, until observations tell: short trainings
judged on few images tell little. And larger networks gain more from longer training. What a rung adds to them is one
more term, linear in ln MACs and in the rung. It is continued beyond the last rung: networks are compared as after a
training several times longer than any that was observed, since that is what the best of them will get.

Source of a kernel over the length of a training beside that over candidates: Kandasamy et al., arXiv 1703.06240.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular  # type: ignore[import-untyped, unused-ignore]
from scipy.optimize import minimize  # type: ignore[import-untyped, unused-ignore]

from ...search_space.config import LowFormerConfig
from ...search_space.graph.from_config import units
from ...search_space.space import SearchSpace
from ..costs import total_macs, total_params
from .gaussian_process import (
    JITTER,
    SIZE_PRIOR,
    TREND_PRIOR,
    Floats,
    Rungs,
    Similarity,
    covariance,
    hyperparameter_priors,
    mean_squared_distance,
    negative_log_posterior,
    noise_covariance,
    prior_variance,
)

MIN_OBSERVATIONS = 2
MAX_OBSERVATIONS = 400
"""Observations that count at most; a fit costs the cube of it."""
MAX_CACHED_FEATURES = 5000
"""Configurations whose features are kept."""
ACCURACY_MARGIN = 1e-4
"""Accuracies are held this far from 0 and 1, whose logits are infinite."""
MIN_LOSS = 1e-4
"""Losses below count as this."""
MIN_SPREAD = 1e-9
"""Standard deviation below which all values count as equal."""
MIN_LOGIT_SPREAD = 1e-3
"""Spread of the logits within rungs at least, by which they are scaled."""

RUNGS_BEYOND_LAST = 1.75
"""How far beyond the last rung networks are compared: with rungs a factor of 3 apart, at seven times its training."""

SEARCHED_SIGMAS = 8.0
"""Standard deviations from their priors' means within which hyperparameters are searched; beyond, numbers overflow."""
FIT_ITERATIONS = 50


@dataclass(frozen=True)
class AccuracyObservation:
    """The accuracy that a configuration reached in one training, at a rung or at its end.

    Attributes:
        config: what was trained.
        rung: counted from 0; the last is the end of the training.
        accuracy: 0 to 1.
        loss: on the same images, in nats, if known; it counts at the highest rung, if all observations there have it.
    """

    config: LowFormerConfig
    rung: int
    accuracy: float
    loss: float | None = None


class AccuracySurrogate:
    """The Gaussian process conditioned on the observations of a run.

    Attributes:
        space: that of the configurations.
        rungs: how many there are.
        hyperparameters: as in `gaussian_process`.
    """

    def __init__(
        self,
        space: SearchSpace,
        observations: Sequence[AccuracyObservation],
        *,
        rungs: int = 1,
        hyperparameters: Floats | None = None,
        fit: bool = True,
        feature_cache: dict[str, tuple[Floats, Floats]] | None = None,
        rungs_beyond: float = RUNGS_BEYOND_LAST,
    ) -> None:
        """Fits the hyperparameters, unless `fit` is False, and conditions on the observations.

        Args:
            space: that of the configurations.
            observations: at least 2. Of more than `MAX_OBSERVATIONS` those of the highest rungs count, and of these
                the latest.
            rungs: how many there are.
            hyperparameters: to start from, or without `fit` to be taken as they are.
            fit: whether hyperparameters are fitted.
            feature_cache: features by configuration id, to which more are added; shared between surrogates of a run.
            rungs_beyond: how far beyond the last rung networks are compared; 0 is the end of the training.

        Raises:
            ValueError: too few observations, or a rung or accuracy that is impossible.
        """
        _check(observations, rungs)
        kept = _most_informative(observations)
        self.space, self.rungs = space, rungs
        self._feature_cache = {} if feature_cache is None else feature_cache
        self._rung = np.array([seen.rung for seen in kept])
        costs, choices = self._features([seen.config for seen in kept])
        self._scalers = _Scaler.of(costs), _Scaler.of(choices)
        self._costs, self._choices = self._scalers[0](costs), self._scalers[1](choices)
        logits = _logits(kept, self._rung == self.highest_rung)
        self._levels = {rung: float(logits[self._rung == rung].mean()) for rung in set(self._rung.tolist())}
        centred = logits - np.array([self._levels[rung] for rung in self._rung.tolist()])
        self._unit = max(float(np.sqrt(np.mean(centred**2))), MIN_LOGIT_SPREAD)
        macs = costs[:, 0] - self._scalers[0].centre[0]
        self._rises = (self._rung - self.highest_rung) * macs
        self._targets = centred / self._unit - SIZE_PRIOR * self._costs[:, 0] - TREND_PRIOR[0] * self._rises
        similarity = self._similarity(self._costs, self._choices, self._rung, self._rises)
        start = hyperparameter_priors(rungs)[0] if hyperparameters is None else hyperparameters
        self.hyperparameters = self._fitted(start, similarity) if fit else np.asarray(start, dtype=np.float64)
        total = covariance(self.hyperparameters, similarity) + noise_covariance(self.hyperparameters, self._rung)
        self._factor = cholesky(total, lower=True, check_finite=False)
        self._weights = cho_solve((self._factor, True), self._targets, check_finite=False)
        trend = self._unit * (TREND_PRIOR[0] + TREND_PRIOR[1] ** 2 * float(self._rises @ self._weights))
        spread = float(self._scalers[0].spread[0])  # of ln MACs
        self._rise = (rungs_beyond + rungs - 1 - self.highest_rung) * trend * (spread if np.isfinite(spread) else 0.0)

    @property
    def observations(self) -> int:
        """How many observations count, those that `believing` added included."""
        return len(self._rung)

    @property
    def highest_rung(self) -> int:
        """The highest rung that was observed."""
        return int(self._rung.max())

    def predict(self, configs: Sequence[LowFormerConfig]) -> tuple[Floats, Floats]:
        """(n,) means and (n,) standard deviations of logit(accuracy), by which networks are compared.

        They are at the level of the highest rung observed, larger networks raised and smaller ones lowered by what
        longer training adds. They are of the network, without the noise of a single training; the deviations leave out
        how uncertain the raising is. `accuracy` turns means into accuracies.
        """
        costs, rung, across = self._across(configs)
        half = solve_triangular(self._factor, across.T, lower=True, check_finite=False)
        variance = prior_variance(self.hyperparameters, costs, rung) - np.einsum("ij,ij->j", half, half)
        return self._mean(costs, across), self._unit * np.sqrt(np.maximum(variance, JITTER))

    def mean(self, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n,) the means of `predict` alone, in a fraction of the time."""
        costs, _, across = self._across(configs)
        return self._mean(costs, across)

    def believing(self, under_way: Sequence[LowFormerConfig]) -> Self:
        """The surrogate as if networks still in training had reached the accuracy that it expects of them.

        The means are the same, but networks near these are less uncertain, so that the next choice differs from them.

        Source: Ginsbourger et al., "Kriging is well-suited to parallelize optimization" (2010), the kriging believer.
        """
        if not under_way:
            return self
        costs, choices = self._scaled_features(under_way)
        rung = np.full(len(under_way), self.highest_rung)
        more = copy(self)
        more._costs, more._choices = np.vstack([self._costs, costs]), np.vstack([self._choices, choices])
        more._rung = np.concatenate([self._rung, rung])
        more._rises = np.concatenate([self._rises, np.zeros(len(under_way))])
        across = covariance(self.hyperparameters, more._similarity(costs, choices, rung))
        seen = len(self._rung)
        corner = across[:, seen:] + noise_covariance(self.hyperparameters, rung)
        half = solve_triangular(self._factor, across[:, :seen].T, lower=True, check_finite=False)
        below = cholesky(corner - half.T @ half, lower=True, check_finite=False)
        more._factor = np.block([[self._factor, np.zeros_like(half)], [half.T, below]])
        # An accuracy that is as expected does not change what is expected of other networks.
        more._weights = np.concatenate([self._weights, np.zeros(len(under_way))])
        return more

    def _fitted(self, start: Floats, similarity: Similarity) -> Floats:
        """The hyperparameters of greatest posterior density, searched from `start`."""
        mean, width = hyperparameter_priors(self.rungs)
        bounds = list(zip(mean - SEARCHED_SIGMAS * width, mean + SEARCHED_SIGMAS * width, strict=True))
        found = minimize(
            negative_log_posterior,
            start,
            (similarity, self._targets, self._rung, self.rungs),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": FIT_ITERATIONS},
        )
        return np.asarray(found.x, dtype=np.float64)

    def _across(self, configs: Sequence[LowFormerConfig]) -> tuple[Floats, Rungs, Floats]:
        """(n, 4) scaled costs, (n,) rungs, (n, m) covariances with the m observed, of n configurations at the top."""
        costs, choices = self._scaled_features(configs)
        rung = np.full(len(configs), self.highest_rung)
        return costs, rung, covariance(self.hyperparameters, self._similarity(costs, choices, rung))

    def _mean(self, costs: Floats, across: Floats) -> Floats:
        mean: Floats = self._levels[self.highest_rung] + self._unit * (across @ self._weights)
        return mean + (self._unit * SIZE_PRIOR + self._rise) * costs[:, 0]

    def _similarity(self, costs: Floats, choices: Floats, rung: Rungs, rises: Floats | None = None) -> Similarity:
        """Of n configurations with the m observed; without `rises` the n are at the highest rung."""
        return Similarity(
            linear=costs @ self._costs.T / costs.shape[1],
            cost=mean_squared_distance(costs, self._costs),
            choice=mean_squared_distance(choices, self._choices),
            rungs=(rung, self._rung),
            trend=0.0 if rises is None else TREND_PRIOR[1] ** 2 * np.outer(rises, self._rises),
        )

    def _scaled_features(self, configs: Sequence[LowFormerConfig]) -> tuple[Floats, Floats]:
        costs, choices = self._features(configs)
        return self._scalers[0](costs), self._scalers[1](choices)

    def _features(self, configs: Sequence[LowFormerConfig]) -> tuple[Floats, Floats]:
        """(n, 4) costs: ln MACs, ln parameters, ln resolution, ln number of units. (n, p) choices."""
        known = self._feature_cache
        if len(known) > MAX_CACHED_FEATURES:
            known.clear()
        if fresh := list({config.id: config for config in configs if config.id not in known}.values()):
            resolution = np.array([config.resolution for config in fresh], dtype=np.float64)
            depth = np.array([len(units(config)) for config in fresh], dtype=np.float64)
            costs = np.log(np.stack([total_macs(fresh), total_params(fresh), resolution, depth], axis=1))
            for config, row in zip(fresh, costs, strict=True):
                known[config.id] = row, np.asarray(self.space.encode(config), dtype=np.float64)
        rows = [known[config.id] for config in configs]
        return np.stack([row for row, _ in rows]), np.stack([choices for _, choices in rows])


def accuracy(logits: Floats) -> Floats:
    """(n,) accuracies, 0 to 1, of (n,) logits."""
    found: Floats = 1 / (1 + np.exp(-logits))
    return found


def _check(observations: Sequence[AccuracyObservation], rungs: int) -> None:
    """Raises ValueError for too few observations, or an impossible one."""
    if len(observations) < MIN_OBSERVATIONS:
        raise ValueError(f"a surrogate needs at least {MIN_OBSERVATIONS} observations, given {len(observations)}")
    rung = np.array([seen.rung for seen in observations])
    reached = np.array([seen.accuracy for seen in observations])
    possible = (rung >= 0) & (rung < rungs) & (reached >= 0) & (reached <= 1)
    if not possible.all():
        wrong = observations[int(np.argmin(possible))]
        raise ValueError(f"rungs are 0 to {rungs - 1} and accuracies 0 to 1, given {wrong.rung}, {wrong.accuracy}")


def _most_informative(observations: Sequence[AccuracyObservation]) -> list[AccuracyObservation]:
    """The at most `MAX_OBSERVATIONS` at the highest rungs, and of these the latest, in their order."""
    rung = np.array([seen.rung for seen in observations])
    kept = np.lexsort((-np.arange(len(rung)), -rung))[:MAX_OBSERVATIONS]
    return [observations[i] for i in np.sort(kept).tolist()]


def _logits(observations: Sequence[AccuracyObservation], at_top: NDArray[np.bool_]) -> Floats:
    """(n,) logits of the accuracies; where `at_top`, means with what the losses stand for, if all are known."""
    accuracies = np.clip([seen.accuracy for seen in observations], ACCURACY_MARGIN, 1 - ACCURACY_MARGIN)
    logits: Floats = np.log(accuracies / (1 - accuracies))
    top = np.flatnonzero(at_top)
    losses = [loss for i in top.tolist() if (loss := observations[i].loss) is not None]
    if len(losses) == len(top):
        logits[top] = _with_loss(logits[top], np.array(losses))
    return logits


def _with_loss(logits: Floats, loss: Floats) -> Floats:
    """(n,) means of the logits and of what the losses stand for: by a line, with the logits' own mean and spread."""
    negative = -np.log(np.maximum(loss, MIN_LOSS))
    spread, own = float(negative.std()), float(logits.std())
    if spread < MIN_SPREAD:
        return logits
    slope = own / spread if own > MIN_SPREAD else 1.0  # all accuracies are equal, or at the edge
    meant: Floats = logits.mean() + slope * (negative - negative.mean())
    return (logits + meant) / 2


@dataclass(frozen=True)
class _Scaler:
    """Scales each column to mean 0 and standard deviation 1; one that does not vary becomes 0."""

    centre: Floats
    spread: Floats

    @classmethod
    def of(cls, values: Floats) -> _Scaler:
        """The scaler by which (n, p) values get mean 0 and standard deviation 1."""
        spread = values.std(axis=0)
        return cls(values.mean(axis=0), np.where(spread > MIN_SPREAD, spread, np.inf))

    def __call__(self, values: Floats) -> Floats:
        scaled: Floats = (values - self.centre) / self.spread
        return scaled
