"""A search where nothing trains: the best predicted networks are kept, and the answer is one of them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lownas import search_space
from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.search.api import replay, resume
from lownas.search.api import search as search_by_name
from lownas.search.latency.looks import Measuring
from lownas.search.objectives.base import LOWER_QUANTILE
from lownas.search.results.report import write_report
from lownas.search.results.search_result import SearchResult
from lownas.search.run_search import describe_search
from lownas.search.run_search import run_search as search_with
from lownas.search.training.proxy import train_candidate
from lownas.search.trials.run_folder import read_about, read_results
from lownas.search.trials.status import SearchStatus
from lownas.search_space.config import LowFormerConfig
from lownas.search_space.presets import PRESETS
from lownas.search_space.space import SearchSpace

from .conftest import StubMeasurement


@pytest.fixture
def predict(settings, parts):
    """A small search without data: what would train or plan a training is not called."""

    def never(request):
        raise AssertionError("nothing is planned where nothing trains")

    def run(*, resume=False, space=parts.space, changed=None, **changes) -> SearchResult:
        given = replace(parts, **{"evaluate": train_candidate, "plan": never, "space": space, **(changed or {})})
        return search_with(settings(**changes), given, resume=resume)

    return run


def test_the_best_predicted_networks_are_kept_and_nothing_trains(predict) -> None:
    seen: list[SearchStatus] = []
    outcome = predict(trials=9, changed={"progress": seen.append})
    results = read_results(outcome.run)
    assert [result.trial for result in results] == list(range(9))
    assert {(result.status, result.accuracy, result.seed) for result in results} == {("predicted", None, 0)}
    assert {result.role for result in results} == {"exploit", "explore"}
    assert outcome.counts == {"predicted": 9} and len(outcome.candidates) == 9
    assert not list(outcome.run.glob("study.db*")) and not (outcome.run / "rungs.jsonl").exists()
    about = read_about(outcome.run)
    assert about["proxy"] == {} and about["trains"] is False and "study" not in about
    assert (seen[-1].phase, seen[-1].done, seen[-1].total) == ("done", 9, 9) and seen[-1].best is not None
    assert any(note.startswith("Nothing was trained") for note in outcome.notes)


def test_the_answer_has_the_highest_lower_quantile(predict) -> None:
    outcome = predict(trials=9)
    prior = outcome.objective.prior
    quantile = prior.quantile([candidate.config for candidate in outcome.candidates], LOWER_QUANTILE)
    assert [candidate.objective for candidate in outcome.candidates] == pytest.approx(quantile.tolist())
    assert outcome.answer == outcome.candidates[0] and outcome.answer.objective == pytest.approx(quantile.max())
    assert all(one.low_top1 < one.objective < one.prior_top1 < one.high_top1 for one in outcome.candidates)
    stored = [json.loads(line) for line in (outcome.run / "results.jsonl").read_text().splitlines()]
    assert stored[0]["objective"] == pytest.approx(outcome.answer.objective), "the best is the first that is kept"
    assert {"low_top1", "high_top1", "nearest"} <= set(stored[0]["details"])
    assert outcome.to_dict()["objective"] == "imagenet"
    assert all(candidate.quantile_ms <= 0.8 for candidate in outcome.candidates)


def test_a_resumed_run_adds_what_a_longer_one_would_have_kept(predict, tmp_path) -> None:
    predict(trials=4)
    resumed = predict(trials=10, resume=True)
    whole = predict(trials=10, run=str(tmp_path / "whole"))
    kept = [[result.config_id for result in read_results(outcome.run)] for outcome in (resumed, whole)]
    assert kept[0] == kept[1] and len(set(kept[0])) == 10
    fewer = predict(trials=4, resume=True)
    assert len(fewer.candidates) == 10, "what was kept stays"
    with pytest.raises(ValueError, match="started without trainings"):
        predict(resume=True, changed={"evaluate": lambda task: 0.5})


def test_a_front_is_kept_along_the_latencies(predict) -> None:
    outcome = predict(trials=8, pareto=True)
    assert {result.role for result in read_results(outcome.run)} == {"exploit"}
    latencies = [candidate.latency_ms for candidate in outcome.front]
    assert len(latencies) >= 4 and latencies[-1] / latencies[0] > 1.5


def test_a_callback_ends_it(predict) -> None:
    outcome = predict(trials=8, changed={"callback": lambda result: result.trial == 2})
    assert outcome.interrupted and outcome.counts == {"predicted": 3}


class Favouring:
    """The shipped prior, but sure of one network."""

    def __init__(self, favourite: LowFormerConfig) -> None:
        self._prior, self._favourite = AccuracyPrior.load(), favourite

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    def quantile(self, configs: Sequence[LowFormerConfig], q: float) -> np.ndarray:
        return self._prior.quantile(configs, q) + 9.0 * np.array([one.id == self._favourite.id for one in configs])


def test_a_published_model_that_nothing_beats_is_the_answer(predict, predictor) -> None:
    b1 = PRESETS["lowformer_b1"].replace(resolution=256)
    budget_ms = 1.001 * float(predictor.quantile_ms([b1], 0.9)[0])
    asked = {"space": SearchSpace.load("default"), "latency_budget_ms": budget_ms, "trials": 3, "evaluations": 2000}
    outcome = predict(**asked, changed={"prior": Favouring(b1)})
    assert outcome.answer is not None and outcome.answer.config == b1
    assert any("lowformer_b1 at 256 pixels" in note for note in outcome.notes)
    assert outcome.answer.published == "lowformer_b1" and outcome.answer.published_top1 == 80.26
    assert any("With 90 % confidence its undisturbed latency stays below" in note for note in outcome.notes)


def test_the_report_shows_intervals_and_published_accuracies(predict) -> None:
    outcome = predict(trials=3)
    text = write_report(outcome).read_text()
    assert "predicted only" in text and "proxy accuracy" not in text
    assert f"{outcome.answer.low_top1:.1f} to {outcome.answer.high_top1:.1f}" in text
    assert "published top-1" in text and '"error_y"' in text


def test_what_is_asked_decides_whether_something_trains(settings, parts) -> None:
    given = replace(parts, evaluate=train_candidate)
    assert describe_search(settings(), given).trainings == 0
    for asked in ({"data": "digits"}, {"proxy_budget_s": 60}, {"proxy_epochs": 1}, {"rungs": 2}, {"strategy": "tpe"}):
        assert settings(**asked).trains and describe_search(settings(**asked), given).trainings > 0
    assert describe_search(settings(), parts).trainings > 0, "an own evaluation"


def test_a_predicted_run_is_replayed_with_trainings(tmp_path: Path) -> None:
    first = search_by_name("rtx3090", "2ms", run=tmp_path / "first", evaluations=800, trials=2)
    assert first.counts == {"predicted": 2}
    given = {"proxy_budget": "5s", "workers": 0, "repeats": 0, "evaluate": lambda task: 0.5}
    again = replay(first.run, run=tmp_path / "again", **given)
    assert again.counts["complete"] >= 2 and "predicted" not in again.counts
    assert any(f"`lownas --replay {first.run}/run.json --proxy-budget 30m`" in note for note in first.notes)
    with pytest.raises(ValueError, match=rf"search anew with it: lownas --replay {first.run}/run.json --proxy-budget"):
        resume(first.run, proxy_budget="5s")


def test_options_without_effect_are_named(tmp_path: Path) -> None:
    given = {"run": tmp_path / "run", "evaluations": 800, "trials": 2}
    with pytest.warns(UserWarning, match="no effect: --repeats, --time-budget; nothing trains without"):
        search_by_name("rtx3090", "2ms", repeats=3, time_budget="5m", **given)


@pytest.mark.parametrize("asked", [{}, {"proxy_budget": "5s"}, {"pareto": True}])
def test_imagenet_has_a_thousand_classes(tmp_path: Path, asked) -> None:
    with pytest.raises(
        ValueError, match=r"'tiny' has 10 classes, ImageNet has 1,000: .*--data, or search --space default"
    ):
        search_by_name("rtx3090", "2ms", space="tiny", run=tmp_path / "run", **asked)
    assert list(tmp_path.iterdir()) == []


def test_a_space_of_ones_own_is_to_leave_classes_out(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text((Path(search_space.__file__).parent / "spaces" / "tiny.yaml").read_text())
    with pytest.raises(ValueError, match=r"has 10 classes.* or leave `classes` out of the space"):
        search_by_name("rtx3090", "2ms", space=own, run=tmp_path / "run")


def test_a_space_outside_of_everything_published_is_said_to_be(predict) -> None:
    outcome = predict(trials=3, space=SearchSpace.load("tiny", 32))
    assert all(candidate.extrapolated for candidate in outcome.candidates)
    assert any(note.startswith("Every network of the space 'tiny'") for note in outcome.notes)


def test_neither_torch_nor_ray_is_loaded(tmp_path: Path) -> None:
    words = ["--target", "rtx3090", "--latency-budget", "2ms", "--run", str(tmp_path / "run")]
    code = (
        f"import sys; from lownas.nas import main; code = main({words!r}); "
        "sys.exit(code or ', '.join({'torch', 'ray', 'sklearn', 'onnxruntime'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Nothing was trained" in done.stdout and len(read_results(tmp_path / "run")) == 16


def test_where_the_device_is_at_hand_finalists_are_measured(predict, predictor) -> None:
    slower = 1.2  # than predicted

    def measure(config: LowFormerConfig) -> StubMeasurement:
        return StubMeasurement(slower * float(predictor.latency_ms([config])[0]))

    outcome = predict(trials=8, changed={"measuring": Measuring(measure)})
    assert outcome.answer is not None and outcome.answer.latency_source == "measured"
    assert outcome.answer.latency_ms <= 0.8 and outcome.counts == {"predicted": 8}
    assert all(slower * predictor.latency_ms([one.config])[0] < 0.85 for one in outcome.candidates), "found anew"
    roles = {json.loads(line)["role"] for line in (outcome.run / "measured.jsonl").read_text().splitlines()}
    assert roles == {"anchor", "finalist"}
