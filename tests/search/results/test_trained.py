"""What is said and kept of a trained answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lownas.search.results.trained import (
    TRAINED,
    WEIGHTS,
    TrainedAnswer,
    read_trained,
    stored_training,
    trains,
    write_trained,
)
from lownas.search_space import PRESETS

CONFIG = PRESETS["cpubone_nano"].replace(classes=8)
FINAL = TrainedAnswer(
    answer="abc",
    config=CONFIG,
    data="imagefolder:pictures",
    metric="accuracy",
    validation=0.921,
    test=0.917,
    estimate=0.88,
    proxy=0.85,
    epochs=30,
    seconds=1260.0,
    latency_ms=2.31,
    low_ms=2.2,
    high_ms=2.5,
    latency_source="measured",
    quantile_ms=2.6,
    latency_budget_ms=3.0,
    onnx_difference=3e-6,
    history=({"epoch": 1, "train_loss": 1.0},),
)


def test_it_is_said_in_sentences() -> None:
    assert FINAL.lines == [
        "The answer was trained for 30 epochs, 21 min: accuracy 92.1 % on the validation images and 91.7 % on the test "
        "images.",
        "The search had estimated its accuracy at 88.0 %; its short trainings had reached 85.0 %.",
        "Trained, it takes 2.31 ms (measured, 2.2 to 2.5) and stays below 2.6 ms at the asked confidence: within the "
        "budget of 3 ms.",
        "best.safetensors and best.onnx hold the trained weights; their outputs differ by 3e-06 of the largest one.",
    ]
    slow = replace(FINAL, quantile_ms=3.1, validation=None, test=None, estimate=None)
    assert not slow.within_budget and "over the budget" in slow.lines[1] and "no images were left" in slow.lines[0]
    assert "and 2.25 on the test images" in replace(FINAL, metric="mean error", test=2.25).lines[0]


def test_it_is_read_again_for_the_same_answer_alone(tmp_path: Path) -> None:
    write_trained(tmp_path, FINAL)
    assert read_trained(tmp_path, "abc") is None, "without weights"
    (tmp_path / WEIGHTS).write_bytes(b"")
    assert read_trained(tmp_path, "abc") == FINAL
    assert read_trained(tmp_path, "xyz") is None and read_trained(tmp_path, None) is None
    (tmp_path / TRAINED).write_text("[]")
    with pytest.raises(ValueError, match=r"trained\.json is damaged"):
        read_trained(tmp_path, "abc")


def test_whose_training_it_is(tmp_path: Path) -> None:
    assert stored_training(tmp_path) is None
    for text in ("{", "[]", "{}"):
        (tmp_path / "training.json").write_text(text)
        with pytest.raises(ValueError, match=r"training\.json is"):
            stored_training(tmp_path)
    (tmp_path / "training.json").write_text(json.dumps({"network": CONFIG.to_dict(), "settings": {}}))
    stored = stored_training(tmp_path)
    assert stored is not None
    assert trains(stored, CONFIG) and trains(stored, CONFIG.replace(classes=1000))
    assert not trains(stored, PRESETS["lowformer_b0"]) and not trains({"network": {"module": "Net"}}, CONFIG)
