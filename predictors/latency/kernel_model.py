"""The latency model of one target: a physical formula for every kernel class, and learned corrections on top.

The physical part (`kernel_terms`) extrapolates and needs few measurements; the correction of a class is interpolated
between shapes that were measured. Everything is plain arrays, which `to_dict` and `from_dict` turn into JSON and back.
`fitting` fits models to measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .kernel_terms import COEFFICIENTS, SHAPE_FEATURES, Array, cold_share, physical_ms, physical_terms, shape_features
from .kernels import KERNEL_CLASS, KERNEL_CLASSES, Kernels

Flags = NDArray[np.bool_]

MOST_CORRECTION = 2.0
"""Factor, up or down, beyond which no correction goes."""
SHAPE_MARGIN = 2.0
"""Factor beyond the smallest and largest shape fitted on, up to which a shape still counts as inside."""
_ROUNDING = 1e-6  # of log features, which profiles keep with 8 digits


@dataclass(frozen=True, eq=False)
class Correction:
    """The log of measured over physical time of one kernel class, interpolated between the shapes that were measured.

    A kernel ridge regression on scaled shape features. It fades to nothing away from the measured shapes.

    Attributes:
        points: (n, len(SHAPE_FEATURES)) scaled features of the measured shapes.
        weights: (n,) of the regression.
        center, scale: (len(SHAPE_FEATURES),) mean and unit of the scaled features.
        reach: length scale of the Gaussian kernel, in scaled features.
    """

    points: Array
    weights: Array
    center: Array
    scale: Array
    reach: float

    def log_ratio(self, features: Array) -> Array:
        """(K,) log ratios for shape features (K, F), limited to `MOST_CORRECTION`."""
        result = gaussian_kernel((features - self.center) / self.scale, self.points, self.reach) @ self.weights
        return np.clip(result, -np.log(MOST_CORRECTION), np.log(MOST_CORRECTION))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "features": list(SHAPE_FEATURES),
            "points": [[_digits(x) for x in point] for point in self.points],
            "weights": [_digits(x) for x in self.weights],
            "center": [_digits(x) for x in self.center],
            "scale": [_digits(x) for x in self.scale],
            "reach": self.reach,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str) -> Self:
        """The correction of class `name` that `to_dict` gave. Raises ValueError or KeyError for anything else."""
        if data["features"] != list(SHAPE_FEATURES):
            raise ValueError(f"correction of {name} is on features {data['features']}")
        points, weights, center, scale = (
            np.asarray(data[key], dtype=np.float64) for key in ("points", "weights", "center", "scale")
        )
        if points.shape != (len(weights), len(SHAPE_FEATURES)):
            raise ValueError(f"correction of {name} has shapes {points.shape} and {weights.shape}")
        return cls(points, weights, center, scale, float(data["reach"]))


def gaussian_kernel(a: Array, b: Array, reach: float) -> Array:
    """(n, m) similarities of the rows of (n, F) and (m, F), 1 for equal ones."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    return np.exp(-np.maximum(squared, 0) / (2 * reach**2))


