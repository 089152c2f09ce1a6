"""Fronts: their measure, and searches for one."""

import json
from dataclasses import replace

import numpy as np
import optuna
import pytest

from lownas.search.objectives.pareto import expected_front_improvement, pareto_front
from lownas.search.strategies.base import evenly

from ..conftest import StubMeasurement, stub_evaluate


def area(objective, latency_ms, floor, budget_ms):
    """Under the front over ln latency, by brute force."""
    grid = np.linspace(np.log(0.01), np.log(1.1 * budget_ms), 200_001)
    best = np.full(len(grid), floor)
    for value, ms in zip(objective, latency_ms, strict=True):
        best = np.where(grid >= np.log(ms), np.maximum(best, value), best)
    return float(np.trapezoid(best, grid))


def test_expected_front_improvement_is_that_of_the_area() -> None:
    rng = np.random.default_rng(0)
    seen, seen_ms = rng.normal(size=6), rng.uniform(0.2, 1.0, 6)
    mean, spread = np.array([0.5, 1.5, -3.0]), np.array([0.4, 0.05, 0.1])
    latency_ms = np.array([0.3, 0.1, 0.9])
    found = expected_front_improvement(mean, spread, latency_ms, seen, seen_ms, 1.0)
    before = area(seen, seen_ms, seen.min(), 1.0)
    for i in range(3):
        draws = rng.normal(mean[i], spread[i], 300)
        gains = [area([*seen, draw], [*seen_ms, latency_ms[i]], seen.min(), 1.0) - before for draw in draws]
        error = 4 * np.std(gains) / np.sqrt(len(gains)) + 1e-4
        assert found[i] == pytest.approx(np.mean(gains), abs=error)
    assert found[2] < 1e-6  # hopeless


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
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{tmp_path}/run/study.db")
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
    return {**value, "accuracy": value["accuracy"] * (0.7 + 0.3 * task["until"])}


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

    outcome = run_search(pareto=True, trials=12, measure=ever_slower)
    over = [candidate for candidate in outcome.candidates if candidate.quantile_ms > 0.8]
    assert over and outcome.answer is not None and outcome.answer.quantile_ms <= 0.8
    assert [c.objective for c in outcome.front if c.latency_source == "measured"][-1] == outcome.answer.objective
    assert outcome.front and not {c.trial for c in over} & {c.trial for c in outcome.front}


def test_a_resumed_run_keeps_its_kind(run_search) -> None:
    run_search(pareto=True, trials=2, repeats=0)
    with pytest.raises(ValueError, match="cannot resume with pareto = False"):
        run_search(pareto=False, trials=3, repeats=0, resume=True)
