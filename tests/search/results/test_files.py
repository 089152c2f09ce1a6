"""The files that a search leaves, and what is read from them again."""

import json

import numpy as np
import onnxruntime
import pytest

from lownas.search.objectives.pareto import pareto_front
from lownas.search.results.files import run_config, write_result
from lownas.search_space.config import LowFormerConfig


def test_exported_files(outcome) -> None:
    written = write_result(outcome)
    assert {path.name for path in outcome.run.iterdir()} >= {"outcome.json", "best.json", "best.onnx", "front"}
    assert all(path.exists() for path in written)
    front = [json.loads(path.read_text()) for path in sorted((outcome.run / "front").glob("*.json"))]
    assert [entry["id"] for entry in front] == [candidate.config.id for candidate in pareto_front(outcome.candidates)]
    assert LowFormerConfig.from_dict(front[0]["config"]).id == front[0]["id"]
    assert json.loads((outcome.run / "outcome.json").read_text()) == json.loads(json.dumps(outcome.to_dict()))
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
