"""The one way in for code: what `search`, `resume` and `replay` take, give and leave alone."""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from lownas.search import EvaluationResult, SearchResult, TrainingTask, replay, resume, search
from lownas.search.api import dry_run
from lownas.search.settings import options
from lownas.search.trials.run_folder import RunFolder, read_about, read_results
from lownas.search_space import SearchSpace

SMALL: dict[str, Any] = {"space": "tiny", "workers": 0, "repeats": 0, "proxy_budget": "1s", "evaluations": 800}


def steady(task: TrainingTask) -> float:
    return 0.5


def small_search(tmp_path: Path, **changes: Any) -> SearchResult:
    given = {"target": "rtx3090", "latency_budget": "2ms", "run": tmp_path / "run", "trials": 2, "evaluate": steady}
    return search(**{**SMALL, **given, **changes})


def test_what_a_search_gives(tmp_path: Path) -> None:
    result = small_search(tmp_path)
    assert result.answer is not None and result.answer in result.candidates
    assert sum(parameter.numel() for parameter in result.answer.build().parameters()) == result.answer.params
    records = result.to_records()
    assert len(records) == len(result.candidates) == 2
    assert all(not isinstance(value, dict | list) for record in records for value in record.values())
    assert [record["id"] for record in records if record["answer"]] == [result.answer.config.id]
    assert {record["id"] for record in records if record["front"]} == {c.config.id for c in result.front}
    assert result.report().read_text().startswith("<!doctype html>")
    files = result.export("onnx", "config", to=tmp_path / "answer")
    assert [file.name for file in files] == ["answer.onnx", "answer.json"] and all(file.exists() for file in files)
    with pytest.raises(ValueError, match="export format 'tflite'"):
        result.export("tflite")
    assert json.loads((result.run / "outcome.json").read_text())["answer"]["id"] == result.answer.config.id


def test_all_settings_are_arguments_in_the_words_of_the_command_line() -> None:
    parameters = inspect.signature(search).parameters
    assert set(options()) <= set(parameters)
    with pytest.raises(ValueError, match="unknown setting 'max_parameters': did you mean max_params"):
        search("rtx3090", "2ms", max_parameters="5M")
    with pytest.raises(ValueError, match="--latency-budget: a positive duration such as 800us, 2ms"):
        search("rtx3090", "2")
    with pytest.raises(ValueError, match="--latency-budget is missing"):
        search("rtx3090")
    with pytest.raises(ValueError, match="--target is missing"):
        search(latency_budget="2ms")


def test_a_callback_sees_each_trial_and_can_end_the_search(tmp_path: Path) -> None:
    seen: list[EvaluationResult] = []

    def enough(result: EvaluationResult) -> bool:
        seen.append(result)
        return len(seen) == 3

    result = small_search(tmp_path, trials=6, callback=enough)
    assert [one.trial for one in seen] == [0, 1, 2] and result.interrupted
    assert resume(tmp_path / "run", evaluate=steady).counts == {"complete": 6}


def test_objects_in_the_place_of_names(tmp_path: Path, predictor: Any, space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (60, 12, 12), dtype=np.uint8), np.arange(60) % 3
    data = {"data": (images, labels), "rungs": 1, "proxy_epochs": 1}
    given = {"space": space, "predictor": predictor, "latency_budget": "1ms", "evaluate": None}
    result = small_search(tmp_path, **given, **data)
    assert result.objective.name == "accuracy" and result.counts == {"complete": 2}
    card = json.loads((result.run / "data_card.json").read_text())
    assert card["classes"] == 3
    with pytest.raises(ValueError, match="must be given again"):
        resume(tmp_path / "run", predictor=predictor)
    again = resume(tmp_path / "run", predictor=predictor, space=space, data=(images, labels), trials=3)
    assert again.counts == {"complete": 3}
    # Of a version that split the same images otherwise.
    (result.run / "data_card.json").write_text(json.dumps({**card, "identity": "0" * 12}))
    with pytest.raises(
        ValueError, match=r"the data are not those that the run in .* began with.*search anew: lownas --replay"
    ):
        resume(tmp_path / "run", predictor=predictor, space=space, data=(images, labels), trials=4)


