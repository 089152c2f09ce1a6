"""The script for a GPU, rehearsed: that every step gives its numbers, and that no step can spoil another one."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lownas.experiments.gpu.calibrating import errors
from lownas.experiments.gpu.latency import Timed, _largest_batch, _timed
from lownas.experiments.gpu.machine import QUERY, THROTTLING, nvidia_smi
from lownas.experiments.gpu.record import Record
from lownas.experiments.gpu.sizes import REAL, REHEARSED
from lownas.experiments.gpu.steps import STEPS
from lownas.experiments.gpu.training import differences
from lownas.predictors import Target

SCRIPT = Path(__file__).parents[2] / "experiments" / "gpu" / "run.sh"


def environment(out: Path, **variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOWNAS_")}
    kept.pop("PYTHONPATH", None)  # the script finds the package by itself
    return kept | {"OUT": str(out), "PYTHON": sys.executable, "LOWNAS_GPU_STANDIN": "cpu", **variables}


def run(out: Path, timeout_s: float, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT)]
    return subprocess.run(
        command, env=environment(out, **variables), cwd="/", capture_output=True, text=True, timeout=timeout_s
    )


def read(path: Path) -> Any:
    def never(constant: str) -> Any:
        raise AssertionError(f"{path}: {constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=never)


def by_step(out: Path) -> dict[str, dict[str, Any]]:
    return {row["step"]: row for row in read(out / "summary.json")["steps"]}


def test_no_step_spoils_another_one(tmp_path: Path) -> None:
    done = run(tmp_path / "out", 120, LOWNAS_GPU_STEPS="hangs:3 raises:20 dies:20 lacks:20 misses:20 works:20")
    found = by_step(tmp_path / "out")
    assert list(found) == ["hangs", "raises", "dies", "lacks", "misses", "works"]
    assert {name: row["status"] for name, row in found.items()} == {
        "hangs": "timed out",
        "raises": "failed",
        "dies": "failed",
        "lacks": "skipped",
        "misses": "skipped",
        "works": "done",
    }
    assert done.returncode == 1  # as one failed
    assert found["raises"]["why"] == "RuntimeError: it went wrong"
    assert found["dies"]["why"] == "about to die"
    assert found["lacks"]["why"] == "not installed: no_such_package, nor_this_one"
    assert found["misses"]["why"] == "not installed: no_such_package"
    assert found["works"]["said"] == "one row"
    for name in ("hangs", "raises", "dies", "misses"):  # what they had found before stands in their files
        assert read(tmp_path / "out" / f"{name}.json")["rows"] == [{"number": 1}]
    assert read(tmp_path / "out" / "works.json")["rows"] == [{"number": 1.23457, "none": None}]
    hung = read(tmp_path / "out" / "hangs.json")
    assert hung["status"] == "timed out" and any("time.sleep" in line for line in hung["traceback"])
    assert all(row["step"] in done.stdout for row in found.values())
    assert "it went" in (tmp_path / "out" / "log.txt").read_text()
    assert not list((tmp_path / "out").glob(".*"))


def test_what_the_time_does_not_reach_is_said(tmp_path: Path) -> None:
    begin = time.monotonic()
    done = run(tmp_path, 60, LOWNAS_GPU_STEPS="hangs:60 works:20", LOWNAS_GPU_TOTAL_S="20")
    found = by_step(tmp_path)
    assert found["hangs"]["status"] == "timed out" and found["hangs"]["limit_s"] <= 5
    assert found["works"] == {"step": "works", "status": "no time"}
    assert done.returncode == 0 and time.monotonic() - begin < 20


def test_results_of_former_runs_are_not_taken_for_new_ones(tmp_path: Path) -> None:
    run(tmp_path, 60, LOWNAS_GPU_STEPS="works:20")
    run(tmp_path, 60, LOWNAS_GPU_STEPS="works:20", LOWNAS_GPU_TOTAL_S="1")
    assert by_step(tmp_path)["works"]["status"] == "no time"
    assert not (tmp_path / "works.json").exists()


def test_wrong_requests(tmp_path: Path) -> None:
    done = run(tmp_path / "one", 60, PYTHON="/no/python")
    assert done.returncode == 2 and "PYTHON=" in done.stderr
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file" / "in", 60)
    assert done.returncode == 2 and "OUT=" in done.stderr
    done = run(tmp_path / "two", 60, LOWNAS_GPU_STEPS="unknown:20 works:20")
    assert done.returncode == 1
    assert "one step is expected" in by_step(tmp_path / "two")["unknown"]["why"]
    assert by_step(tmp_path / "two")["works"]["status"] == "done"


def test_wheels_are_installed_for_the_run_alone(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    done = run(tmp_path / "out", 120, LOWNAS_GPU_STEPS="works:20", LOWNAS_GPU_WHEELS=str(tmp_path / "wheels"))
    assert "wheels: not all" in done.stderr and by_step(tmp_path / "out")["works"]["status"] == "done"


def test_the_table_of_steps_is_the_scripts(tmp_path: Path) -> None:
    text = SCRIPT.read_text()
    listed = text.split("LOWNAS_GPU_STEPS:-", 1)[1].split("}", 1)[0].split()
    limits = {entry.split(":")[0]: int(entry.split(":")[1]) for entry in listed}
    assert set(limits) == {name for name, step in STEPS.items() if step.module != "misbehaving"}
    rows = [
        line.split("|") for line in SCRIPT.with_name("README.md").read_text().splitlines() if line.startswith("| `")
    ]
    assert {row[1].strip(" `"): int(row[2].split()[0]) for row in rows} == limits


def test_errors_on_others_by_hand() -> None:
    rows = [
        {"predicted_ms": 1.1, "low_ms": 1.0, "high_ms": 1.2, "looks_ms": [1.0, 1.0]},
        {"predicted_ms": 1.8, "low_ms": 1.7, "high_ms": 1.9, "looks_ms": [2.0]},
        {"predicted_ms": 9.0, "low_ms": 1.0, "high_ms": 9.9, "looks_ms": []},
    ]
    found = errors(rows, Target.parse("cuda"))
    assert (found["networks"], found["looked_at_twice"], found["repeatability"]) == (2, 1, 0)
    assert found["mean"] == pytest.approx(0.1) and found["mean_signed"] == pytest.approx(0, abs=1e-9)
    assert found["covered"] == 0.5
    rows[0]["looks_ms"] = [1.0, math.e**0.1]
    assert errors(rows, Target.parse("cuda"))["repeatability"] == pytest.approx(0.1 / math.sqrt(2))


def test_differences_by_hand() -> None:
    def row(precision: str, seed: int, accuracy: float | None) -> dict[str, Any]:
        return {"precision": precision, "seed": seed, "accuracy": accuracy, "loss": 1.0}

    rows = [row("fp32", 0, 0.9), row("bf16", 0, 0.8), row("fp32", 1, 0.7), row("bf16", 1, 0.8), row("bf16", 2, 0.1)]
    found = differences([*rows, row("fp16", 0, None)])
    assert set(found) == {"bf16"} and found["bf16"]["seeds"] == 2
    assert found["bf16"]["accuracy"] == pytest.approx(0)
    assert found["bf16"]["accuracy_standard_error"] == pytest.approx(np.std([-0.1, 0.1], ddof=1) / math.sqrt(2))
    assert differences(rows[:2])["bf16"]["accuracy_standard_error"] is None


def test_a_record_is_on_disk_after_every_number(tmp_path: Path) -> None:
    record = Record("step", tmp_path, 100, device="cuda")
    assert read(tmp_path / "step.json")["status"] == "running"
    record.add({"a": np.float32(0.5), "b": [np.int64(3), float("inf"), None, True]})
    record.add({"a": 2})
    assert read(tmp_path / "step.json")["rows"] == [{"a": 0.5, "b": [3, None, None, True]}, {"a": 2}]
    assert 99 < record.left_s <= 100


def test_a_name_that_the_driver_does_not_know_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        "#!/bin/sh\n"
        'case "$3" in\n'
        "*throttle*) echo 'Field is not valid'; exit 2;;\n"
        "*event*) echo 0x0000000000000004;;\n"
        f"*) echo '{', '.join(str(number) for number in range(len(QUERY)))}';;\n"
        "esac\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = nvidia_smi()
    assert found is not None and [found[name] for name in QUERY] == [str(number) for number in range(len(QUERY))]
    assert [found[name] for name in THROTTLING] == ["not known", "0x0000000000000004"]
    fake.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    broken = nvidia_smi()
    assert broken is not None and broken["error"] == "exit code 9: NVIDIA-SMI has failed"


def test_one_slow_part_does_not_end_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    record = Record("step", tmp_path, 100, device="cuda")
    assert record.has_time(3) and record.left_s == 100
    for took_s in (60, 2, 2):
        with record.timed():
            now += took_s
    assert record.has_time(33) and not record.has_time(34.5)
    for _ in range(5):
        with record.timed():
            now += 5
    assert not record.has_time(7) and record.has_time(6)


class Crowded(nn.Module):
    """Takes so many images at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return images.mean((1, 2, 3))


