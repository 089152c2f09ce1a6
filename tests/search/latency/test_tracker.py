"""What is measured in a run decides what is proposed in it."""

import json

import pytest

from lownas.search.feasible_pool import NothingFits
from lownas.search.trials.run_folder import read_results

from ..conftest import StubMeasurement


def test_what_is_measured_corrects_the_predictor_during_the_run(run_search, predictor, tmp_path) -> None:
    """On a device 1.3 times as slow as predicted all candidates after the anchors fit the budget as measured."""
    at = []

    def slower(config):
        at.append((config, len(read_results(tmp_path / "run"))))
        return StubMeasurement(1.3 * float(predictor.latency_ms([config])[0]))

    outcome = run_search(measure=slower, trials=12)
    truth = [1.3 * float(predictor.latency_ms([candidate.config])[0]) for candidate in outcome.candidates]
    assert len(truth) == 12 and max(truth) <= 0.8 * 1.02
    assert max(truth) > 0.8 * 0.85  # and the budget is used
    assert {when for _, when in at} >= {0, 6}  # before the first training and half-way
    assert any("corrected the latency predictor" in note for note in outcome.notes)
    for candidate in outcome.candidates:
        if candidate.latency_source == "predicted":
            true_ms = 1.3 * float(predictor.latency_ms([candidate.config])[0])
            assert candidate.latency_ms == pytest.approx(true_ms, rel=0.03)


def test_nothing_fits_when_measured(run_search, tmp_path) -> None:
    with pytest.raises(NothingFits, match=r"nothing fits 0\.8 ms: networks measured now took .* calibrate it again"):
        run_search(measure=lambda config: StubMeasurement(50.0))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strategy", ["evolution", "surrogate", "tpe"])
def test_once_nothing_fits_as_measured_nothing_more_is_proposed(run_search, predictor, strategy: str) -> None:
    count = 0

    def ever_slower(config):
        nonlocal count
        count += 1
        return StubMeasurement((1.0 if count <= 9 else 1e6) * float(predictor.latency_ms([config])[0]))

    asked = {"data": "digits", "rungs": 1, "strategy": strategy, "budget_on": "p50"}
    outcome = run_search(measure=ever_slower, **asked)
    assert outcome.answer is None and outcome.counts == {"complete": 4}
    assert any("nothing more was proposed" in note for note in outcome.notes)
    again = run_search(measure=ever_slower, **asked, resume=True)
    assert again.answer is None and again.counts == {"complete": 4}


def test_a_result_has_the_latency_that_was_measured_where_one_was(run_search, predictor) -> None:
    def slower(config):
        return StubMeasurement(1.01 * float(predictor.latency_ms([config])[0]))

    outcome = run_search(measure=slower, seed=3)  # of which an anchor is trained, too
    results = {result.config_id: result for result in reversed(read_results(outcome.run))}  # the first of each
    lines = [json.loads(line) for line in (outcome.run / "measured.jsonl").read_text().splitlines()]
    anchors = {line["config_id"] for line in lines if line["role"] == "anchor"} & results.keys()
    assert anchors and {results[name].latency_source for name in anchors} == {"measured"}
    assert {result.latency_source for name, result in results.items() if name not in anchors} == {"predicted"}
    for name in anchors:
        true_ms = 1.01 * float(predictor.latency_ms([results[name].config])[0])
        assert results[name].latency_ms == pytest.approx(true_ms)
