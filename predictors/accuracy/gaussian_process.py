"""The Gaussian process behind the accuracy surrogate: covariances, noise, and the posterior of the hyperparameters.

Everything is in units of the spread of logit(accuracy) within rungs. Hyperparameters are logarithms in one vector: in
the order of `HYPERPARAMETER_PRIORS`, then the scale of each rung but the last, whose scale is 1.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky  # type: ignore[import-untyped, unused-ignore]

Floats = NDArray[np.float64]
Rungs = NDArray[np.int_]

HYPERPARAMETER_PRIORS = {
    "linear": (np.log(0.3), 1.5),  # variance of the part that is linear in the costs
    "cost": (np.log(0.1), 1.5),  # variance of the part that is smooth in the costs
    "cost_length": (np.log(1.5), 0.7),  # its length scale, in standard deviations over all costs together
    "choice": (np.log(0.1), 1.5),  # variance of the part that is smooth in the choices of the space
    "choice_length": (np.log(1.5), 0.7),  # its length scale, in standard deviations over all choices together
    "noise": (np.log(0.1), 1.5),  # variance of one training, between seeds
    "rung_decay": (np.log(0.3), 1.0),  # networks at neighbouring rungs correlate by exp(-rung_decay)
}
"""Mean and standard deviation of the normal prior of each hyperparameter, wide so that observations decide."""
RUNG_SCALE_PRIOR = (0.0, 0.5)
"""Mean and standard deviation of the prior of the logarithm of each rung's scale."""
TREND_PRIOR = (0.11, 0.2)
"""What each rung adds to logit(accuracy) per unit of scaled ln MACs, mean and standard deviation of its prior. Source:
the short trainings in experiments/tabular/ of the networks that are not trained long ("rise" in
experiments/proxy_fidelity/study.json)."""
SIZE_PRIOR = 0.35
"""What is expected of logit(accuracy) per unit of scaled ln MACs, before anything is trained.

Published results on ImageNet have about 0.9, small networks on an easy task half of that (experiments/tabular/). The
variance of the linear part lets observations decide. What it is worth: experiments/proxy_fidelity/size.py.
"""
LEVEL_VARIANCE = 100.0
"""Prior variance of each rung's mean: as good as flat."""
JITTER = 1e-6
"""Variance that is added to keep covariances invertible."""

_NOT_POSITIVE_DEFINITE = 1e10  # the loss of hyperparameters whose covariance cannot be factorized


@dataclass(frozen=True)
class Similarity:
    """How similar n configurations are to m others; all that covariances depend on beside the hyperparameters.

    Attributes:
        linear: (n, m) mean products of the scaled costs.
        cost, choice: (n, m) mean squared distances of the scaled costs and choices.
        rungs: (n,) and (m,) rungs that the configurations are at.
        trend: (n, m) covariances of what rungs add to larger networks.
    """

    linear: Floats
    cost: Floats
    choice: Floats
    rungs: tuple[Rungs, Rungs]
    trend: Floats | float


def mean_squared_distance(left: Floats, right: Floats) -> Floats:
    """(n, m) squared distances of (n, p) and (m, p) points, over p."""
    squared = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None] - 2 * left @ right.T
    distance: Floats = np.maximum(squared, 0.0) / left.shape[1]
    return distance


def hyperparameter_priors(rungs: int) -> tuple[Floats, Floats]:
    """Means and standard deviations of the hyperparameters' priors, for a number of rungs."""
    pairs = np.array([*HYPERPARAMETER_PRIORS.values(), *([RUNG_SCALE_PRIOR] * (rungs - 1))])
    return pairs[:, 0], pairs[:, 1]


