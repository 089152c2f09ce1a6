"""The accuracy on the user's data: what is maximized, and who goes on from a rung."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from lownas.evaluators.tasks import task
from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.predictors.costs import total_macs
from lownas.search.objectives import BestWithinBudget, DataAccuracy
from lownas.search.objectives.estimates import TrainedCandidate
from lownas.search.objectives.run_surrogate import RunSurrogate
from lownas.search.trials.run_folder import read_results
from lownas.search_space import LowFormerConfig, op_graph

from ..conftest import noisy_evaluate
from .candidates import named, trained


@pytest.fixture(scope="module")
def objective() -> DataAccuracy:
    return DataAccuracy(BestWithinBudget(), AccuracyPrior.load(), task("classification").metric)


def test_accuracies_count_as_they_are_until_more_is_learned(objective) -> None:
    seen = [TrainedCandidate(named("a"), 80.0, (0.5, 0.6)), TrainedCandidate(named("b"), 70.0, (0.7,))]
    estimates = objective.estimates_of(seen)
    assert [estimates.value(name) for name in "ab"] == pytest.approx([55, 70])
    learned = objective.estimates_of(seen, learned={"a": 0.6})
    assert [learned.value(name) for name in "ab"] == pytest.approx([60, 70])


def test_children_inherit_half_of_their_parents_departure(objective) -> None:
    estimates = objective.estimates_of(
        [*trained(repeats=0, noise=0.0), TrainedCandidate(named("better"), 78.0, (0.75,))]
    )
    parent, likes = (estimates.expected(name, np.array([78.0]))[0] for name in ("better", "c8"))
    assert likes + 2 < parent < estimates.value("better") - 2


def test_on_user_data_the_objective_is_the_accuracy_as_all_trainings_tell(run_search, tmp_path) -> None:
    few = run_search(data="digits", rungs=1, trials=3, repeats=0, run=str(tmp_path / "few"))
    assert all(candidate.objective == pytest.approx(100 * candidate.accuracy) for candidate in few.candidates)
    assert not any("all trainings together" in note for note in few.notes)
    outcome = run_search(data="digits", rungs=1, strategy="random", trials=40, evaluate=noisy_evaluate)
    assert any("all trainings together" in note for note in outcome.notes)
    assert any("different seeds, differ by" in note for note in outcome.notes)
    assert outcome.answer == outcome.candidates[0]
    known = [-candidate.macs for candidate in outcome.candidates]
    alone, learned = (
        kendalltau([getattr(candidate, name) for candidate in outcome.candidates], known).statistic
        for name in ("accuracy", "objective")
    )
    assert learned > alone + 0.05
    repeated = [candidate for candidate in outcome.candidates if candidate.seeds == 2]
    assert len(repeated) == 4


@pytest.mark.parametrize("rungs", [1, 3])
def test_a_finished_run_concludes_the_same_when_it_is_resumed(run_search, rungs: int) -> None:
    """Results come in another order than trials, and what a surrogate learns depends on the order."""
    changes = {"data": "digits", "rungs": rungs, "strategy": "random", "trials": 40, "evaluate": noisy_evaluate}
    first = run_search(**changes)
    again = run_search(**changes, resume=True)
    assert {c.config.id: c.objective for c in first.candidates} == {c.config.id: c.objective for c in again.candidates}


@pytest.mark.parametrize("fewest", [True, False])
def test_who_goes_on_from_a_rung_is_decided_by_all_trainings(run_search, monkeypatch, fewest: bool) -> None:
    def logits(_: RunSurrogate, configs: Sequence[LowFormerConfig]) -> Any:
        return (-1e-8 if fewest else 1e-8) * total_macs(configs)

    monkeypatch.setattr(RunSurrogate, "logits", logits)
    outcome = run_search(data="digits", rungs=2, strategy="random", trials=18, evaluate=noisy_evaluate)
    lines = [json.loads(line) for line in (outcome.run / "rungs.jsonl").read_text().splitlines()]
    macs = {line["trial"]: op_graph(LowFormerConfig.from_dict(line["config"])).macs for line in lines}
    gone_on = {result.trial for result in read_results(outcome.run) if result.status == "complete"} & macs.keys()
    assert len(gone_on) == 6
    extreme = sorted(macs, key=lambda trial: macs[trial] if fewest else -macs[trial])[:6]
    assert len(gone_on & set(extreme)) >= 4, "one goes on of the first three, so not all six extremes can"
