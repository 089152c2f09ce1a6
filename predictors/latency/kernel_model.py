"""The latency model: physical first, learned second.

Time of a graph = overhead + scale * sum over its kernels of t(kernel), with

    t = launch + (compute^p + memory^p)^(1/p)        per kernel class, in ms
    compute = sum of a_i * COMPUTE_TERMS_i            multiply-accumulates, and what saturates them on small shapes
    memory  = sum of b_i * MEMORY_TERMS_i             elements read and written

All coefficients are non-negative, so that more work never costs less. p (`sharpness`) is 1 where compute and memory add
up and grows where they overlap. Classes with few observations lean on a pooled fit. On top stands an optional
correction per class: kernel ridge regression of the logarithm of measured over physical time on log shape features,
which fades to nothing away from the shapes that were measured.

Fitting needs times of whole graphs, and takes times of single kernels where the runtime gives them
(`fit_kernels`, then `fit_scale`); without them `fit_graphs` fits all classes at once on whole graphs. Everything is
plain arrays; `to_dict` and `from_dict` turn a model into JSON and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .kernels import KERNEL_CLASS, KERNEL_CLASSES, KERNEL_COLUMN, Kernels

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

COMPUTE_TERMS: tuple[str, ...] = (
    "macs",
    "macs_per_cin",
    "macs_per_cout",
    "macs_per_column",
    "tail",
    "macs_per_output",
    "macs_per_pixel",
)
MEMORY_TERMS: tuple[str, ...] = ("inputs", "outputs", "weights", "spilled")
COEFFICIENTS: tuple[str, ...] = ("launch", *COMPUTE_TERMS, *MEMORY_TERMS)
"""Per kernel class: launch in ms, the others in ms per million."""

SHAPE_FEATURES: tuple[str, ...] = ("work", "cin", "cout", "pixels", "window", "stride", "tail")

_BLOCKED = frozenset(
    KERNEL_CLASS[name] for name in ("conv_first", "conv_dense", "conv_pointwise", "conv_depthwise", "conv_grouped")
)
_FLOOR = 1e-9
"""Of fitted coefficients, whose logarithms are what is adjusted."""


def physical_terms(
    kernels: Kernels, block: int = 0, tile: int = 0, pads: Mapping[str, int] | None = None, cache: int = 0
) -> tuple[Array, Array]:
    """(compute, memory): (K, len(COMPUTE_TERMS)) and (K, len(MEMORY_TERMS)), in millions.

    Args:
        kernels: what the runtime executes.
        block: channels of onnxruntime's blocked layout, to which output channels are padded there; 0 for none.
        tile: output elements that a multiprocessor of a GPU computes at a time; 0 for none. With it "macs_per_output"
            is the contraction behind one output, whose time a small map cannot spread over an idle device.
        pads: by class, the number that channels per group are padded to a multiple of, in and out.
        cache: elements that the caches of a CPU of several cores hold; 0 for none. With it "spilled" is what a kernel
            reads and writes beyond them, and "macs_per_pixel" what a small map cannot spread over the cores.
    """
    table = kernels.table.astype(np.float64)
    column = {name: table[:, index] for name, index in KERNEL_COLUMN.items()}
    macs = column["macs"].copy()
    if block:
        blocked = np.isin(kernels.column("class"), list(_BLOCKED))
        padded = np.ceil(column["cout"] / block) * block / np.maximum(column["cout"], 1)
        macs = np.where(blocked, macs * padded, macs)
    groups = np.maximum(column["groups"], 1)
    cin = np.maximum(column["cin"] / groups, 1)
    cout = np.maximum(column["cout"] / groups, 1)
    for name, pad in (pads or {}).items():
        rows = np.flatnonzero(kernels.column("class") == KERNEL_CLASS[name])
        for channels in (cin[rows], cout[rows]):
            macs[rows] *= np.ceil(channels / pad) * pad / channels
    columns = np.maximum(column["wout"], 1)
    tail = column["tail"] * column["outputs"]
    none = np.zeros_like(macs)
    contraction = macs / np.maximum(column["outputs"], tile) if tile else none
    per_pixel = macs / np.maximum(column["hout"] * column["wout"], 1) if cache else none
    spilled = np.maximum(column["inputs"] + column["outputs"] - cache, 0) if cache else none
    compute = np.stack([macs, macs / cin, macs / cout, macs / columns, tail, contraction, per_pixel], axis=1)
    memory = np.stack([column["inputs"], column["outputs"], column["weights"], spilled], axis=1)
    return compute / 1e6, memory / 1e6


def shape_features(kernels: Kernels, block: int = 0) -> Array:
    """(K, len(SHAPE_FEATURES)): logarithms of what shapes a kernel's efficiency."""
    table = kernels.table.astype(np.float64)
    column = {name: np.maximum(table[:, index], 0) for name, index in KERNEL_COLUMN.items()}
    groups = np.maximum(column["groups"], 1)
    work = np.where(column["macs"] > 0, column["macs"], column["inputs"] + column["outputs"])
    return np.log(
        np.stack(
            [
                np.maximum(work, 1),
                np.maximum(column["cin"] / groups, 1),
                np.maximum(column["cout"] / groups, 1),
                np.maximum(column["hout"] * column["wout"], 1),
                np.maximum(column["kh"] * column["kw"], 1),
                np.maximum(column["stride"], 1),
                1 + column["tail"],
            ],
            axis=1,
        )
    )


