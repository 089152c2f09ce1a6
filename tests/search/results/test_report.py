"""The report of a run."""

from dataclasses import replace
from typing import Any

from lownas.search.results.report import write_report
from lownas.search.results.trained import TrainedAnswer


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


def test_a_final_training_is_shown_with_its_curve(outcome) -> None:
    history = [
        {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "validation_loss": None, "validation_accuracy": None},
        {"epoch": 2, "train_loss": 0.5, "train_accuracy": 0.8, "validation_loss": 0.6, "validation_accuracy": 0.7},
    ]
    final = TrainedAnswer(
        answer=outcome.answer.config.id,
        config=outcome.answer.config,
        data="digits",
        metric="accuracy",
        validation=0.7,
        test=None,
        estimate=None,
        proxy=None,
        epochs=2,
        seconds=60.0,
        latency_ms=0.5,
        low_ms=0.4,
        high_ms=0.6,
        latency_source="predicted",
        quantile_ms=0.7,
        latency_budget_ms=0.8,
        onnx_difference=1e-6,
        history=tuple(history),
    )
    write_report(replace(outcome, final=final))
    text = (outcome.run / "report.html").read_text()
    assert "The answer, trained" in text and "loss, validation" in text and "70.0 %" in text
    write_report(replace(outcome, final=replace(final, history=())))
    text = (outcome.run / "report.html").read_text()
    assert "The answer, trained" in text and "loss, validation" not in text
    write_report(outcome)
    assert "The answer, trained" not in (outcome.run / "report.html").read_text()
