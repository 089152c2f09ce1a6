import numpy as np
import pytest

from lownas.evaluators.data.loading import load_data


def test_formula_counts_and_classes() -> None:
    data = load_data("formula:4", 16, train_images=10, validation_images=8)
    assert np.bincount(data.train_labels).tolist() == [3] * 4
    assert np.bincount(data.validation_labels).tolist() == [2] * 4
    assert len(load_data("formula", 16, train_images=14, validation_images=7, classes=7).classes) == 7
    with pytest.raises(ValueError, match="classes"):
        load_data("formula:4", 16, classes=5)
    with pytest.raises(ValueError, match="classes"):
        load_data("digits", 16, classes=5)


def test_formula_keeps_its_validation_images_when_it_trains_on_more() -> None:
    few = load_data("formula:2", 16, train_images=4, validation_images=6)
    more = load_data("formula:2", 16, train_images=20, validation_images=6)
    assert np.array_equal(few.validation_images, more.validation_images)