@dataclass(frozen=True, eq=False)
class Correction:
    """Log of measured over physical time of one class, interpolated between shapes that were measured.

    Attributes:
        points: (n, len(SHAPE_FEATURES)) shapes, scaled.
        weights: (n,) of the kernel ridge regression.
        center, scale: (len(SHAPE_FEATURES),) of the scaling.
        reach: length scale of the Gaussian kernel.
    """

    points: Array
    weights: Array
    center: Array
    scale: Array
    reach: float

    def log_ratio(self, features: Array) -> Array:
        """(K,) for shape features (K, F), limited to a factor of two either way."""
        result = _gaussian((features - self.center) / self.scale, self.points, self.reach) @ self.weights
        return np.clip(result, -np.log(2), np.log(2))


def _gaussian(a: Array, b: Array, reach: float) -> Array:
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    return np.exp(-np.maximum(squared, 0) / (2 * reach**2))


@dataclass(frozen=True, eq=False)
class KernelModel:
    """Coefficients of one target.

    Attributes:
        runtime: whose kernels they describe (`fusion.RUNTIMES`).
        block: channels of onnxruntime's blocked layout; 0 elsewhere.
        coefficients: (len(KERNEL_CLASSES), len(COEFFICIENTS)).
        sharpness: p of the soft maximum.
        overhead_ms: of a whole graph.
        scale: of the sum of kernel times.
        corrections: by class.
        counts: kernels of each class that were fitted on; 0 is outside.
        low, high: (len(KERNEL_CLASSES), len(SHAPE_FEATURES)) range of the shape features fitted on.
        tile: output elements of a GPU's tile (`physical_terms`); 0 elsewhere.
        pads, cache: as in `physical_terms`.
    """

    runtime: str
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

    def kernel_ms(self, kernels: Kernels) -> Array:
        """(K,) time of each kernel, before the graph's `scale`."""
        codes = kernels.column("class")
        terms = physical_terms(kernels, self.block, self.tile, self.pads, self.cache)
        times = _physical_ms(*terms, self.coefficients[codes], self.sharpness)
        if self.corrections:
            features = shape_features(kernels, self.block)
            for code, correction in self.corrections.items():
                rows = np.flatnonzero(codes == code)
                if len(rows):
                    times[rows] *= np.exp(correction.log_ratio(features[rows]))
        return times

    def graph_ms(self, kernels: Kernels) -> float:
        """Time of a whole graph."""
        return self.overhead_ms + self.scale * float(self.kernel_ms(kernels).sum())

    def beyond(self, kernels: Kernels, margin: float = np.log(2.0) + 1e-6) -> tuple[Flags, Flags]:
        """(K,) whether a kernel's class was not fitted on, and whether its shape is a factor of two beyond those.

        Class "other" holds whatever has no class of its own, so that one of its kernels tells nothing about another.
        """
        codes = kernels.column("class")
        features = shape_features(kernels, self.block)
        low, high = self.low[codes] - margin, self.high[codes] + margin
        unseen = (self.counts[codes] == 0) | (codes == KERNEL_CLASS["other"])
        return unseen, ~unseen & np.any((features < low) | (features > high), axis=1)

    def outside(self, kernels: Kernels) -> list[str]:
        """Kernel classes that were not fitted on, and those more than a factor of two beyond the shapes fitted on."""
        codes = kernels.column("class")
        unseen, shape = self.beyond(kernels)
        result = []
        for code in np.unique(codes[unseen | shape]).tolist():
            name = KERNEL_CLASSES[code]
            result.append(f"{name} (shape)" if self.counts[code] and name != "other" else name)
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; classes and coefficients by name."""
        classes = {}
        for code, name in enumerate(KERNEL_CLASSES):
            if not self.counts[code] and not self.coefficients[code].any():
                continue
            entry: dict[str, Any] = {
                "coefficients": dict(zip(COEFFICIENTS, map(_digits, self.coefficients[code]), strict=True)),
                "count": int(self.counts[code]),
            }
            if self.counts[code]:
                ranges = zip(self.low[code], self.high[code], strict=True)
                entry["ranges"] = dict(zip(SHAPE_FEATURES, ([_digits(a), _digits(b)] for a, b in ranges), strict=True))
            if code in self.corrections:
                correction = self.corrections[code]
                entry["correction"] = {
                    "features": list(SHAPE_FEATURES),
                    "points": [[_digits(x) for x in point] for point in correction.points],
                    "weights": [_digits(x) for x in correction.weights],
                    "center": [_digits(x) for x in correction.center],
                    "scale": [_digits(x) for x in correction.scale],
                    "reach": correction.reach,
                }
            classes[name] = entry
        return {
            "runtime": self.runtime,
            "block": self.block,
            "tile": self.tile,
            "pads": dict(self.pads),
            "cache": self.cache,
            "sharpness": self.sharpness,
            "overhead_ms": _digits(self.overhead_ms),
            "scale": _digits(self.scale),
            "classes": classes,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The model that `to_dict` gave. Raises ValueError or KeyError for what cannot be one."""
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
                given = entry["correction"]
                if given["features"] != list(SHAPE_FEATURES):
                    raise ValueError(f"correction of {name} is on features {given['features']}")
                points, weights, center, scale = (
                    np.asarray(given[key], dtype=np.float64) for key in ("points", "weights", "center", "scale")
                )
                if points.shape != (len(weights), len(SHAPE_FEATURES)):
                    raise ValueError(f"correction of {name} has shapes {points.shape} and {weights.shape}")
                corrections[code] = Correction(points, weights, center, scale, float(given["reach"]))
        model = cls(
            runtime=str(data["runtime"]),
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
        )
        if wrong := [name for name, pad in model.pads.items() if name not in KERNEL_CLASS or pad < 1]:
            raise ValueError(f"padding of {wrong}: known classes, at least 1 channel")
        numbers = [coefficients, np.array([model.sharpness - 1, model.overhead_ms, model.scale])]
        if not all(np.isfinite(values).all() and (values >= 0).all() for values in numbers) or model.scale == 0:
            raise ValueError("coefficients must be finite and not negative")
        return model


