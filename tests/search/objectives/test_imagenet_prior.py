"""The ImageNet prior, where nothing is trained on the user's data."""

import json

import numpy as np
import pytest

from lownas.evaluators.tasks import task
from lownas.experiments.tabular.table import TABLE
from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.search.objectives import BestWithinBudget, ImageNetPrior
from lownas.search.objectives.imagenet_prior import FORMULA_TAU
from lownas.search.training.task import Evaluation
from lownas.search.trials.history import History
from lownas.search.trials.run_folder import read_results

from ..conftest import stub_evaluate
from .candidates import trained

PRESETS_STUDY = TABLE.parents[1] / "proxy_presets" / "results.json"


@pytest.fixture(scope="module")
def objective() -> ImageNetPrior:
    return ImageNetPrior(BestWithinBudget(), AccuracyPrior(), task("classification").metric)


def test_its_values_are_the_prior_s(objective) -> None:
    estimates = objective.estimates_of(trained(repeats=6, noise=0.1))
    assert all(estimates.value(name) == seen.prior_top1 for name, seen in estimates.trained.items())
    assert estimates.expected("c3", np.array([80.0])) == pytest.approx(80)
    said = " ".join(objective.notes(History(), estimates))
    assert "by the ImageNet prior alone" in said and "0.36" in said and "over 6 candidates" in said


def test_what_is_said_of_formula_is_what_the_study_found() -> None:
    study = json.loads(PRESETS_STUDY.read_text())["summary"]
    found = {"proxy": study["kendall_tau_published"], "MACs": study["kendall_tau_published_of_macs_alone"]}
    assert pytest.approx(found, abs=0.0051) == FORMULA_TAU
    assert FORMULA_TAU["proxy"] < 0.5  # else the proxy would have to take part


def test_without_the_users_data_rungs_stop_candidates_by_the_prior(run_search) -> None:
    def reversed_evaluate(task):
        return Evaluation(1 - stub_evaluate(task).accuracy, seconds=0.5)

    outcome = run_search(evaluate=reversed_evaluate, rungs=2, strategy="random", trials=12, repeats=0)
    results = read_results(outcome.run)
    best = sorted((r for r in results if r.status != "failed"), key=lambda r: -r.prior_top1)
    assert {r.trial for r in results if r.status == "complete"} >= {r.trial for r in best[:3]}
    assert any(r.status == "pruned" for r in results)
