"""Trackers: what they are told is there to be read, and nothing that happens to them ends a training."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lownas.evaluators.training.final import tracking
from lownas.evaluators.training.final.tracking import open_trackers

SETTINGS = {"learning_rate": 0.1, "sides": [0.5, 1.0], "loss": "ce"}
ROWS: list[dict[str, Any]] = [
    {"epoch": 1, "train_loss": 2.0, "validation_accuracy": None},
    {"epoch": 2, "train_loss": 1.5, "validation_accuracy": 0.5},
]


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for rows in (
        ROWS,
        [{"epoch": 2, "train_loss": 1.25, "validation_accuracy": 0.75}],
    ):  # then gone on with from epoch 1
        (tracker,) = open_trackers(["tensorboard"], tmp_path, SETTINGS)
        for row in rows:
            tracker.log(row["epoch"], row)
        tracker.close()
        tracker.close()
    assert scalars(tmp_path) == {"train_loss": [(1, 2.0), (2, 1.25)], "validation_accuracy": [(2, 0.75)]}


@pytest.mark.slow  # its database is made in ten seconds
def test_mlflow(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "a training"
    (first,) = open_trackers(["mlflow"], folder, SETTINGS)
    first.log(1, ROWS[0])  # killed here: it is not closed
    (second,) = open_trackers(["mlflow"], folder, SETTINGS)
    second.log(2, ROWS[1])
    second.close()
    (third,) = open_trackers(["mlflow"], folder, SETTINGS)  # another training in this folder
    third.close()
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("lownas")
    assert experiment is not None
    newest, oldest = client.search_runs([experiment.experiment_id])
    assert (newest.info.status, oldest.info.status) == ("FINISHED", "FINISHED") and not newest.data.metrics
    assert oldest.data.params == {"learning_rate": "0.1", "sides": "[0.5, 1.0]", "loss": "ce"}
    history = client.get_metric_history(oldest.info.run_id, "train_loss")
    assert [(each.step, each.value) for each in history] == [(1, 2.0), (2, 1.5)]
    assert oldest.data.metrics == {"train_loss": 1.5, "validation_accuracy": 0.5}


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="--track mlflow: ") as caught:
        open_trackers(["mlflow"], tmp_path, SETTINGS)
    assert "\n" not in str(caught.value)


def test_an_unknown_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--track wandb: unknown; allowed are tensorboard, mlflow"):
        open_trackers(["wandb"], tmp_path, SETTINGS)


def test_one_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--track mlflow: mlflow is not installed: pip install 'lownas\[track\]'"):
        open_trackers(["mlflow"], tmp_path, SETTINGS)


class Toy:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.logged: list[Mapping[str, Any]] = []
        self.closed = 0

    def log(self, epoch: int, values: Mapping[str, Any]) -> None:
        self.logged.append(values)
        if epoch == 2:
            raise RuntimeError("the server\nis gone")

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Toy]:
    made: list[Toy] = []

    def make(folder: Path, settings: Mapping[str, Any]) -> Toy:
        made.append(Toy(folder, settings))
        return made[-1]

    monkeypatch.setattr(tracking, "TRACKERS", {"tensorboard": make})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: sys)
    return lambda: made[-1]


def test_its_failure_is_told_once(toy: Callable[[], Toy], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tracker,) = open_trackers(["tensorboard", "tensorboard"], tmp_path, SETTINGS)
    with caplog.at_level(logging.WARNING, "lownas.evaluators"):
        for epoch in (1, 2, 3):
            tracker.log(epoch, {"loss": 1})
        tracker.close()
    assert caplog.messages == ["--track tensorboard: nothing more is told to it: the server is gone"]
    assert len(toy().logged) == 2 and toy().closed == 0


def test_only_finite_numbers_are_told(toy: Callable[[], Toy], tmp_path: Path) -> None:
    (tracker,) = open_trackers(["tensorboard"], tmp_path, SETTINGS)
    values = {"epoch": 1, "loss": 2, "rate": 0.5, "none": None, "nan": float("nan"), "word": "x", "flag": True}
    tracker.log(1, values)
    tracker.close()
    assert toy().logged == [{"loss": 2.0, "rate": 0.5}] and toy().closed == 1
