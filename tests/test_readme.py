"""The README's examples in Python, run as they stand, each in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lownas.search_space import PRESETS, write_onnx

README = Path(__file__).parent.parent / "README.md"
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('torch', 'ray', 'optuna', 'sklearn', 'onnxruntime')))\n"


def example(heading: str) -> str:
    """The first Python block under a heading."""
    section = README.read_text().split(f"\n## {heading}\n")[1]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


@pytest.mark.slow
def test_in_python(tmp_path):
    code = example("In Python") + "\nprint(len(records), [file.name for file in files], type(model).__name__)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "['best.onnx', 'best.json'] LowFormer" in ran.stdout


def test_latency_alone(tmp_path):
    code = example("Latency alone")
    assert "model.onnx" in code
    write_onnx(PRESETS["cpubone_nano"], tmp_path / "model.onnx")
    ran = subprocess.run([sys.executable, "-c", WITHOUT + code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert len(lines) == 2
    for latency, low, high, *_ in lines:
        assert 0 < float(low) < float(latency) < float(high)


@pytest.mark.slow
def test_from_the_answer_to_a_trained_network(tmp_path):
    code = example("From the answer to a trained network") + "\nprint([file.name for file in files], judgement.images)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "['best.onnx', 'best.safetensors'] 359" in ran.stdout
