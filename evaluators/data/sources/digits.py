"""Handwritten digits that come with scikit-learn, for smoke tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..records import DataRequest, FoundData, LabelledImages
from .base import DataSource

_WHITE = 16  # the largest grey level of the set, whose images are floats


@dataclass(frozen=True)
class Digits(DataSource):
    """Scikit-learn's 1797 handwritten digits of 8 x 8 pixels (`digits`)."""

    spec = "digits"
    mirrored = False  # a mirrored digit is no digit

    def read(self, request: DataRequest) -> FoundData:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        grey = np.clip(bunch.images * (255 / _WHITE), 0, 255).astype(np.uint8)
        card = {"origin": "scikit-learn's handwritten digits, 8 x 8 pixels: for smoke tests"}
        return FoundData(LabelledImages(grey, bunch.target.astype(np.int64)), None, tuple("0123456789"), card)
