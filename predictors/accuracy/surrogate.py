"""What a run has learned about accuracy: a Gaussian process over architectures and how long they were trained.

Everything that was observed goes in, candidates that were stopped at a rung too. The accuracy a of configuration x at
rung r is modelled as

    logit(a) = level[r] + scale[r] * (f(x) + g[r](x) + noise)

f is smooth in a few costs (MACs, parameters, resolution, depth) and in all choices of the space; the g let rungs
differ, the more the farther they lie apart. At the end of a training the loss on the same images says the same
as the accuracy with noise of its own, and with less: there logit(a) is the mean of it and of what the loss stands for.
Levels have flat priors, all else is set by the posterior mode. That only the better candidates reach a rung is no
trouble: what decided it was observed too.

Larger networks gain more from longer training. What a rung adds to them is one more term, linear in ln MACs and in the
rung, and it goes on beyond the last: networks are compared as after a training some times longer than any that was
seen, since that is what the best of them will get.

Sources: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2 and 5; a kernel over the
length of a training beside that over candidates, as in Kandasamy et al., arXiv 1703.06240.
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
from .prior import total_macs, total_params

Floats = NDArray[np.float64]

MOST_OBSERVATIONS = 400  # a fit costs the cube of it
MOST_KNOWN = 5000  # configurations whose features are kept
EDGE = 1e-4  # accuracies are held this far from 0 and 1
LEAST_LOSS = 1e-4

LONGER = 1.75  # rungs beyond the last: of rungs that are a factor of 3 apart, seven times its training

# What each rung adds to logit(a) per unit of ln MACs, mean and deviation of its prior, as shares of the spread within
# the rungs. Source: the short trainings in experiments/tabular/ of the networks that are not trained long ("rise" in
# experiments/proxy_fidelity/study.json).
_TREND = (0.11, 0.2)
_LEVEL_VARIANCE = 100.0  # as good as flat, where the spread within a rung is 1
_JITTER = 1e-6
# Hyperparameters are logarithms, with normal priors of these means and deviations. Variances are shares of the spread
# within the rungs; lengths are in standard deviations, over all costs or choices together.
_PRIORS = {
    "linear": (np.log(0.3), 1.5),  # variance of what is linear in the costs
    "cost": (np.log(0.1), 1.5),  # of what is smooth in them
    "cost_length": (np.log(1.5), 0.7),
    "choice": (np.log(0.1), 1.5),  # of what is smooth in the choices
    "choice_length": (np.log(1.5), 0.7),
    "noise": (np.log(0.1), 1.5),  # of one training, between seeds
    "parting": (np.log(0.3), 1.0),  # f + g of neighbouring rungs correlates by exp(-parting)
}
_SCALE_PRIOR = (0.0, 0.5)  # of each rung but the last
_FARTHEST = 8.0  # deviations from their priors' means that hyperparameters are looked for; beyond, numbers overflow


@dataclass(frozen=True)
class Observation:
    """Accuracy (0 to 1) of a configuration at a rung, counted from 0; the last is the end of the training. And its
    loss (nats) on the same images, where it is known; it counts at the highest rung, if all there have it."""

    config: LowFormerConfig
    rung: int
    accuracy: float
    loss: float | None = None


class AccuracySurrogate:
    """The posterior given some observations.

    Attributes:
        hyperparameters: their logarithms, in the order of `_PRIORS`, then the scale of each rung but the last.
    """

    def __init__(
        self,
        space: SearchSpace,
        observations: Sequence[Observation],
        *,
        rungs: int = 1,
        hyperparameters: Floats | None = None,
        fit: bool = True,
        known: dict[str, tuple[Floats, Floats]] | None = None,
        longer: float = LONGER,
    ) -> None:
        """Fits the hyperparameters, unless told not to, and conditions on the observations.

        Args:
            space: the configurations' own.
            observations: at least 2. Of more than `MOST_OBSERVATIONS` those of the highest rungs count, the latest
                first.
            rungs: how many there are.
            hyperparameters: to start from, or to take as they are.
            known: by configuration id what was computed of it before; added to, for surrogates to come.
            longer: how many rungs beyond the last networks are compared; 0 is the end of the training.

        Raises ValueError: too few observations, or a rung or accuracy that cannot be.
        """
        if len(observations) < 2:
            raise ValueError(f"a surrogate needs at least 2 observations, given {len(observations)}")
        rung = np.array([seen.rung for seen in observations])
        reached = np.array([seen.accuracy for seen in observations])
        possible = (rung >= 0) & (rung < rungs) & (reached >= 0) & (reached <= 1)
        if not possible.all():
            wrong = observations[int(np.argmin(possible))]
            raise ValueError(f"rungs are 0 to {rungs - 1} and accuracies 0 to 1, given {wrong.rung}, {wrong.accuracy}")
        newest = np.lexsort((-np.arange(len(rung)), -rung))[:MOST_OBSERVATIONS]
        kept = [observations[i] for i in np.sort(newest)]
        self.space, self.rungs = space, rungs
        self._known = {} if known is None else known
        self._rung = np.array([seen.rung for seen in kept])
        costs, choices = self._features([seen.config for seen in kept])
        self._scalers = _Scaler.of(costs), _Scaler.of(choices)
        self._costs, self._choices = self._scalers[0](costs), self._scalers[1](choices)
        accuracy = np.clip([seen.accuracy for seen in kept], EDGE, 1 - EDGE)
        logits = np.log(accuracy / (1 - accuracy))
        top = np.flatnonzero(self._rung == self.highest_rung)
        losses = [loss for i in top if (loss := kept[i].loss) is not None]
        if len(losses) == len(top):
            logits[top] = _with_loss(logits[top], np.array(losses))
        self._levels = {rung: float(logits[self._rung == rung].mean()) for rung in set(self._rung.tolist())}
        centred = logits - np.array([self._levels[rung] for rung in self._rung.tolist()])
        self._unit = max(float(np.sqrt(np.mean(centred**2))), 1e-3)
        macs = costs[:, 0] - self._scalers[0].centre[0]
        self._rises = (self._rung - self.highest_rung) * macs
        self._targets = centred / self._unit - _TREND[0] * self._rises
        alike = self._alike(self._costs, self._choices, self._rung, self._rises)
        start = _priors(rungs)[0] if hyperparameters is None else hyperparameters
        if fit:
            mean, width = _priors(rungs)
            bounds = list(zip(mean - _FARTHEST * width, mean + _FARTHEST * width, strict=True))
            options = {"maxiter": 50}
            start = minimize(self.loss, start, alike, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        self.hyperparameters: Floats = np.asarray(start, dtype=np.float64)
        covariance = _kernel(self.hyperparameters, alike) + _noise(self.hyperparameters, self._rung)
        self._factor = cholesky(covariance, lower=True, check_finite=False)
        self._weights = cho_solve((self._factor, True), self._targets, check_finite=False)
        trend = self._unit * (_TREND[0] + _TREND[1] ** 2 * float(self._rises @ self._weights))
        spread = float(self._scalers[0].spread[0])  # of ln MACs
        self._rise = (longer + rungs - 1 - self.highest_rung) * trend * (spread if np.isfinite(spread) else 0.0)

    @property
    def observations(self) -> int:
        """How many count, those believed among them."""
        return len(self._rung)

    @property
    def highest_rung(self) -> int:
        """That was observed."""
        return int(self._rung.max())

    def predict(self, configs: Sequence[LowFormerConfig]) -> tuple[Floats, Floats]:
        """(n,) means and (n,) standard deviations of logit(accuracy), to compare networks by: at the level of the
        highest rung observed, larger networks raised and smaller ones lowered by what is still to come.

        They are of the network, without the noise of a single training; the deviations leave out how far the raising
        itself is uncertain. `accuracy` turns means into accuracies.
        """
        costs, rung, across = self._across(configs)
        half = solve_triangular(self._factor, across.T, lower=True, check_finite=False)
        variance = _own_variance(self.hyperparameters, costs, rung) - np.einsum("ij,ij->j", half, half)
        return self._mean(costs, across), self._unit * np.sqrt(np.maximum(variance, _JITTER))

    def mean(self, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n,) the means alone, in a fraction of the time."""
        costs, _, across = self._across(configs)
        return self._mean(costs, across)

    def _across(self, configs: Sequence[LowFormerConfig]) -> tuple[Floats, NDArray[np.int_], Floats]:
        """Of n configurations at the highest rung: costs, rungs, and covariances with the m observed."""
        costs, choices = (scaler(raw) for scaler, raw in zip(self._scalers, self._features(configs), strict=True))
        rung = np.full(len(configs), self.highest_rung)
        return costs, rung, _kernel(self.hyperparameters, self._alike(costs, choices, rung))

    def _mean(self, costs: Floats, across: Floats) -> Floats:
        mean: Floats = self._levels[self.highest_rung] + self._unit * (across @ self._weights)
        return mean + self._rise * costs[:, 0]

    def believing(self, under_way: Sequence[LowFormerConfig]) -> Self:
        """The surrogate if these, whose accuracy nobody knows yet, reached what it expects: the same means, but less
        uncertain near them, so that what is chosen next differs from them.

        Source: Ginsbourger et al., "Kriging is well-suited to parallelize optimization" (2010), the kriging believer.
        """
        if not under_way:
            return self
        costs, choices = (scaler(raw) for scaler, raw in zip(self._scalers, self._features(under_way), strict=True))
        rung = np.full(len(under_way), self.highest_rung)
        more = copy(self)
        more._costs, more._choices = np.vstack([self._costs, costs]), np.vstack([self._choices, choices])
        more._rung = np.concatenate([self._rung, rung])
        more._rises = np.concatenate([self._rises, np.zeros(len(under_way))])
        across = _kernel(self.hyperparameters, more._alike(costs, choices, rung))
        seen = len(self._rung)
        corner = across[:, seen:] + _noise(self.hyperparameters, rung)
        half = solve_triangular(self._factor, across[:, :seen].T, lower=True, check_finite=False)
        below = cholesky(corner - half.T @ half, lower=True, check_finite=False)
        more._factor = np.block([[self._factor, np.zeros_like(half)], [half.T, below]])
        # What is as expected tells nothing of anything else.
        more._weights = np.concatenate([self._weights, np.zeros(len(under_way))])
        return more

    @property
    def noise(self) -> float:
        """Standard deviation between trainings of one network at the highest rung, in logits."""
        noise = _noise(self.hyperparameters, np.array([self.highest_rung]))
        return self._unit * float(np.sqrt(noise[0, 0]))

    def loss(self, vector: Floats, alike: _Alike) -> tuple[float, Floats]:
        """Negative log of the hyperparameters' posterior up to a constant, and its gradient."""
        mean, spread = _priors(self.rungs)
        pull = (vector - mean) / spread
        derivatives: list[Floats] = []
        covariance = _kernel(vector, alike, derivatives)
        noise = _noise(vector, self._rung)
        try:
            factor = cholesky(covariance + noise, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, pull / spread
        inverse = cho_solve((factor, True), np.eye(len(factor)), check_finite=False)
        weights = inverse @ self._targets
        value = 0.5 * float(self._targets @ weights) + float(np.log(np.diag(factor)).sum()) + 0.5 * float(pull @ pull)
        outer = inverse - np.outer(weights, weights)
        gradient = 0.5 * np.array([float(np.vdot(outer, part)) for part in derivatives])
        names = list(_PRIORS)
        gradient[names.index("noise")] = 0.5 * float(np.diag(outer) @ np.diag(noise))
        for rung in range(self.rungs - 1):
            here = self._rung == rung
            gradient[len(names) + rung] += float(np.diag(outer)[here] @ np.diag(noise)[here])
        return value, gradient + pull / spread

    def _alike(self, costs: Floats, choices: Floats, rung: NDArray[np.int_], rises: Floats | None = None) -> _Alike:
        """Of n configurations with the m observed; those whose `rises` are not given are at the highest rung."""
        return _Alike(
            linear=costs @ self._costs.T / costs.shape[1],
            cost=_mean_squared_distance(costs, self._costs),
            choice=_mean_squared_distance(choices, self._choices),
            rungs=(rung, self._rung),
            trend=0.0 if rises is None else _TREND[1] ** 2 * np.outer(rises, self._rises),
        )

    def _features(self, configs: Sequence[LowFormerConfig]) -> tuple[Floats, Floats]:
        """(n, 4) costs: ln MACs, ln parameters, ln resolution, ln number of units. (n, p) choices."""
        if len(self._known) > MOST_KNOWN:
            self._known.clear()
        if fresh := list({config.id: config for config in configs if config.id not in self._known}.values()):
            resolution = np.array([config.resolution for config in fresh], dtype=np.float64)
            depth = np.array([len(units(config)) for config in fresh], dtype=np.float64)
            costs = np.log(np.stack([total_macs(fresh), total_params(fresh), resolution, depth], axis=1))
            for config, row in zip(fresh, costs, strict=True):
                self._known[config.id] = row, np.asarray(self.space.encode(config), dtype=np.float64)
        rows = [self._known[config.id] for config in configs]
        return np.stack([row for row, _ in rows]), np.stack([choices for _, choices in rows])


def _with_loss(logits: Floats, loss: Floats) -> Floats:
    """(n,) means of the logits and of what the losses stand for: by a line, with the logits' own mean and spread."""
    negative = -np.log(np.maximum(loss, LEAST_LOSS))
    spread, own = float(negative.std()), float(logits.std())
    if spread < 1e-9:
        return logits
    slope = own / spread if own > 1e-9 else 1.0  # all accuracies are equal, or at the edge
    meant: Floats = logits.mean() + slope * (negative - negative.mean())
    return (logits + meant) / 2


def accuracy(logits: Floats) -> Floats:
    """(n,) accuracies, 0 to 1, of (n,) logits."""
    found: Floats = 1 / (1 + np.exp(-logits))
    return found


@dataclass(frozen=True)
class _Scaler:
    """To mean 0 and standard deviation 1, column by column; what does not vary is left out of account."""

    centre: Floats
    spread: Floats

    @classmethod
    def of(cls, values: Floats) -> _Scaler:
        spread = values.std(axis=0)
        return cls(values.mean(axis=0), np.where(spread > 1e-9, spread, np.inf))

    def __call__(self, values: Floats) -> Floats:
        scaled: Floats = (values - self.centre) / self.spread
        return scaled


@dataclass(frozen=True)
class _Alike:
    """How alike n configurations and m others are: (n, m) inner products of the costs and mean squared distances of
    costs and choices, the rungs (n,) and (m,) that they are at, and the covariances that the trend gives them."""

    linear: Floats
    cost: Floats
    choice: Floats
    rungs: tuple[NDArray[np.int_], NDArray[np.int_]]
    trend: Floats | float


def _mean_squared_distance(left: Floats, right: Floats) -> Floats:
    squared = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None] - 2 * left @ right.T
    distance: Floats = np.maximum(squared, 0.0) / left.shape[1]
    return distance


