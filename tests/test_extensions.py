"""A search with a strategy, objective, task, data source, runtime and exporter written outside the package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lownas.evaluators.data import sources
from lownas.evaluators.device import runtimes as timed
from lownas.predictors.latency import runtimes as predicted
from lownas.predictors.latency.kernels import PLAIN, Fuser, class_of
from lownas.search import (
    Objective,
    SearchState,
    Strategy,
    Suggestion,
    calibrate,
    register_exporter,
    register_objective,
    register_strategy,
    resume,
    search,
)
from lownas.search.objectives import OBJECTIVES
from lownas.search.objectives.estimates import Estimates
from lownas.search.results.exporters import EXPORTERS
from lownas.search.strategies import STRATEGIES
from lownas.search.trials.run_folder import read_results
from lownas.search_space import LowFormerConfig, SearchSpace, heads, op_graph

from .evaluators.toys import Brightness, MeanHead, NumpyRuntime, Regression

TARGET = "cpu/toy-numpy/fp32/b1/t1"


class NextInSize(Strategy):
    """Proposes the smallest candidate that was not tried."""

    name = "next-in-size"

    def propose(self, state: SearchState, rng: np.random.Generator) -> Suggestion | None:
        found = state.pool.found
        order = [found.configs[i] for i in np.argsort(found.macs, kind="stable")]
        fresh = [config for config in order if config.id not in state.history.tried]
        return Suggestion(fresh[0]) if fresh else None


def thrift(config: LowFormerConfig, accuracy: float) -> float:
    return 100 * accuracy - 10 * op_graph(config).params / 1e6


class Thrift(Objective):
    """Accuracy on the data, less ten points for every million parameters."""

    name = "thrift"
    label = "accuracy less size"
    axis = "accuracy less size"
    default_strategy = "next-in-size"

    def estimates_of(self, trained: Any, learned: Any = None) -> Estimates:
        return Estimates(trained, {one.config_id: thrift(one.config, one.accuracy) for one in trained})


class ToyRuntime(predicted.Runtime):
    """The prediction side of `NumpyRuntime`: it merges nothing."""

    name = "toy-numpy"
    library = "numpy"
    precisions = ("fp32",)

    def fuse(self, graph: Any, fusion: str, block: int, layout: int) -> Any:
        fuser = Fuser(graph)
        for row, op in enumerate(fuser.ops):
            fuser.emit(row, class_of(op))
        return fuser.kernels(), PLAIN


class Summary:
    """Writes one line about the network."""

    name = "summary"
    suffix = ".txt"

    def write(self, config: Any, path: Path, model: Any, about: Any) -> None:
        path.write_text(f"{config.id}: {config.resolution} pixels\n")


@pytest.fixture
def extended() -> Iterator[None]:
    """Everything is registered while a test runs, and then forgotten."""
    register_strategy(NextInSize())
    register_objective(Thrift)
    register_exporter(Summary())
    heads.register_head(MeanHead())
    predicted.register_runtime(ToyRuntime())
    timed.register_runtime(NumpyRuntime())
    sources.register_source("brightness", Brightness.named, "brightness:COUNT")
    yield
    for registry, name in (
        *((STRATEGIES, "next-in-size"), (OBJECTIVES, "thrift"), (EXPORTERS, "summary"), (heads.HEADS, "toy_mean")),
        *((predicted.RUNTIMES, "toy-numpy"), (timed._RUNTIMES, "toy-numpy"), (sources._KINDS, "brightness")),
    ):
        del registry[name]  # type: ignore[attr-defined]


def test_a_search_with_nothing_but_extensions(extended: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lownas.search.api.REST_S", 0.0)
    profiles = tmp_path / "profiles"
    calibrated = calibrate(TARGET, samples=8, space="tiny", profiles=profiles)
    assert calibrated.provenance["samples"] == 8
    result = search(
        TARGET,
        "1s",
        space="tiny",
        resolution=32,
        data="brightness:400",
        task=Regression(),
        objective="thrift",
        rungs=1,
        trials=3,
        repeats=0,
        workers=0,
        evaluations=800,
        proxy_epochs=1,
        proxy_budget="1s",
        profiles=profiles,
        run=tmp_path / "run",
    )
    trained = read_results(result.run)
    assert [one.status for one in trained] == ["complete"] * 3 and {one.role for one in trained} == {"child"}
    assert [one.macs for one in trained] == sorted(one.macs for one in trained), "the toy strategy proposed them"
    assert all(one.config.head == "toy_mean" for one in trained), "the toy task's head is what latency is predicted for"
    values = {one.config_id: thrift(one.config, one.accuracy or 0.0) for one in trained}
    assert {c.config.id: c.objective for c in result.candidates} == pytest.approx(values), "the toy objective ranks"
    assert result.candidates[0].config.id == max(values, key=values.__getitem__)
    assert result.answer is not None and result.answer.latency_source == "measured", "by the toy runtime"
    assert "accuracy less size" in result.report().read_text()
    (written,) = result.export("summary", to=tmp_path / "answer")
    assert written.read_text() == f"{result.answer.config.id}: 32 pixels\n"
    model = result.answer.build()
    assert type(model.get_classifier()).__name__ == "Linear"
    about = json.loads((result.run / "run.json").read_text())
    assert about["settings"]["objective"] == "thrift" and about["settings"]["data"] == "brightness:400"
    card = json.loads((result.run / "data_card.json").read_text())
    assert card["smallest_label"] > 0

    again = resume(result.run, task=Regression(), space=SearchSpace.load("tiny", 32), profiles=profiles, trials=4)
    assert again.counts == {"complete": 4}


def test_a_strategy_as_an_object_and_an_unknown_one_by_name(extended: None, tmp_path: Path) -> None:
    class Other(NextInSize):
        name = "other"

    options: dict[str, Any] = {
        "space": "tiny",
        "workers": 0,
        "trials": 2,
        "repeats": 0,
        "evaluate": lambda task: 0.5,
        "evaluations": 800,
    }
    result = search("rtx3090", "2ms", strategy=Other(), run=tmp_path / "a", proxy_budget="1s", **options)
    assert result.counts == {"complete": 2} and result.settings.strategy == "other"
    with pytest.raises(ValueError, match=r"strategy: unknown 'other', known are 'surrogate'.*'next-in-size'"):
        resume(tmp_path / "a")
