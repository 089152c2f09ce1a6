"""The best candidates are measured, and the answer is the best one that really keeps the budget."""

from collections import Counter

import pytest

from lownas.search.latency.finalists import FINALIST_ROUNDS

from ..conftest import StubMeasurement


def test_the_answer_is_the_best_one_measured_within_the_budget(run_search, predictor) -> None:
    measured = []

    def slower(config):
        measured.append(config.id)
        return StubMeasurement(1.3 * float(predictor.latency_ms([config])[0]))

    outcome = run_search(measure=slower)
    assert outcome.answer is not None
    assert outcome.answer.latency_source == "measured" and outcome.answer.latency_ms <= 0.8
    assert outcome.answer.high_ms <= 0.8
    assert Counter(measured)[outcome.answer.config.id] == FINALIST_ROUNDS
    before = len(measured)
    again = run_search(measure=slower, resume=True)
    assert again.answer == outcome.answer
    assert len(measured) == before  # what is known is not measured again


def test_one_bad_round_is_a_disturbance_and_two_are_not(run_search, predictor) -> None:
    measured: list[str] = []
    finalists: list[str] = []

    def disturbed(config):
        measured.append(config.id)
        latency_ms = float(predictor.latency_ms([config])[0])
        if len(measured) <= 18:  # anchors, and the best half-way
            return StubMeasurement(latency_ms)
        if config.id not in finalists:
            finalists.append(config.id)
        last_two = measured.count(config.id) > FINALIST_ROUNDS - (1 if config.id == finalists[0] else 2)
        return StubMeasurement((3.0 if last_two else 1.0) * latency_ms)

    outcome = run_search(measure=disturbed, budget_on="p50")
    assert outcome.answer is not None and outcome.answer.config.id == finalists[0]


def test_no_finalist_within_the_budget(run_search, predictor) -> None:
    """The device gets slower after the run began."""
    count = 0

    def ever_slower(config):
        nonlocal count
        count += 1
        return StubMeasurement((1.0 if count <= 18 else 5.0) * float(predictor.latency_ms([config])[0]))

    outcome = run_search(measure=ever_slower, budget_on="p50")
    assert outcome.answer is None
    assert any("None of the" in note and "calibrate" in note for note in outcome.notes)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_without_finalists_measured_the_answer_keeps_the_budget_as_known_by_then(run_search, predictor, error) -> None:
    """Half-way it shows that the device has got slower, which some of those trained before do not survive."""
    count = 0

    def slower_then_gone(config):
        nonlocal count
        count += 1
        if count > 18:
            raise error("the device is gone")
        return StubMeasurement((1.0 if count <= 9 else 1.5) * float(predictor.latency_ms([config])[0]))

    outcome = run_search(measure=slower_then_gone, data="digits", rungs=1)
    assert outcome.interrupted == (error is KeyboardInterrupt)
    assert max(candidate.quantile_ms for candidate in outcome.candidates) > 0.8
    assert outcome.answer is not None and outcome.answer.quantile_ms <= 0.8
    assert all(candidate.quantile_ms <= 0.8 for candidate in outcome.front)


def test_a_measurement_that_fails_leaves_a_predicted_answer(run_search) -> None:
    def broken(config):
        raise RuntimeError("the device is gone")

    outcome = run_search(measure=broken)
    assert outcome.answer is not None and outcome.answer.latency_source == "predicted"
