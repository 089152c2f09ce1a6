"""Images rendered by formula, for which nothing has to be there (see `data/fractals.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..fractals import fractal_images
from ..records import DataRequest, FoundData, LabelledImages
from .base import DataSource

FORMULA_CLASSES = 10
FORMULA_TRAIN_IMAGES = 1920  # in all, unless said otherwise
FORMULA_VALIDATION_IMAGES = 1000
FORMULA_TEST_IMAGES = 1000
_CHUNKS_BEFORE_TEST = 2**20  # of 128 images each: no training part reaches as far
MOST_CLASSES = 10_000


@dataclass(frozen=True)
class Formula(DataSource):
    """Rendered fractals (`formula`, `formula:CLASSES`), as many as are asked for, each drawn from the seed.

    Attributes:
        classes: how many kinds of fractals; None leaves that to the request (`FORMULA_CLASSES` if it does not say).
    """

    classes: int | None = None

    made_to_order = True
    max_shift = 0.0  # they are rendered at random places already

    def __post_init__(self) -> None:
        if self.classes is not None and not 2 <= self.classes <= MOST_CLASSES:
            raise ValueError(f"unknown data {self.spec!r}: formula:CLASSES takes 2 to {MOST_CLASSES} classes")

    @classmethod
    def named(cls, argument: str | None = None) -> Formula:
        """The source for what stands after the colon of a specification."""
        if argument is not None and not argument.isdecimal():
            raise ValueError(
                f"unknown data {f'formula:{argument}'!r}: formula:CLASSES takes 2 to {MOST_CLASSES} classes"
            )
        return cls(None if argument is None else int(argument))

    @property
    def spec(self) -> str:
        return "formula" if self.classes is None else f"formula:{self.classes}"

    @property
    def open_classes(self) -> bool:
        return self.classes is None

    def read(self, request: DataRequest) -> FoundData:
        count = self.classes or request.classes or FORMULA_CLASSES
        # Rounded up to full classes: the set is always balanced.
        train = -(-(request.train_images or FORMULA_TRAIN_IMAGES) // count)
        validation = -(-(request.validation_images or FORMULA_VALIDATION_IMAGES) // count)
        images, labels = fractal_images(count, train + validation, request.resolution, request.seed)
        # The first images of a class are its validation images: they stay the same however many it is trained on.
        held_out = np.arange(len(labels)) % (train + validation) < validation
        rendered = "rendered for it, as all parts are"
        card = {
            "origin": "iterated function systems (after FractalDB), no photographs",
            "parts": {"train": rendered, "validation": rendered, "test": rendered},
        }
        return FoundData(
            LabelledImages(images[~held_out], labels[~held_out]),
            LabelledImages(images[held_out], labels[held_out]),
            tuple(f"fractal_{i}" for i in range(count)),
            card,
        )

    def read_test(self, request: DataRequest) -> LabelledImages:
        count = self.classes or request.classes or FORMULA_CLASSES
        each = -(-FORMULA_TEST_IMAGES // count)
        drawn = fractal_images(count, each, request.resolution, request.seed, chunks_before=_CHUNKS_BEFORE_TEST)
        return LabelledImages(*drawn)
