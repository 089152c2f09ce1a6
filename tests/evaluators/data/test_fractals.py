import numpy as np
import pytest

from lownas.evaluators.data.fractals import fractal_images


def test_same_seed_same_images_other_seed_other_images() -> None:
    first, labels = fractal_images(3, 5, 24, seed=7)
    again, _ = fractal_images(3, 5, 24, seed=7)
    other, _ = fractal_images(3, 5, 24, seed=8)
    assert first.shape == (15, 24, 24, 3) and first.dtype == np.uint8
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_more_classes_or_images_begin_with_the_same_ones() -> None:
    few = fractal_images(2, 3, 16)[0].reshape(2, 3, 16, 16, 3)
    many = fractal_images(4, 140, 16)[0].reshape(4, 140, 16, 16, 3)
    assert np.array_equal(few, many[:2, :3])


def test_a_seed_gives_the_same_scenes_at_every_resolution() -> None:
    small = fractal_images(4, 8, 16, seed=1)[0].astype(float)
    large = fractal_images(4, 8, 64, seed=1)[0].astype(float)
    shrunk = large.reshape(32, 16, 4, 16, 4, 3).mean(axis=(2, 4))
    between = np.abs(shrunk - small).mean(axis=(1, 2, 3))
    shuffled = np.abs(np.roll(shrunk, 1, axis=0) - small).mean(axis=(1, 2, 3))
    assert (between < shuffled).all()
    assert between.mean() < 20


def test_images_are_neither_empty_nor_full_nor_alike() -> None:
    images, _ = fractal_images(12, 4, 32)
    spread = images.reshape(len(images), -1).std(axis=1)
    assert spread.min() > 15
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_mean_colour_does_not_tell_the_class() -> None:
    from sklearn.linear_model import LogisticRegression

    images, labels = fractal_images(5, 100, 16)
    colour = images.mean(axis=(1, 2)) / 255
    train = np.arange(len(labels)) % 2 == 0
    accuracy = LogisticRegression().fit(colour[train], labels[train]).score(colour[~train], labels[~train])
    assert accuracy < 0.2 + 0.12


@pytest.mark.parametrize("bad", [{"classes": 1}, {"per_class": 0}, {"resolution": 4}, {"seed": -1}])
def test_impossible_requests(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        fractal_images(**{"classes": 2, "per_class": 1, "resolution": 16, "seed": 0, **bad})
