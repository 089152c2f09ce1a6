from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lownas.evaluators.data.loading import find_parts
from lownas.evaluators.data.records import DataRequest, LabelledImages
from lownas.evaluators.data.sources import scenes, source

from .test_fashion_mnist import fashion_of


def test_scenes_are_the_same_each_time_and_frame_each_picture_once(tmp_path: Path) -> None:
    spec = f"scenes:{fashion_of(tmp_path)}"
    data = find_parts(spec, test=True, resolution=64)
    again = find_parts(spec, test=True, resolution=64)
    parts = [(data.train, again.train, 40), (data.validation, again.validation, 10), (data.test, again.test, 20)]
    for part, same, count in parts:
        assert part is not None and same is not None and len(part.labels) == count
        assert np.asarray(part.images).shape == (count, 64, 64, 3)
        assert np.array_equal(part.images, same.images) and np.array_equal(part.labels, same.labels)
    found = source(spec).read(DataRequest(resolution=64, seed=0))
    counts = np.bincount(found.train.labels)
    assert counts.min() >= 4 and counts.sum() == 50  # of 40 pictures, ten of them twice
    assert len({image.tobytes() for image in np.asarray(found.train.images)}) == 50
    assert found.classes is not None and found.classes[9] == "Ankle boot"


def test_the_class_is_that_of_the_framed_object() -> None:
    rng = np.random.default_rng(1)
    pictures = LabelledImages(rng.integers(0, 256, (60, 28, 28), np.uint8), np.arange(60) % 10)
    composed = scenes._compose(pictures, 8, seed=3)
    for number in range(8):
        framed = np.random.default_rng(3).permutation(60)[number]
        assert composed.labels[number] == framed % 10
        changed = np.array(pictures.images)
        changed[framed] = 255 - changed[framed]
        other = scenes._compose(replace(pictures, images=changed), 8, seed=3)
        scene = np.asarray(composed.images)[number].astype(int)
        white = (scene == 255).all(-1)
        rows, columns = (np.flatnonzero(white.sum(axis) >= 24) for axis in (1, 0))
        assert 24 <= np.ptp(rows) <= 40 and 24 <= np.ptp(columns) <= 40  # the frame, whole
        differs = (scene != np.asarray(other.images)[number]).any(-1)
        inside = np.zeros_like(differs)
        inside[rows[0] + 2 : rows[-1] - 1, columns[0] + 2 : columns[-1] - 1] = True
        assert differs[inside].mean() > 0.3


def test_scenes_need_fashion_mnists_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder") as error:
        find_parts(f"scenes:{tmp_path / 'none'}", resolution=64)
    assert "\n" not in str(error.value)
