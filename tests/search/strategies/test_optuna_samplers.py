"""Optuna's samplers as strategies."""

from collections import Counter

from lownas.search.strategies import make_strategy
from lownas.search.strategies.optuna_samplers import OptunaSampler
from lownas.search.trials.run_folder import read_results

from ..conftest import load_study


def test_samplers_by_name() -> None:
    wanted = {"tpe": "TPESampler", "nsga2": "NSGAIISampler", "gp": "GPSampler", "random": "RandomSampler"}
    for name, kind in wanted.items():
        strategy = make_strategy(name)
        assert isinstance(strategy, OptunaSampler) and type(strategy.sampler(1)).__name__ == kind


def test_candidates_over_the_budget_are_told_and_not_trained(run_on_data, monkeypatch) -> None:
    monkeypatch.setattr("lownas.search.strategies.optuna_samplers.DRAWS", 1)
    outcome = run_on_data(strategy="random", trials=3, latency_budget_ms=0.35)
    results = read_results(outcome.run)
    over = [result for result in results if result.status == "infeasible"]
    assert over and all(result.quantile_ms > 0.35 and result.accuracy is None for result in over)
    study = load_study(outcome.run)
    told = [study.trials[result.trial] for result in over]
    assert all(trial.state.name == "PRUNED" and trial.constraints["latency"] > 0 for trial in told)


def test_the_generations_of_a_genetic_sampler_are_kept(run_on_data) -> None:
    outcome = run_on_data(strategy="nsga2", trials=30, repeats=0)
    study = load_study(outcome.run)
    generations = Counter(trial.system_attrs["NSGAIISampler:generation"] for trial in study.trials)
    assert set(generations) == {0, 1} and generations[0] >= 20