def _digits(value: float, digits: int = 8) -> float:
    return float(f"{value:.{digits}g}")


def _physical_ms(compute: Array, memory: Array, coefficients: Array, sharpness: float) -> Array:
    """(K,) times for terms (K, ...) and the coefficients (K, len(COEFFICIENTS)) of each kernel's class."""
    split = 1 + len(COMPUTE_TERMS)
    c = (compute * coefficients[:, 1:split]).sum(1)
    m = (memory * coefficients[:, split:]).sum(1)
    both = c + m if sharpness == 1 else (c**sharpness + m**sharpness) ** (1 / sharpness)
    return coefficients[:, 0] + both


# --- fitting ---------------------------------------------------------------------------------------------------------


def fit_class(
    compute: Array,
    memory: Array,
    times_ms: Array,
    weights: Array,
    sharpness: float,
    prior: Array | None,
    strength: float,
) -> Array:
    """Coefficients of one class from the times of its kernels, relative error minimized.

    Args:
        compute, memory: `physical_terms` of its kernels.
        times_ms: (K,).
        weights: (K,) of the kernels' errors.
        sharpness: p of the soft maximum.
        prior: (len(COEFFICIENTS),) to lean on, or None.
        strength: how many kernels' worth of weight the prior has.
    """
    from scipy.optimize import least_squares, nnls

    design = np.concatenate([np.ones((len(compute), 1)), compute, memory], axis=1)
    root = np.sqrt(weights)
    rows = design / times_ms[:, None]
    matrix, goal = rows * root[:, None], root.copy()
    if prior is not None:
        # The prior as one observation per term: its share of the class's typical kernel.
        share = np.median(rows, axis=0) * np.sqrt(strength * weights.mean())
        matrix = np.concatenate([matrix, np.diag(share)])
        goal = np.concatenate([goal, share * prior])
    used = np.abs(matrix).sum(0) > 0
    start = np.zeros(design.shape[1])
    size = np.abs(matrix[:, used]).max(axis=0)
    for _ in range(5):  # reweighted for robustness: errors above three typical ones count less
        solution, _ = nnls(matrix[:, used] / size, goal)
        start[used] = solution / size
        error = np.abs(np.log(np.maximum(design @ start, _FLOOR) / times_ms))
        typical = 1.5 * np.median(error) + 1e-3
        trust = root * np.sqrt(np.minimum(1, 3 * typical / np.maximum(error, 1e-12)))
        matrix[: len(rows)] = rows * trust[:, None]
        goal[: len(rows)] = trust
    if sharpness == 1:
        return start
    free = np.flatnonzero(used)

    def residuals(logs: Array) -> Array:
        coefficients = np.zeros(design.shape[1])
        coefficients[free] = np.exp(logs)
        fitted = _physical_ms(compute, memory, np.broadcast_to(coefficients, design.shape), sharpness)
        return np.concatenate([root * np.log(np.maximum(fitted, _FLOOR) / times_ms), 1e-3 * (logs - begin)])

    largest = design[:, free].max(axis=0)
    begin = np.log(np.maximum(start[free], 1e-4 * np.median(times_ms) / np.maximum(largest, _FLOOR)))
    solved = least_squares(residuals, begin, loss="soft_l1", f_scale=0.1, max_nfev=40)
    result = np.zeros(design.shape[1])
    result[free] = np.exp(solved.x)
    return result


