"""From options of the command line to trainings and judgements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lownas.search.final.commands import evaluate_from, plan_from, train_from
from lownas.search_space import LowFormerConfig


@pytest.fixture
def given(tmp_path: Path, config: LowFormerConfig, data: str) -> dict[str, Any]:
    (tmp_path / "config.json").write_text(config.to_json())
    return {"config": tmp_path / "config.json", "data": data, "epochs": 1, "threads": 1, "run": None, "resume": False}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "epochs: at least 1, given 0"),
        ({"threads": 0}, "--threads: at least 1, given 0"),
        ({"loaders": -1}, "--loaders: at least 0, given -1"),
        ({"set": ["mixup"]}, "a choice of the recipe such as mixup=0.2"),
        ({"preset": "lowformer_b0"}, "one network, and --config and --preset are 2"),
    ],
)
def test_wrong_options(changes: dict[str, Any], said: str, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=said):
        plan_from({**given, **changes})
    with pytest.raises(ValueError, match="name one network"):
        evaluate_from({"part": "test"})


def test_zero_is_a_number_that_was_given(given: dict[str, Any], tmp_path: Path, config: LowFormerConfig) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"schema": 1, "settings": {"data": given["data"], "seed": 5}}))
    (run / "best.json").write_text(config.to_json())
    train_from({"run": run, "epochs": 1, "threads": 1, "seed": 0, "loaders": 0, "out": tmp_path / "out"})
    settings = json.loads((tmp_path / "out" / "training.json").read_text())["settings"]
    assert (settings["seed"], settings["data_seed"]) == (0, 5), "the split stays that of the search"