def _priors(rungs: int) -> tuple[Floats, Floats]:
    pairs = np.array([*_PRIORS.values(), *([_SCALE_PRIOR] * (rungs - 1))])
    return pairs[:, 0], pairs[:, 1]


def _scales(vector: Floats, rung: NDArray[np.int_]) -> Floats:
    """(n,) of the rungs; the last's is 1."""
    scales: Floats = np.exp(np.append(vector[len(_PRIORS) :], 0.0))[rung]
    return scales


def _noise(vector: Floats, rung: NDArray[np.int_]) -> Floats:
    """(n, n) diagonal."""
    variance = np.exp(vector[list(_PRIORS).index("noise")])
    return np.diag(variance * _scales(vector, rung) ** 2 + _JITTER)


def _matern(squared: Floats, length: float) -> Floats:
    """The Matern kernel of smoothness 5/2 from squared distances."""
    scaled = np.sqrt(5 / length**2 * squared)
    kernel: Floats = (1 + scaled + scaled * scaled / 3) * np.exp(-scaled)
    return kernel


def _matern_by_length(squared: Floats, length: float) -> Floats:
    """Its derivative by ln length."""
    scaled = np.sqrt(5 / length**2 * squared)
    derivative: Floats = scaled * scaled / 3 * (1 + scaled) * np.exp(-scaled)
    return derivative