def covariance(vector: Floats, similarity: Similarity, derivatives: list[Floats] | None = None) -> Floats:
    """(n, m) covariances without noise; their derivatives by the hyperparameters are appended to a list given."""
    linear, cost, cost_length, choice, choice_length, _, rung_decay = np.exp(vector[: len(HYPERPARAMETER_PRIORS)])
    left, right = similarity.rungs
    rungs = np.arange(len(vector) - len(HYPERPARAMETER_PRIORS) + 1)
    between = np.abs(rungs[:, None] - rungs[None])
    scales = _rung_scales(vector, rungs)
    shared = (np.outer(scales, scales) * np.exp(-rung_decay * between))[left[:, None], right[None]]
    by_cost, by_choice = _matern(similarity.cost, cost_length), _matern(similarity.choice, choice_length)
    scaled: Floats = shared * (linear * similarity.linear + cost * by_cost + choice * by_choice)
    apart = between[left[:, None], right[None]]
    if derivatives is not None:
        derivatives += [
            shared * linear * similarity.linear,
            shared * cost * by_cost,
            shared * cost * _matern_by_length(similarity.cost, cost_length),
            shared * choice * by_choice,
            shared * choice * _matern_by_length(similarity.choice, choice_length),
            np.zeros_like(scaled),  # of the noise, which is not part of this
            scaled * -rung_decay * apart,
        ]
        for rung in range(len(vector) - len(HYPERPARAMETER_PRIORS)):
            times = (left == rung).astype(float)[:, None] + (right == rung).astype(float)[None]
            derivatives.append(scaled * times)
    return scaled + LEVEL_VARIANCE * (apart == 0) + similarity.trend


def prior_variance(vector: Floats, costs: Floats, rung: Rungs) -> Floats:
    """(n,) the diagonal of the covariance of n configurations with themselves, from their scaled costs and rungs."""
    linear, cost, _, choice, *_ = np.exp(vector[: len(HYPERPARAMETER_PRIORS)])
    own = linear * (costs**2).mean(axis=1) + cost + choice
    variance: Floats = _rung_scales(vector, rung) ** 2 * own + LEVEL_VARIANCE
    return variance


def noise_covariance(vector: Floats, rung: Rungs) -> Floats:
    """(n, n) diagonal covariance of the noise of n trainings."""
    variance = np.exp(vector[list(HYPERPARAMETER_PRIORS).index("noise")])
    return np.diag(variance * _rung_scales(vector, rung) ** 2 + JITTER)


def negative_log_posterior(
    vector: Floats, similarity: Similarity, targets: Floats, rung: Rungs, rungs: int
) -> tuple[float, Floats]:
    """The negative log of the hyperparameters' posterior, up to a constant, and its gradient.

    Args:
        vector: hyperparameters.
        similarity: of the m observed configurations with themselves.
        targets: (m,) observed logits, centred and scaled.
        rung: (m,) the rungs they are at.
        rungs: how many rungs there are.
    """
    mean, spread = hyperparameter_priors(rungs)
    pull = (vector - mean) / spread
    derivatives: list[Floats] = []
    signal = covariance(vector, similarity, derivatives)
    noise = noise_covariance(vector, rung)
    try:
        factor = cholesky(signal + noise, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return _NOT_POSITIVE_DEFINITE, pull / spread
    inverse = cho_solve((factor, True), np.eye(len(factor)), check_finite=False)
    weights = inverse @ targets
    value = 0.5 * float(targets @ weights) + float(np.log(np.diag(factor)).sum()) + 0.5 * float(pull @ pull)
    outer = inverse - np.outer(weights, weights)
    gradient = 0.5 * np.array([float(np.vdot(outer, part)) for part in derivatives])
    names = list(HYPERPARAMETER_PRIORS)
    gradient[names.index("noise")] = 0.5 * float(np.diag(outer) @ np.diag(noise))
    for number in range(rungs - 1):
        here = rung == number
        gradient[len(names) + number] += float(np.diag(outer)[here] @ np.diag(noise)[here])
    return value, gradient + pull / spread


def _rung_scales(vector: Floats, rung: Rungs) -> Floats:
    """(n,) scales of (n,) rungs; the last one's is 1."""
    scales: Floats = np.exp(np.append(vector[len(HYPERPARAMETER_PRIORS) :], 0.0))[rung]
    return scales


def _matern(squared: Floats, length: float) -> Floats:
    """The Matern kernel of smoothness 5/2, from squared distances."""
    scaled = np.sqrt(5 / length**2 * squared)
    kernel: Floats = (1 + scaled + scaled * scaled / 3) * np.exp(-scaled)
    return kernel


def _matern_by_length(squared: Floats, length: float) -> Floats:
    """The derivative of the Matern kernel by ln length."""
    scaled = np.sqrt(5 / length**2 * squared)
    derivative: Floats = scaled * scaled / 3 * (1 + scaled) * np.exp(-scaled)
    return derivative
