"""The best within a budget, and the whole front: what each proposes, measures and answers."""

import json
from dataclasses import replace

import pytest

from lownas.search.objectives.goal import evenly
from lownas.search.objectives.pareto import pareto_front

from ..conftest import StubMeasurement, load_study, stub_evaluate
from .candidates import area


def test_shares_are_spread_evenly() -> None:
    assert [evenly(position) for position in range(6)] == [1.0, 0.0, 0.5, 0.25, 0.75, 0.125]


@pytest.mark.parametrize("rungs", [1, 3])
@pytest.mark.parametrize("strategy", ["surrogate", "evolution", "nsga2", "random"])
def test_a_search_for_a_front(run_search, tmp_path, strategy: str, rungs: int) -> None:
    outcome = run_search(
        strategy=strategy, rungs=rungs, pareto=True, data="digits", trials=12, repeats=1, evaluate=staged
    )
    front = pareto_front(outcome.candidates)
    assert outcome.answer == front[-1] and len(front) >= 2
    assert any(note.startswith(f"The front has {len(front)} networks") for note in outcome.notes)
    study = load_study(outcome.run)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    best = {trial.user_attrs["config_id"] for trial in study.best_trials}
    # Optuna's own front is of what each candidate reached itself, not of what all trainings tell.
    own = pareto_front([replace(candidate, objective=100 * candidate.accuracy) for candidate in outcome.candidates])
    assert {candidate.config.id for candidate in own} <= best
    lines = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    explored = [line["latency_ms"] for line in lines if line["status"] in ("complete", "pruned")]
    assert max(explored) > 1.5 * min(explored)


def staged(task):
    value = stub_evaluate(task)
    return replace(value, accuracy=value.accuracy * (0.7 + 0.3 * task.until))


def test_a_front_spans_more_than_a_search_for_the_best(run_search, tmp_path) -> None:
    spans = {}
    for pareto in (False, True):
        outcome = run_search(pareto=pareto, trials=16, repeats=0, run=str(tmp_path / f"run-{pareto}"))
        front = pareto_front(outcome.candidates)
        latencies = [candidate.latency_ms for candidate in front]
        accuracies = [100 * candidate.accuracy for candidate in front]
        spans[pareto] = area(accuracies, latencies, 10.0, 0.8)
    assert spans[True] > spans[False]


def test_the_front_is_measured(run_search, predictor) -> None:
    outcome = run_search(
        pareto=True, trials=12, measure=lambda config: StubMeasurement(1.1 * float(predictor.latency_ms([config])[0]))
    )
    front = pareto_front(outcome.candidates)
    assert sum(candidate.latency_source == "measured" for candidate in front) >= min(len(front), 4)
    assert outcome.answer is not None and outcome.answer.latency_source == "measured"
    for candidate in outcome.candidates:
        assert candidate.latency_ms == pytest.approx(1.1 * float(predictor.latency_ms([candidate.config])[0]), rel=0.03)


def test_what_measuring_shows_to_be_over_the_budget_is_not_on_the_front(run_search, predictor) -> None:
    """The device gets slower after the run began."""
    count = 0

    def ever_slower(config):
        nonlocal count
        count += 1
        return StubMeasurement((1.0 if count <= 18 else 1.4) * float(predictor.latency_ms([config])[0]))

    outcome = run_search(pareto=True, trials=12, measure=ever_slower, budget_on="p50")
    over = [candidate for candidate in outcome.candidates if candidate.quantile_ms > 0.8]
    assert over and outcome.answer is not None and outcome.answer.quantile_ms <= 0.8
    assert [c.objective for c in outcome.front if c.latency_source == "measured"][-1] == outcome.answer.objective
    assert outcome.front and not {c.trial for c in over} & {c.trial for c in outcome.front}


def test_a_resumed_run_keeps_its_kind(run_search) -> None:
    run_search(pareto=True, trials=2, repeats=0)
    with pytest.raises(ValueError, match="cannot resume with pareto = False"):
        run_search(pareto=False, trials=3, repeats=0, resume=True)
