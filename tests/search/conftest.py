"""Stand-ins for the predictor and for proxy training: cheap, deterministic functions of the configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lownas.predictors.costs import total_macs
from lownas.search.results.outcome import SearchOutcome
from lownas.search.run_search import search
from lownas.search.settings import SearchSettings
from lownas.search_space.config import LowFormerConfig
from lownas.search_space.space import SearchSpace
from lownas.search_space.graph.from_config import op_graph


@dataclass(frozen=True)
class StubPrediction:
    latency_ms: float
    low_ms: float
    high_ms: float


class StubPredictor:
    """Latency grows with MACs and depth; its quantiles are 10 % apart per 0.4 of probability."""

    def latency_ms(self, configs: Sequence[LowFormerConfig]) -> NDArray[np.float64]:
        depth = np.array([sum(stage.depth for stage in config.stages) for config in configs], float)
        return 0.1 + 0.02 * depth + (total_macs(configs) / 1e8) ** 0.8

    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float) -> NDArray[np.float64]:
        return self.latency_ms(configs) * (1 + 0.25 * (q - 0.5))

    def predict(self, configs: Sequence[LowFormerConfig]) -> list[StubPrediction]:
        return [StubPrediction(x, 0.9 * x, 1.1 * x) for x in self.latency_ms(configs).tolist()]


@dataclass(frozen=True)
class StubMeasurement:
    median_ms: float
    iqr_ms: float = 0.01


def stub_accuracy(config: LowFormerConfig, seed: int) -> float:
    """Better with MACs, with a taste in depth that the prior knows nothing of, and a little noise by seed."""
    taste = 0.03 * math.sin(7 * sum(stage.depth for stage in config.stages))
    noise = 0.002 * float(np.random.default_rng(seed).standard_normal())
    return float(np.clip(0.2 + 0.08 * math.log10(op_graph(config).macs / 1e5) + taste + noise, 0.01, 0.99))


def stub_evaluate(task: Mapping[str, Any]) -> dict[str, Any]:
    config = LowFormerConfig.from_dict(task["config"])
    accuracy = stub_accuracy(config, task["seed"])
    return {"accuracy": accuracy, "history": [{"epoch": 1, "accuracy": accuracy}], "seconds": 0.5}


def stub_plan(settings: SearchSettings, configs: Sequence[LowFormerConfig]) -> dict[str, Any]:
    return {"epochs": 3, "configs": len(configs)}


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    return SearchSpace.load("tiny")


@pytest.fixture(scope="session")
def predictor() -> StubPredictor:
    return StubPredictor()


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., SearchSettings]:
    """Settings of a small search, with changes."""

    def make(**changes: Any) -> SearchSettings:
        base = {
            "target": "stub/none/fp32/b1/t1",
            "latency_budget_ms": 0.8,
            "space": "tiny",
            "trials": 8,
            "repeats": 4,
            "evaluations": 800,
            "run": str(tmp_path / "run"),
        }
        return SearchSettings.from_dict({**base, **changes})

    return make


@pytest.fixture
def evaluate() -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return stub_evaluate


@pytest.fixture
def plan() -> Callable[..., dict[str, Any]]:
    return stub_plan


@pytest.fixture
def run_search(settings, space, predictor, evaluate, plan) -> Callable[..., SearchOutcome]:
    def run(*, resume=False, evaluate=evaluate, plan=plan, measure=None, progress=None, **changes):
        return search(
            settings(**changes),
            predictor=predictor,
            space=space,
            resume=resume,
            evaluate=evaluate,
            plan=plan,
            measure=measure,
            progress=progress,
        )

    return run
