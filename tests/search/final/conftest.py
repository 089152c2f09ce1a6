"""A small network, and labelled images that it learns within seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lownas.search.final.train import FinalTraining, train
from lownas.search_space import LowFormerConfig, SearchSpace


def pictures(count: int, classes: int = 3, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(count, 16, 16) grey images, the brighter the higher their class."""
    labels = np.arange(count) % classes
    noise = np.random.default_rng(seed).integers(0, 40, (count, 16, 16))
    return (noise + 200 * labels[:, None, None] // max(1, classes - 1)).astype(np.uint8), labels


def write_parts(folder: Path, classes: int = 3, *, test: bool = True) -> str:
    """Writes a data set as arrays; gives its specification."""
    folder.mkdir()
    parts = {"train": 72, "validation": 24, **({"test": 30} if test else {})}
    for seed, (name, count) in enumerate(parts.items()):
        images, labels = pictures(count, classes, seed)
        np.save(folder / f"{name}_images.npy", images)
        np.save(folder / f"{name}_labels.npy", labels)
    return f"arrays:{folder}"


@pytest.fixture(scope="package")
def config() -> LowFormerConfig:
    """For 10 classes, as networks of the space "tiny" are."""
    found = SearchSpace.load("tiny").sample(np.random.default_rng(3))
    widths, depths = (12, 16, 24, 32), (1, 1, 1, 1)
    stages = tuple(
        stage.model_copy(update={"width": width, "depth": depth, "down_expansion": 2, "expansion": 2})
        for stage, width, depth in zip(found.stages, widths, depths, strict=True)
    )
    return found.replace(resolution=32, stem_width=8, stem_depth=0, head_widths=(32, 40), stages=stages)


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_parts(tmp_path_factory.mktemp("data") / "parts")


@pytest.fixture(scope="package")
def trained(config: LowFormerConfig, data: str, tmp_path_factory: pytest.TempPathFactory) -> FinalTraining:
    """A training that has ended."""
    folder = tmp_path_factory.mktemp("trained") / "training"
    return train(config, data, epochs=6, out=folder, threads=1, recipe={"batch_size": 24})
