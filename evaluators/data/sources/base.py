"""What a data source is; its docstring is the guide to writing another one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ..records import DataRequest, FoundData, LabelledImages

MAX_SHIFT = 1 / 16
"""Largest random shift of a training image, as a share of its side, where a source does not say otherwise. Of an image
of 32 pixels these are 2; He et al. (arXiv 1512.03385, section 4.2) shift CIFAR's by up to 4."""


@runtime_checkable
class DataSource(Protocol):
    """A place that labelled images come from, as yet neither decoded nor resized.

    To write another one, derive a class from this one (it brings the defaults below) with a `spec` and a method `read`,
    and hand an object of it wherever data are asked for: `load_data(MySource(), 32)`. To have it found by name too
    (`--data mine:ARGUMENT`), call `register_source("mine", MySource, "mine:ARGUMENT")`: the class, or any function,
    is then called with the text after the colon.

    `read` gives images as they are found: it neither decodes, nor resizes, nor splits, nor chooses among them, which
    `load_data` does for all sources. It gives the same images each time it is asked. What cannot be used ends in a
    ValueError of one line that says what was found and what was expected. Nothing is ever unpickled or executed.

    An object must be hashable and picklable, as it is sent to workers and data sets that were loaded are kept for the
    next candidate; a frozen dataclass of plain values is both.
    """

    @property
    def spec(self) -> str:
        """What the source is called in messages, data cards and run files; what is before a colon is its kind.

        Two sources with other images have other specifications, as far as that can be had.
        """
        ...

    def read(self, request: DataRequest) -> FoundData:
        """The images to train on and, if there are such, to validate by. The test part is not even opened.

        Raises ValueError, in one line: not there, broken, or not usable.
        """
        ...

    def read_test(self, request: DataRequest) -> LabelledImages | None:
        """The images to judge the final network by, with labels as in `read`; None if there are none.

        Only `find_parts(..., test=True)` asks for them, once everything is chosen. Raises ValueError as `read` does.
        """
        return None

    @property
    def made_to_order(self) -> bool:
        """Whether `read` gives just the images that are asked for, in their number and resolution, as bytes in RGB.

        Such images are taken as they are, without decoding, resizing or splitting, so both parts must be given. How
        many are trained on is then limited by time alone.
        """
        return False

    @property
    def open_classes(self) -> bool:
        """Whether the number of classes is up to the request."""
        return False

    @property
    def mirrored(self) -> bool:
        """Whether training images may be mirrored left to right without a change of their label."""
        return True

    @property
    def max_shift(self) -> float:
        """How far training images may be shifted without a change of their label, as a share of their side."""
        return MAX_SHIFT
