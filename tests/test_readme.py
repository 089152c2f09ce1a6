"""The README's example of using a latency profile alone, run as it stands in a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

from lownas.search_space import PRESETS, write_onnx

README = Path(__file__).parent.parent / "README.md"
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('torch', 'ray', 'optuna', 'sklearn', 'onnxruntime')))\n"


def test_latency_alone(tmp_path):
    section = README.read_text().split("\n## Latency alone\n")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert "model.onnx" in code
    write_onnx(PRESETS["cpubone_nano"], tmp_path / "model.onnx")
    ran = subprocess.run([sys.executable, "-c", WITHOUT + code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert len(lines) == 2
    for latency, low, high, *_ in lines:
        assert 0 < float(low) < float(latency) < float(high)
