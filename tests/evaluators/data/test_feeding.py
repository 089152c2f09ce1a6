import logging
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from lownas.evaluators import tasks
from lownas.evaluators.data import feeding
from lownas.evaluators.data.feeding import (
    Batch,
    ImageFeed,
    ResidentFeed,
    StreamedFeed,
    image_feed,
    readable_labels,
)
from lownas.evaluators.data.loading import find_parts
from lownas.evaluators.data.pictures import decoded
from lownas.evaluators.data.records import ArrayRows, ImageFiles, LabelledImages

SIDE = 32
COUNT = 20


@pytest.fixture
def files(tmp_path: Path) -> LabelledImages:
    """Smooth JPEGs and PNGs of 90 x 120 pixels and more."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        picture = coarse.resize((120 + 10 * i, 90 + 5 * i), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}", quality=95)
    names = [f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(COUNT)]
    return LabelledImages(ImageFiles.of(tmp_path, names), np.arange(COUNT) % 3)


def array_part(count: int = COUNT, side: int = 24) -> LabelledImages:
    rng = np.random.default_rng(1)
    return LabelledImages(rng.integers(0, 256, (count, side, side), dtype=np.uint8), np.arange(count) % 3)


def one(feed: ImageFeed, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    (found,) = feed.batches([batch])
    return found


FEEDS = {
    "resident": lambda part: ResidentFeed(part, SIDE),
    "streamed": StreamedFeed,
    "workers": lambda part: StreamedFeed(part, workers=2),
}


@pytest.fixture(params=FEEDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_batches_are_bytes_of_the_side_and_labels_in_their_order(kind: str, files: LabelledImages) -> None:
    feed = FEEDS[kind](files)
    index = np.array([7, 3, 3, 19, 0])
    asked = [Batch(index, side, seed) for side in (16, SIDE, 40) for seed in (None, 5)]
    for batch, (images, labels) in zip(asked, feed.batches(iter(asked)), strict=True):
        assert images.dtype == torch.uint8 and images.shape == (5, 3, batch.side, batch.side)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.tolist() == files.labels[index].tolist()
    assert len(feed) == COUNT and np.array_equal(feed.labels, files.labels)


def test_the_central_square_is_that_of_a_short_training(kind: str, files: LabelledImages) -> None:
    expected = decoded(files, SIDE).images.astype(float)
    images, _ = one(FEEDS[kind](files), Batch(np.arange(COUNT), SIDE))
    away = np.abs(images.permute(0, 2, 3, 1).numpy() - expected)
    if kind == "resident":
        assert away.max() == 0
    assert away.mean() < 1, "a JPEG that is decoded at a smaller size differs a little"


def test_smaller_sides_from_memory_are_what_pillow_makes_of_them() -> None:
    part = array_part()
    kept, small = (one(ResidentFeed(part, 24), Batch(np.arange(COUNT), side))[0] for side in (24, 12))
    pillow = [
        np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((12, 12), Image.Resampling.BICUBIC))
        for image in kept
    ]
    assert np.abs(small.permute(0, 2, 3, 1).numpy().astype(int) - np.stack(pillow)).max() <= 1


def test_a_central_share(kind: str) -> None:
    image = np.zeros((40, 40), np.uint8)
    image[10:30, 10:30] = 200
    feed = FEEDS[kind](LabelledImages(image[None], np.zeros(1, np.int64)))
    images, _ = one(feed, Batch(np.array([0]), SIDE, crop=(0.2, 0.25)))
    assert (images[:, :, 2:-2, 2:-2] > 190).all()


def test_random_crops_are_the_same_in_any_batch_and_process(files: LabelledImages) -> None:
    here, there = StreamedFeed(files), StreamedFeed(files, workers=2)
    order = np.random.default_rng(0).permutation(COUNT)
    crop = (0.2, 0.6)
    whole, _ = one(here, Batch(np.arange(COUNT), SIDE, 4, crop))
    halves = list(there.batches([Batch(half, SIDE, 4, crop) for half in np.array_split(order, 2)]))
    assert torch.equal(torch.cat([images for images, _ in halves]), whole[order])
    other, _ = one(here, Batch(np.arange(COUNT), SIDE, 5, crop))
    assert not (other == whole).flatten(1).all(dim=1).any()


def test_crops_from_memory_are_about_those_that_are_decoded_anew() -> None:
    part = array_part(side=SIDE)
    batch = Batch(np.arange(COUNT), SIDE, 9, (0.3, 0.9))
    kept, anew = (one(feed, batch)[0].float() for feed in (ResidentFeed(part, SIDE), StreamedFeed(part)))
    away = (kept - anew).abs()
    assert away[:, :, 4:-4, 4:-4].max() <= 1, "at its edges Pillow sees a little beyond the crop"
    assert away.mean() < 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_part_that_is_decoded_by_processes_is_the_same(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "_FEW_CHUNKS", 0)
    part = array_part(150)
    images, labels = one(ResidentFeed(part, SIDE, workers=workers), Batch(np.arange(150), SIDE))
    assert np.array_equal(images.permute(0, 2, 3, 1), decoded(part, SIDE).images)
    assert labels.tolist() == part.labels.tolist()


@pytest.fixture
def broken(files: LabelledImages, tmp_path: Path) -> LabelledImages:
    (tmp_path / "3.jpg").write_text("no picture")
    (tmp_path / "4.png").unlink()
    whole = (tmp_path / "5.jpg").read_bytes()
    (tmp_path / "5.jpg").write_bytes(whole[: len(whole) // 3])
    return files


def test_what_cannot_be_read_is_left_out_counted_and_said_once(
    kind: str, broken: LabelledImages, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        feed = FEEDS[kind](broken)
        for seed in (None, 1, 2):
            index = np.array([2, 3, 4, 5, 6])
            images, labels = one(feed, Batch(index, SIDE, seed, (0.5, 1.0)))
            assert len(images) == 2 and labels.tolist() == broken.labels[[2, 6]].tolist()
    assert sorted(feed.skipped) == [3, 4, 5] and "3.jpg" in feed.skipped[3]
    assert caplog.text.count("cannot be read are left out") == 1
    images, labels = one(feed, Batch(np.array([4, 6]), SIDE))
    assert len(images) == len(labels) == 1


def test_a_class_that_cannot_be_read_is_noticed(kind: str, broken: LabelledImages) -> None:
    labels = np.where(np.isin(np.arange(COUNT), [3, 4]), 1, 0)
    feed = FEEDS[kind](LabelledImages(broken.images, labels))
    list(feed.batches([Batch(np.arange(COUNT), SIDE)]))
    task = tasks.task("classification")
    with pytest.raises(ValueError, match="data: class 'b' has no readable training image"):
        task.check_readable(feed.labels, readable_labels(feed), ("a", "b"), "data")


def test_nothing_readable_is_one_line(kind: str, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_text("no picture")
    part = LabelledImages(ImageFiles.of(tmp_path, ["0.png", "1.png", "2.png"]), np.arange(3))
    with pytest.raises(ValueError, match=r"none of 3 images could be read \(first: .*0\.png") as caught:
        list(FEEDS[kind](part).batches([Batch(np.arange(3), SIDE)]))
    assert "\n" not in str(caught.value)


def test_what_fits_is_kept_and_what_does_not_is_streamed() -> None:
    part = array_part()
    size = COUNT * SIDE * SIDE * 3
    assert image_feed(part, SIDE, workers=0, memory_bytes=size).resident
    assert not image_feed(part, SIDE, workers=0, memory_bytes=size - 1).resident
    assert image_feed(part, SIDE, workers=0).resident


def test_without_room_in_shared_memory_batches_come_through_a_pipe(
    files: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(np.arange(COUNT), SIDE, 3, (0.5, 1.0))
    expected, _ = one(StreamedFeed(files, workers=1), batch)
    monkeypatch.setattr(feeding, "_SHARED_MEMORY_MARGIN", 2**60)
    images, _ = one(StreamedFeed(files, workers=1), batch)
    assert torch.equal(images, expected)


def test_the_trainings_random_numbers_are_left_alone(files: LabelledImages) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    list(StreamedFeed(files, workers=1).batches([Batch(np.arange(COUNT), SIDE, 1, (0.1, 1.0))]))
    assert torch.equal(torch.rand(4), expected)


def test_a_worker_that_is_killed_is_one_line(files: LabelledImages) -> None:
    before = {child.pid for child in psutil.Process().children()}

    def kill() -> None:
        time.sleep(0.3)
        for child in psutil.Process().children():
            if child.pid not in before:
                os.kill(child.pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    endless = (Batch(np.arange(COUNT), 128) for _ in range(100_000))
    with pytest.raises(OSError, match=r"ended from outside .*fewer workers"):
        for _ in StreamedFeed(files, workers=2).batches(endless):
            pass


def test_arrays_on_disk_stay_there(tmp_path: Path) -> None:
    for name, array in {"images": array_part(30).images, "labels": np.arange(30) % 3}.items():
        np.save(tmp_path / f"{name}.npy", np.asarray(array))
    train = find_parts(f"arrays:{tmp_path}").train
    assert isinstance(train.images, ArrayRows)
    for feed in (ResidentFeed(train, 24), StreamedFeed(train, workers=1)):
        images, labels = one(feed, Batch(np.arange(len(train)), 24))
        assert Counter(labels.tolist()) == {0: 8, 1: 8, 2: 8}
        assert np.array_equal(images[:, 0], np.asarray(array_part(30).images)[train.images.rows])


@pytest.mark.parametrize(
    ("side", "crop", "message"),
    [(0, (1.0, 1.0), "side: at least 1"), (8, (0.0, 1.0), "crop: two shares"), (8, (0.9, 0.1), "crop: two shares")],
)
def test_batches_that_cannot_be(side: int, crop: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batch(np.arange(3), side, crop=crop)
