"""What a search found, and what can be done with it."""

import json
from dataclasses import replace

import pytest

from lownas.search.objectives.pareto import pareto_front
from lownas.search.results.report import write_report
from lownas.search_space.presets import PRESETS


def test_front_is_what_nothing_dominates(outcome) -> None:
    base = outcome.candidates[0]
    made = [
        replace(base, trial=n, latency_ms=latency, objective=objective)
        for n, (latency, objective) in enumerate([(1, 70), (2, 69), (2, 72), (3, 72), (0.5, 60), (1, 71)])
    ]
    assert [candidate.trial for candidate in pareto_front(made)] == [4, 5, 2]
    assert pareto_front([]) == []


def test_records_are_flat_and_say_what_is_the_answer(outcome) -> None:
    records = outcome.to_records()
    assert json.loads(json.dumps(records)) == records and len(records) == len(outcome.candidates)
    assert {type(value) for record in records for value in record.values()} <= {int, float, str, bool, type(None)}
    assert [record["id"] for record in records if record["answer"]] == [outcome.answer.config.id]
    assert {record["id"] for record in records if record["front"]} == {c.config.id for c in outcome.front}


def test_a_candidate_that_was_published_is_named(outcome) -> None:
    b3 = PRESETS["lowformer_b3"].replace(resolution=288)
    answer = replace(outcome.answer, config=b3)
    found = replace(outcome, answer=answer, candidates=(answer, outcome.candidates[-1]))
    published, other = found.to_records()
    assert (published["published"], published["published_top1"]) == ("lowformer_b3", 84.07)
    assert (other["published"], other["published_top1"]) == (None, None)
    assert found.to_dict()["answer"]["published"] == "lowformer_b3"
    assert "lowformer_b3, 288 px: 84.07 %" in write_report(found).read_text()
    between = replace(answer, config=b3.replace(resolution=208))
    assert (between.published, between.published_top1) == ("lowformer_b3", None)


def test_the_answer_can_be_built_and_exported(outcome, tmp_path) -> None:
    assert sum(parameter.numel() for parameter in outcome.answer.build().parameters()) == outcome.answer.params
    assert outcome.export("config", to=tmp_path / "mine") == [tmp_path / "mine.json"]
    with pytest.raises(ValueError, match="has no answer to export"):
        replace(outcome, answer=None).export("config")