_FAMILIES: tuple[tuple[str, ...], ...] = (
    (
        "conv_first",
        "conv_dense",
        "conv_pointwise",
        "conv_grouped",
        "conv_unblocked",
        "conv_transpose",
        "linear",
        "matmul",
        "attention",
    ),
    (
        "conv_depthwise",
        "conv_depthwise_5",
        "conv_depthwise_7",
        "conv_depthwise_large",
        "conv_transpose_grouped",
    ),
    tuple(
        name
        for name in KERNEL_CLASSES
        if not name.startswith("conv") and name not in ("linear", "matmul", "attention", "reorder_in", "reorder_out")
    ),
    ("reorder_in", "reorder_out"),
)


def fit_kernels(
    graphs: Sequence[Kernels],
    times_ms: Sequence[Array],
    runtime: str,
    *,
    block: int = 0,
    sharpness: float = 1.0,
    slowdowns: Array | None = None,
    totals_ms: Array | None = None,
    prior_strength: float = 4.0,
) -> KernelModel:
    """Coefficients of every class from the times of single kernels.

    Args:
        graphs: kernels of each measured graph.
        times_ms: for each graph the times of its kernels, NaN where unknown.
        runtime, block, sharpness: of the model.
        slowdowns: (graphs,) factor by which the machine was slower than usual during each; 1 by default.
        totals_ms: (graphs,) times that a kernel's weight, its share, refers to; the sum of its graph's by default.
        prior_strength: weight of the pooled fit of related classes, in kernels.
    """
    table = np.concatenate([graph.table for graph in graphs])
    times = np.concatenate(times_ms)
    slow = np.ones(len(graphs)) if slowdowns is None else slowdowns
    totals = [np.nansum(t) for t in times_ms] if totals_ms is None else totals_ms
    share = np.concatenate([t / total for t, total in zip(times_ms, totals, strict=True)])
    times = times / np.repeat(slow, [len(graph) for graph in graphs])
    known = np.isfinite(times) & (times > 0)
    everything = Kernels(table[known])
    times, share = times[known], share[known]
    if not len(times):
        raise ValueError("no kernel times to fit on")
    codes = everything.column("class")
    compute, memory = physical_terms(everything, block)
    weights = np.sqrt(share / share.mean())
    coefficients = np.zeros((len(KERNEL_CLASSES), len(COEFFICIENTS)))
    for family in _FAMILIES:
        members = [KERNEL_CLASS[name] for name in family]
        rows = np.isin(codes, members)
        if not rows.any():
            continue
        pooled = fit_class(compute[rows], memory[rows], times[rows], weights[rows], 1.0, None, 0.0)
        for code in members:
            mine = codes == code
            # A class never seen takes the pooled coefficients: a guess, and `counts` says that it is one.
            coefficients[code] = (
                fit_class(compute[mine], memory[mine], times[mine], weights[mine], sharpness, pooled, prior_strength)
                if mine.any()
                else pooled
            )
    model = KernelModel(runtime=runtime, block=block, coefficients=coefficients, sharpness=sharpness)
    return with_ranges(model, graphs)


