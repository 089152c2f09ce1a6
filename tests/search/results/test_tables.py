"""The tables that a person sees."""

import io
from dataclasses import replace

from rich.console import Console

from lownas.search.results.search_result import SearchResult
from lownas.search.results.tables import result_table
from lownas.search_space.presets import PRESETS


def _lines(outcome: SearchResult, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(result_table(outcome))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_published_models_within_the_budget_are_in_the_table(outcome) -> None:
    within = [replace(row, over_budget=row.name == "lowformer_b3") for row in outcome.published]
    lines = _lines(replace(outcome, published=tuple(within)))
    assert outcome.answer is not None and any(outcome.answer.config.id in line for line in lines)
    assert any("lowformer_b2" in line for line in lines) and not any("lowformer_b3" in line for line in lines)
    legend = " ".join(" ".join(lines).split())
    assert "published models over the budget: 1, see report.html" in legend
    assert "* far from what was published: the estimate is extrapolated" in legend


def test_a_terminal_of_100_columns_holds_the_table(outcome) -> None:
    b15 = PRESETS["lowformer_b15"].replace(resolution=288)
    answer = replace(outcome.answer, config=b15, low_ms=0.0931, high_ms=0.279, macs=12_345_000_000)
    lines = _lines(replace(outcome, answer=answer, candidates=(answer,)))
    at = next(number for number, line in enumerate(lines) if b15.id in line)
    assert f"{answer.low_top1:.1f} to {answer.high_top1:.1f}" in lines[at] and "0.0931 to 0.279" in lines[at]
    assert "12345" in lines[at] and " 81.7 " in lines[at], "what was published at 288 pixels"
    assert "lowformer_b15, 288 px" in lines[at + 1]
    assert not any("…" in line for line in lines)
