"""What the package needs only for some of its functions is imported in these, and need not be there for others."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
{code}
"""


@pytest.mark.parametrize(
    "code",
    [
        "from lownas.search_space import PRESETS, op_graph; assert op_graph(PRESETS['lowformer_b1']).macs > 1e9",
        "from lownas.search_space import SearchSpace; import lownas.search_space.heads, lownas.search_space.probes",
    ],
)
def test_configurations_and_their_costs_need_numpy_and_pydantic_alone(code: str) -> None:
    missing = ["yaml", "torch", "onnx", "optuna", "ray", "sklearn", "scipy"]
    subprocess.run([sys.executable, "-c", WITHOUT.format(missing=missing, code=code)], check=True, timeout=120)


def test_reading_onnx_needs_no_torch() -> None:
    code = "import lownas.search_space.graph.onnx_reader, lownas.search_space.graph.onnx_writer"
    missing = ["yaml", "torch", "optuna", "ray"]
    subprocess.run([sys.executable, "-c", WITHOUT.format(missing=missing, code=code)], check=True, timeout=120)
