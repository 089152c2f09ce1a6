"""The tables that a person sees."""

import io
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from lownas.evaluators.training.final.judging import Judgement, judge
from lownas.evaluators.training.final.planning import Plan
from lownas.evaluators.training.final.recipe import TrainingFacts, choose_recipe
from lownas.search.results.search_result import SearchResult
from lownas.search.results.tables import judgement_tables, recipe_table, result_table
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


def _text(*tables: Table) -> str:
    console = Console(file=io.StringIO(), width=120)
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_recipe_says_each_choice_and_its_reason() -> None:
    recipe, why = choose_recipe(TrainingFacts(None, 5000, 64), 40, {"mixup": 0.3})
    text = _text(recipe_table(Plan(recipe, why, epoch_s=2.0)))
    assert "recipe: 40 epochs of 2 s" in text
    assert all(name in text for name in recipe.to_dict())
    assert any("mixup" in line and "0.3" in line and "given" in line for line in text.splitlines())


def test_a_judgement_says_what_is_confused() -> None:
    classes = [f"class {number} [x]" for number in range(30)]
    labels = torch.arange(60) % 30
    outputs = 5.0 * torch.eye(30)[labels]
    outputs[0] = outputs[1]
    text = _text(*judgement_tables(judge(outputs, labels, classes)))
    assert "60 images judged" in text and "98.33 %" in text and "expected calibration error" in text
    assert "the 25 of 30 classes that are recognized least" in text
    assert any("class 0 [x]" in line and "class 1 [x]" in line for line in text.splitlines())
    few = _text(*judgement_tables(judge(outputs[:6, :3], labels[:6] % 3, classes[:3])))
    assert "with five classes or fewer" in few and "class 2 [x]" in few


def test_a_judgement_of_another_task() -> None:
    text = _text(*judgement_tables(Judgement("regression", "mean error", 2.25, 10, 0.5)))
    assert "mean error" in text and "2.25" in text and "class" not in text
