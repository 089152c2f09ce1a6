"""The report of a run."""

from dataclasses import replace
from typing import Any

from lownas.search.results.report import write_report


def test_report_stands_alone(outcome) -> None:
    write_report(outcome)
    text = (outcome.run / "report.html").read_text()
    assert outcome.answer is not None and outcome.answer.config.id in text
    assert "lowformer_b1" in text and "Plotly" in text
    assert text.count("<td>over budget</td>") == sum(row.over_budget for row in outcome.published) > 0
    assert "<script src=" not in text and "<link" not in text and "<img" not in text.split("<script")[0]
    assert all(note.split(":")[0].replace("'", "&#39;") in text for note in outcome.notes)


def test_report_escapes_what_it_shows(outcome) -> None:
    hostile: Any = replace(outcome, notes=("<script>alert(1)</script>",))
    hostile = replace(hostile, settings=outcome.settings.model_copy(update={"target": "</script><script>alert(2)"}))
    write_report(hostile)
    text = (outcome.run / "report.html").read_text()
    assert "<script>alert" not in text
