"""Fits the shipped `rtx3090` profiles on measurements that others published.

    python fit_rtx3090.py --published FOLDER --graphs CACHE [--results FILE] [--profiles FOLDER]

FOLDER holds timm's result files and the batch-1 measurements (see README.md), CACHE what `timm_graphs.py` traced.

1. Throughput (PyTorch, AMP, channels-last, largest batch): a roofline per kernel class, the physical part of
   `lownas.predictors.kernel_model`, on all models, with physical priors.
2. Batch 1 (TensorRT, FP16): few numbers on top of it, fitted on 47 measurements of five families. Whole families are
   held out, from the throughput fit too, and what is chosen is chosen again inside, by folds over the other families.
3. What no measurement covers gets a prior and says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize
from scipy.stats import spearmanr
from timm_graphs import ANCHORS, anchor_rows, benchmark_rows, load_graph

from lownas.predictors.fusion import KERNEL_CLASS, KERNEL_CLASSES, KERNEL_COLUMN, Kernels, fuse
from lownas.predictors.kernel_model import COEFFICIENTS, KernelModel, physical_terms, with_ranges
from lownas.predictors.latency import LatencyPredictor
from lownas.predictors.target import Target
from lownas.predictors.uncertainty import LogErrors
from lownas.search_space import PRESETS, op_graph
from lownas.search_space.graph import OpGraph

Array = NDArray[np.float64]

MULTIPROCESSORS = 82
TILE = 128 * 128
PER_CLASS = ("launch_ms", "macs_per_ms", "half_in", "half_out", "bytes_per_ms")
LAUNCH, RATE, HALF_IN, HALF_OUT, BANDWIDTH = range(len(PER_CLASS))
ELEMENT_BYTES = 2
LARGE_BATCH = 256
SHARPNESS = 3.0

# Of an RTX 3090: 71 T FP16 MAC/s with FP16, half with FP32 accumulation; 17.8 T FP32; 936 GB/s.
TENSOR_RATE = 30e9  # MACs per ms
BYTES_PER_MS = 0.7e9
WEIGHT_BYTES_PER_MS = 0.8e9
PRIOR_RATES = {"conv_depthwise": 4e9, "conv_grouped": 15e9, "conv_transpose": 20e9, "conv_transpose_grouped": 3e9}
PRIOR_BANDWIDTHS = {"group_norm": 0.35e9, "layer_norm": 0.35e9, "softmax": 0.5e9, "pool": 0.4e9, "reduce": 0.4e9,
                    "other": 0.5e9, "move": 0.5e9}  # fmt: skip
PRIOR_SPREAD = {"launch_ms": 0.7, "macs_per_ms": 0.4, "half_in": 1.0, "half_out": 1.0, "bytes_per_ms": 0.4}
ERROR_SCALE = 0.08  # of a model's log time, in the throughput fit
ANCHOR_SCALE = 0.12  # the same at batch 1

UNANCHORED = (
    "conv_grouped",
    "conv_transpose",
    "conv_transpose_grouped",
    "group_norm",
    "matmul",
    "softmax",
    "resize",
    "move",
)
"""Classes of LowFormer and CPUBone that no batch-1 measurement has, or (attention) only of far larger size."""
UNANCHORED_SPREAD = 0.5  # standard deviation of the log of their time
FOREIGN_SPREAD = 0.25  # the same of other classes whose shapes go beyond those of the measurements
TRANSPOSE_FACTOR = 1.5  # a dense transposed convolution over a plain one of the same MACs
GROUP_NORM_LAUNCHES = 3.0  # a change of layout, statistics, the normalization


def prior() -> Array:
    """(classes, len(PER_CLASS)) rates believed before any measurement."""
    rates = np.tile([0.005, TENSOR_RATE, 8.0, 8.0, BYTES_PER_MS], (len(KERNEL_CLASSES), 1))
    for name, rate in PRIOR_RATES.items():
        rates[KERNEL_CLASS[name], RATE] = rate
    for name, bandwidth in PRIOR_BANDWIDTHS.items():
        rates[KERNEL_CLASS[name], BANDWIDTH] = bandwidth
    rates[KERNEL_CLASS["conv_depthwise"], [HALF_IN, HALF_OUT]] = 0.01
    return rates


def kernel_model(
    rates: Array,
    runtime: str,
    *,
    weight_bytes_per_ms: float = WEIGHT_BYTES_PER_MS,
    wave: float = 0.0,
    tile: int = 0,
    batch: int = 1,
) -> KernelModel:
    """Rates (classes, len(PER_CLASS)) as coefficients in ms per million; at `batch` launches and weights are shared.

    `half_in` and `half_out` are the channels per group at which compute takes twice its time. `wave` weighs the time
    that a kernel's contraction takes on one multiprocessor however few tiles there are.
    """
    per_mac = 1e6 / rates[:, RATE]
    moved = 1e6 * ELEMENT_BYTES / rates[:, BANDWIDTH]
    values = {
        "launch": rates[:, LAUNCH] / batch,
        "macs": per_mac,
        "macs_per_cin": per_mac * rates[:, HALF_IN],
        "macs_per_cout": per_mac * rates[:, HALF_OUT],
        "macs_per_output": per_mac * wave * tile * MULTIPROCESSORS,
        "inputs": moved,
        "outputs": moved,
        "weights": np.full(len(rates), 1e6 * ELEMENT_BYTES / weight_bytes_per_ms / batch),
    }
    coefficients = np.stack([values.get(name, np.zeros(len(rates))) for name in COEFFICIENTS], axis=1)
    return KernelModel(runtime, 0, coefficients, sharpness=SHARPNESS, tile=tile)


@dataclass(frozen=True)
class Sample:
    """Kernels of several models, equal ones of a model counted; `model` is the model of each row."""

    table: NDArray[np.int64]
    model: NDArray[np.int64]
    count: Array
    models: int

    def total(self, kernel_ms: Array) -> Array:
        """(models,) sums."""
        return np.asarray(np.bincount(self.model, kernel_ms * self.count, minlength=self.models), dtype=np.float64)

    def only(self, wanted: NDArray[np.int64]) -> Sample:
        """The models `wanted`, renumbered in that order."""
        number = np.full(self.models, -1)
        number[wanted] = np.arange(len(wanted))
        kept = number[self.model] >= 0
        return Sample(self.table[kept], number[self.model[kept]], self.count[kept], len(wanted))


def sample(graphs: Sequence[OpGraph], runtime: str) -> Sample:
    tables, models, counts = [], [], []
    for number, graph in enumerate(graphs):
        table = fuse(graph, runtime).table.copy()
        table[:, KERNEL_COLUMN["row"]] = 0
        rows, count = np.unique(table, axis=0, return_counts=True)
        tables.append(rows)
        models.append(np.full(len(rows), number))
        counts.append(count)
    return Sample(np.concatenate(tables), np.concatenate(models), np.concatenate(counts).astype(float), len(graphs))


# --- 1. Throughput


@dataclass(frozen=True)
class Throughput:
    """Published ms per image at large batch."""

    names: list[str]
    families: NDArray[np.str_]
    kernels: Sample
    macs: Array
    batch: Array
    ms: Array


def load_throughput(path: Path, cache: Path, families: dict[str, str]) -> tuple[Throughput, dict[str, int]]:
    """Rows with a traced graph whose parameters are those of the row, and how many were left out and why."""
    left = Counter[str]()
    rows = []
    for model, row in benchmark_rows(path):
        graph = load_graph(model, cache)
        if graph is None:
            left["not traced"] += 1
        elif abs(graph.params / 1e6 - row["param_count"]) > 0.02 + 0.003 * row["param_count"]:
            left["parameters differ from the row's: the model has changed since"] += 1
        else:
            rows.append((model.name, graph, row["infer_batch_size"], row["infer_step_time"]))
    batch = np.array([row[2] for row in rows])
    data = Throughput(
        [row[0] for row in rows],
        np.array([families[row[0]] for row in rows]),
        sample([row[1] for row in rows], "torch"),
        np.array([row[1].macs for row in rows], dtype=float),
        batch,
        np.array([row[3] for row in rows]) / batch,
    )
    return data, dict(left)


def fit_throughput(data: Throughput, used: NDArray[np.int64]) -> Array:
    """(classes, len(PER_CLASS)) rates from the models `used`; a family's weight grows with the root of its size."""
    start = prior()
    kernels = data.kernels.only(used)
    kind, model, count = torch.tensor(kernels.table[:, 0]), torch.tensor(kernels.model), torch.tensor(kernels.count)
    compute, memory = (torch.tensor(terms) * 1e6 for terms in physical_terms(Kernels(kernels.table)))
    batch = torch.tensor(data.batch[used])[model]
    sizes = Counter(data.families[used].tolist())
    weight = torch.tensor([sizes[family] ** -0.5 for family in data.families[used].tolist()])
    log_ms = torch.tensor(np.log(data.ms[used]))
    moved = ELEMENT_BYTES * (memory[:, 0] + memory[:, 1])
    weights_ms = ELEMENT_BYTES * memory[:, 2] / WEIGHT_BYTES_PER_MS / batch
    base = torch.tensor(np.log(start))
    spread = torch.tensor([PRIOR_SPREAD[name] for name in PER_CLASS])

    def loss_and_gradient(flat: Array) -> tuple[float, Array]:
        z = torch.tensor(flat, requires_grad=True)
        rates = (base + z[:-1].reshape(base.shape) * spread).exp()[kind]
        # One launch cost for all classes: large batches do not tell them apart.
        launch = start[0, LAUNCH] * (z[-1] * PRIOR_SPREAD["launch_ms"]).exp()
        work = compute[:, 0] + rates[:, HALF_IN] * compute[:, 1] + rates[:, HALF_OUT] * compute[:, 2]
        busy = work / rates[:, RATE] + 1e-12
        waiting = moved / rates[:, BANDWIDTH] + weights_ms + 1e-12
        time = (busy**SHARPNESS + waiting**SHARPNESS) ** (1 / SHARPNESS) + launch / batch
        total = torch.zeros(len(used), dtype=torch.float64).index_add(0, model, time * count)
        residual = (total.log() - log_ms) / ERROR_SCALE
        loss = (weight * 2 * ((1 + residual**2 / 2).sqrt() - 1)).sum() + 0.5 * (z**2).sum()
        loss.backward()
        assert z.grad is not None
        return loss.item(), z.grad.numpy()

    found = minimize(
        loss_and_gradient, np.zeros(base.numel() + 1), jac=True, method="L-BFGS-B", options={"maxiter": 150}
    ).x
    rates = np.exp(base.numpy() + found[:-1].reshape(base.shape) * spread.numpy())
    rates[:, LAUNCH] = start[0, LAUNCH] * np.exp(found[-1] * PRIOR_SPREAD["launch_ms"])
    return rates


