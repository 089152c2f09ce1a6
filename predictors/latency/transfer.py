"""A new device from a few measurements, the known devices' predictions as the prior (stacking).

    latency = overhead + sum over known devices of weight * predicted latency there

Weights and overhead are non-negative, so that more work never costs less, and each known device is drawn towards the
same share of the whole: with nothing measured but a scale, the new device is the mean of the known ones. Errors are
relative and Student-t, so that a disturbed measurement among 20 does not turn the fit. How strongly shares are drawn
together is chosen on folds of the measurements.
`experiments/latency/few_shot.py` holds it against a ridge stack and others.

Needs numpy, and scipy for fitting alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .kernel_model import KernelModel
from .uncertainty import SMALLEST_SPREAD

Array = NDArray[np.float64]

MIN_MEASUREMENTS = 4
PENALTIES: tuple[float, ...] = (3e-5, 3e-4, 0.003, 0.03, 0.3)
"""What the equal shares may weigh, in units of the measurements' information about one share: much where the known
devices are alike, little where some are like the new one and others are not."""
FOLDS = 4
FREEDOM = 4.0
"""Degrees of freedom of the errors' Student distribution; infinite is normal."""

_STEPS = 20
_LEAST = 0.03  # of the typical latency: errors of predictions below are taken relative to this


@dataclass(frozen=True)
class Transfer:
    """Latency of one device from the predicted latencies of others.

    Attributes:
        weights: ms here per ms there, by name of the known device; positive, those of weight 0 are left out.
        overhead_ms: of every network.
        shares: of the typical measured network's latency, by name of the known device; with the overhead's they sum
            to 1.
    """

    weights: Mapping[str, float]
    overhead_ms: float
    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        positive = all(0 < weight < math.inf for weight in self.weights.values())
        if not positive or not 0 <= self.overhead_ms < math.inf or self.weights.keys() != self.shares.keys():
            raise ValueError(
                "a transfer has positive weights, a share of each and an overhead of at least 0 ms, given "
                f"{dict(self.weights)}, {dict(self.shares)} and {self.overhead_ms}"
            )

    def latency_ms(self, known_ms: Mapping[str, ArrayLike]) -> Array:
        """(n,) latencies, of (n,) predicted latencies by name of the known device; ValueError if one is missing."""
        if not known_ms or (missing := [name for name in self.weights if name not in known_ms]):
            wanted = ", ".join(missing if known_ms else self.weights)
            raise ValueError(f"no predictions for {wanted}, given are those for {', '.join(known_ms) or 'no device'}")
        result = np.full(np.shape(next(iter(known_ms.values()))), self.overhead_ms)
        for name, weight in self.weights.items():
            result += weight * np.asarray(known_ms[name], dtype=np.float64)
        return result


@dataclass(frozen=True, eq=False)
class Part:
    """One model of a `StackedModel`.

    Attributes:
        name: the device and setting that it describes.
        weight: ms of the stacked model's device per ms of this one's.
        share: of the typical measured network's latency.
        model: predicts latency there.
    """

    name: str
    weight: float
    share: float
    model: KernelModel


