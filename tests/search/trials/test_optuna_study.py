"""What Optuna's own tools show as the best of a run's study keeps the budget."""

import logging
import math
from pathlib import Path

import optuna
import pytest

from lownas.predictors.costs import total_macs
from lownas.search.trials.optuna_study import OptunaStudy
from lownas.search.trials.records import Proposal
from lownas.search.trials.run_folder import read_results

from ..conftest import StubMeasurement, load_study, states

OWN = {"data": "digits", "rungs": 1}


def summary(url: str) -> optuna.study.StudySummary:
    """As `optuna studies` and Optuna's dashboard list it: these regard no constraints."""
    (found,) = optuna.get_all_study_summaries(storage=url)
    return found


def larger_is_better(task) -> float:
    return 0.1 * math.log10(float(total_macs([task.config])[0]))


@pytest.fixture(params=[1.3])
def slower_half_way(predictor, request):
    """A device that gets slower after the anchors were measured: not all that were trained by then keep the budget."""
    count = 0

    def measure(config):
        nonlocal count
        count += 1
        return StubMeasurement((1.0 if count <= 9 else request.param) * float(predictor.latency_ms([config])[0]))

    return measure


def test_what_was_measured_last_decides_what_is_shown_as_the_best(run_search, slower_half_way) -> None:
    outcome = run_search(evaluate=larger_is_better, measure=slower_half_way, **OWN)
    over = {candidate.config.id for candidate in outcome.candidates if candidate.quantile_ms > 0.8}
    url = f"sqlite:///{outcome.run}/study.db"
    study = load_study(outcome.run)
    reached = {trial.number: trial for trial in study.trials if trial.values is not None}
    assert len(reached) == outcome.counts["complete"]  # nobody's value is lost
    best = max(reached.values(), key=lambda trial: trial.value)
    assert best.user_attrs["config_id"] in over  # so it matters
    shown = (
        study.best_trial,
        summary(url).best_trial,
        optuna.storages.RDBStorage(url).get_best_trial(study._study_id),
        *study.best_trials,
    )
    for trial in shown:
        assert trial is not None and trial.user_attrs["config_id"] not in over
    for trial in reached.values():
        assert (trial.state.name == "PRUNED") == (trial.user_attrs["config_id"] in over)
    assert outcome.answer is not None and outcome.answer.config.id not in over
    # Nothing changes when the run is gone on with, and others can learn from the study.
    before = states(outcome.run)
    assert run_search(evaluate=larger_is_better, measure=slower_half_way, **OWN, resume=True).answer == outcome.answer
    assert states(outcome.run) == before
    study.sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=1)
    trial = study.ask()
    assert trial.suggest_categorical("another", [1, 2]) in (1, 2)


@pytest.mark.parametrize("slower_half_way", [3.0], indirect=True)
def test_the_front_that_optuna_shows_keeps_the_budget(run_search, slower_half_way) -> None:
    outcome = run_search(evaluate=larger_is_better, measure=slower_half_way, **OWN, pareto=True)
    over = {candidate.config.id for candidate in outcome.candidates if candidate.quantile_ms > 0.8}
    study = load_study(outcome.run)
    assert over & {trial.user_attrs["config_id"] for trial in study.trials}
    assert study.best_trials and not over & {trial.user_attrs["config_id"] for trial in study.best_trials}
    assert summary(f"sqlite:///{outcome.run}/study.db").best_trial is None  # there is no single best one


def test_a_study_that_cannot_be_told_is_no_harm(run_search, slower_half_way, monkeypatch, tmp_path) -> None:
    def locked(*_):
        raise OSError("the study database failed: database is locked")

    monkeypatch.setattr(OptunaStudy, "settle", locked)
    outcome = run_search(evaluate=larger_is_better, measure=slower_half_way, **OWN)
    assert outcome.answer is not None
    assert "turned out to be too slow: the study database failed" in (tmp_path / "run" / "log.txt").read_text()


def test_trained_over_a_limit_is_not_complete_and_can_become_so(run_search, space, tmp_path: Path) -> None:
    results = read_results(run_search(trials=3, repeats=0).run)
    url = f"sqlite:///{tmp_path}/other.db"
    study = OptunaStudy(url, "lownas", space, ["maximize"], 0, logging.getLogger(__name__))
    for result, excess, value in zip(results, (-0.1, 0.1, -0.1), (70.0, 90.0, 80.0), strict=True):
        number, _ = study.add(Proposal(result.config, "explore", 0), {"latency": excess})
        study.finish(result.model_copy(update={"trial": number}), [value])
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE", "PRUNED", "COMPLETE"]
    best = summary(url).best_trial
    assert best is not None and best.number == 2
    study.settle({0: True, 1: True, 2: False})  # what it was told when it was asked counts too
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert [trial.values for trial in study.trials()] == [[70.0], [90.0], [80.0]]
    study.settle({2: True})
    again = OptunaStudy(url, "lownas", space, ["maximize"], 0, logging.getLogger(__name__))
    assert [trial.state.name for trial in again.trials()] == ["COMPLETE", "PRUNED", "COMPLETE"]