def throughput_ms(rates: Array, data: Throughput) -> Array:
    """(models,) predicted ms per image, each at its own batch size."""
    batch = data.batch[data.kernels.model]
    result = np.empty(len(batch))
    for size in np.unique(batch):
        rows = batch == size
        result[rows] = kernel_model(rates, "torch", batch=int(size)).kernel_ms(Kernels(data.kernels.table[rows]))
    return data.kernels.total(result)


def family_folds(families: NDArray[np.str_], folds: int, seed: int) -> NDArray[np.int64]:
    """(models,) fold of each model; a family is in one fold."""
    names = np.unique(families)
    np.random.default_rng(seed).shuffle(names)
    fold = {name: index % folds for index, name in enumerate(names.tolist())}
    return np.array([fold[name] for name in families.tolist()])


def macs_line(macs: Array, ms: Array, source: Array) -> Array:
    """Coefficients of log ms = a + b log MACs + c source, least squares."""
    terms = np.stack([np.ones_like(macs), np.log(macs), source], axis=1)
    return np.linalg.lstsq(terms, np.log(ms), rcond=None)[0]


def report_throughput(data: Throughput, folds: int = 8) -> tuple[dict[str, Any], Array]:
    """Held-out errors by whole families, and the residuals log(measured / predicted)."""
    fold = family_folds(data.families, folds, seed=0)
    predicted, by_macs = np.empty(len(fold)), np.empty(len(fold))
    for index in range(folds):
        train, test = np.flatnonzero(fold != index), np.flatnonzero(fold == index)
        predicted[test] = throughput_ms(fit_throughput(data, train), data)[test]
        line = macs_line(data.macs[train], data.ms[train], np.zeros(len(train)))
        by_macs[test] = np.exp(line[0] + line[1] * np.log(data.macs[test]))
    error, macs_error = np.abs(predicted / data.ms - 1), np.abs(by_macs / data.ms - 1)
    families = {
        family: {
            "models": int((data.families == family).sum()),
            "median": _round(np.median(error[data.families == family])),
        }
        for family in np.unique(data.families).tolist()
    }
    report = {
        "models": len(error),
        "families": len(families),
        "folds": folds,
        "median_error": _round(np.median(error)),
        "mape": _round(error.mean()),
        "spearman": _round(spearmanr(predicted, data.ms)[0]),
        "macs_alone": {
            "median_error": _round(np.median(macs_error)),
            "mape": _round(macs_error.mean()),
            "spearman": _round(spearmanr(by_macs, data.ms)[0]),
        },
        "by_family": families,
    }
    return report, np.log(data.ms / predicted)


