"""The command line, as a user meets it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lownas.nas import main
from lownas.predictors.latency.machine import physical_cores
from lownas.predictors.latency.target import shipped_profiles
from lownas.search import search
from lownas.search.trials.run_folder import SCHEMA
from lownas.search_space import PRESETS, write_onnx
from lownas.version import __version__


def broken(tmp_path: Path, name: str, content: bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


def other_checkpoint(tmp_path: Path) -> str:
    from safetensors.numpy import save_file

    save_file({"layer1.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    return str(tmp_path / "other.safetensors")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of the checkpoint ran",))


def evil_checkpoint(tmp_path: Path) -> str:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"stem.0.conv.weight": Evil()}))
    return str(tmp_path / "evil.pth")


def one_class(tmp_path: Path) -> str:
    from PIL import Image

    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "cats" / f"{number}.png")
    return f"imagefolder:{tmp_path / 'pictures'}"


def config_with(**fields: Any) -> bytes:
    return json.dumps({**PRESETS["lowformer_b0"].to_dict(), **fields}).encode()


def without_answer(tmp_path: Path) -> str:
    run = tmp_path / "unfinished"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"schema": 1, "settings": {"data": "digits", "seed": 0}}))
    return str(run)


TRAIN = ["train", "--preset", "cpubone_nano", "--resolution", "32", "--data", "digits", "--threads", "1"]
SEARCH = ["--target", "rtx3090", "--latency-budget"]
CALL = b"cposix\nsystem\n(S'false'\ntR."
"""A pickle that runs a command where it is loaded."""

Words = Callable[[Path], list[str]]
WRONG: dict[str, tuple[Words, str]] = {
    "unknown target": (lambda p: ["--target", "rtx309", "--latency-budget", "2ms"], "rtx3090"),
    "a budget of apples": (lambda p: [*SEARCH, "2 apples"], "2 apples"),
    "a negative budget": (lambda p: [*SEARCH, "-1ms"], "positive duration"),
    "no target": (lambda p: ["--latency-budget", "2ms"], "--target is missing"),
    "no budget": (lambda p: ["--target", "rtx3090"], "--latency-budget is missing"),
    "a budget below the fastest": (lambda p: [*SEARCH, "1us"], "fastest"),
    "unknown option": (lambda p: [*SEARCH, "2ms", "--colour", "red"], "--colour"),
    "unknown command": (lambda p: ["serach"], "serach"),
    "not a number": (lambda p: [*SEARCH, "2ms", "--trials", "many"], "integer"),
    "no trials": (lambda p: [*SEARCH, "2ms", "--trials", "0"], "trials"),
    "impossible confidence": (lambda p: [*SEARCH, "2ms", "--confidence", "2"], "confidence"),
    "unknown space": (lambda p: [*SEARCH, "2ms", "--space", "defalt"], "default"),
    "impossible resolution": (lambda p: [*SEARCH, "2ms", "--resolution", "3"], "resolution"),
    "unknown storage": (lambda p: [*SEARCH, "2ms", "--storage", "foo://a:secret@b/c"], "foo://..."),
    "a budget too small, dry": (lambda p: [*SEARCH, "1us", "--dry-run"], "fastest"),
    "all presets as one": (lambda p: ["export", "--preset", "all"], "one published model"),
    "unknown data": (lambda p: [*SEARCH, "2ms", "--data", "imagnet"], "imagnet"),
    "missing data": (lambda p: [*SEARCH, "2ms", "--data", f"imagefolder:{p / 'none'}"], "none"),
    "one class": (lambda p: [*SEARCH, "2ms", "--data", one_class(p)], "class"),
    "missing archive": (lambda p: [*SEARCH, "2ms", "--data", f"cifar10:{p / 'none.tar.gz'}"], "no such file or folder"),
    "missing arrays": (lambda p: [*SEARCH, "2ms", "--data", f"arrays:{p / 'none'}"], "no such file or folder"),
    "a pickle for an archive": (
        lambda p: [*SEARCH, "2ms", "--data", f"cifar10:{broken(p, 'c.gz', CALL)}"],
        "no archive",
    ),
    "a pickle for arrays": (
        lambda p: [*SEARCH, "2ms", "--data", f"arrays:{Path(broken(p, 'images.npy', CALL)).parent}"],
        "images.npy: not a plain array",
    ),
    "more than a GPU": (lambda p: [*SEARCH, "2ms", "--gpu-fraction", "2"], "gpu_fraction"),
    "a share of a GPU without workers": (
        lambda p: [*SEARCH, "2ms", "--gpu-fraction", "0.5", "--workers", "0"],
        "gpu_fraction needs workers",
    ),
    "an impossible seed": (lambda p: [*SEARCH, "2ms", "--seed", "4294967296"], "seed"),
    "no rungs": (lambda p: [*SEARCH, "2ms", "--rungs", "0"], "rungs"),
    "missing checkpoint": (lambda p: [*SEARCH, "2ms", "--init-from", str(p / "none.pth")], "no checkpoint at"),
    "a checkpoint of another kind": (lambda p: [*SEARCH, "2ms", "--init-from", other_checkpoint(p)], "unknown format"),
    "a checkpoint with code in it": (lambda p: [*SEARCH, "2ms", "--init-from", evil_checkpoint(p)], "plain tensors"),
    "resume nothing": (lambda p: [*SEARCH, "2ms", "--resume"], "--run"),
    "resume what is no run": (lambda p: [*SEARCH, "2ms", "--resume", "--run", str(p)], "run.json"),
    "replay nothing": (lambda p: ["--replay", str(p / "run.json")], "run.json"),
    "nothing to predict": (lambda p: ["predict", "--target", "rtx3090"], "--preset"),
    "unknown preset": (lambda p: ["predict", "--target", "rtx3090", "--preset", "lowformer_b9"], "lowformer_b"),
    "a model of timm that is not there": (lambda p: ["predict", "--target", "rtx3090", "--timm", "no_such"], "timm"),
    "missing config": (lambda p: ["predict", "--target", "rtx3090", "--config", str(p / "no.json")], "no.json"),
    "broken json": (lambda p: ["predict", "--target", "rtx3090", "--config", broken(p, "a.json", b"{")], "broken JSON"),
    "unknown key": (
        lambda p: ["predict", "--target", "rtx3090", "--config", broken(p, "a.json", config_with(colour=1))],
        "colour: unknown key",
    ),
    "impossible value": (
        lambda p: ["predict", "--target", "rtx3090", "--config", broken(p, "a.json", config_with(resolution=0))],
        "resolution",
    ),
    "broken onnx": (lambda p: ["predict", "--target", "rtx3090", "--onnx", broken(p, "a.onnx", b"\xff\x01")], "a.onnx"),
    "measured broken onnx": (lambda p: ["measure", "--onnx", broken(p, "a.onnx", b"\xff\x01")], "a.onnx"),
    "missing onnx": (lambda p: ["predict", "--target", "rtx3090", "--onnx", str(p / "no.onnx")], "no.onnx"),
    "impossible coverage": (
        lambda p: ["predict", "--target", "rtx3090", "--preset", "lowformer_b1", "--coverage", "1"],
        "--coverage",
    ),
    "measure elsewhere": (lambda p: ["measure", "--target", "rtx3090", "--preset", "lowformer_b1"], "rtx3090"),
    "cpu without profile": (
        lambda p: ["predict", "--target", "cpu", "--preset", "lowformer_b1", "--profiles", str(p)],
        "calibrate",
    ),
    "broken profile": (
        lambda p: [
            *("predict", "--target", "cpu", "--preset", "lowformer_b1"),
            *("--profiles", str(Path(broken(p, "cpu__onnxruntime__fp32__b1__t1.json", b"{")).parent)),
        ],
        "profile",
    ),
    "train nothing": (lambda p: ["train", "--data", "digits", "--epochs", "1"], "what to train?"),
    "train without data": (lambda p: ["train", "--preset", "lowformer_b0", "--epochs", "1"], "--data is missing"),
    "train for no time": (lambda p: ["train", "--preset", "cpubone_nano", "--data", "digits"], "how long to train?"),
    "train two networks": (
        lambda p: ["train", "--preset", "lowformer_b0", "--run", str(p), "--epochs", "1"],
        "--run and --preset are 2",
    ),
    "train an unknown network": (lambda p: ["train", "--preset", "lowformer_b9"], "--preset: unknown model"),
    "train a broken config": (lambda p: ["train", "--config", broken(p, "a.json", b"{")], "--config: "),
    "train no run": (lambda p: ["train", "--run", str(p), "--epochs", "1"], "run.json"),
    "train a run without an answer": (lambda p: ["train", "--run", without_answer(p), "--epochs", "1"], "no answer"),
    "an unknown choice": (lambda p: [*TRAIN, "--epochs", "1", "--set", "mixdown=1"], "unknown mixdown"),
    "a choice without a value": (lambda p: [*TRAIN, "--epochs", "1", "--set", "mixup"], "--set: a choice"),
    "a budget shorter than one epoch": (lambda p: [*TRAIN, "--budget", "1ms"], "shorter than one epoch"),
    "train with code for weights": (
        lambda p: [*TRAIN, "--epochs", "1", "--init-from", evil_checkpoint(p)],
        "plain tensors",
    ),
    "resume no training": (lambda p: ["train", "--resume", "--out", str(p)], "no training to go on with"),
    "resume any training": (lambda p: ["train", "--resume"], "--resume: name the training"),
    "evaluate nothing": (lambda p: ["evaluate", "--data", "digits"], "name one network"),
    "evaluate what is not trained": (lambda p: ["evaluate", "--checkpoint", str(p)], "has no trained network"),
    "evaluate code": (
        lambda p: ["evaluate", "--checkpoint", evil_checkpoint(p), "--data", "digits"],
        "plain tensors",
    ),
    "evaluate no file": (lambda p: ["evaluate", "--onnx", str(p / "no.onnx"), "--data", "digits"], "no ONNX file"),
    "evaluate a broken file": (
        lambda p: ["evaluate", "--onnx", broken(p, "a.onnx", b"\xff\x01"), "--data", "digits"],
        "a.onnx",
    ),
    "a mean of words": (
        lambda p: ["evaluate", "--onnx", str(p / "no.onnx"), "--data", "digits", "--mean", "a,b,c", "--std", "1,1,1"],
        "--mean: three numbers",
    ),
    "an unknown part": (
        lambda p: ["evaluate", "--checkpoint", str(p), "--data", "digits", "--part", "tset"],
        "one of test, validation, train",
    ),
    "train without data after a search": (lambda p: [*SEARCH, "2ms", "--train", "1h"], "train needs data"),
    "export nothing": (lambda p: ["export"], "--run"),
    "export no run": (lambda p: ["export", "--run", str(p)], "run.json"),
    "unknown format": (lambda p: ["export", "--preset", "lowformer_b0", "--format", "pickle"], "pickle"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_gets_one_line_and_exit_code_2(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, said = WRONG[case]
    arguments = words(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("lownas: error: ")]
    assert len(errors) == 1 and err.splitlines()[-1] == errors[0], err
    assert said in errors[0] and out == ""
    left = {path for path in tmp_path.rglob("*") if path.is_file()} - set(before)
    assert {path.name for path in left} <= {"lock", "log.txt"}, "nothing half-written"


def test_an_existing_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert main([*SEARCH, "2ms", "--run", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "run.json").read_text() == "{}"


def test_a_run_that_names_no_target_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema": SCHEMA, "settings": {"latency_budget_ms": 1.0}}))
    for words in (["--replay", str(tmp_path)], ["--resume", "--run", str(tmp_path)]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "--target is missing" in said and said.count("\n") == 1


def test_an_unwritable_run_folder_is_the_machines_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([*SEARCH, "2ms", "--run", str(tmp_path / "file" / "run")]) == 1
    assert "cannot write the run folder" in capsys.readouterr().err


def test_predict_on_several_targets_gives_one_table_and_a_chart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--preset", "lowformer_e1", "--preset", "cpubone_nano", "--profiles", str(tmp_path)]
    assert main([*words, "--target", "rtx3090", "--target", "i7-12700h", "--plot", str(tmp_path / "chart.html")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("lowformer_e1") == 1 and "rtx3090" in shown and "i7-12700h" in shown
    chart = (tmp_path / "chart.html").read_text()
    assert "i7-12700h" in chart and "cpubone_nano" in chart and "<script src" not in chart
    assert main([*words, "--target", "rtx3090", "--target", "i7-12700h", "--accuracy"]) == 0
    assert "top-1 %" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0  # on all that ship
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shipped = list(shipped_profiles().glob("*.json"))
    assert len(lines) == 2 * len(shipped) and {line["input"] for line in lines} == {"lowformer_e1", "cpubone_nano"}
    assert main([*words, "--target", "rtx3090", "--plot", str(tmp_path / "chart.html" / "x.html")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_predict_as_json_for_several_kinds_of_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PRESETS["lowformer_e1"]
    (tmp_path / "e1.json").write_text(config.to_json())
    write_onnx(config, tmp_path / "e1.onnx")
    words = ["predict", "--target", "rtx3090", "--json", "--preset", "lowformer_e1"]
    assert main([*words, "--config", str(tmp_path / "e1.json"), "--onnx", str(tmp_path / "e1.onnx")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["input"] for line in lines] == ["lowformer_e1", str(tmp_path / "e1.json"), str(tmp_path / "e1.onnx")]
    for line in lines:
        assert set(line) == {"input", "target", "latency_ms", "low_ms", "high_ms", "coverage", "source", "outside"}
        assert line["target"] == "rtx3090/tensorrt/fp16/b1/t1"
        assert line["low_ms"] < line["latency_ms"] < line["high_ms"]
        assert line["latency_ms"] == pytest.approx(lines[0]["latency_ms"])


def test_measure_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "--preset", "cpubone_nano", "--time-limit", "1s", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["target"] == "cpu/onnxruntime/fp32/b1/t1"
    assert 0 < line["median_ms"] <= line["p90_ms"] <= line["p99_ms"]
    assert 0 < line["low_ms"] < line["undisturbed_ms"] < line["high_ms"] and 0 < line["repeatability"] < 1
    assert len(line["looks"]) >= 3 and all(look["sentinel_ms"] > 0 for look in line["looks"])
    assert line["runs"] == sum(len(look["look"]["times_ms"]) for look in line["looks"])


def test_measurements_say_how_restless_the_machine_was(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["measure", "--time-limit", "1s", "--preset", "cpubone_nano", "--preset", "lowformer_e1"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "undisturbed" in out and "under load" in out and out.count("The machine was") == 1
    assert "warning" not in err or "waiting" in err


def test_targets_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--json"]) == 0
    entries = {e["target"]: e for e in map(json.loads, capsys.readouterr().out.splitlines())}
    shipped = entries["rtx3090/tensorrt/fp16/b1/t1"]
    assert shipped["usable"] and shipped["samples"] >= 40 and 0 < shipped["held_out_error"] < shipped["macs_only_error"]
    assert main(["targets"]) == 0 and "rtx3090" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert "rtx3090" in about["profiles"] and about["devices"]["cpu"] == "can be measured here"
    assert {"settings", "readings", "throttled"} <= about.keys() and "`cpu`" in about["advice"][-1]
    assert main(["doctor"]) == 0 and "\nadvice:\n" in capsys.readouterr().out


def test_the_cpu_has_a_row_for_one_thread_and_one_for_all_cores(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    out = capsys.readouterr().out
    assert " cpu " in out and (" cpu:all-cores " in out or physical_cores() == 1)


def test_a_dry_run_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SEARCH, "2ms", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert 0.1 <= plan["feasible_share"] <= 0.8, "the default space is made for budgets like this one"
    assert plan["fastest_ms"] < 2 < plan["slowest_ms"] and plan["size"] > 1e9
    assert plan["trainings"] == 0 and plan["expected_s"] <= 60
    assert main([*SEARCH, "2ms", "--dry-run"]) == 0 and "trainings: none (see --data)" in capsys.readouterr().out
    assert main([*SEARCH, "2ms", "--dry-run", "--space", "tiny"]) == 2
    assert "has 10 classes, ImageNet has 1,000" in capsys.readouterr().err
    assert main([*SEARCH, "2ms", "--dry-run", "--strategy", "surrogate"]) == 2
    assert "needs data (--data)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_search_resume_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole path, small: digits, two trainings in this process, one more on resuming, both files exported."""
    run = tmp_path / "run"
    words = [*SEARCH, "2ms", "--space", "tiny", "--data", "digits", "--workers", "0", "--repeats", "0", "--json"]
    words += ["--proxy-budget", "4s", "--run", str(run)]
    assert main([*words, "--trials", "2"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["answer"]["quantile_ms"] <= 2 and len(first["candidates"]) == 2
    card = json.loads((run / "data_card.json").read_text())
    assert (card["source"], card["classes"], card["seed"]) == ("digits", 10, 0)
    assert main([*words, "--trials", "2"]) == 2, "a run is not overwritten"
    assert main(["--resume", "--run", str(run), "--trials", "3", "--json"]) == 0
    capsys.readouterr()
    # With rungs the better one at a rung goes on first.
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    results = sorted(lines, key=lambda result: result["trial"])
    assert [result["trial"] for result in results] == [0, 1, 2]
    assert main(["export", "--run", str(run), "--trial", "1", "--out", str(tmp_path / "chosen")]) == 0
    assert json.loads((tmp_path / "chosen.json").read_text()) == results[1]["config"]
    assert main(["predict", "--target", "rtx3090", "--onnx", str(tmp_path / "chosen.onnx")]) == 0
    assert "<html" in (run / "report.html").read_text().lower()


def test_a_run_is_resumed_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As above, but for a start from Python, where fewer configurations can be scored."""
    run = tmp_path / "run"
    given: dict[str, Any] = {"space": "tiny", "workers": 0, "repeats": 0, "evaluations": 500, "rungs": 1, "run": run}
    search("rtx3090", "2ms", trials=1, evaluate=lambda task: 0.5, **given)
    assert main(["--resume", "--run", str(run), "--trials", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["candidates"]) == 1
    assert main(["--resume", "--run", str(run), "--trials", "1"]) == 0
    shown = capsys.readouterr().out
    assert "lowformer_b1" in shown and f"run folder: {run} (front/, best.json, best.onnx, report.html)" in shown
    assert main(["export", "--run", str(run), "--trial", "0", "--out", str(tmp_path / "chosen")]) == 0
    assert (tmp_path / "chosen.json").read_text() == (run / "best.json").read_text()
    assert main(["predict", "--target", "rtx3090", "--onnx", str(tmp_path / "chosen.onnx")]) == 0


def test_train_evaluate_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 64), ("validation", 20), ("test", 20)):
        labels = np.arange(count) % 2
        images = (rng.integers(0, 50, (count, 16, 16)) + 200 * labels[:, None, None]).astype(np.uint8)
        np.save(tmp_path / f"{part}_images.npy", images)
        np.save(tmp_path / f"{part}_labels.npy", labels)
    words = ["train", "--preset", "cpubone_nano", "--resolution", "32", "--data", f"arrays:{tmp_path}", "--epochs", "2"]
    words += ["--threads", "1", "--set", "batch_size=16", "--set", "mixup=0.2"]
    assert main([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["recipe"]["mixup"], plan["why"]["mixup"], plan["recipe"]["epochs"]) == (0.2, "given", 2)
    assert main([*words, "--dry-run"]) == 0 and "because of" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main([*words, "--out", str(out), "--json"]) == 0
    said, shown = capsys.readouterr()
    trained = json.loads(said)
    assert trained["folder"] == str(out) and len(trained["history"]) == trained["epochs"] == 2
    assert "because of" in shown, "the recipe is always shown"
    assert main(["train", "--out", str(out), "--resume", "--threads", "1"]) == 0
    assert "2 epochs" in capsys.readouterr().out
    assert main(["evaluate", "--checkpoint", str(out), "--json", "--threads", "1"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert judged["images"] == 20 and judged["top5"] is None
    assert main(["export", "--run", str(out), "--format", "onnx,weights", "--out", str(tmp_path / "x"), "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["weights"].startswith(f"trained weights of {out}")
    assert [Path(path).name for path in exported["files"]] == ["x.onnx", "x.safetensors"]
    assert main(["evaluate", "--onnx", str(tmp_path / "x.onnx")]) == 0
    assert "20 images judged" in capsys.readouterr().out
    assert main(["export", "--preset", "cpubone_nano", "--format", "config", "--out", str(tmp_path / "y")]) == 0
    assert "fresh weights" in capsys.readouterr().out


def test_a_search_that_cannot_start_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--target", "jetson/tensorrt/fp16/b1/t1", "--latency-budget", "2ms"]) == 2
    assert main(["--target", "cpu", "--latency-budget", "20ms", "--dry-run", "--profiles", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_run_is_said_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    words = ["measure", "--preset", "cpubone_nano", "--onnx", str(tmp_path / "bad.onnx"), "--time-limit", "1s"]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "bad.onnx" in err.splitlines()[-1] and "cpubone_nano" in out


def test_the_help_groups_the_options_and_keeps_what_is_in_square_brackets(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["search", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f" {group} " in said for group in ("Target and limits", "Space", "Accuracy", "Search", "Workers", "Run"))
    assert "[one per core]" in said and "[surrogate with --data, else evolution]" in said
    assert "--no-pareto" in said and "--no-insecure" in said and "evaluations" not in said
    assert main(["calibrate", "--help"]) == 0
    assert "[40; with --until at most 200]" in capsys.readouterr().out


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"lownas {__version__}"