@dataclass(frozen=True, eq=False)
class StackedModel:
    """Latency of a device as its own model, fitted on few measurements, and those of known devices see it together.

    Attributes:
        overhead_ms: of every network.
        parts: the models. The first is the device's own, which says what is outside of what was measured there; its
            weight may be 0.
    """

    overhead_ms: float
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        weights = [part.weight for part in self.parts]
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(f"a stacked model has parts of positive weight, given {weights}")
        if not 0 <= self.overhead_ms < math.inf:
            raise ValueError(f"the overhead of a stacked model is at least 0 ms, given {self.overhead_ms}")

    @classmethod
    def of(cls, model: KernelModel) -> Self:
        """The model itself."""
        return cls(0.0, (Part("", 1.0, 1.0, model),))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        parts = [
            {"name": part.name, "weight": part.weight, "share": part.share, "model": part.model.to_dict()}
            for part in self.parts
        ]
        return {"overhead_ms": self.overhead_ms, "parts": parts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError, AttributeError or ValueError for anything but what `to_dict` gives."""
        parts = tuple(
            Part(str(part["name"]), float(part["weight"]), float(part["share"]), KernelModel.from_dict(part["model"]))
            for part in data["parts"]
        )
        return cls(float(data["overhead_ms"]), parts)


def fit_transfer(
    known_ms: Mapping[str, ArrayLike], latency_ms: ArrayLike, *, penalty: float | None = None, freedom: float = FREEDOM
) -> Transfer:
    """Fits a transfer to measurements of a new device.

    Args:
        known_ms: by name of the known device, (n,) latencies predicted there of what was measured here. A model of the
            new device itself may be among them, with predictions by fits that left out the measurement in question.
        latency_ms: (n,) measured latencies, n at least `MIN_MEASUREMENTS`.
        penalty: instead of one chosen among `PENALTIES`.
        freedom: as `FREEDOM`.

    Raises:
        ValueError: too few measurements, no known device, or values that are no latencies.
    """
    names, known, target = _checked(known_ms, latency_ms)
    weights, overhead = _solve(known, target, _penalty(known, target, freedom) if penalty is None else penalty, freedom)
    parts = weights * np.median(known, axis=0)
    total = float(parts.sum()) + overhead
    kept = np.flatnonzero(weights)
    return Transfer(
        {names[i]: float(weights[i]) for i in kept}, overhead, {names[i]: float(parts[i] / total) for i in kept}
    )


def leave_one_out(
    known_ms: Mapping[str, ArrayLike], latency_ms: ArrayLike, *, penalty: float | None = None, freedom: float = FREEDOM
) -> Array:
    """(n,) log of measured over predicted latency, each by a transfer fitted without that measurement.

    Arguments and errors are those of `fit_transfer`, with one measurement more.
    """
    _, known, target = _checked(known_ms, latency_ms, left_out=1)
    predicted = np.empty(len(target))
    for i in range(len(target)):
        kept = np.arange(len(target)) != i
        chosen = _penalty(known[kept], target[kept], freedom) if penalty is None else penalty
        weights, overhead = _solve(known[kept], target[kept], chosen, freedom)
        predicted[i] = overhead + known[i] @ weights
    return np.log(target / predicted)


def _penalty(known: Array, target: Array, freedom: float) -> float:
    """The penalty with the least mean error on folds left out."""
    fold = np.arange(len(target)) % FOLDS
    errors = []
    for penalty in PENALTIES:
        error = 0.0
        for k in range(FOLDS):
            weights, overhead = _solve(known[fold != k], target[fold != k], penalty, freedom)
            error += float(np.abs(np.log(target[fold == k] / (overhead + known[fold == k] @ weights))).sum())
        errors.append(error)
    return PENALTIES[int(np.argmin(errors))]


def _checked(
    known_ms: Mapping[str, ArrayLike], latency_ms: ArrayLike, left_out: int = 0
) -> tuple[list[str], Array, Array]:
    """Names, (n, S) predictions and (n,) latencies."""
    target = np.asarray(latency_ms, dtype=np.float64)
    least = MIN_MEASUREMENTS + left_out
    if target.ndim != 1 or len(target) < least:
        raise ValueError(f"a transfer needs at least {least} measurements, given an array of shape {target.shape}")
    if not known_ms:
        raise ValueError("a transfer needs at least one known device, given none")
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in known_ms.items()}
    for name, values in (("measured", target), *columns.items()):
        if values.shape != target.shape or not np.all(np.isfinite(values) & (values > 0)):
            raise ValueError(
                f"{name}: {len(target)} positive latencies are needed, one per measurement, given shape "
                f"{values.shape} from {values.min(initial=np.inf):g} to {values.max(initial=-np.inf):g} ms"
            )
    return list(columns), np.stack(list(columns.values()), axis=1), target


def _solve(known: Array, target: Array, penalty: float, freedom: float) -> tuple[Array, float]:
    """((S,) weights, overhead): penalized non-negative least squares, reweighted for relative Student-t errors."""
    from scipy.optimize import nnls

    units, unit = np.median(known, axis=0), float(np.median(target))
    sources, latency = known / units, target / unit
    n, count = sources.shape
    pull = math.sqrt(penalty * n * float(sources.var(axis=0).mean()) / count)
    prior = np.hstack([pull * np.eye(count), np.zeros((count, 1))])
    design = np.hstack([sources, np.ones((n, 1))])
    trust, size = np.ones(n), np.ones(n)
    spread: float | None = None
    solution = np.zeros(count + 1)
    for _ in range(_STEPS):
        precision = trust / size**2
        root = np.sqrt(precision / precision.mean())
        matrix = np.vstack([design * root[:, None], prior])
        solution = nnls(matrix, np.concatenate([latency * root, np.full(count, pull / count)]))[0]
        fitted = design @ solution
        size = np.maximum(fitted, _LEAST)
        errors = (latency - fitted) / size
        if spread is None:
            spread = max(1.4826 * float(np.median(np.abs(errors))), SMALLEST_SPREAD)
        last = trust
        trust = (freedom + 1) / (freedom + (errors / spread) ** 2) if math.isfinite(freedom) else np.ones(n)
        spread = max(math.sqrt(float(np.mean(trust * errors**2))), SMALLEST_SPREAD)
        if np.abs(trust - last).max() < 1e-4 and np.abs(precision - trust / size**2).max() < 1e-3 * precision.max():
            break
    return solution[:-1] * unit / units, float(solution[-1]) * unit
