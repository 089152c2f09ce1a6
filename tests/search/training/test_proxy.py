"""The default evaluation: proxy training, from the plan to the result."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lownas.evaluators.training.settings import ProxySettings
from lownas.search.run_search import describe_search
from lownas.search.training import proxy as proxy_module
from lownas.search.training.proxy import (
    PlanRequest,
    affords_telling_proxy,
    candidate_data,
    plan_proxy,
    train_candidate,
)
from lownas.search.training.task import TrainingTask
from lownas.search_space import PRESETS, SearchSpace
from lownas.search_space.graph.from_config import op_graph

SMALL = {"epochs": 1, "train_images": 128, "validation_images": 64}


def test_planned_and_trained(settings, space) -> None:
    rng = np.random.default_rng(0)
    configs = sorted((space.sample(rng) for _ in range(100)), key=lambda config: op_graph(config).macs)[:3]
    asked = settings(data="digits", proxy_budget_s=6.0, trials=2, repeats=1)
    proxy = plan_proxy(PlanRequest(asked, configs, 3.0, "digits"))
    assert json.loads(json.dumps(proxy)) == proxy
    card = proxy.pop("data_card")
    assert card["data"] == "digits" and card["classes"] == 10 and len(card["identity"]) == 12
    assert sum(part["train"] for part in card["images_by_class"].values()) == card["train_images"]
    assert sum(part["validation"] for part in card["images_by_class"].values()) == card["validation_images"]
    assert plan_proxy(PlanRequest(asked.replace(proxy_epochs=2), configs, 3.0, "digits"))["epochs"] == 2
    task = TrainingTask(0, configs[0], 3, "digits", proxy | SMALL)
    value = train_candidate(task)
    assert not value.failure and value.accuracy is not None and 0 < value.accuracy <= 1 and value.seconds > 0
    assert len(value.history) == 1
    json.dumps([value.history, value.details], allow_nan=False)
    assert train_candidate(task).accuracy == value.accuracy
    _, load = candidate_data(task)
    assert train_candidate(replace(task, shared=load())).accuracy == value.accuracy


def test_missing_data_is_said_before_anything_starts(settings, space, tmp_path) -> None:
    data = f"imagefolder:{tmp_path / 'none'}"
    with pytest.raises(ValueError, match="no such folder"):
        plan_proxy(PlanRequest(settings(data=data), [space.sample(np.random.default_rng(0))], 12.0, data))


def test_steps_are_timed_where_candidates_train(settings, space) -> None:
    called = []

    def call(function, *arguments):
        called.append(function.__name__)
        return [1e-3] * len(arguments[0])

    configs = [space.sample(np.random.default_rng(0))]
    asked = settings(data="digits", proxy_budget_s=1000.0, trials=2, repeats=0)
    proxy = plan_proxy(PlanRequest(asked, configs, 2.0, "digits", call=call))
    assert called == ["_time_steps"]
    images = proxy["epochs"] * proxy["train_images"]
    assert proxy["expected_seconds"] == pytest.approx(
        1e-3 * (images + (proxy["validation_images"] + 512) / 3), rel=0.01
    )


def test_a_machine_affords_a_telling_proxy_if_the_default_plan_reaches_it(settings, monkeypatch, tmp_path) -> None:
    planned: list[PlanRequest] = []

    def plan(request: PlanRequest):
        planned.append(request)
        return ProxySettings(epochs=3, train_images=6400, resolution_scale=0.25).to_dict()

    monkeypatch.setattr(proxy_module, "plan_proxy", plan)
    asked, configs = settings(), [PRESETS["lowformer_b0"]]
    monkeypatch.setattr(proxy_module, "TELLING_TRAINING", None)
    assert not affords_telling_proxy(asked, configs, 27.0)
    monkeypatch.setattr(proxy_module, "TELLING_TRAINING", (300, 48))
    monkeypatch.setattr(proxy_module, "NVIDIA_DRIVER", str(tmp_path / "none"))
    assert not affords_telling_proxy(asked, configs, 27.0) and not planned, "without a GPU nothing is timed"
    monkeypatch.setattr(proxy_module, "NVIDIA_DRIVER", str(tmp_path))
    assert affords_telling_proxy(asked, configs, 27.0) and planned[0].trainings == 27.0
    for longer in ((301, 48), (300, 64)):
        monkeypatch.setattr(proxy_module, "TELLING_TRAINING", longer)
        assert not affords_telling_proxy(asked, configs, 27.0)


def test_a_run_without_data_trains_where_the_machine_affords_it(settings, parts, monkeypatch) -> None:
    given = replace(parts, evaluate=train_candidate, space=SearchSpace.load("default"))
    for afforded in (False, True):
        monkeypatch.setattr("lownas.search.run_search.affords_telling_proxy", lambda *_, here=afforded: here)
        asked = settings(space="default", latency_budget_ms=20.0)
        assert (describe_search(asked, given).trainings > 0) == afforded