def with_ranges(model: KernelModel, graphs: Sequence[Kernels]) -> KernelModel:
    """`model` with counts and ranges of the kernels of `graphs`, on which it was fitted."""
    everything = Kernels(np.concatenate([graph.table for graph in graphs]))
    codes = everything.column("class")
    features = shape_features(everything, model.block)
    low = np.full((len(KERNEL_CLASSES), len(SHAPE_FEATURES)), np.inf)
    high = np.full_like(low, -np.inf)
    np.minimum.at(low, codes, features)
    np.maximum.at(high, codes, features)
    counts = np.bincount(codes, minlength=len(KERNEL_CLASSES)).astype(np.int64)
    return replace(model, counts=counts, low=low, high=high)


def fit_corrections(
    model: KernelModel,
    graphs: Sequence[Kernels],
    times_ms: Sequence[Array],
    *,
    slowdowns: Array | None = None,
    reach: float = 1.5,
    noise: float = 0.05,
    max_points: int = 250,
) -> KernelModel:
    """`model` with a correction for every class that has at least 20 different shapes.

    Args:
        model: fitted by `fit_kernels`.
        graphs, times_ms, slowdowns: as given to it.
        reach: length scale of the interpolation, in standard deviations of the log shape features.
        noise: standard deviation of a shape's log time about its interpolation, against an amplitude of 0.15.
        max_points: shapes kept of a class, the most frequent first.
    """
    slow = np.ones(len(graphs)) if slowdowns is None else slowdowns
    everything = Kernels(np.concatenate([graph.table for graph in graphs]))
    times = np.concatenate(times_ms) / np.repeat(slow, [len(graph) for graph in graphs])
    bare = replace(model, corrections={})
    ratio = np.log(times / np.maximum(bare.kernel_ms(everything), _FLOOR))
    codes = everything.column("class")
    features = shape_features(everything, model.block)
    corrections = {}
    for code in np.unique(codes):
        rows = np.flatnonzero((codes == code) & np.isfinite(ratio))
        if not len(rows):
            continue
        shapes, inverse, counts = np.unique(features[rows].round(6), axis=0, return_inverse=True, return_counts=True)
        if len(shapes) < 20:
            continue
        inverse = inverse.reshape(-1)
        targets = np.array([np.median(ratio[rows][inverse == i]) for i in range(len(shapes))])
        if len(shapes) > max_points:
            kept = np.argsort(-counts, kind="stable")[:max_points]
            shapes, targets, counts = shapes[kept], targets[kept], counts[kept]
        center, scale = shapes.mean(0), np.maximum(shapes.std(0), 0.2)
        points = (shapes - center) / scale
        gram = _gaussian(points, points, reach)
        gram[np.diag_indices(len(points))] += (noise / 0.15) ** 2 * (0.3 + 0.7 / counts)
        weights = np.linalg.solve(gram, np.clip(targets, -np.log(3), np.log(3)))
        corrections[int(code)] = Correction(points, weights, center, scale, reach)
    return replace(model, corrections=corrections)