def test_nothing_global_is_changed_and_it_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def state() -> tuple[Any, ...]:
        logger = logging.getLogger("lownas.search")
        levels = logger.level, logger.propagate, list(logger.handlers), optuna.logging.get_verbosity()
        return dict(os.environ), levels, signal.getsignal(signal.SIGINT), os.getcwd()

    before = state()
    small_search(tmp_path / "a")
    small_search(tmp_path / "b")
    assert state() == before
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""
    small_search(tmp_path / "c", progress=True)
    assert "target rtx3090" in capfd.readouterr().err


def test_two_runs_in_one_process_do_not_log_into_each_other(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "a", resume=False) as one, RunFolder.open(tmp_path / "b", resume=False) as other:
        one.log.info("of the first")
        other.log.info("of the second")
        logs = [(tmp_path / name / "log.txt").read_text() for name in ("a", "b")]
    assert "of the first" in logs[0] and "of the second" not in logs[0]
    assert "of the second" in logs[1] and "of the first" not in logs[1]


def test_a_relative_path_of_data_is_found_from_another_folder(tmp_path: Path, monkeypatch: Any) -> None:
    from PIL import Image

    for name in ("cats", "dogs"):
        folder = tmp_path / "work" / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path / "work")
    small_search(tmp_path, data="imagefolder:pictures", rungs=1)
    monkeypatch.chdir(tmp_path)
    assert resume(tmp_path / "run", trials=3, evaluate=steady).counts == {"complete": 3}


def test_a_front_without_a_budget_is_replayed_on_another_device_with_its_range(tmp_path: Path) -> None:
    first = small_search(tmp_path, space="default", latency_budget=None, pareto=True)
    assert read_about(first.run)["whole_range"] is True
    other, _ = dry_run({"target": "i7-12700h"}, earlier=first.run)
    assert other.pareto and other.latency_budget_ms > 3 * first.settings.latency_budget_ms
    same, _ = dry_run({}, earlier=first.run)
    assert same.latency_budget_ms == first.settings.latency_budget_ms
    best, _ = dry_run({"pareto": False, "latency_budget": "1ms"}, earlier=first.run)
    assert not best.pareto and best.latency_budget_ms == 1.0
    with pytest.raises(ValueError, match="--latency-budget is missing"):
        dry_run({"pareto": False}, earlier=first.run)
    again = resume(first.run, trials=3, evaluate=steady)
    assert again.settings.latency_budget_ms == first.settings.latency_budget_ms


def test_a_run_is_replayed_without_the_file_of_its_space(tmp_path: Path) -> None:
    shipped = Path(inspect.getfile(SearchSpace)).parent / "spaces" / "tiny.yaml"
    file = tmp_path / "mine.yaml"
    file.write_text(shipped.read_text().replace("classes: 10\n", ""))
    first = small_search(tmp_path, space=file)
    file.unlink()
    again = replay(first.run / "run.json", run=tmp_path / "again", trials=1)
    assert again.counts == {"complete": 1}
    assert read_about(again.run)["space"] == read_about(first.run)["space"]
    assert resume(first.run, trials=3, evaluate=steady).counts == {"complete": 3}


def test_what_may_be_taken_back_on_replay(tmp_path: Path) -> None:
    first = small_search(tmp_path, space="default")
    about = json.loads((first.run / "run.json").read_text())
    about["settings"] |= {"insecure": True}
    (first.run / "run.json").write_text(json.dumps(about))
    kept, _ = dry_run({}, earlier=first.run)
    taken_back, _ = dry_run({"insecure": False}, earlier=first.run)
    assert kept.insecure and not taken_back.insecure


def test_trials_are_in_the_run_folder(tmp_path: Path) -> None:
    result = small_search(tmp_path)
    assert [one.trial for one in read_results(result.run)] == [0, 1]
    with pytest.raises(ValueError, match="there is already a run"):
        small_search(tmp_path)
