"""What follows a search with --train: a trained, judged, measured answer with its files, or the search's own intact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import lownas
from lownas.evaluators.training.final.records import TrainingStatus
from lownas.predictors import Target
from lownas.search.final import after_search
from lownas.search.final.after_search import AfterSearch, WrongExport, train_answer
from lownas.search.final.folders import claimed
from lownas.search.final.train import FinalTraining
from lownas.search.latency.looks import Measuring
from lownas.search.results.files import exportable, with_training, write_result
from lownas.search.results.search_result import SearchResult
from lownas.search.run_search import Parts, run_search
from lownas.search.settings import SearchSettings
from lownas.search_space import SearchSpace

from ..conftest import StubMeasurement

TARGET = Target.parse("rtx3090")
CPU = Target.parse("cpu")


@pytest.fixture(scope="module")
def space(config: Any) -> SearchSpace:
    """A space with little in it, so that what it has trains within seconds."""
    choices = SearchSpace.load("tiny").choices
    return SearchSpace(choices.model_copy(update={"resolution": (32,)}))


@pytest.fixture(scope="module")
def searched(space: SearchSpace, predictor: Any, data: str, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search whose answer is small, as it has a small budget."""
    settings = SearchSettings(
        target=str(TARGET),
        latency_budget_ms=0.4,
        space="tiny",
        data=data,
        trials=2,
        repeats=0,
        evaluations=400,
        rungs=1,
        run=str(tmp_path_factory.mktemp("after") / "run"),
    )
    parts = Parts(predictor, space, evaluate=lambda task: 0.7 + task.trial / 100, plan=lambda request: {})
    result = run_search(settings, parts)
    write_result(result)
    result.report()
    return result


@pytest.fixture
def result(searched: SearchResult, tmp_path: Path) -> SearchResult:
    """The same, in a folder of its own, to be trained for 20 s."""
    shutil.copytree(searched.run, tmp_path / "run")
    settings = searched.settings.replace(train_s=20.0, run=str(tmp_path / "run"))
    return replace(searched, run=tmp_path / "run", settings=settings)


@pytest.fixture
def after(predictor: Any, data: str, monkeypatch: pytest.MonkeyPatch) -> AfterSearch:
    """For two epochs, whatever the time."""
    real = after_search.FinalSettings

    def short(**values: Any) -> Any:
        return real(**{**values, "epochs": 2, "threads": 1, "choices": {"batch_size": 24}})

    monkeypatch.setattr(after_search, "FinalSettings", short)
    return AfterSearch(TARGET, predictor, data, "classification")


def outputs(path: Path, images: Any) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: image[None]})[0] for image in images])


def test_the_answer_is_trained_and_everything_says_so(result: SearchResult, after: AfterSearch) -> None:
    assert result.answer is not None
    fresh = (result.run / "best.onnx").read_bytes()
    done = train_answer(result, after)
    write_result(done)
    done.report()
    final = done.final
    assert final is not None and final.answer == result.answer.config.id
    assert final.config == result.answer.config.replace(classes=3)
    assert final.epochs == 2 and final.validation is not None and final.test is not None
    assert final.estimate == pytest.approx(result.answer.objective / 100) and final.proxy == result.answer.accuracy
    assert final.latency_source == "predicted" and final.onnx_difference <= 1e-4
    assert done.notes[-4:] == tuple(final.lines)
    written = json.loads((result.run / "outcome.json").read_text())["trained"]
    assert written["test"] == final.test and written["within_budget"] == final.within_budget
    assert len(written["history"]) == 2
    text = (result.run / "report.html").read_text()
    assert "The answer, trained" in text and "loss, validation" in text and text.count("Plotly.newPlot(") >= 2
    found = exportable(result.run)
    assert found.weights.startswith(f"trained weights of {result.run}/training, ") and found.model is not None
    images = np.random.default_rng(1).standard_normal((3, 3, 32, 32), np.float32)
    import torch

    with torch.no_grad():
        expected = found.model(torch.from_numpy(images)).numpy()
    assert np.allclose(outputs(result.run / "best.onnx", images), expected, atol=1e-4 * np.abs(expected).max())
    assert (result.run / "best.onnx").read_bytes() != fresh
    assert not [path for path in result.run.rglob("*") if path.name.startswith(("unchecked", "."))]
    (exported,) = done.export("onnx", to=result.run / "again")
    assert exported.read_bytes() == (result.run / "best.onnx").read_bytes()