# --- 2. Batch 1


@dataclass(frozen=True)
class Anchors:
    """Published batch-1 latencies. `static` is 1 for engines built for the one input size that was timed."""

    names: list[str]
    families: NDArray[np.str_]
    kernels: Sample
    macs: Array
    ms: Array
    static: Array
    sources: list[str]


def load_anchors(path: Path, cache: Path, families: dict[str, str]) -> Anchors:
    rows = anchor_rows(path)
    graphs = [load_graph(model, cache) for model, _, _ in rows]
    missing = [model.key for (model, _, _), graph in zip(rows, graphs, strict=True) if graph is None]
    if missing:
        raise SystemExit(f"not traced: {', '.join(missing)}; run timm_graphs.py")
    present = [graph for graph in graphs if graph is not None]
    return Anchors(
        [model.key for model, _, _ in rows],
        np.array([families[model.name] for model, _, _ in rows]),
        sample(present, "tensorrt"),
        np.array([graph.macs for graph in present], dtype=float),
        np.array([ms for _, ms, _ in rows]),
        np.array([float(not source.startswith("WillBrennan")) for _, _, source in rows]),
        [source for _, _, source in rows],
    )


@dataclass(frozen=True)
class Variant:
    """What is chosen inside the folds.

    Attributes:
        wave: whether the wave term is there.
        apart: whether compute and memory have a factor each over the throughput model, or one.
        tile: output elements of a tile.
        by_class: standard deviation of a factor per kernel class on compute (0: none).
    """

    wave: bool = True
    apart: bool = True
    tile: int = TILE
    by_class: float = 0.0