def _kernel(vector: Floats, alike: _Alike, derivatives: list[Floats] | None = None) -> Floats:
    """(n, m) covariances without noise; their derivatives by the hyperparameters are appended to a list given."""
    linear, cost, cost_length, choice, choice_length, _, parting = np.exp(vector[: len(_PRIORS)])
    left, right = alike.rungs
    rungs = np.arange(len(vector) - len(_PRIORS) + 1)
    between = np.abs(rungs[:, None] - rungs[None])
    scales = _scales(vector, rungs)
    shared = (np.outer(scales, scales) * np.exp(-parting * between))[left[:, None], right[None]]
    by_cost, by_choice = _matern(alike.cost, cost_length), _matern(alike.choice, choice_length)
    covariance: Floats = shared * (linear * alike.linear + cost * by_cost + choice * by_choice)
    apart = between[left[:, None], right[None]]
    if derivatives is not None:
        derivatives += [
            shared * linear * alike.linear,
            shared * cost * by_cost,
            shared * cost * _matern_by_length(alike.cost, cost_length),
            shared * choice * by_choice,
            shared * choice * _matern_by_length(alike.choice, choice_length),
            np.zeros_like(covariance),
            covariance * -parting * apart,
        ]
        for rung in range(len(vector) - len(_PRIORS)):
            times = (left == rung).astype(float)[:, None] + (right == rung).astype(float)[None]
            derivatives.append(covariance * times)
    return covariance + _LEVEL_VARIANCE * (apart == 0) + alike.trend


def _own_variance(vector: Floats, costs: Floats, rung: NDArray[np.int_]) -> Floats:
    """(n,) prior variances, the diagonal of a kernel."""
    linear, cost, _, choice, *_ = np.exp(vector[: len(_PRIORS)])
    own = linear * (costs**2).mean(axis=1) + cost + choice
    variance: Floats = _scales(vector, rung) ** 2 * own + _LEVEL_VARIANCE
    return variance
