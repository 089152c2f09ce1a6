"""Who may import whom: nas.py -> search -> {predictors, evaluators} -> search_space; ray in one file."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("search_space", "predictors", "evaluators", "search")
ALLOWED = {
    "search_space": {"search_space"},
    "predictors": {"predictors", "search_space"},
    "evaluators": {"evaluators", "search_space"},
    "search": {"search", "predictors", "evaluators", "search_space"},
}


def imported(path: Path) -> set[str]:
    """What a file imports: top-level names of libraries, and packages of this project."""
    found: set[str] = set()
    package = path.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                whole = [*base, *(node.module or "").split(".")]
                found.update([whole[0]] if whole[0] else [name.name for name in node.names])
            elif node.module:
                parts = node.module.split(".")
                found.add(parts[1] if parts[0] == "lownas" and len(parts) > 1 else parts[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        others = imported(path) & set(PACKAGES)
        assert others <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {sorted(others - ALLOWED[package])}"


def test_ray_is_imported_in_one_file() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "ray" in imported(path)]
    assert [str(path.relative_to(ROOT)) for path in files] == ["search/training/pools.py"]
    assert "ray" not in imported(ROOT / "nas.py")


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        (
            "from lownas.predictors import LatencyPredictor; from lownas.search_space import PRESETS;"
            "LatencyPredictor.load('rtx3090').predict([PRESETS['lowformer_b1']])",
            {"torch", "ray", "optuna", "onnx"},
        ),
        ("import lownas.predictors.latency.calibration, lownas.evaluators.device.measure", {"ray", "optuna"}),
        ("from lownas.nas import main; main(['--help'])", {"torch", "ray", "optuna", "onnx", "numpy"}),
        ("from lownas.search_space import SearchSpace; SearchSpace.load('default')", {"torch", "ray", "optuna"}),
    ],
)
def test_heavy_parts_load_late(code: str, absent: set[str]) -> None:
    check = f"{code}\nimport sys\nfound = {absent!r} & set(sys.modules)\nassert not found, found"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL, timeout=120)
