"""A whole search with stand-ins for predictor and training: what it finds, refuses and leaves behind."""

import json
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.search.results.search_result import SearchResult
from lownas.search.run_search import describe_search, resolve_choices
from lownas.search.run_search import run_search as search_with
from lownas.search.trials.run_folder import RunFolder, read_results
from lownas.search.trials.status import SearchStatus
from lownas.search_space import SearchSpace

from .conftest import load_study, states


def test_whole_search(run_search, settings, space, predictor) -> None:
    seen: list[SearchStatus] = []
    outcome = run_search(trials=16, repeats=5, evaluations=2000, progress=seen.append)
    results = read_results(outcome.run)
    assert [result.trial for result in results] == list(range(21))
    assert {result.status for result in results} == {"complete"}
    assert len({result.config_id for result in results}) == 16
    assert Counter(result.role for result in results) == {"explore": 6, "exploit": 5, "child": 5, "repeat": 5}
    macs = [result.macs for result in results]
    assert max(macs) / min(macs) >= 3
    repeated = [result for result in results if result.role == "repeat"]
    for result in repeated:
        assert any(other.config_id == result.config_id and other.seed != result.seed for other in results)
    # The answer uses the budget and beats the best of 1,000 random feasible configurations under the same prior.
    assert outcome.answer is not None
    assert 0.9 * 0.8 <= outcome.answer.quantile_ms <= 0.8
    rng = np.random.default_rng(1)
    samples = [space.sample(rng) for _ in range(3000)]
    feasible = [c for c, q in zip(samples, predictor.quantile_ms(samples, 0.9), strict=True) if q <= 0.8][:1000]
    assert len(feasible) == 1000
    assert outcome.answer.prior_top1 > AccuracyPrior().imagenet_top1(feasible).max()
    assert outcome.answer.latency_source == "predicted"
    assert any("predicted, not measured" in note for note in outcome.notes)
    assert any("Nothing was trained on your data" in note for note in outcome.notes)
    assert seen[-1].done == 21 and seen[-1].phase == "done"
    about = json.loads((outcome.run / "run.json").read_text())
    assert about["proxy"] == {"epochs": 3, "configs": 16}
    assert about["settings"]["latency_budget_ms"] == 0.8
    assert states(outcome.run) == ["COMPLETE"] * 21
    study = load_study(outcome.run)
    assert all(trial.constraints["latency"] <= 0 for trial in study.trials)
    assert study.trials[0].params == space.to_params(results[0].config)


def test_budget_below_the_fastest_leaves_nothing_behind(run_search, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"budget of 0.01 ms: the fastest .* takes 0\.\d+ ms at confidence 0.9"):
        run_search(latency_budget_ms=0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_fails_leaves_nothing_behind(run_search, tmp_path) -> None:
    def no_data(request):
        raise ValueError("data: no such folder")

    with pytest.raises(ValueError, match="no such folder"):
        run_search(plan=no_data)
    assert list(tmp_path.iterdir()) == []


def test_existing_run_needs_resume(run_search) -> None:
    run_search(trials=1, repeats=0)
    with pytest.raises(ValueError, match="already a run"):
        run_search(trials=1, repeats=0)
    with pytest.raises(ValueError, match=r"cannot resume with latency_budget_ms = 0\.9: the run was started with 0\.8"):
        run_search(trials=1, repeats=0, latency_budget_ms=0.9, resume=True)


def test_resume_without_a_run(run_search, tmp_path) -> None:
    with pytest.raises(ValueError, match="no run to resume"):
        run_search(resume=True)


def test_second_driver_is_refused(run_search, settings) -> None:
    run_search(trials=1, repeats=0)
    with RunFolder.open(settings().run, resume=True):
        started = time.monotonic()
        with pytest.raises(ValueError, match="another search is at work"):
            run_search(trials=2, repeats=0, resume=True)
        assert time.monotonic() - started < 20, "it does not wait for the other one"


def test_a_resumed_run_inherits_from_the_same_weights(settings, parts) -> None:
    def run(identity: str, trials: int, resume: bool) -> SearchResult:
        asked = settings(trials=trials, repeats=0, init_from="/weights.pth")
        return search_with(asked, replace(parts, about={"init_from": identity}), resume=resume)

    run("abc", 1, False)
    with pytest.raises(ValueError, match=r"/weights.pth is not the checkpoint that the run started with"):
        run("def", 2, True)
    assert len(run("abc", 2, True).candidates) == 2


def test_a_space_that_has_changed_is_not_gone_on_with(settings, parts, space) -> None:
    search_with(settings(trials=1, repeats=0), parts)
    other = SearchSpace(space.choices.model_copy(update={"stem_width": (8, 12)}))
    with pytest.raises(ValueError, match="the space 'tiny' is not as it was when the run started"):
        search_with(settings(trials=2, repeats=0), replace(parts, space=other), resume=True)
    assert len(search_with(settings(trials=2, repeats=0), parts, resume=True).candidates) == 2


def test_resume_keeps_the_proxy_plan(run_search, evaluate) -> None:
    tasks = []

    def noting(task):
        tasks.append(task)
        return evaluate(task)

    def other(request):
        raise AssertionError("a resumed run is not timed again")

    run_search(trials=1, repeats=0)
    run_search(trials=2, repeats=0, resume=True, plan=other, evaluate=noting)
    assert [task.proxy for task in tasks] == [{"epochs": 3, "configs": 1}]
    plain = [{**vars(task), "config": task.config.to_dict()} for task in tasks]
    assert json.loads(json.dumps(plain)) == plain, "plain values, that can be sent to another machine"


def test_objective_strategy_and_rungs_follow_from_what_is_asked(settings) -> None:
    def names(**changes) -> tuple[str, str, int]:
        objective, strategy, rungs = resolve_choices(settings(**changes))
        return objective.name, strategy.name, rungs.count

    assert names() == ("imagenet", "evolution", 1)
    assert names(data="digits") == ("accuracy", "surrogate", 3)
    assert names(data="digits", pareto=True) == ("accuracy", "surrogate", 2)
    assert names(data="digits", strategy="tpe", objective="imagenet", rungs=4) == ("imagenet", "tpe", 4)
    with pytest.raises(ValueError, match="'surrogate' learns from accuracies on your data: it needs data"):
        names(strategy="surrogate")
    with pytest.raises(ValueError, match=r"strategy: .*'surrogate', 'evolution', 'tpe'"):
        names(strategy="annealing")


def test_dry_run(settings, space, parts, tmp_path) -> None:
    result = describe_search(settings(proxy_budget_s=60), parts)
    assert result.size == space.size
    assert 0 < result.feasible_share <= 1
    assert result.fastest_ms < 0.8 < result.slowest_ms
    assert result.trainings == 12 and 60 < result.expected_s < 120
    assert list(tmp_path.iterdir()) == []
