import numpy as np

from lownas.evaluators.data.crops import ASPECT, central_box, draws, random_box


def test_numbers_come_from_the_seed_and_the_place_alone() -> None:
    whole = draws(7, np.arange(1000))
    assert np.array_equal(draws(7, np.array([612, 3])), whole[[612, 3]])
    assert not (draws(8, np.arange(1000)) == whole).any()
    assert (whole >= 0).all() and (whole < 1).all()
    # Uniform, and neither their columns nor neighbours depend on each other.
    assert np.abs(whole.mean(axis=0) - 0.5).max() < 0.05 and np.abs(whole.std(axis=0) - 12**-0.5).max() < 0.03
    together = np.corrcoef(np.concatenate([whole[1:], whole[:-1]], axis=1), rowvar=False)
    assert np.abs(together - np.eye(len(together))).max() < 0.15


def test_random_boxes_lie_in_the_picture_and_cover_what_is_asked() -> None:
    width, height = 500, 375
    boxes = np.array([random_box(width, height, (0.25, 0.75), row) for row in draws(0, np.arange(2000)).tolist()])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    share = (right - left) * (bottom - top) / (width * height)
    assert share.min() > 0.24 and share.max() < 0.76 and abs(share.mean() - 0.5) < 0.03
    aspect = (right - left) / (bottom - top)
    assert aspect.min() > 1 / ASPECT - 0.02 and aspect.max() < ASPECT + 0.02
    assert left.min() == 0 and right.max() == width and top.min() == 0 and bottom.max() == height


def test_what_never_fits_is_the_central_square() -> None:
    numbers = draws(1, np.arange(1))[0].tolist()
    assert random_box(1000, 10, (0.9, 1.0), numbers) == central_box(1000, 10) == (495, 0, 505, 10)
    assert random_box(30, 40, (1.0, 1.0), numbers) == (0, 5, 30, 35)
    assert central_box(40, 40, 0.25) == (10, 10, 30, 30)
