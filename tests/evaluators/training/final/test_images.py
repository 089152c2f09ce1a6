"""The images of a final training: where they are kept, what they are on average, and two parts as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from lownas.evaluators.data.loading import DataParts, find_parts
from lownas.evaluators.data.records import LabelledImages
from lownas.evaluators.training.final import images as final_images
from lownas.evaluators.training.final.images import TrainingImages, joined
from lownas.evaluators.training.final.recipe import TrainingRecipe
from lownas.evaluators.training.final.records import FinalSettings, TrainedNetwork
from lownas.evaluators.training.final.store import LocalStore
from lownas.evaluators.training.final.training import train_network


def grey(level: int, count: int, side: int = 8) -> LabelledImages:
    return LabelledImages(np.full((count, side, side), level, np.uint8), np.zeros(count, np.int64))


def test_the_mean_is_that_of_all_classes_in_whatever_order_they_stand() -> None:
    part = joined(grey(0, 1500), grey(255, 1500))
    parts = DataParts(part, grey(0, 2), None, ("a", "b"), "grey")
    images = TrainingImages(parts, both=False, side=8, workers=0, in_memory=True)
    assert images.pixels().mean == pytest.approx((0.5, 0.5, 0.5), abs=0.01)


def test_batches_for_statistics_are_of_equal_size() -> None:
    parts = DataParts(grey(0, 520), grey(0, 2), None, ("a", "b"), "grey")
    images = TrainingImages(parts, both=False, side=8, workers=0, in_memory=True)

    def sizes(count: int) -> list[int]:
        return [len(batch.index) for batch in images.some(TrainingRecipe(), count, seed=0)]

    assert (sizes(520), sizes(256), sizes(1), sizes(0)) == ([174, 173, 173], [256], [], [])


def test_statistics_stay_where_no_images_are_for_them(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 9, 10))
    settings = FinalSettings(epochs=2, choices={"batch_size": 64, "batch_norm_images": 0})
    network = train_network(module, "digits", LocalStore(tmp_path), settings, resolution=8)
    assert network.model[1].running_mean.abs().max() > 0  # type: ignore[index]


def test_joining_reads_no_array_that_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("train", 6), ("validation", 4)):
        np.save(tmp_path / f"{name}_images.npy", np.full((count, 8, 8), count, np.uint8))
        np.save(tmp_path / f"{name}_labels.npy", np.arange(count) % 2)
    parts = find_parts(f"arrays:{tmp_path}")
    both = joined(parts.train, parts.validation)
    assert isinstance(parts.train.images, np.memmap) and not isinstance(both.images, np.ndarray)
    assert [int(both.images[place].max()) for place in (0, 5, 6, 9)] == [6, 6, 4, 4]  # type: ignore[union-attr]


def trained(folder: Path, **given: Any) -> TrainedNetwork:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
    settings = FinalSettings(epochs=2, choices={"batch_size": 128, "crop": 0.5, "sides": (1.0,)})
    return train_network(module, "digits", LocalStore(folder), settings, resolution=24, **given)


@pytest.mark.parametrize("at_first", [True, False])
def test_images_are_where_they_were_when_a_training_goes_on(
    at_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops from memory and from pictures differ; what memory there is changes from hour to hour."""
    seen: list[bool] = []
    real = final_images.image_feed

    def image_feed(*arguments: Any, **options: Any) -> Any:
        feed = real(*arguments, **options)
        seen.append(feed.resident)
        return feed

    class Killed(Exception):
        pass

    def kill(step: int, loss: float) -> None:
        raise Killed

    monkeypatch.setattr(final_images, "image_feed", image_feed)
    needed = 1797 * 24 * 24 * 3
    monkeypatch.setattr(final_images, "available_memory", lambda: 8 * needed if at_first else needed)
    with pytest.raises(Killed):
        trained(tmp_path, on_step=kill)
    assert json.loads((tmp_path / "training.json").read_text())["in_memory"] is at_first
    monkeypatch.setattr(final_images, "available_memory", lambda: 2 * needed if at_first else 8 * needed)
    trained(tmp_path, resume=True)
    assert seen == [at_first] * 4


def test_images_that_do_not_fit_any_more_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path)
    monkeypatch.setattr(final_images, "available_memory", lambda: 0)
    trained(tmp_path, resume=True)
    assert "do not fit into memory any more" in caplog.text


def test_what_another_training_left_is_not_taken_for_this_one(tmp_path: Path) -> None:
    first = trained(tmp_path)
    (tmp_path / "training.json").unlink()
    assert trained(tmp_path).seconds != first.seconds