def test_the_largest_batch_is_found_and_halved_where_it_does_not_fit() -> None:
    sizes = replace(REHEARSED, look_s=0.02, largest_batch=16)
    network = Timed("crowded", Crowded(5), 8)
    assert _largest_batch(network, sizes) == 4
    assert _largest_batch(Timed("crowded", Crowded(100), 8), sizes) == 16
    row = _timed(network, sizes, "torch-graph", "fp16", 16)
    assert (row["batch"], row["too_large"]) == (4, 16) and row["undisturbed_ms"] > 0
    none = _timed(Timed("crowded", Crowded(0), 8), sizes, "torch", "bf16", 4)
    assert none["batch"] == 1 and none["error"].startswith("OutOfMemoryError: CUDA out of memory")
    broken = _timed(Timed("broken", nn.Linear(3, 3), 8), sizes, "torch", "fp16", 4)
    assert broken["batch"] == 4 and "mat1 and mat2" in broken["error"]


def test_without_a_gpu_it_is_said(tmp_path: Path) -> None:
    variables = {"LOWNAS_GPU_STANDIN": "", "CUDA_VISIBLE_DEVICES": "", "LOWNAS_GPU_STEPS": "doctor:60 presets:60"}
    done = run(tmp_path, 180, **variables)
    found = by_step(tmp_path)
    assert found["doctor"]["said"] == found["presets"]["why"] == "torch can use no CUDA device here"
    assert found["presets"]["status"] == "skipped" and done.returncode == 0
    assert read(tmp_path / "doctor.json")["usable"] is False


