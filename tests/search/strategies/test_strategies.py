"""The strategies that propose candidates, on equal terms, with stand-ins for predictor and training."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest

from lownas.predictors.accuracy.surrogate import AccuracyObservation
from lownas.search.objectives.experience import learn, refit_step
from lownas.search.objectives.pareto import expected_improvement
from lownas.search.results.outcome import SearchOutcome
from lownas.search.run_search import search
from lownas.search.settings import SAMPLERS
from lownas.search.strategies.optuna_samplers import sampler
from lownas.search.strategies.surrogate import initial
from lownas.search.trials.run_folder import read_results
from lownas.search_space import SearchSpace

from ..conftest import stub_accuracy

STRATEGIES = ("surrogate", "evolution", *SAMPLERS)


@pytest.fixture
def run_search(settings, space, predictor, evaluate, plan) -> Callable[..., SearchOutcome]:
    def run(*, resume=False, evaluate=evaluate, **changes):
        base = {"data": "digits", "rungs": 1, "repeats": 2}
        return search(
            settings(**{**base, **changes}),
            predictor=predictor,
            space=space,
            resume=resume,
            evaluate=evaluate,
            plan=plan,
        )

    return run


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_fills_a_run_and_goes_on_where_it_was_cut_off(
    run_search, evaluate, predictor, tmp_path, strategy: str
) -> None:
    trials = 6 if strategy == "gp" else 12  # 1 s a candidate
    whole = run_search(strategy=strategy, trials=trials, run=str(tmp_path / "whole"))
    results = read_results(whole.run)
    trained = [result for result in results if result.status == "complete"]
    distinct = {result.config_id for result in trained if result.role != "repeat"}
    assert len(distinct) == trials and sum(result.role == "repeat" for result in trained) == 2
    assert all(result.quantile_ms <= 0.8 for result in trained)
    if strategy in SAMPLERS:
        assert Counter(result.role for result in trained) == {"sampled": trials, "repeat": 2}
    asked = []

    def interrupted(task):
        asked.append(task["trial"])
        if len(asked) in (3, 5):
            raise KeyboardInterrupt
        return evaluate(task)

    outcome = run_search(strategy=strategy, trials=trials, evaluate=interrupted)
    while outcome.interrupted:
        outcome = run_search(strategy=strategy, trials=trials, evaluate=interrupted, resume=True)
    assert [result.to_dict() for result in read_results(outcome.run)] == [result.to_dict() for result in results]
    assert outcome.answer == whole.answer
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{outcome.run}/study.db")
    assert study.best_value == max(trial.value for trial in study.trials if trial.value is not None)


@pytest.mark.parametrize("strategy", ["surrogate", "tpe", "nsga2"])
def test_with_rungs_and_workers(run_search, strategy: str) -> None:
    outcome = run_search(strategy=strategy, trials=18, rungs=3, workers=2)
    status = Counter(result.status for result in read_results(outcome.run))
    assert status["complete"] == 3 + 2 and status["pruned"] == 15


def test_the_surrogate_finds_more_than_chance(run_search, tmp_path) -> None:
    found = {
        strategy: [
            100 * stub_accuracy(outcome.answer.config, 0)
            for seed in range(3)
            for outcome in [
                run_search(strategy=strategy, trials=24, repeats=0, seed=seed, run=str(tmp_path / f"{strategy}{seed}"))
            ]
            if outcome.answer is not None
        ]
        for strategy in ("surrogate", "random")
    }
    assert np.mean(found["surrogate"]) > np.mean(found["random"]) + 0.5


def test_candidates_over_the_budget_are_told_and_not_trained(run_search, monkeypatch) -> None:
    monkeypatch.setattr("lownas.search.strategies.optuna_samplers.DRAWS", 1)
    outcome = run_search(strategy="random", trials=3, latency_budget_ms=0.35)
    results = read_results(outcome.run)
    over = [result for result in results if result.status == "infeasible"]
    assert over and all(result.quantile_ms > 0.35 and result.accuracy is None for result in over)
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{outcome.run}/study.db")
    told = [study.trials[result.trial] for result in over]
    assert all(trial.state.name == "PRUNED" and trial.constraints["latency"] > 0 for trial in told)


def test_the_generations_of_a_genetic_sampler_are_kept(run_search) -> None:
    outcome = run_search(strategy="nsga2", trials=30, repeats=0)
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{outcome.run}/study.db")
    generations = Counter(trial.system_attrs["NSGAIISampler:generation"] for trial in study.trials)
    assert set(generations) == {0, 1} and generations[0] >= 20


def test_samplers_by_name() -> None:
    names = {strategy: type(sampler(strategy, 1)).__name__ for strategy in SAMPLERS}
    assert names == {"tpe": "TPESampler", "nsga2": "NSGAIISampler", "gp": "GPSampler", "random": "RandomSampler"}


def test_the_surrogate_needs_data(settings) -> None:
    assert settings().strategy_name == "evolution" and settings(data="digits").strategy_name == "surrogate"
    with pytest.raises(ValueError, match="'surrogate' learns from accuracies on your data: it needs data"):
        settings(strategy="surrogate")
    with pytest.raises(ValueError, match=r"strategy: .*'surrogate', 'evolution', 'tpe'"):
        settings(strategy="annealing")


def test_hyperparameters_stay_for_a_while() -> None:
    counts = (0, 1, 9, 10, 11, 12, 19, 20, 21, 22)
    assert [refit_step(count) for count in counts] == [0, 1, 9, 10, 11, 12, 19, 20, 20, 22]
    steps = {refit_step(count) for count in range(100, 5001)}
    assert len(steps) < 50 and all(refit_step(step) == step for step in steps)


def test_many_observations_are_learned_from_as_a_whole(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(400)]
    seen = [AccuracyObservation(config, 0, stub_accuracy(config, 1)) for config in configs]
    assert learn(space, seen, 1).observations == 400


def test_expected_improvement_is_that_of_a_normal_variable() -> None:
    mean, spread = np.array([0.0, 1.0, -2.0]), np.array([1.0, 0.5, 0.1])
    draws = mean + spread * np.random.default_rng(0).standard_normal((200_000, 3))
    assert expected_improvement(mean, spread, 0.5) == pytest.approx(np.maximum(draws - 0.5, 0).mean(axis=0), abs=0.005)


def test_the_first_candidates_are_few() -> None:
    assert [initial(trials) for trials in (1, 4, 16, 40, 1000)] == [1, 4, 4, 10, 16]


def test_an_unknown_strategy_is_refused_in_one_line(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [
        "-m",
        "lownas.nas",
        "search",
        "--target",
        "rtx3090",
        "--latency-budget",
        "2ms",
        "--strategy",
        "annealing",
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "annealing" in done.stderr and "surrogate" in done.stderr
