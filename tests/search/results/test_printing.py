"""What is printed of a search, beside its tables."""

import warnings
from dataclasses import replace

import pytest

from lownas.search.results.printing import plain_warnings, print_json, print_lines, print_plan, print_result


def test_a_result_says_where_it_left_what(outcome, capsys: pytest.CaptureFixture[str]) -> None:
    (outcome.run / "training").mkdir(exist_ok=True)
    print_result(outcome)
    shown = capsys.readouterr().out
    assert f"run folder: {outcome.run} (" in shown and "training/" in shown
    assert f"- {outcome.notes[0]}" in shown
    (outcome.run / "training").rmdir()
    print_result(replace(outcome, notes=(*outcome.notes, "Now it is trained.")), outcome)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "- Now it is trained." and lines[1].startswith("run folder: ") and len(lines) == 2


def test_a_plan_says_that_the_answer_is_trained(settings, capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"feasible_share": 0.5, "size": 1e9, "fastest_ms": 1.0, "slowest_ms": 3.0, "trainings": 0.0}
    print_plan(settings(), {**plan, "expected_s": 15.0})
    assert "then:" not in capsys.readouterr().out
    print_plan(settings(train_s=3600.0, data="digits"), {**plan, "expected_s": 15.0})
    assert "the answer is trained for 60 min" in capsys.readouterr().out


def test_what_looks_like_markup_stays(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines(["classes [red] and [blue]"])
    print_json({"a": 1})
    assert capsys.readouterr().out == 'classes [red] and [blue]\n{"a": 1}\n'


def test_warnings_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_warnings():
        warnings.simplefilter("always")
        warnings.warn("too hot", stacklevel=1)
    assert capsys.readouterr().err == "lownas: warning: too hot\n"