def fit_scale(
    model: KernelModel,
    graphs: Sequence[Kernels],
    times_ms: Array,
    weights: Array | None = None,
    *,
    typical_overhead_ms: float = 0.05,
) -> KernelModel:
    """`model` with overhead and scale fitted to whole-graph times: non-negative, robust, relative error minimized.

    Args:
        model: with coefficients of every class.
        graphs, times_ms: (graphs,) whole graphs and their times.
        weights: (graphs,) of the errors.
        typical_overhead_ms: standard deviation about 0 that the overhead is expected to have.
    """
    from scipy.optimize import nnls

    sums = np.array([model.kernel_ms(graph).sum() for graph in graphs])
    weights = np.ones(len(sums)) if weights is None else weights / weights.mean()
    design = np.stack([np.ones_like(sums), sums], axis=1) / times_ms[:, None]
    typical_error = 0.03  # of a graph; how much it weighs against the expected overhead
    pull = np.array([[typical_error / typical_overhead_ms, 0.0]])
    trust = weights.copy()
    solution = np.array([0.0, 1.0])
    for _ in range(20):
        root = np.sqrt(trust)
        solution, _ = nnls(np.concatenate([design * root[:, None], pull]), np.append(root, 0.0))
        error = np.abs(design @ solution - 1)
        typical = np.median(error) + 1e-4
        trust = weights * np.minimum(1, 2 * typical / np.maximum(error, 1e-12))
    if solution[1] <= 0:
        raise ValueError("the measured times do not grow with the networks' work: measure again on a quiet machine")
    return replace(model, overhead_ms=float(solution[0]), scale=float(solution[1]))


def _by_family(terms: Array, codes: NDArray[np.int64], graph_of: NDArray[np.int64], times_ms: Array) -> Array:
    """Coefficients shared by the classes of a family, as far as whole-graph times alone tell them apart.

    Args:
        terms: (K, len(COEFFICIENTS)) of all kernels.
        codes, graph_of: (K,) class and graph of each kernel.
        times_ms: (graphs,).
    """
    from scipy.optimize import nnls

    columns, owners = [], []
    for number, family in enumerate(_FAMILIES):
        rows = np.flatnonzero(np.isin(codes, [KERNEL_CLASS[name] for name in family]))
        for term in range(terms.shape[1]):
            total = np.bincount(graph_of[rows], terms[rows, term], minlength=len(times_ms))
            if total.any():
                columns.append(total)
                owners.append((number, term))
    design = np.stack(columns, axis=1) / times_ms[:, None]
    size = design.max(axis=0)
    # A little ridge shares the time out among terms that the graphs cannot tell apart.
    ridge = 0.03 * np.sqrt(len(times_ms)) * np.eye(len(size))
    target = np.concatenate([np.ones(len(times_ms)), np.zeros(len(size))])
    solution = nnls(np.concatenate([design / size, ridge]), target)[0] / size
    least = 1e-3 / size / len(size)
    result = np.zeros((len(KERNEL_CLASSES), terms.shape[1]))
    for (number, term), value, floor in zip(owners, solution, least, strict=True):
        result[[KERNEL_CLASS[name] for name in _FAMILIES[number]], term] = max(value, floor)
    return result


