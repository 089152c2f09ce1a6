"""The scripts in examples/, run as they stand, each in a folder and a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
SAYS = {
    "latency_alone": "b1.onnx",
    "search_on_your_data": "candidates were trained",
    "your_own_device": "held-out error",
}


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem == "latency_alone" else [pytest.mark.slow])
        for path in EXAMPLES
    ],
)
def test_example(script: Path, tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert SAYS[script.stem] in ran.stdout


def test_all_examples_are_run() -> None:
    assert {path.stem for path in EXAMPLES} == set(SAYS)