def test_the_real_run_is_on_a_gpu() -> None:
    assert (REAL.device, REAL.target, REAL.runs_as) == ("cuda", "cuda", {})
    assert (REAL.samples, REAL.others, REAL.workers, len(REAL.presets), len(REAL.seeds)) == (40, 40, (1, 2, 4), 3, 3)
    assert REHEARSED.device == "cpu"


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    done = run(tmp_path, 900)
    found = by_step(tmp_path)
    assert {name: row["status"] for name, row in found.items()} == dict.fromkeys(found, "done"), done.stdout
    assert done.returncode == 0 and len(found) == 8
    results = {name: read(tmp_path / f"{name}.json") for name in found}
    assert all(result["rehearsal"] and result["device"] == "cpu" for result in results.values())
    assert len(results["doctor"]["at_most"]) == 4 and results["doctor"]["lownas"]["lownas"]
    check_latencies(results["presets"], 24)
    check_latencies(results["compile"], 12)
    profile = tmp_path / results["calibration"]["profile"]
    assert read(profile)["target"] == "cpu/torch/fp32/b1/t1" and results["calibration"]["provenance"]["samples"] == 8
    rows = results["held_out"]["rows"]
    assert len(rows) == 4 and all(len(row["looks_ms"]) == 2 for row in rows)
    assert results["held_out"]["errors"]["networks"] == 4
    for name in ("proxy", "final"):
        trained = {(row["precision"], row["seed"]): row["accuracy"] for row in results[name]["trainings"]}
        assert set(trained) == {("fp32", 0), ("fp16", 0), ("bf16", 0)}
        assert all(0 <= accuracy <= 1 for accuracy in trained.values())
        assert set(results[name]["against_fp32"]) == {"fp16", "bf16"}
    assert [row["precision"] for row in results["proxy"]["speed"]] == ["fp32", "fp16", "bf16"]
    judged = {row["precision"]: row for row in results["final"]["judged"]}
    assert set(judged) == {"fp32", "fp16", "bf16"} and all(row["agreement"] > 0.9 for row in list(judged.values())[1:])
    assert all(row["trainings_per_minute"] > 0 for row in results["workers"]["rows"])
    assert {row["workers"] for row in results["workers"]["rows"]} == {1, 2}


# What a machine for trainings may lack. Python reads this file when it starts.
FEW_PACKAGES = """
import sys
from importlib.machinery import PathFinder

LACKING = {"kornia", "ray", "optuna", "onnx", "onnxruntime", "timm", "platformdirs", "typer", "sklearn", "plotly"}

class Few(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in LACKING else super().find_spec(name, path, target)

sys.meta_path[:] = [Few if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.mark.slow
def test_rehearsal_with_little_installed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FEW_PACKAGES)
    out = tmp_path / "out"
    steps = "proxy:200 final:200 workers:200 calibration:200 held_out:100"
    run(out, 900, PYTHONPATH=str(tmp_path), LOWNAS_GPU_STEPS=steps, LOWNAS_GPU_TOTAL_S="800")
    assert {row["status"] for row in by_step(out).values()} == {"done"}, (out / "log.txt").read_text()
    assert read(out / "final.json")["data"] == "formula:10"
    assert "kornia is not installed" in read(out / "proxy.json")["augmentation_while_timed"]
    workers = read(out / "workers.json")
    assert {row["kind"] for row in workers["rows"]} == {"processes"} and "ray" in workers["remark"]


def check_latencies(result: dict[str, Any], count: int) -> None:
    rows = result["rows"]
    assert len(rows) == count and not any("error" in row for row in rows)
    assert all(0 < row["undisturbed_ms"] <= row["p90_ms"] and row["images_per_second"] > 0 for row in rows)
    assert {row["batch"] for row in rows} == {1, 4}
