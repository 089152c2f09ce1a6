import numpy as np
import pytest

from lownas.evaluators.data.pictures import cropped, decoded, opened
from lownas.evaluators.data.records import ArrayRows, LabelledImages


@pytest.mark.parametrize("shape", [(6, 16, 16), (6, 16, 16, 3)])
def test_images_of_the_right_size_are_taken_as_pillow_would_leave_them(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    at_once = decoded(LabelledImages(array, np.arange(6)), 16)
    one_by_one = decoded(LabelledImages(ArrayRows(array, np.arange(6)), np.arange(6)), 16)
    assert np.array_equal(at_once.images, one_by_one.images) and at_once.images.shape == (6, 16, 16, 3)
    assert at_once.sizes == one_by_one.sizes and at_once.readable.all()
    at_once.images[:] = 0
    assert array.any(), "they are copies"


def test_a_box_of_a_picture() -> None:
    array = np.zeros((20, 30), np.uint8)
    array[5:15, 10:20] = 250
    picture, size = opened(array, lambda *_: (1, 1))
    assert size == (30, 20)
    assert (cropped(picture, (10, 5, 20, 15), 10) == 250).all()
