"""Handwritten digits that come with scikit-learn, for smoke tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..records import DataRequest, FoundData, LabelledImages
from .base import DataSource

_WHITE = 16  # the largest grey level of the set, whose images are floats


TEST_SHARE = 0.2
"""Share of each class that is the test part."""
_TEST_SEED = 1797  # of the choice of the test part, which is always the same


@dataclass(frozen=True)
class Digits(DataSource):
    """Scikit-learn's 1797 handwritten digits of 8 x 8 pixels (`digits`); a fixed fifth of each class is for testing."""

    spec = "digits"
    mirrored = False  # a mirrored digit is no digit

    def read(self, request: DataRequest) -> FoundData:
        card = {
            "origin": "scikit-learn's handwritten digits, 8 x 8 pixels: for smoke tests",
            "parts": {"test": "a fixed fifth of each class, chosen at random once"},
        }
        return FoundData(_digits(test=False), None, tuple("0123456789"), card)

    def read_test(self, request: DataRequest) -> LabelledImages:
        return _digits(test=True)


def _digits(*, test: bool) -> LabelledImages:
    """The images that are for testing, or all others, in the order of the set."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    rng = np.random.default_rng(_TEST_SEED)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        held_out[members[: round(TEST_SHARE * len(members))]] = True
    grey = np.clip(bunch.images * (255 / _WHITE), 0, 255).astype(np.uint8)
    return LabelledImages(grey, labels).take(np.flatnonzero(held_out == test))
