"""Candidates that were never trained, and the measure of a front."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from lownas.search.objectives.estimates import TrainedCandidate
from lownas.search_space import LowFormerConfig, SearchSpace


def named(name: str) -> Any:
    """What stands for a configuration where only its id matters."""
    return SimpleNamespace(id=name)


def networks(count: int) -> list[LowFormerConfig]:
    """Different networks of the default space."""
    rng, space = np.random.default_rng(0), SearchSpace.load("default")
    return [space.sample(rng) for _ in range(count)]


def trained(*, repeats: int, noise: float, configs: Sequence[Any] = ()) -> list[TrainedCandidate]:
    """Candidates with a spread of prior and accuracy; some have two seeds. They are `configs`, or have names alone."""
    configs = configs or [named(f"c{number}") for number in range(16)]
    count = len(configs)
    rng = np.random.default_rng(0)
    found = []
    for number, config in enumerate(configs):
        true = 0.5 + 0.2 * number / count
        seeds = 2 if number < repeats else 1
        accuracies = tuple((true + noise * rng.standard_normal(seeds)).tolist())
        found.append(TrainedCandidate(config, 75 + 6 * number / count, accuracies))
    return found


def area(objective, latency_ms, floor, budget_ms):
    """Under the front over ln latency, by brute force."""
    grid = np.linspace(np.log(0.01), np.log(1.1 * budget_ms), 200_001)
    best = np.full(len(grid), floor)
    for value, ms in zip(objective, latency_ms, strict=True):
        best = np.where(grid >= np.log(ms), np.maximum(best, value), best)
    return float(np.trapezoid(best, grid))
