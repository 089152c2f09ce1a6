"""Ctrl-C, once and twice, and a second driver: as a terminal's user meets them, on real searches with two workers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest

ROOT = Path(__file__).parents[2]


class Search:
    """A search in a process group of its own, as a shell starts it."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.run = folder / "run"
        command = [sys.executable, str(ROOT / "nas.py"), "--target", "rtx3090", "--latency-budget", "0.5ms"]
        command += ["--space", "tiny", "--data", "digits", "--trials", "400", "--workers", "2", "--rungs", "1"]
        command += ["--proxy-budget", "30s", "--proxy-epochs", "1", "--run", str(self.run), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        self.output = (folder / "output").open("w+b")
        self.process = subprocess.Popen(
            command, env=environment, stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder
        )

    def wait_for_results(self, count: int) -> None:
        until = time.monotonic() + 150
        while len(self.lines()) < count:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.1)

    def lines(self) -> list[bytes]:
        path = self.run / "results.jsonl"
        return path.read_bytes().splitlines() if path.exists() else []

    def said(self) -> str:
        self.output.seek(0)
        return self.output.read().decode(errors="replace")

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)


@pytest.fixture
def started(tmp_path):
    search = Search(tmp_path)
    yield search
    family = search.family() if search.process.poll() is None else []
    for process in (*family, search.process):
        process.kill()
    search.process.wait()


def left_after(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those that still run then; a dead one that nobody has reaped does not."""
    until = time.monotonic() + within_s
    while left := [process for process in processes if runs(process)]:
        if time.monotonic() > until:
            return left
        time.sleep(0.02)
    return []


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_once_saves_everything_and_twice_ends_at_once(started, tmp_path) -> None:
    started.wait_for_results(3)
    # Meanwhile a second driver is refused.
    began = time.monotonic()
    second = subprocess.run(
        [sys.executable, str(ROOT / "nas.py"), "--resume", "--run", str(started.run)], capture_output=True, text=True
    )
    assert second.returncode == 2 and "another search is at work" in second.stderr
    assert second.stderr.count("\n") == 1
    refused_s = time.monotonic() - began

    family = started.family()
    began = time.time()
    started.interrupt()
    assert started.process.wait(60) == 0
    saved_s = (started.run / "report.html").stat().st_mtime - began  # the last file that is written
    assert not left_after(family, 5)
    before = started.lines()
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{started.run}/study.db")
    assert not [trial for trial in study.trials if trial.state == optuna.trial.TrialState.RUNNING]
    assert json.loads((started.run / "outcome.json").read_text())["interrupted"]
    assert (started.run / "best.onnx").exists() and (started.run / "report.html").exists()

    again = Search(tmp_path, "--resume")
    try:
        again.wait_for_results(len(before) + 1)
        family = again.family()
        assert len(family) >= 3  # Ray and its workers
        again.interrupt()
        until = time.monotonic() + 20
        while (started.run / "log.txt").read_text().count("WARNING interrupted") < 2 and time.monotonic() < until:
            time.sleep(0.02)  # two at once would be one
        began = time.monotonic()
        again.interrupt()
        assert again.process.wait(60) == 130
        left = left_after(family, 1.0)
        ended_s = time.monotonic() - began
        assert not left
    finally:
        if again.process.poll() is None:
            again.process.kill()
    assert again.lines()[: len(before)] == before
    json.loads(again.lines()[-1])
    print(f"second driver refused {refused_s:.1f} s, saved {saved_s:.1f} s, ended {ended_s:.1f} s")
    # Wide margins: the machine may be busy.
    assert saved_s < 20 and ended_s < 4 and refused_s < 10