VARIANTS = [
    Variant(wave, apart, tile, by_class)
    for wave, apart, by_class in itertools.product((True, False), (True, False), (0.0, 0.3))
    for tile in ((TILE, TILE // 4) if wave else (TILE,))
]
TERMS = ("fixed", "launch", "compute", "memory", "wave", "static", "weights")
CENTRE = np.array(
    [np.log(0.02), np.log(0.003), np.log(0.7), np.log(0.8), np.log(0.3), -0.1, np.log(WEIGHT_BYTES_PER_MS)]
)
OWN_FACTOR = (("conv_dense", "conv_first"), ("conv_pointwise",), ("conv_depthwise",), ("linear",), ("matmul",))


@dataclass(frozen=True)
class Batch1:
    """A fitted batch-1 model: latency = exp(static * log_static) * (its overhead + the sum over kernels)."""

    kernels: KernelModel
    log_static: float

    def log_ms(self, kernels: Sample, static: Array | float) -> Array:
        times = kernels.total(self.kernels.kernel_ms(Kernels(kernels.table)))
        return np.log(self.kernels.overhead_ms + times) + self.log_static * static


def assemble(base: Array, numbers: Array, variant: Variant) -> Batch1:
    """The batch-1 model for one setting of the fitted numbers: `TERMS`, then the factors by class."""
    fixed, launch, compute, memory, wave, static, weights = numbers[: len(TERMS)]
    rates = base.copy()
    rates[:, LAUNCH] = np.exp(launch)
    rates[:, RATE] /= np.exp(compute)
    rates[:, BANDWIDTH] /= np.exp(memory if variant.apart else compute)
    for names, factor in zip(OWN_FACTOR, numbers[len(TERMS) :], strict=True):
        rates[[KERNEL_CLASS[name] for name in names], RATE] /= np.exp(factor)
    model = kernel_model(
        rates,
        "tensorrt",
        weight_bytes_per_ms=float(np.exp(weights)),
        wave=float(np.exp(wave)) if variant.wave else 0.0,
        tile=variant.tile if variant.wave else 0,
    )
    return Batch1(replace(model, overhead_ms=float(np.exp(fixed))), float(static))


def fit_batch1(base: Array, anchors: Anchors, used: NDArray[np.int64], variant: Variant) -> Batch1:
    """Maximum a posteriori: few numbers, each with a prior, on the anchors `used`."""
    spread = np.array([1.0, 0.7, 0.5, 0.5, 1.2, 0.2, 0.2, *[variant.by_class] * len(OWN_FACTOR)])
    centre = np.concatenate([CENTRE, np.zeros(len(OWN_FACTOR))])
    free = np.array(
        [True, True, True, variant.apart, variant.wave, True, True, *[variant.by_class > 0] * len(OWN_FACTOR)]
    )
    kernels, log_ms, static = anchors.kernels.only(used), np.log(anchors.ms[used]), anchors.static[used]

    def numbers(z: Array) -> Array:
        result = centre.copy()
        result[free] += z * spread[free]
        return result

    def residuals(z: Array) -> Array:
        predicted = assemble(base, numbers(z), variant).log_ms(kernels, static)
        return np.concatenate([(predicted - log_ms) / ANCHOR_SCALE, z])

    found = least_squares(residuals, np.zeros(int(free.sum())), max_nfev=60).x
    return assemble(base, numbers(found), variant)


def held_out(base: Array, anchors: Anchors, used: NDArray[np.int64], variant: Variant) -> Array:
    """log(measured / predicted) of the anchors `used`, each family predicted from the others among them."""
    result = np.full(len(anchors.ms), np.nan)
    for family in np.unique(anchors.families[used]).tolist():
        test = used[anchors.families[used] == family]
        model = fit_batch1(base, anchors, used[anchors.families[used] != family], variant)
        result[test] = np.log(anchors.ms[test]) - model.log_ms(anchors.kernels.only(test), anchors.static[test])
    return result[used]


def family_error(residual: Array, families: NDArray[np.str_]) -> float:
    """Mean absolute error, families weighing alike."""
    return float(np.mean([np.abs(np.expm1(-residual[families == name])).mean() for name in np.unique(families)]))


def choose(base: Array, anchors: Anchors, used: NDArray[np.int64]) -> Variant:
    """The variant with the least error on held-out families among `used`."""
    return min(VARIANTS, key=lambda v: family_error(held_out(base, anchors, used, v), anchors.families[used]))


def report_batch1(anchors: Anchors, data: Throughput) -> tuple[dict[str, Any], Array]:
    """Nested: a family is left out of both fits and of the choice of the variant."""
    everything = np.arange(len(anchors.ms))
    residual, by_macs = np.empty(len(everything)), np.empty(len(everything))
    families: dict[str, Any] = {}
    for family in np.unique(anchors.families).tolist():
        train, test = everything[anchors.families != family], everything[anchors.families == family]
        base = fit_throughput(data, np.flatnonzero(data.families != family))
        variant = choose(base, anchors, train)
        model = fit_batch1(base, anchors, train, variant)
        residual[test] = np.log(anchors.ms[test]) - model.log_ms(anchors.kernels.only(test), anchors.static[test])
        line = macs_line(anchors.macs[train], anchors.ms[train], anchors.static[train])
        terms = np.stack([np.ones(len(test)), np.log(anchors.macs[test]), anchors.static[test]], axis=1)
        by_macs[test] = np.log(anchors.ms[test]) - terms @ line
        families[family] = {
            "anchors": len(test),
            "mape": _round(np.abs(np.expm1(-residual[test])).mean()),
            "median_ratio_predicted_to_measured": _round(np.exp(-np.median(residual[test]))),
            "macs_alone_mape": _round(np.abs(np.expm1(-by_macs[test])).mean()),
            "chosen": asdict(variant),
        }
    report = {
        "anchors": len(everything),
        "families": len(families),
        "mape": _round(np.abs(np.expm1(-residual)).mean()),
        "median_error": _round(np.median(np.abs(np.expm1(-residual)))),
        "family_mean_of_mape": _round(family_error(residual, anchors.families)),
        "macs_alone": {
            "mape": _round(np.abs(np.expm1(-by_macs)).mean()),
            "median_error": _round(np.median(np.abs(np.expm1(-by_macs)))),
        },
        "by_family": families,
        "anchors_held_out": {
            f"{name} ({'static' if static else 'dynamic'})": {
                "measured_ms": float(ms), "predicted_ms": _round(ms * np.exp(-r), 4)
            }
            for name, ms, r, static in zip(anchors.names, anchors.ms, residual, anchors.static, strict=True)
        },
    }  # fmt: skip
    return report, residual


# --- 3. What no anchor covers


def with_priors(model: Batch1, anchors: Anchors) -> KernelModel:
    """For static engines, with priors for LowFormer's kernels that no anchor has; its ranges are the anchors'."""
    coefficients = model.kernels.coefficients.copy()
    column = {name: index for index, name in enumerate(COEFFICIENTS)}
    transposed = coefficients[KERNEL_CLASS["conv_dense"]].copy()
    compute = [column[name] for name in COEFFICIENTS if name.startswith("macs")]
    transposed[compute] *= TRANSPOSE_FACTOR
    coefficients[KERNEL_CLASS["conv_transpose"]] = transposed
    coefficients[KERNEL_CLASS["conv_transpose_grouped"]] = coefficients[KERNEL_CLASS["conv_depthwise"]]
    coefficients[KERNEL_CLASS["group_norm"], column["launch"]] *= GROUP_NORM_LAUNCHES
    factor = float(np.exp(model.log_static))
    fitted = replace(
        model.kernels, coefficients=coefficients, overhead_ms=model.kernels.overhead_ms * factor, scale=factor
    )
    return with_ranges(fitted, [Kernels(anchors.kernels.table)])


def predict_presets(model: KernelModel) -> dict[str, dict[str, Any]]:
    result = {}
    for name, config in PRESETS.items():
        kernels = fuse(op_graph(config), model.runtime)
        times = model.scale * model.kernel_ms(kernels)
        total = model.graph_ms(kernels)
        shares = np.bincount(kernels.column("class"), times, minlength=len(KERNEL_CLASSES)) / total
        result[name] = {
            "ms": _round(total, 4),
            "kernels": len(kernels),
            "outside": model.outside(kernels),
            "share_by_class": {KERNEL_CLASSES[code]: _round(shares[code]) for code in np.flatnonzero(shares)},
        }
    return result


def _round(value: Any, digits: int = 3) -> float:
    return float(f"{float(value):.{digits}g}")


# --- Intervals


def error_distribution(residual: Array, families: NDArray[np.str_], extra: float, values: int = 199) -> Array:
    """(values,) quantiles of log(measured / predicted) for a family never seen.

    A family's common factor is drawn from a t distribution scaled by those of the families at hand (so few of them are
    far from a normal one), models within a family scatter as they did, and `extra` is what priors may be off by.
    """
    names = np.unique(families)
    common = np.array([residual[families == name].mean() for name in names])
    within = np.sqrt(np.mean([residual[families == name].var() for name in names]))
    rng = np.random.default_rng(0)
    draws = np.sqrt(np.mean(common**2)) * rng.standard_t(len(names), 200_000)
    draws += np.hypot(within, extra) * rng.standard_normal(len(draws))
    return np.quantile(draws, np.arange(1, values + 1) / (values + 1))


def interval_check(residual: Array, families: NDArray[np.str_], coverage: float = 0.9) -> dict[str, Any]:
    """How many measurements lie within the interval that the other families' errors give."""
    inside = np.zeros(len(residual), dtype=bool)
    widths = []
    for name in np.unique(families):
        test = families == name
        errors = LogErrors.from_errors(error_distribution(residual[~test], families[~test], 0.0))
        low, high = errors.interval(coverage)
        inside[test] = (residual[test] >= low) & (residual[test] <= high)
        widths.append((np.exp(high) - np.exp(low)) / 2)
    return {
        "nominal": coverage,
        "covered": _round(inside.mean()),
        "measurements": len(inside),
        "median_half_width": _round(np.median(widths)),
    }


def unanchored_spread(model: KernelModel) -> float:
    """Log standard deviation that the priors leave in a preset's latency, the largest one."""
    spreads = []
    for config in PRESETS.values():
        kernels = fuse(op_graph(config), model.runtime)
        shares = np.bincount(kernels.column("class"), model.kernel_ms(kernels), minlength=len(KERNEL_CLASSES))
        shares *= model.scale / model.graph_ms(kernels)
        outside = {name.partition(" ")[0] for name in model.outside(kernels)}
        spreads.append(
            sum(
                share * (UNANCHORED_SPREAD if name in UNANCHORED else FOREIGN_SPREAD)
                for name, share in zip(KERNEL_CLASSES, shares, strict=True)
                if name in UNANCHORED or name in outside
            )
        )
    return float(max(spreads))


def allowed_outside() -> list[str]:
    """What the priors and the widened interval allow for: every class of the space, and its shapes."""
    classes = {name for config in PRESETS.values() for name in fuse(op_graph(config), "tensorrt").classes}
    classes |= set(UNANCHORED)
    return sorted(classes | {f"{name} (shape)" for name in classes})


# --- Profiles and report

A40_IMAGES_PER_S = {
    "lowformer_b0": 5988,
    "lowformer_b1": 4237,
    "lowformer_b15": 2739,
    "lowformer_b3": 1162,
    "lowformer_e1": 6337,
    "lowformer_e2": 2070,
    "lowformer_e3": 1566,
}
"""Published by the authors: TorchScript on an A40, batch 200. Another card and runtime: a check of the order."""


def throughput_profile(rates: Array, data: Throughput, report: dict[str, Any], residual: Array) -> LatencyPredictor:
    """ms per image of PyTorch AMP, channels-last, at a batch of `LARGE_BATCH`."""
    model = with_ranges(kernel_model(rates, "torch", batch=LARGE_BATCH), [Kernels(data.kernels.table)])
    missing = [name for name in UNANCHORED if model.counts[KERNEL_CLASS[name]] == 0]
    # A prior for a tenth of the time.
    errors = error_distribution(residual, data.families, 0.1 * UNANCHORED_SPREAD)
    return LatencyPredictor(
        Target.parse("rtx3090:throughput"),
        model,
        LogErrors.from_errors(errors),
        {
            "source": "timm's published RTX 3090 results (PyTorch, AMP, channels-last); no LowFormer was measured",
            "samples": report["models"],
            "held_out_error": report["mape"],
            "held_out_median_error": report["median_error"],
            "macs_only_error": report["macs_alone"]["mape"],
            "held_out": f"whole families, {report['folds']} folds; mean absolute relative error",
            "refers_to": f"ms per image, PyTorch eager, AMP, channels-last, batch {LARGE_BATCH}",
            "not_covered": missing,
            "lowformer_measured": False,
            "experiment": "experiments/published/fit_rtx3090.py",
        },
        allowed=missing,
    )


def batch1_profile(
    model: KernelModel, anchors: Anchors, report: dict[str, Any], residual: Array, models: int, ratio: float
) -> LatencyPredictor:
    """ms of a static TensorRT FP16 engine at batch 1."""
    spread = unanchored_spread(model)
    return LatencyPredictor(
        Target.parse("rtx3090"),
        model,
        LogErrors.from_errors(error_distribution(residual, anchors.families, spread)),
        {
            "source": "published TensorRT FP16 batch-1 latencies of other networks; no LowFormer was measured",
            "samples": len(anchors.ms),
            "held_out_error": report["mape"],
            "macs_only_error": report["macs_alone"]["mape"],
            "held_out": (
                "whole families, nested; mean absolute relative error. The form of the model was settled with these "
                "measurements in sight, so that the figure is somewhat optimistic"
            ),
            "held_out_error_by_family": {name: entry["mape"] for name, entry in report["by_family"].items()},
            "held_out_interval": report["interval"],
            "measurements": dict(sorted(Counter(anchors.sources).items())),
            "kernel_rates_from": f"{models} of timm's published RTX 3090 results (AMP, channels-last)",
            "refers_to": "GPU compute time of trtexec, engine built for this one input size",
            "not_covered": list(UNANCHORED),
            "priors": (
                f"transposed convolution {TRANSPOSE_FACTOR:g}x a plain one of the same MACs, GroupNorm "
                f"{GROUP_NORM_LAUNCHES:g} launches, small attention unfused; the interval is wider for them "
                f"(log standard deviation {spread:.2f})"
            ),
            "lowformer_measured": False,
            "check": f"E3 / E2 predicted {ratio:.2f}, published 2.4 (TITAN RTX); not used in fitting",
            "experiment": "experiments/published/fit_rtx3090.py",
        },
        allowed=allowed_outside(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="folder of the published measurements")
    parser.add_argument("--graphs", type=Path, required=True, help="what timm_graphs.py traced")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
    parser.add_argument("--profiles", type=Path, help="write the profiles there (default: nowhere)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    families = json.loads((arguments.graphs / "families.json").read_text())
    data, left = load_throughput(arguments.published / "rtx3090-amp-nhwc.csv", arguments.graphs, families)
    anchors = load_anchors(arguments.published / ANCHORS, arguments.graphs, families)

    throughput, throughput_residual = report_throughput(data)
    throughput["left_out"] = left
    batch1, residual = report_batch1(anchors, data)
    batch1["interval"] = interval_check(residual, anchors.families)

    base = fit_throughput(data, np.arange(len(data.ms)))
    variant = choose(base, anchors, np.arange(len(anchors.ms)))
    fitted = fit_batch1(base, anchors, np.arange(len(anchors.ms)), variant)
    model = with_priors(fitted, anchors)
    presets = predict_presets(model)
    ratio = _round(presets["lowformer_e3"]["ms"] / presets["lowformer_e2"]["ms"])
    small = batch1_profile(model, anchors, batch1, residual, len(data.ms), ratio)
    for name, entry in zip(PRESETS, small.predict(PRESETS.values()), strict=True):
        presets[name]["interval_90_ms"] = [_round(entry.low_ms), _round(entry.high_ms)]
    batch1["final"] = {
        "chosen": asdict(variant),
        "static_over_dynamic_engine": _round(np.exp(fitted.log_static)),
        "launch_ms": _round(fitted.kernels.coefficients[KERNEL_CLASS["conv_dense"], 0]),
        "fixed_ms": _round(fitted.kernels.overhead_ms),
    }
    batch1["lowformer"] = {
        "predicted_e3_over_e2": ratio,
        "published_e3_over_e2_titan_rtx": 2.4,
        "log_spread_of_priors": _round(unanchored_spread(model)),
        "presets": presets,
    }
    large = throughput_profile(base, data, throughput, throughput_residual)
    throughput["lowformer_images_per_s"] = {
        name: {"predicted": round(1000 / float(large.latency_ms([PRESETS[name]])[0])), "published_a40": published}
        for name, published in A40_IMAGES_PER_S.items()
    }
    arguments.results.write_text(json.dumps({"rtx3090": batch1, "rtx3090:throughput": throughput}, indent=1) + "\n")
    if arguments.profiles:
        for predictor in (small, large):
            print(predictor.save(arguments.profiles))
    print(json.dumps({key: value for key, value in batch1.items() if key != "anchors_held_out"}, indent=1))
    print(json.dumps({key: value for key, value in throughput.items() if key != "by_family"}, indent=1))


if __name__ == "__main__":
    main()
