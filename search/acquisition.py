"""Which of many candidates is worth a training, by what the surrogate expects and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # type: ignore[import-untyped, unused-ignore]

from ..predictors.surrogate import AccuracySurrogate, Observation
from ..search_space.config import LowFormerConfig
from ..search_space.space import SearchSpace

Floats = NDArray[np.float64]

HYPERPARAMETER_OBSERVATIONS = 150  # they change little with more, and a fit costs the cube


def learn(space: SearchSpace, observations: Sequence[Observation], rungs: int) -> AccuracySurrogate:
    """The surrogate of `observations`, its hyperparameters fitted on at most `HYPERPARAMETER_OBSERVATIONS` of them.

    A function of what is given, and of nothing else. Raises ValueError for fewer than 2 observations.
    """
    step = -(-len(observations) // HYPERPARAMETER_OBSERVATIONS)
    few = AccuracySurrogate(space, observations[::-step][::-1] if step > 1 else observations, rungs=rungs)
    if step == 1:
        return few
    return AccuracySurrogate(space, observations, rungs=rungs, hyperparameters=few.hyperparameters, fit=False)


def believing(surrogate: AccuracySurrogate, under_way: Sequence[LowFormerConfig]) -> list[Observation]:
    """What candidates under way are taken to reach while nobody knows, so that the next one differs from them.

    Source: Ginsbourger et al., "Kriging is well-suited to parallelize optimization" (2010), the kriging believer.
    """
    if not under_way:
        return []
    means, _ = surrogate.predict(under_way)
    accuracies = 1 / (1 + np.exp(-means))
    return [
        Observation(config, surrogate.highest_rung, float(accuracy))
        for config, accuracy in zip(under_way, accuracies, strict=True)
    ]


def expected_improvement(mean: Floats, spread: Floats, best: float) -> Floats:
    """(n,) by how much a normal variable is expected to exceed `best`, from (n,) means and standard deviations."""
    ahead = (mean - best) / spread
    density = np.exp(-0.5 * ahead**2) / np.sqrt(2 * np.pi)
    gain: Floats = spread * (ahead * ndtr(ahead) + density)
    return gain
