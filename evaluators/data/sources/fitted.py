"""Any other source with its pictures squashed or padded to squares, where they would lose their sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..records import DataRequest, Fit, FoundData, LabelledImages
from .base import DataSource


@dataclass(frozen=True)
class Fitted(DataSource):
    """The images of another source, made squares in a way of their own (`squash:SPEC`, `pad:SPEC`).

    Attributes:
        inner: where the images are from.
        fit: "crop" (the central square, as without this), "squash" or "pad".
    """

    inner: DataSource
    fit: Fit

    @property
    def spec(self) -> str:
        return f"{self.fit}:{self.inner.spec}"

    def read(self, request: DataRequest) -> FoundData:
        found = self.inner.read(request)
        validation = None if found.validation is None else replace(found.validation, fit=self.fit)
        return replace(found, train=replace(found.train, fit=self.fit), validation=validation)

    def read_test(self, request: DataRequest) -> LabelledImages | None:
        test = self.inner.read_test(request)
        return None if test is None else replace(test, fit=self.fit)

    @property
    def made_to_order(self) -> bool:
        return self.inner.made_to_order

    @property
    def open_classes(self) -> bool:
        return self.inner.open_classes

    @property
    def mirrored(self) -> bool:
        return self.inner.mirrored

    @property
    def max_shift(self) -> float:
        return self.inner.max_shift


def fitted(fit: Fit, named: Callable[[str], DataSource]) -> Callable[[str], DataSource]:
    """What makes a source from the text after `fit` and a colon; `named` finds the other source."""

    def make(spec: str) -> DataSource:
        if spec.partition(":")[0] in ("squash", "pad"):
            raise ValueError(f"data {fit}:{spec:.80}: pictures are squashed or padded once")
        return Fitted(named(spec), fit)

    return make