def test_what_was_trained_stays_until_the_answer_is_another_one(result: SearchResult, after: AfterSearch) -> None:
    done = train_answer(result, after)
    trained = (result.run / "best.onnx").read_bytes()
    again = with_training(result)  # as a resumed search has it
    write_result(again)
    assert again.final == done.final and again.notes == done.notes
    assert (result.run / "best.onnx").read_bytes() == trained
    assert train_answer(again, after) is again
    other = next(candidate for candidate in result.candidates if candidate != result.answer)
    changed = with_training(replace(result, answer=other))
    write_result(changed)
    assert changed.final is None and "Another network is the answer now" in changed.notes[-1]
    assert not (result.run / "best.safetensors").exists() and not (result.run / "trained.json").exists()
    assert exportable(result.run).weights == "fresh weights"
    later = train_answer(changed, after)
    assert later.final is not None and later.final.answer == other.config.id
    assert (result.run / "training-1" / "best.safetensors").exists(), "the former training is kept"


def test_weights_whose_figures_were_never_noted_stay(result: SearchResult, after: AfterSearch) -> None:
    train_answer(result, after)
    (result.run / "trained.json").unlink()
    trained = (result.run / "best.onnx").read_bytes()
    found = with_training(result)
    write_result(found)
    assert found.final is None and (result.run / "best.onnx").read_bytes() == trained
    again = train_answer(found, after)
    assert again.final is not None and (result.run / "trained.json").exists()


