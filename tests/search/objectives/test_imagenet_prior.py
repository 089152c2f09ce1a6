"""The ImageNet prior, where nothing is trained on the user's data."""

import numpy as np
import pytest

from lownas.evaluators.tasks import task
from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.search.objectives import BestWithinBudget, ImageNetPrior
from lownas.search.objectives.base import LOWER_QUANTILE
from lownas.search.objectives.estimates import TrainedCandidate
from lownas.search.training.task import Evaluation
from lownas.search.trials.history import History
from lownas.search.trials.run_folder import read_results
from lownas.search_space import PRESETS

from ..conftest import stub_evaluate


@pytest.fixture(scope="module")
def objective() -> ImageNetPrior:
    return ImageNetPrior(BestWithinBudget(), AccuracyPrior.load(), task("classification").metric)


def test_its_values_are_a_lower_quantile(objective) -> None:
    configs = list(PRESETS.values())
    lower = objective.prior.quantile(configs, LOWER_QUANTILE)
    assert objective.before_training(configs) == pytest.approx(lower)
    estimates = objective.estimates_of([TrainedCandidate(config, 0.0, (0.5, 0.6)) for config in configs])
    for config, quantile, expected in zip(configs, lower, objective.prior.predict(configs), strict=True):
        known = estimates.top1(config.id)
        assert estimates.value(config.id) == pytest.approx(quantile) == pytest.approx(known.lower_top1)
        assert known.top1 == pytest.approx(expected.top1)
        assert (known.low_top1, known.high_top1) == pytest.approx((expected.low_top1, expected.high_top1))
    children = objective.expected(estimates, configs[0].id, configs[1:])
    assert children == pytest.approx(lower[1:])
    said = " ".join(objective.notes(History(), estimates))
    assert "by a lower quantile" in said and "moved no estimate" in said and "over 12 networks" in said


def test_a_value_needs_no_training(objective) -> None:
    assert not objective.needs_training
    estimates = objective.estimates(History(), None)
    assert not estimates.trained and np.isfinite(estimates.most_moved)


def test_without_the_users_data_rungs_stop_candidates_by_the_prior(run_search) -> None:
    def reversed_evaluate(task):
        return Evaluation(1 - stub_evaluate(task).accuracy, seconds=0.5)

    outcome = run_search(evaluate=reversed_evaluate, rungs=2, strategy="random", trials=12, repeats=0)
    results = read_results(outcome.run)
    best = sorted((r for r in results if r.status != "failed"), key=lambda r: -r.prior_top1)
    assert {r.trial for r in results if r.status == "complete"} >= {r.trial for r in best[:3]}
    assert any(r.status == "pruned" for r in results)
