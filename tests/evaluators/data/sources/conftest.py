"""What tests of several data sources share."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lownas.evaluators.data.sources import scenes


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As all of them take half a minute."""
    monkeypatch.setattr(scenes, "TRAIN_SCENES", 50)
    monkeypatch.setattr(scenes, "TEST_SCENES", 20)


def arrays(count: int = 40, classes: int = 4, shape: tuple[int, ...] = (20, 28)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return {"images": images, "labels": np.arange(count) % classes}


def save_npy(folder: Path, content: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in content.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def refused(specs: list[str], folder: Path) -> None:
    """All of them give one line, and no name in a pickle is looked up."""
    code = f"""
import os, sys
import numpy, PIL.Image, safetensors.numpy
from lownas.evaluators.data.loading import load_data
try:
    import datasets
except ImportError:
    pass
sys.addaudithook(lambda event, arguments: os._exit(3) if event == "pickle.find_class" else None)
for spec in {specs!r}:
    try:
        load_data(spec, 16)
    except ValueError as error:
        assert "\\n" not in str(error), error
    else:
        raise SystemExit(f"{{spec}} was loaded")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
