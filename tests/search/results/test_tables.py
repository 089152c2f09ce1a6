"""The tables that a person sees."""

import io

from rich.console import Console

from lownas.search.results.published import published_rows
from lownas.search.results.tables import result_table


def test_the_answer_and_the_published_models_are_in_the_table(outcome, predictor) -> None:
    console = Console(file=io.StringIO(), width=140)
    console.print(result_table(outcome, published_rows(predictor)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert outcome.answer is not None and outcome.answer.config.id in text
    assert "lowformer_b3" in text and "published" in text


def test_a_terminal_of_100_columns_holds_the_table(outcome, predictor) -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(result_table(outcome, published_rows(predictor)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    answer = outcome.answer
    line = next(line for line in text.splitlines() if answer.config.id in line)
    assert f"{answer.low_top1:.1f} to {answer.high_top1:.1f}" in line and f"{answer.macs / 1e6:.0f}" in line
    assert "…" not in text
