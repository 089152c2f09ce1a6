"""The latency model of a target that was measured little: its own model stacked with those of known targets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from .kernel_model import KernelModel


@dataclass(frozen=True, eq=False)
class StackedPart:
    """One model of a `StackedModel`.

    Attributes:
        name: full name of the target that it describes.
        weight: ms of the stacked model's target per ms of this one's.
        share: its share of the typical measured network's latency.
        model: predicts latency on that target.
    """

    name: str
    weight: float
    share: float
    model: KernelModel


@dataclass(frozen=True, eq=False)
class StackedModel:
    """The latency model of a target as a weighted sum of its own model and those of known targets.

    Attributes:
        overhead_ms: time of every network beside that.
        parts: the models. The first is the target's own, which says what is outside of what was measured there; its
            weight may be 0.
        least_ms: no network takes less. Above 0 weights and the overhead may have signs.
    """

    overhead_ms: float
    parts: tuple[StackedPart, ...]
    least_ms: float = 0.0

    def __post_init__(self) -> None:
        weights = [part.weight for part in self.parts]
        if not 0 <= self.least_ms < math.inf:
            raise ValueError(f"the least latency of a stacked model is at least 0 ms, given {self.least_ms}")
        least = -math.inf if self.least_ms else 0.0
        if not all(math.isfinite(weight) and weight >= least for weight in weights) or not any(weights):
            raise ValueError(f"a stacked model has parts of positive weight, given {weights}")
        if not math.isfinite(self.overhead_ms) or self.overhead_ms < least:
            raise ValueError(f"the overhead of a stacked model is at least 0 ms, given {self.overhead_ms}")

    @classmethod
    def of(cls, model: KernelModel) -> Self:
        """A target's own model alone."""
        return cls(0.0, (StackedPart("", 1.0, 1.0, model),))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        parts = [
            {"name": part.name, "weight": part.weight, "share": part.share, "model": part.model.to_dict()}
            for part in self.parts
        ]
        least = {"least_ms": self.least_ms} if self.least_ms else {}
        return {"overhead_ms": self.overhead_ms, **least, "parts": parts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The model that `to_dict` gave. Raises KeyError, TypeError, AttributeError or ValueError for anything else."""
        parts = tuple(
            StackedPart(
                str(part["name"]), float(part["weight"]), float(part["share"]), KernelModel.from_dict(part["model"])
            )
            for part in data["parts"]
        )
        return cls(float(data["overhead_ms"]), parts, float(data.get("least_ms", 0.0)))
