"""Candidates that were never trained, and the measure of a front."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from lownas.search.objectives.estimates import TrainedCandidate


def named(name: str) -> Any:
    """What stands for a configuration where only its id matters."""
    return SimpleNamespace(id=name)


def trained(*, repeats: int, noise: float, count: int = 16) -> list[TrainedCandidate]:
    """Candidates with a spread of prior and accuracy; some have two seeds."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        true = 0.5 + 0.2 * number / count
        seeds = 2 if number < repeats else 1
        accuracies = tuple((true + noise * rng.standard_normal(seeds)).tolist())
        found.append(TrainedCandidate(named(f"c{number}"), 75 + 6 * number / count, accuracies))
    return found


def area(objective, latency_ms, floor, budget_ms):
    """Under the front over ln latency, by brute force."""
    grid = np.linspace(np.log(0.01), np.log(1.1 * budget_ms), 200_001)
    best = np.full(len(grid), floor)
    for value, ms in zip(objective, latency_ms, strict=True):
        best = np.where(grid >= np.log(ms), np.maximum(best, value), best)
    return float(np.trapezoid(best, grid))