def test_a_training_that_was_interrupted_goes_on(
    result: SearchResult, after: AfterSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lownas.evaluators.training.final.training.SAVED_EVERY_S", 0.0)

    def stop(status: TrainingStatus) -> None:
        if status.row is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_answer(result, replace(after, progress=stop))
    waiting = with_training(replace(result, settings=result.settings.replace(train_s=None)))
    assert "has not ended" in waiting.notes[-1]
    rows: list[int] = []
    done = train_answer(result, replace(after, progress=lambda status: rows.append(status.epoch)))
    assert rows == [2] and done.final is not None and done.final.epochs == 2


def test_the_trained_network_is_measured_where_the_device_is_at_hand(
    result: SearchResult, after: AfterSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    times = iter((0.30, 0.31, 0.32, 0.33, 0.90))

    def measure(network: Any, target: Target) -> Any:
        measured.append(network)
        return StubMeasurement(next(times))

    @contextmanager
    def open_meter(target: Target) -> Iterator[Any]:
        look = partial(measure, target=target)
        yield SimpleNamespace(target=target, measuring=lambda profiles: nullcontext(Measuring(look)))

    monkeypatch.setattr(after_search, "open_meter", open_meter)
    final = train_answer(result, replace(after, target=CPU)).final
    assert final is not None and measured == [result.run / "best.onnx"] * 5
    assert final.latency_source == "measured" and final.low_ms < 0.31 < final.high_ms
    assert final.latency_ms == pytest.approx(0.31, rel=0.02), "the slowest one may be a disturbance"
    assert 0.31 < final.quantile_ms < 0.4 and final.within_budget
    assert "within the budget of 0.4 ms" in final.lines[2]


def test_a_device_that_fails_loses_nothing(
    result: SearchResult, after: AfterSearch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def open_meter(target: Target) -> Iterator[Any]:
        raise OSError("the box is gone")
        yield

    monkeypatch.setattr(after_search, "open_meter", open_meter)
    final = train_answer(result, replace(after, target=CPU)).final
    assert final is not None and final.latency_source == "predicted" and "the box is gone" in caplog.text


def kept(result: SearchResult) -> dict[str, bytes]:
    files = (path for path in result.run.iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize(("error", "kind"), [(ValueError("too short"), ValueError), (OSError("disk full"), OSError)])
def test_a_training_that_fails_leaves_the_search_intact(
    error: Exception, kind: type[Exception], result: SearchResult, after: AfterSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> FinalTraining:
        raise error

    before = kept(result)
    monkeypatch.setattr(after_search, "run_training", fail)
    with pytest.raises(kind, match=r"the search is done .*, but training its answer failed: (too short|disk full)"):
        train_answer(result, after)
    assert kept(result) == before


def test_an_onnx_file_that_computes_something_else_is_no_result(
    result: SearchResult, after: AfterSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept(result)
    monkeypatch.setattr(after_search, "_difference", lambda *_: float("nan"))
    with pytest.raises(RuntimeError, match="computes something else"):
        train_answer(result, after)
    assert kept(result) == before
    assert issubclass(WrongExport, RuntimeError)


def test_a_search_with_train_in_one_call(
    config: Any, data: str, after: AfterSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lownas.search import resume, search

    given: dict[str, Any] = {"space": "tiny", "workers": 0, "repeats": 0, "evaluations": 300, "rungs": 1, "trials": 1}
    given |= {"max_params": "1M", "resolution": 32, "proxy_budget": "1s", "run": tmp_path / "run"}
    done = search("rtx3090", "2ms", data=data, evaluate=lambda task: 0.5, **given)
    assert done.final is None and exportable(done.run).weights == "fresh weights"
    with pytest.raises(ValueError, match="train needs data"):
        search("rtx3090", "2ms", train="1h", **{**given, "run": tmp_path / "other"})
    done = resume(done.run, evaluate=lambda task: 0.5, train="1h")
    assert done.final is not None and done.final.test is not None
    assert json.loads((done.run / "outcome.json").read_text())["trained"]["epochs"] == 2
    again = resume(done.run, evaluate=lambda task: 0.5)
    assert again.final == done.final and exportable(done.run).weights.startswith("trained weights of")


def test_fresh_weights_in_the_place_of_trained_ones_are_not_taken_for_them(
    result: SearchResult, after: AfterSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(status: TrainingStatus) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_answer(result, replace(after, progress=stop))
    result.export("weights")
    assert exportable(result.run).weights == "fresh weights"
    with pytest.raises(ValueError, match="its training has not ended"):
        lownas.evaluate(result.run)
    write_result(result)
    assert not (result.run / "best.safetensors").exists()


def test_another_time_for_what_was_trained_is_said(
    result: SearchResult, after: AfterSearch, caplog: pytest.LogCaptureFixture
) -> None:
    done = train_answer(result, after)
    assert train_answer(done, after) is done and not caplog.records
    longer = replace(done, settings=done.settings.replace(train_s=7200.0))
    assert train_answer(longer, after) is longer
    assert "/training was for 20 s; for another one train anew (lownas train --run " in caplog.text


def test_a_training_under_way_is_not_set_aside(result: SearchResult, after: AfterSearch) -> None:
    train_answer(result, after)
    other = next(candidate for candidate in result.candidates if candidate != result.answer)
    folder = result.run / "training"
    with claimed(folder), pytest.raises(ValueError, match="another training is at work"):
        train_answer(replace(result, answer=other), after)
    assert (folder / "best.safetensors").exists() and not (result.run / "training-1").exists()


def test_a_test_part_that_cannot_be_used_loses_nothing(
    result: SearchResult, after: AfterSearch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("test_labels has 7, which no training image has")

    monkeypatch.setattr(after_search, "evaluate", fail)
    final = train_answer(result, after).final
    assert final is not None and final.test is None and (result.run / "trained.json").exists()
    assert "not judged by the test part: test_labels has 7" in caplog.text


def test_a_network_without_answer_is_not_trained(result: SearchResult, after: AfterSearch) -> None:
    nothing = replace(result, answer=None)
    assert train_answer(nothing, after) is nothing
