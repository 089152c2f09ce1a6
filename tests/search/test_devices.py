"""What devices and networks are by name: predictions of latency, and of accuracy beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lownas.nas import main
from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.search.devices import predict
from lownas.search_space import PRESETS, op_graph
from lownas.search_space.graph.onnx_writer import write_onnx

NAMES = ["lowformer_b1", "cpubone_nano"]


def records(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict]:
    assert main(words) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_accuracy_beside_latency() -> None:
    (latency, b1), (_, unknown) = predict(["lowformer_b1", op_graph(PRESETS["lowformer_b1"])], "rtx3090", accuracy=True)
    assert latency == predict("lowformer_b1", "rtx3090")
    assert b1 == AccuracyPrior.load().predict([PRESETS["lowformer_b1"]])[0] and unknown is None
    _, narrow = predict("lowformer_b1", "rtx3090", coverage=0.5, accuracy=True)
    assert b1.low_top1 < narrow.low_top1 < narrow.top1 == b1.top1 < narrow.high_top1 < b1.high_top1
    with pytest.raises(ValueError, match="configurations and published models only"):
        predict(op_graph(PRESETS["lowformer_b1"]), "rtx3090", accuracy=True)


def test_accuracy_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, config = tmp_path / "run", PRESETS["lowformer_b0"].replace(resolution=256)
    run.mkdir()
    (run / "best.json").write_text(config.to_json())
    words = ["predict", "--target", "rtx3090", "--preset", "lowformer_b1", "--config", str(run)]
    assert "accuracy" not in records([*words, "--json"], capsys)[0]
    b1, b0 = (record["accuracy"] for record in records([*words, "--accuracy", "--json"], capsys))
    assert b1["low_top1"] < b1["top1"] < b1["high_top1"] and b1["coverage"] == 0.9
    assert b0["top1"] == pytest.approx(AccuracyPrior.load().imagenet_top1([config])[0])
    assert b0["nearest"] in PRESETS or b0["nearest"].startswith("cpubone")
    assert main([*words, "--accuracy"]) == 0
    said = capsys.readouterr().out
    assert "top-1 %" in said and f"{b1['top1']:.1f}" in said


def test_accuracy_of_what_is_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = tmp_path / "b0.onnx"
    write_onnx(PRESETS["lowformer_b0"], onnx)
    words = ["predict", "--target", "rtx3090", "--accuracy", "--json", "--onnx", str(onnx)]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1 and "--accuracy: " in captured.err
    assert [record["accuracy"] is None for record in records([*words, "--preset", "lowformer_b0"], capsys)] == [
        False,
        True,
    ]


def test_accuracy_needs_no_torch() -> None:
    code = (
        "import sys; from lownas.nas import main; "
        "main(['predict', '--target', 'rtx3090', '--preset', 'lowformer_b1', '--accuracy']); "
        "assert not {'torch', 'ray', 'optuna'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0
