"""The strategy "surrogate"."""

from collections import Counter

import numpy as np
import pytest

from lownas.search.strategies.surrogate import initial
from lownas.search.trials.run_folder import read_results

from ..conftest import stub_accuracy


def test_the_first_candidates_are_few() -> None:
    assert [initial(trials) for trials in (1, 4, 16, 40, 1000)] == [1, 4, 4, 10, 16]


def test_published_models_scaled_to_the_budget_are_among_the_first(run_on_data) -> None:
    outcome = run_on_data(strategy="surrogate", trials=24, repeats=0)
    results = read_results(outcome.run)
    roles = [result.role for result in results]
    assert Counter(roles) == {"explore": 3, "exploit": 3, "scaled": 3, "child": 15}
    assert set(roles[6:9]) == {"scaled"}
    budget = outcome.settings.latency_budget_ms
    for result in results[6:9]:
        assert 0.7 * budget < result.quantile_ms <= budget


@pytest.mark.slow
def test_the_surrogate_finds_more_than_chance(run_on_data, tmp_path) -> None:
    found = {
        strategy: [
            100 * stub_accuracy(outcome.answer.config, 0)
            for seed in range(3)
            for outcome in [
                run_on_data(strategy=strategy, trials=24, repeats=0, seed=seed, run=str(tmp_path / f"{strategy}{seed}"))
            ]
            if outcome.answer is not None
        ]
        for strategy in ("surrogate", "random")
    }
    assert np.mean(found["surrogate"]) > np.mean(found["random"]) + 0.5
