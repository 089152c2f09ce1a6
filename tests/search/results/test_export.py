"""What a run hands out: front, ONNX, report, table."""

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from rich.console import Console

from lownas.search.objectives.pareto import pareto_front
from lownas.search.results.export import export_config, export_outcome, outcome_to_dict, run_config
from lownas.search.results.outcome import SearchOutcome
from lownas.search.results.progress import SearchProgress, duration, outcome_table
from lownas.search.results.report import published_rows, write_report
from lownas.search.run_search import search
from lownas.search_space.config import LowFormerConfig
from lownas.search_space.presets import PRESETS


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, space, predictor) -> SearchOutcome:
    from lownas.search.settings import SearchSettings

    settings = SearchSettings(
        target="stub/none/fp32/b1/t1",
        latency_budget_ms=0.8,
        space="tiny",
        trials=4,
        repeats=0,
        evaluations=600,
        run=str(tmp_path_factory.mktemp("export") / "run"),
    )
    return search(
        settings,
        predictor=predictor,
        space=space,
        evaluate=lambda task: {"accuracy": 0.3 + task["trial"] / 100},
        plan=lambda settings, configs: {},
    )


def test_front_is_what_nothing_dominates(outcome) -> None:
    base = outcome.candidates[0]
    made = [
        replace(base, trial=n, latency_ms=latency, objective=objective)
        for n, (latency, objective) in enumerate([(1, 70), (2, 69), (2, 72), (3, 72), (0.5, 60), (1, 71)])
    ]
    assert [candidate.trial for candidate in pareto_front(made)] == [4, 5, 2]
    assert pareto_front([]) == []


def test_exported_files(outcome) -> None:
    written = export_outcome(outcome)
    assert {path.name for path in outcome.run.iterdir()} >= {"outcome.json", "best.json", "best.onnx", "front"}
    assert all(path.exists() for path in written)
    front = [json.loads(path.read_text()) for path in sorted((outcome.run / "front").glob("*.json"))]
    assert [entry["id"] for entry in front] == [candidate.config.id for candidate in pareto_front(outcome.candidates)]
    assert LowFormerConfig.from_dict(front[0]["config"]).id == front[0]["id"]
    assert json.loads((outcome.run / "outcome.json").read_text()) == json.loads(json.dumps(outcome_to_dict(outcome)))
    assert outcome.answer is not None
    config = run_config(outcome.run)
    assert config == outcome.answer.config
    session = onnxruntime.InferenceSession(outcome.run / "best.onnx", providers=["CPUExecutionProvider"])
    size = config.resolution
    (logits,) = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, size, size), np.float32)})
    assert logits.shape == (1, config.classes)
    assert not list(outcome.run.rglob("*.tmp"))


def test_config_of_a_trial(outcome, tmp_path) -> None:
    assert run_config(outcome.run, 0).id
    with pytest.raises(ValueError, match=r"has no trial 99; it has 4 \(0 to 3\)"):
        run_config(outcome.run, 99)
    with pytest.raises(ValueError, match="is not a run"):
        run_config(tmp_path)


def test_unknown_format(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'pickle': allowed are \['config', 'onnx'\]"):
        export_config(PRESETS["cpubone_nano"], tmp_path / "x", formats=("config", "pickle"))
    assert list(tmp_path.iterdir()) == []


def test_report_stands_alone(outcome, predictor) -> None:
    write_report(outcome, published_rows(predictor))
    text = (outcome.run / "report.html").read_text()
    assert outcome.answer is not None and outcome.answer.config.id in text
    assert "lowformer_b1" in text and "Plotly" in text
    assert "<script src=" not in text and "<link" not in text and "<img" not in text.split("<script")[0]
    assert all(note.split(":")[0].replace("'", "&#39;") in text for note in outcome.notes)


def test_report_escapes_what_it_shows(outcome) -> None:
    hostile: Any = replace(outcome, notes=("<script>alert(1)</script>",))
    hostile = replace(hostile, settings=outcome.settings.model_copy(update={"target": "</script><script>alert(2)"}))
    write_report(hostile)
    text = (outcome.run / "report.html").read_text()
    assert "<script>alert" not in text


def test_published_models_beside(predictor) -> None:
    rows = {row.name: row for row in published_rows(predictor)}
    assert set(rows) == set(PRESETS)
    assert rows["lowformer_b1"].top1 == 79.81
    assert abs(rows["lowformer_b1"].prior_top1 - 79.81) < 0.5
    assert round(rows["lowformer_b1"].macs / 1e6) == 1411


def test_table_and_progress(outcome, predictor) -> None:
    console = Console(file=io.StringIO(), width=140)
    console.print(outcome_table(outcome, published_rows(predictor)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert outcome.answer is not None and outcome.answer.config.id in text
    assert "lowformer_b3" in text and "predicted" in text
    with SearchProgress(console) as progress:
        from lownas.search.results.outcome import SearchStatus

        for phase in ("propose", "plan", "train", "measure", "done"):
            progress(SearchStatus(phase, 1, 4, 1, 1, None, 1.0, 200.0))


def test_durations() -> None:
    assert [duration(s) for s in (40, 200, 9000)] == ["40 s", "3 min", "2.5 h"]
