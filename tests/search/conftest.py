"""Stand-ins for the predictor and for proxy training: cheap, deterministic functions of the configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray

from lownas.predictors.costs import total_macs
from lownas.search.latency.looks import Measuring
from lownas.search.results.search_result import SearchResult
from lownas.search.run_search import Parts
from lownas.search.run_search import run_search as search_with
from lownas.search.settings import SearchSettings
from lownas.search.training.proxy import PlanRequest
from lownas.search.training.task import Evaluation, TrainingTask
from lownas.search.trials.run_folder import read_results
from lownas.search_space.config import LowFormerConfig
from lownas.search_space.graph.from_config import op_graph
from lownas.search_space.space import SearchSpace


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
    """A look on a machine at rest: all its times are about the same."""

    median_ms: float
    iqr_ms: float = 0.01

    @property
    def undisturbed_ms(self) -> float:
        return self.median_ms

    @property
    def p90_ms(self) -> float:
        return 1.1 * self.median_ms

    @property
    def p99_ms(self) -> float:
        return 1.5 * self.median_ms

    def to_dict(self) -> dict[str, Any]:
        return {"times_ms": [self.median_ms], "busy_cores": 0.0}


def stub_accuracy(config: LowFormerConfig, seed: int) -> float:
    """Better with MACs, with a taste in depth that the prior knows nothing of, and a little noise by seed."""
    taste = 0.03 * math.sin(7 * sum(stage.depth for stage in config.stages))
    noise = 0.002 * float(np.random.default_rng(seed).standard_normal())
    return float(np.clip(0.2 + 0.08 * math.log10(op_graph(config).macs / 1e5) + taste + noise, 0.01, 0.99))


def stub_evaluate(task: TrainingTask) -> Evaluation:
    accuracy = stub_accuracy(task.config, task.seed)
    return Evaluation(accuracy, seconds=0.5, history=({"epoch": 1, "accuracy": accuracy},))


def rung_evaluate(task: TrainingTask) -> Evaluation:
    """Learns as the training goes on; the order at a rung is nearly that at the end."""
    accuracy = stub_accuracy(task.config, task.seed)
    share = 0.5 + 0.5 * task.until
    return replace(stub_evaluate(task), accuracy=accuracy * share, seconds=9 * task.until)


def noisy_evaluate(task: TrainingTask) -> Evaluation:
    """A training that says little of its network: half of what it reaches is the luck of its seed. Small ones are best,
    which no prior expects."""
    luck = 0.06 * float(np.random.default_rng(task.seed).standard_normal())
    accuracy = 0.7 - 0.2 * math.log10(op_graph(task.config).macs / 1e5) + luck
    return Evaluation(accuracy, -math.log(accuracy), 0.5)


def stub_plan(request: PlanRequest) -> dict[str, Any]:
    return {"epochs": 3, "configs": len(request.configs)}


def facts(run: str | Path) -> list[dict[str, Any]]:
    """All results of a run, as they stand in its folder."""
    return [result.to_dict() for result in read_results(run)]


def load_study(run: str | Path) -> optuna.Study:
    """The study in a run's folder, as Optuna's own tools open it."""
    return optuna.load_study(study_name="lownas", storage=f"sqlite:///{run}/study.db")


def states(run: str | Path) -> list[str]:
    """The states of a run's trials, as its study has them."""
    return [trial.state.name for trial in load_study(run).trials]


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
def evaluate() -> Callable[[TrainingTask], Evaluation]:
    return stub_evaluate


@pytest.fixture
def plan() -> Callable[[PlanRequest], Mapping[str, Any]]:
    return stub_plan


@pytest.fixture
def parts(predictor, space, evaluate, plan) -> Parts:
    """The stand-ins as parts of a search."""
    return Parts(predictor=predictor, space=space, evaluate=evaluate, plan=plan)


@pytest.fixture
def run_search(settings, parts) -> Callable[..., SearchResult]:
    """A small search with the stand-ins; parts can be replaced, and all else changes its settings."""

    def run(
        *,
        resume=False,
        evaluate=parts.evaluate,
        plan=parts.plan,
        measure=None,
        sentinel=None,
        progress=None,
        callback=None,
        others=None,
        **changes,
    ):
        measuring = None if measure is None else Measuring(measure, sentinel)
        given = replace(
            parts, evaluate=evaluate, plan=plan, measuring=measuring, progress=progress, callback=callback, also=others
        )
        return search_with(settings(**changes), given, resume=resume)

    return run
