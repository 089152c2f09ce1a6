"""The run folder: written whole, read back, locked, and clear about what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lownas.search.trials.records import EvaluationResult
from lownas.search.trials.run_folder import RunFolder, git_commit, read_results, read_settings, versions, write_text
from lownas.search_space.presets import PRESETS


def result(trial: int) -> EvaluationResult:
    config = PRESETS["cpubone_nano"]
    return EvaluationResult(
        trial=trial,
        status="complete",
        role="explore",
        config=config,
        config_id=config.id,
        seed=7,
        accuracy=0.1 + 0.2,
        prior_top1=72.0,
        objective=72.1,
        latency_ms=1.0,
        low_ms=0.9,
        high_ms=1.1,
        quantile_ms=1.05,
        macs=1,
        params=2,
        history=({"epoch": 1, "loss": 1 / 3},),
    )


@pytest.fixture
def started(settings) -> Path:
    made = settings()
    with RunFolder.open(made.run, resume=False) as run:
        run.write_about(made, proxy={})
        for trial in range(3):
            run.append_result(result(trial))
    return Path(made.run)


def test_results_and_settings_come_back_exactly(started, settings) -> None:
    assert read_results(started) == [result(trial) for trial in range(3)]
    assert read_settings(started) == read_settings(started / "run.json") == settings()
    about = json.loads((started / "run.json").read_text())
    assert about["versions"]["lownas"] and about["seed"] == 0 and "git_commit" in about


def test_a_line_is_strict() -> None:
    line = json.loads(result(0).to_json())
    assert EvaluationResult.from_dict(line) == result(0)
    with pytest.raises(ValueError, match="speed: unknown key"):
        EvaluationResult.from_dict({**line, "speed": 1})
    with pytest.raises(ValueError, match="status"):
        EvaluationResult.from_dict({**line, "status": "excellent"})


def test_last_line_cut_anywhere(started) -> None:
    path = started / "results.jsonl"
    whole = path.read_bytes()
    before = whole[: whole.rindex(b"\n", 0, -1) + 1]
    # Every byte near the ends, every 11th between.
    inside = range(len(before), len(whole))
    for length in sorted({*inside[:5], *inside[::11], *inside[-5:]}):
        path.write_bytes(whole[:length])
        complete = length >= len(whole) - 1
        with RunFolder.open(started, resume=True) as run:
            assert len(run.load_results()) == (3 if complete else 2)
            run.append_result(result(5))
        assert [entry.trial for entry in read_results(started)] == ([0, 1, 2, 5] if complete else [0, 1, 5])


def test_reading_leaves_a_broken_line_alone(started) -> None:
    path = started / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    content = path.read_bytes()
    assert len(read_results(started)) == 2
    assert path.read_bytes() == content


def test_a_broken_line_in_the_middle_is_named(started) -> None:
    path = started / "results.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b'{"trial": 1', *lines[2:]]))
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2: not an evaluation result"):
        read_results(started)


def test_a_trial_that_stands_there_twice(started) -> None:
    with RunFolder.open(started, resume=True) as run:
        run.append_result(result(1))
        with pytest.raises(ValueError, match="trial 1 stands there twice"):
            run.load_results()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 99, "settings": {}}'])
def test_broken_run_json(started, text: str) -> None:
    (started / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        RunFolder.open(started, resume=True)
    with pytest.raises(ValueError, match=r"run\.json"):
        read_settings(started)


def test_a_folder_that_holds_something_else(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        RunFolder.open(tmp_path / "file", resume=False)
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"holds results but no run\.json"):
        RunFolder.open(tmp_path, resume=False)


def test_unwritable_folder_is_one_line() -> None:
    with pytest.raises(OSError, match=r"^cannot write the run folder /proc/lownas/run: "):
        RunFolder.open("/proc/lownas/run", resume=False)


def test_write_is_all_or_nothing(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    write_text(path, "before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*file: No space left on device"):
        write_text(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_versions_and_commit() -> None:
    assert {"lownas", "python", "torch", "optuna"} <= set(versions())
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40