def fit_graphs(
    graphs: Sequence[Kernels],
    times_ms: Array,
    runtime: str,
    *,
    block: int = 0,
    sharpness: float = 2.0,
    prior: KernelModel | None = None,
    strength: float = 0.03,
    weights: Array | None = None,
) -> KernelModel:
    """All coefficients at once from whole-graph times, where the runtime tells no kernel times.

    Log error, soft L1, with every log coefficient drawn towards `prior` (or towards its family's common value) by
    `strength`: the residual, in log units, that leaving it by a factor of e costs.

    Args:
        graphs: kernels of each graph.
        times_ms: (graphs,).
        runtime, block, sharpness: of the model.
        prior: a model of a related target.
        strength: of the prior.
        weights: (graphs,) of the errors.
    """
    from scipy.optimize import least_squares
    from scipy.sparse import csr_matrix

    times_ms = np.asarray(times_ms, dtype=np.float64)
    table = Kernels(np.concatenate([graph.table for graph in graphs]))
    lengths = np.array([len(graph) for graph in graphs])
    codes = table.column("class")
    compute, memory = physical_terms(table, block)
    terms = np.concatenate([np.ones((len(table), 1)), compute, memory], axis=1)
    graph_of = np.repeat(np.arange(len(graphs)), lengths)
    sums = csr_matrix((np.ones(len(table)), (graph_of, np.arange(len(table)))), shape=(len(graphs), len(table)))
    start = _by_family(terms, codes, graph_of, times_ms) if prior is None else prior.coefficients
    start = np.maximum(start, _FLOOR)
    seen = np.unique(codes)
    free = [(code, term) for code in seen for term in range(len(COEFFICIENTS)) if terms[codes == code, term].any()]
    rows_of = {code: np.flatnonzero(codes == code) for code in seen}
    index = np.array(free)
    begin = np.append(np.log(start[index[:, 0], index[:, 1]]), np.log(max(1e-3, 0.02 * float(times_ms.min()))))
    root = np.ones(len(graphs)) if weights is None else np.sqrt(weights)
    split = 1 + len(COMPUTE_TERMS)

    def evaluate(logs: Array) -> tuple[Array, Array]:
        """Log errors of the graphs and their derivatives."""
        coefficients = np.zeros_like(start)
        coefficients[index[:, 0], index[:, 1]] = np.exp(np.minimum(logs[:-1], 50))
        mine = coefficients[codes]
        c = (compute * mine[:, 1:split]).sum(1)
        m = (memory * mine[:, split:]).sum(1)
        both = (c**sharpness + m**sharpness) ** (1 / sharpness)
        safe = np.maximum(both, 1e-300)
        by_compute, by_memory = (c / safe) ** (sharpness - 1), (m / safe) ** (sharpness - 1)
        fitted = np.asarray(sums @ (mine[:, 0] + both)) + np.exp(logs[-1])
        slopes = np.empty((len(graphs), len(logs)))
        for position, (code, term) in enumerate(free):
            rows = rows_of[code]
            slope = terms[rows, term] * coefficients[code, term]
            if term:
                slope = slope * (by_compute if term < split else by_memory)[rows]
            slopes[:, position] = np.bincount(graph_of[rows], slope, minlength=len(graphs))
        slopes[:, -1] = np.exp(logs[-1])
        return np.log(fitted / times_ms), slopes / fitted[:, None]

    def residuals(logs: Array) -> Array:
        return np.concatenate([root * evaluate(logs)[0], strength * (logs - begin)])

    def jacobian(logs: Array) -> Array:
        return np.concatenate([root[:, None] * evaluate(logs)[1], strength * np.eye(len(logs))])

    solved = least_squares(residuals, begin, jac=jacobian, loss="soft_l1", f_scale=0.3, max_nfev=200)
    coefficients = start.copy() if prior is not None else np.zeros_like(start)
    coefficients[index[:, 0], index[:, 1]] = np.exp(solved.x[:-1])
    coefficients[coefficients <= 2 * _FLOOR] = 0
    model = KernelModel(
        runtime=runtime,
        block=block,
        coefficients=coefficients,
        sharpness=sharpness,
        overhead_ms=float(np.exp(solved.x[-1])),
    )
    return with_ranges(model, graphs)