@dataclass(frozen=True, eq=False)
class KernelModel:
    """The latency model of one target: coefficients of every kernel class, and what it was fitted on.

    Time of a graph = overhead_ms + scale * sum over its kernels of (`kernel_terms.physical_ms` * correction).

    Attributes:
        fusion: the fusion rules that the kernels follow (`runtimes.fusion_names()`); "runtime" in JSON.
        block: channels of onnxruntime's blocked layout on the device; 0 for none.
        coefficients: (len(KERNEL_CLASSES), len(COEFFICIENTS)).
        sharpness: p in `kernel_terms.physical_ms`.
        overhead_ms: time of a graph beside its kernels.
        scale: factor on the sum of kernel times.
        corrections: by class.
        counts: (len(KERNEL_CLASSES),) kernels of each class that were fitted on.
        low, high: (len(KERNEL_CLASSES), len(SHAPE_FEATURES)) range of the shape features that were fitted on.
        tile, pads, cache: as in `kernel_terms.physical_terms`.
        kept: elements of weights that the caches keep from one run to the next (`kernel_terms.cold_share`); 0 for all.
    """

    fusion: str
    block: int
    coefficients: Array
    sharpness: float = 1.0
    overhead_ms: float = 0.0
    scale: float = 1.0
    corrections: Mapping[int, Correction] = field(default_factory=dict)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(KERNEL_CLASSES), dtype=np.int64))
    low: Array = field(default_factory=lambda: np.full((len(KERNEL_CLASSES), len(SHAPE_FEATURES)), np.inf))
    high: Array = field(default_factory=lambda: np.full((len(KERNEL_CLASSES), len(SHAPE_FEATURES)), -np.inf))
    tile: int = 0
    pads: Mapping[str, int] = field(default_factory=dict)
    cache: int = 0
    kept: int = 0

    def kernel_ms(self, kernels: Kernels, cold: Array | float | None = None) -> Array:
        """(K,) time of each kernel, before the graph's `scale`.

        Args:
            kernels: those of a graph.
            cold: share of the weights that is read from memory, of all kernels or (K,) of each; by default as is usual
                for a graph of these kernels.
        """
        codes = kernels.column("class")
        if cold is None:
            cold = float(cold_share(kernels.column("weights").sum(), self.kept))
        terms = physical_terms(kernels, self.block, self.tile, self.pads, self.cache, cold)
        times = physical_ms(*terms, self.coefficients[codes], self.sharpness)
        if self.corrections:
            features = shape_features(kernels)
            for code, correction in self.corrections.items():
                rows = np.flatnonzero(codes == code)
                if len(rows):
                    times[rows] *= np.exp(correction.log_ratio(features[rows]))
        return times

    def graph_ms(self, kernels: Kernels) -> float:
        """Time of a whole graph."""
        return self.overhead_ms + self.scale * float(self.kernel_ms(kernels).sum())

    def extrapolated(self, kernels: Kernels) -> tuple[Flags, Flags]:
        """(K,) whether a kernel's class was not fitted on, and (K,) whether its shape is beyond those of its class.

        Class "other" is always outside: it holds everything without a class of its own, so that one of its kernels
        tells nothing about another.
        """
        margin = np.log(SHAPE_MARGIN) + _ROUNDING
        codes = kernels.column("class")
        features = shape_features(kernels)
        low, high = self.low[codes] - margin, self.high[codes] + margin
        unseen = (self.counts[codes] == 0) | (codes == KERNEL_CLASS["other"])
        return unseen, ~unseen & np.any((features < low) | (features > high), axis=1)

    def outside(self, kernels: Kernels) -> list[str]:
        """Names of kernel classes that were not fitted on, or with " (shape)" whose shapes here were not."""
        codes = kernels.column("class")
        unseen, shape = self.extrapolated(kernels)
        return [self.outside_name(code) for code in np.unique(codes[unseen | shape]).tolist()]

    def outside_name(self, code: int) -> str:
        """What a class that was not fitted on is called, or one whose shapes were not."""
        name = KERNEL_CLASSES[code]
        return f"{name} (shape)" if self.counts[code] and name != "other" else name

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; classes and coefficients by name."""
        fitted = [code for code in range(len(KERNEL_CLASSES)) if self.counts[code] or self.coefficients[code].any()]
        return {
            "runtime": self.fusion,
            "block": self.block,
            "tile": self.tile,
            "pads": dict(self.pads),
            "cache": self.cache,
            "kept": self.kept,
            "sharpness": self.sharpness,
            "overhead_ms": _digits(self.overhead_ms),
            "scale": _digits(self.scale),
            "classes": {KERNEL_CLASSES[code]: self._class_to_dict(code) for code in fitted},
        }

    def _class_to_dict(self, code: int) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "coefficients": dict(zip(COEFFICIENTS, map(_digits, self.coefficients[code]), strict=True)),
            "count": int(self.counts[code]),
        }
        if self.counts[code]:
            ranges = zip(self.low[code], self.high[code], strict=True)
            entry["ranges"] = dict(zip(SHAPE_FEATURES, ([_digits(a), _digits(b)] for a, b in ranges), strict=True))
        if code in self.corrections:
            entry["correction"] = self.corrections[code].to_dict()
        return entry

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The model that `to_dict` gave. Raises ValueError or KeyError for values that cannot be one."""
        n = len(KERNEL_CLASSES)
        coefficients = np.zeros((n, len(COEFFICIENTS)))
        counts = np.zeros(n, dtype=np.int64)
        low, high = np.full((n, len(SHAPE_FEATURES)), np.inf), np.full((n, len(SHAPE_FEATURES)), -np.inf)
        corrections = {}
        for name, entry in data["classes"].items():
            if name not in KERNEL_CLASS:
                raise ValueError(f"unknown kernel class {name!r}")
            code = KERNEL_CLASS[name]
            if unknown := set(entry["coefficients"]) - set(COEFFICIENTS):
                raise ValueError(f"unknown coefficients {sorted(unknown)} of {name}")
            coefficients[code] = [entry["coefficients"].get(term, 0.0) for term in COEFFICIENTS]
            counts[code] = entry["count"]
            if "ranges" in entry:
                low[code] = [entry["ranges"][feature][0] for feature in SHAPE_FEATURES]
                high[code] = [entry["ranges"][feature][1] for feature in SHAPE_FEATURES]
            if "correction" in entry:
                corrections[code] = Correction.from_dict(entry["correction"], name)
        model = cls(
            fusion=str(data["runtime"]),
            block=int(data["block"]),
            coefficients=coefficients,
            sharpness=float(data["sharpness"]),
            overhead_ms=float(data["overhead_ms"]),
            scale=float(data["scale"]),
            corrections=corrections,
            counts=counts,
            low=low,
            high=high,
            tile=int(data.get("tile", 0)),
            pads={str(name): int(pad) for name, pad in data.get("pads", {}).items()},
            cache=int(data.get("cache", 0)),
            kept=int(data.get("kept", 0)),
        )
        model._check()
        return model

    def _check(self) -> None:
        """Raises ValueError for values that no fit gives."""
        if wrong := [name for name, pad in self.pads.items() if name not in KERNEL_CLASS or pad < 1]:
            raise ValueError(f"padding of {wrong}: known classes, at least 1 channel")
        numbers = [self.coefficients, np.array([self.sharpness - 1, self.overhead_ms, self.scale])]
        if not all(np.isfinite(values).all() and (values >= 0).all() for values in numbers) or self.scale == 0:
            raise ValueError("coefficients must be finite and not negative")


def _digits(value: float) -> float:
    """A value with as many digits as profiles keep."""
    return float(f"{value:.8g}")
