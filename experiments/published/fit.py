"""Fits the shipped profiles on measurements that others published.

    python fit.py --published FOLDER --graphs CACHE [--only FILE ...] [--results FILE] [--profiles FOLDER]

FOLDER holds timm's result files and the batch-1 measurements (see README.md), CACHE what `timm_graphs.py` traced.

1. timm's benchmarks: a roofline per kernel class, the physical part of `lownas.predictors.latency.kernel_model`, on all
   models of a file, with physical priors. On GPUs PyTorch under autocast at large batch, on CPUs torch.compile at
   batch 1.
2. `rtx3090` (TensorRT, FP16, batch 1): few numbers on top of the RTX 3090's roofline, fitted on 47 measurements of five
   families. Whole families are held out, from the roofline's fit too, and what is chosen is chosen again inside, by
   folds over the other families.
3. What no measurement covers gets a prior and says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares, minimize
from scipy.stats import binomtest, spearmanr
from timm_graphs import ANCHORS, BENCHMARKS, anchor_rows, benchmark_rows, load_graph

from lownas.predictors.latency.fitting.kernel_times import with_ranges
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import KernelModel
from lownas.predictors.latency.kernel_terms import COEFFICIENTS, physical_terms
from lownas.predictors.latency.kernels import KERNEL_CLASS, KERNEL_CLASSES, KERNEL_COLUMN, Kernels
from lownas.predictors.latency.predictor import LatencyPredictor
from lownas.predictors.latency.target import Target
from lownas.predictors.latency.uncertainty import LogErrors
from lownas.search_space import PRESETS, op_graph
from lownas.search_space.graph import OpGraph

Array = NDArray[np.float64]

FOLDS = 8
MANY_FAMILIES = 20
GPU_SHARPNESS = 2.0
DEVELOPMENT_SEED = 7
"""Half of the families, drawn with this seed, are those that the form of the rooflines was developed on; the errors of
the others were looked at once, when it was settled."""

PER_CLASS = ("launch", "rate", "half_in", "half_out", "half_pixels", "bandwidth", "weight_bandwidth")
LAUNCH, RATE, HALF_IN, HALF_OUT, HALF_PIXELS, BANDWIDTH, WEIGHT_BANDWIDTH = range(len(PER_CLASS))
"""ms; MACs per ms; channels and pixels at which compute takes twice its time; elements per ms."""
GLOBALS = ("launch", "weights", "spill", "overhead")
DEPTHWISE = ("conv_depthwise", "conv_depthwise_5", "conv_depthwise_7", "conv_depthwise_large")
MATRIX_UNITS = ("conv_first", "conv_dense", "conv_pointwise", "conv_transpose", "linear", "linear_tokens", "matmul")


@dataclass(frozen=True)
class Setting:
    """One of timm's benchmarks, and what is believed of the device before any measurement.

    Attributes:
        target: whose profile it gives; empty for none.
        file: of the measurements.
        runtime: whose kernels ran.
        rate: of matrix products, MACs per ms.
        bandwidth: elements per ms.
        weight_bandwidth: the same of weights.
        launch_ms: of a kernel.
        pads: channels that matrix units, grouped convolutions and attention are padded to a multiple of.
        cache: elements that the caches hold; 0 on GPUs, where batches are large.
        sharpness: of the soft maximum.
        spread: standard deviations of the logarithms of `PER_CLASS` about their priors; 0 keeps the prior.
        weight: power of its size that a family's weight falls with, per model.
        rates: of single classes, as shares of `rate`.
        about: what was measured, for people.
        check: whether it is reported alone, and no profile made of it.
    """

    target: str
    file: str
    rate: float
    bandwidth: float
    weight_bandwidth: float
    launch_ms: float
    pads: dict[str, int]
    spread: tuple[float, ...]
    about: str
    cache: int = 0
    runtime: str = "torch-amp"
    sharpness: float = GPU_SHARPNESS
    error: float = 0.08
    weight: float = 0.3
    rates: dict[str, float] = field(default_factory=dict)
    check: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.cache == 0


def pads(matrix: int, grouped: int, tokens: int) -> dict[str, int]:
    return dict.fromkeys(MATRIX_UNITS, matrix) | {"conv_grouped": grouped, "attention": tokens}


GPU_SPREAD = (0.0, 0.5, 1.0, 1.0, 0.0, 0.4, 0.0)
CPU_SPREAD = (1.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.4)
GPU_RATES = {
    "conv_first": 1 / 3,
    **dict.fromkeys(DEPTHWISE, 0.13),
    "conv_grouped": 0.5,
    "conv_transpose": 2 / 3,
    "conv_transpose_grouped": 0.1,
    "matmul": 2 / 3,
    "attention": 2 / 3,
}
CPU_RATES = dict.fromkeys((*DEPTHWISE, "conv_transpose_grouped"), 1 / 6)


def gpu(name: str, file: str, speed: float, memory: float, about: str, *, check: bool = False) -> Setting:
    """A GPU with `speed` times the FP16 rate of an RTX 3090 and `memory` times its bandwidth (936 GB/s)."""
    return Setting(
        target=f"{name}:throughput",
        file=file,
        rate=30e9 * speed,
        bandwidth=0.35e9 * memory,
        weight_bandwidth=0.8e9 / 6 * memory,  # read in fp32, written and read in fp16
        launch_ms=0.005,
        pads=pads(8, 16, 64),
        spread=GPU_SPREAD,
        about=f"PyTorch eager, AMP, {about}",
        rates=GPU_RATES,
        check=check,
    )


def cpu(name: str, file: str) -> Setting:
    return Setting(
        target=name,
        file=file,
        runtime="torch-compile",
        rate=3e8,
        bandwidth=2.5e7,
        weight_bandwidth=7.5e6,
        launch_ms=0.006,
        pads=pads(16, 8, 64),
        spread=CPU_SPREAD,
        about="torch.compile (PyTorch 2.4), fp32, batch 1, all cores",
        cache=1_000_000,
        sharpness=1.5,
        error=0.1,
        weight=0.4,
        rates=CPU_RATES,
    )


SETTINGS = (
    gpu("rtx3090", "rtx3090-amp-nhwc.csv", 1.0, 1.0, "channels-last (PyTorch 2.4)"),
    gpu("rtx3090", "rtx3090-amp-nchw.csv", 1.0, 1.0, "channels-first (PyTorch 2.4)", check=True),
    gpu("rtx4090", "rtx4090-amp-nhwc.csv", 2.3, 1.08, "channels-last (PyTorch 2.4)"),
    gpu("rtx5090", "rtx5090-amp-nchw.csv", 2.9, 1.9, "channels-first (PyTorch 2.9)"),
    cpu("i7-12700h", "i7_12700h-fp32-batch1.csv"),
    cpu("i9-10940x", "i9_10940x-fp32-batch1.csv"),
)

# Batch 1 on the RTX 3090.
MULTIPROCESSORS = 82
TILE = 128 * 128
TENSORRT_PADS = {name: pad for name, pad in pads(8, 16, 64).items() if name not in ("matmul", "attention")}
LARGE_BATCH = 256
WEIGHTS_PER_MS = 0.4e9  # elements in fp16
ANCHOR_SCALE = 0.12  # of a model's log time

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


# --- 1. timm's benchmarks


@dataclass(frozen=True)
class Benchmark:
    """Published ms per image."""

    names: list[str]
    families: NDArray[np.str_]
    kernels: Sample
    macs: Array
    batch: Array
    ms: Array


def load_benchmark(
    setting: Setting, published: Path, cache: Path, families: dict[str, str]
) -> tuple[Benchmark, dict[str, int]]:
    """Rows with a traced graph whose parameters are those of the row, and how many were left out and why."""
    left = Counter[str]()
    rows = []
    for model, row in benchmark_rows(published / setting.file):
        graph = load_graph(model, cache, BENCHMARKS[setting.file])
        if graph is None:
            left["not traced"] += 1
        elif abs(graph.params / 1e6 - row["param_count"]) > 0.02 + 0.003 * row["param_count"]:
            left["parameters differ from the row's: the model has changed since"] += 1
        else:
            rows.append((model.name, graph, row["infer_batch_size"], row["infer_step_time"]))
    batch = np.array([row[2] for row in rows])
    data = Benchmark(
        [row[0] for row in rows],
        np.array([families[row[0]] for row in rows]),
        sample([row[1] for row in rows], setting.runtime),
        np.array([row[1].macs for row in rows], dtype=float),
        batch,
        np.array([row[3] for row in rows]) / batch,
    )
    return data, dict(left)


@dataclass(frozen=True)
class Roofline:
    """A fitted setting.

    Attributes:
        values: (classes, len(PER_CLASS)).
        spill: elements per ms beyond the caches.
        overhead_ms: of a batch.
    """

    setting: Setting
    values: Array
    spill: float
    overhead_ms: float

    def kernel_model(self, batch: int = 1) -> KernelModel:
        """Coefficients in ms per million; launches and weights are shared by the images of a batch."""
        v = self.values
        per_mac, moved = 1e6 / v[:, RATE], 1e6 / v[:, BANDWIDTH]
        none = np.zeros(len(v))
        terms = {
            "launch": v[:, LAUNCH] / batch,
            "macs": per_mac,
            "macs_per_cin": per_mac * v[:, HALF_IN],
            "macs_per_cout": per_mac * v[:, HALF_OUT],
            "macs_per_pixel": none if self.setting.is_gpu else per_mac * v[:, HALF_PIXELS],
            "inputs": moved,
            "outputs": moved,
            "weights": 1e6 / v[:, WEIGHT_BANDWIDTH] / batch,
            "spilled": none if self.setting.is_gpu else np.full(len(v), 1e6 / self.spill),
        }
        return KernelModel(
            self.setting.runtime,
            0,
            np.stack([terms.get(name, none) for name in COEFFICIENTS], axis=1),
            sharpness=self.setting.sharpness,
            overhead_ms=self.overhead_ms / batch,
            pads=self.setting.pads,
            cache=self.setting.cache,
        )


def prior(setting: Setting) -> Array:
    """(classes, len(PER_CLASS)) believed before any measurement."""
    row = [setting.launch_ms, setting.rate, 8.0, 8.0, 10.0, setting.bandwidth, setting.weight_bandwidth]
    values = np.tile(row, (len(KERNEL_CLASSES), 1))
    for name, share in setting.rates.items():
        values[KERNEL_CLASS[name], RATE] = share * setting.rate
    for name in DEPTHWISE:
        values[KERNEL_CLASS[name], [HALF_IN, HALF_OUT]] = 0.01
    return values


def fit_roofline(setting: Setting, data: Benchmark, used: NDArray[np.int64]) -> Roofline:
    """From the models `used`: robust log errors about what the priors allow."""
    start = prior(setting)
    kernels = data.kernels.only(used)
    kind, model, count = torch.tensor(kernels.table[:, 0]), torch.tensor(kernels.model), torch.tensor(kernels.count)
    terms = physical_terms(Kernels(kernels.table), pads=setting.pads, cache=setting.cache)
    compute, memory = (1e6 * torch.tensor(part) for part in terms)
    batch = torch.tensor(data.batch[used])
    sizes = Counter(data.families[used].tolist())
    weight = torch.tensor([sizes[family] ** -setting.weight for family in data.families[used].tolist()])
    log_ms = torch.tensor(np.log(data.ms[used]))
    base, spread = torch.tensor(np.log(start)), torch.tensor(setting.spread)
    power = setting.sharpness

    def unpack(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(classes, len(PER_CLASS)) values, spill and overhead."""
        launch, weights, spill, overhead = z[-len(GLOBALS) :]
        shift = torch.zeros(len(PER_CLASS), dtype=torch.float64)
        shift[LAUNCH], shift[WEIGHT_BANDWIDTH] = 0.7 * launch, 0.5 * weights
        values = (base + shift + z[: -len(GLOBALS)].reshape(base.shape) * spread).exp()
        return values, 7.5e6 * (0.5 * spill).exp(), 0.05 * overhead.exp()

    def loss_and_gradient(flat: Array) -> tuple[float, Array]:
        z = torch.tensor(flat, requires_grad=True)
        values, spill, overhead = unpack(z)
        v, images = values[kind], batch[model]
        work = compute[:, 0] + v[:, HALF_IN] * compute[:, 1] + v[:, HALF_OUT] * compute[:, 2]
        busy = (work + v[:, HALF_PIXELS] * compute[:, 6]) / v[:, RATE] + 1e-12
        moved = (memory[:, 0] + memory[:, 1]) / v[:, BANDWIDTH] + memory[:, 3] / spill
        waiting = moved + memory[:, 2] / v[:, WEIGHT_BANDWIDTH] / images + 1e-12
        time = v[:, LAUNCH] / images + (busy**power + waiting**power) ** (1 / power)
        total = torch.zeros(len(used), dtype=torch.float64).index_add(0, model, time * count) + overhead / batch
        residual = (total.log() - log_ms) / setting.error
        loss = (weight * 2 * ((1 + residual**2 / 2).sqrt() - 1)).sum() + 0.5 * (z**2).sum()
        loss.backward()
        assert z.grad is not None
        return loss.item(), z.grad.numpy()

    zeros = np.zeros(base.numel() + len(GLOBALS))
    found = minimize(loss_and_gradient, zeros, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    values, spill, overhead = unpack(torch.tensor(found))
    return Roofline(setting, values.numpy(), float(spill), float(overhead))


def predicted_ms(roofline: Roofline, data: Benchmark) -> Array:
    """(models,) predicted ms per image, each at its own batch size."""
    batch = data.batch[data.kernels.model]
    result = np.empty(len(batch))
    overhead = np.empty(len(data.batch))
    for size in np.unique(data.batch):
        rows, model = batch == size, roofline.kernel_model(int(size))
        result[rows] = model.kernel_ms(Kernels(data.kernels.table[rows]))
        overhead[data.batch == size] = model.overhead_ms
    return data.kernels.total(result) + overhead


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


def developed_on(families: dict[str, str]) -> set[str]:
    """The families in sight of which the form of the rooflines was developed."""
    names = sorted(set(families.values()))
    np.random.default_rng(DEVELOPMENT_SEED).shuffle(names)
    return set(names[: len(names) // 2])


def figures(predicted: Array, ms: Array, families: NDArray[np.str_]) -> dict[str, Any]:
    """Errors, with 95 % bootstrap intervals over families."""
    error = np.abs(predicted / ms - 1)
    names = np.unique(families)
    members = [np.flatnonzero(families == name) for name in names]
    rng = np.random.default_rng(0)
    drawn = [np.concatenate([members[i] for i in rng.integers(0, len(names), len(names))]) for _ in range(1000)]

    def entry(function: Any) -> dict[str, float]:
        low, high = np.quantile([function(rows) for rows in drawn], [0.025, 0.975])
        return {"value": _round(function(np.arange(len(ms)))), "low": _round(low), "high": _round(high)}

    return {
        "models": len(ms),
        "families": len(names),
        "median_error": entry(lambda rows: np.median(error[rows])),
        "mape": entry(lambda rows: error[rows].mean()),
        "spearman": entry(lambda rows: spearmanr(predicted[rows], ms[rows])[0]),
    }


def report_benchmark(setting: Setting, data: Benchmark, development: set[str]) -> tuple[dict[str, Any], Array]:
    """Held-out errors by whole families, and the residuals log(measured / predicted)."""
    fold = family_folds(data.families, FOLDS, seed=0)
    predicted, by_macs = np.empty(len(fold)), np.empty(len(fold))
    for index in range(FOLDS):
        train, test = np.flatnonzero(fold != index), np.flatnonzero(fold == index)
        predicted[test] = predicted_ms(fit_roofline(setting, data, train), data)[test]
        line = macs_line(data.macs[train], data.ms[train], np.zeros(len(train)))
        by_macs[test] = np.exp(line[0] + line[1] * np.log(data.macs[test]))
    seen = np.array([family in development for family in data.families])
    residual = np.log(data.ms / predicted)
    report = {
        "target": setting.target,
        "file": setting.file,
        "folds": FOLDS,
        **figures(predicted, data.ms, data.families),
        "families_developed_on": figures(predicted[seen], data.ms[seen], data.families[seen]),
        "other_families": figures(predicted[~seen], data.ms[~seen], data.families[~seen]),
        "macs_alone": figures(by_macs, data.ms, data.families),
        "interval": interval_check(residual, data.families),
        "by_family": {
            family: {
                "models": int((data.families == family).sum()),
                "median_error": _round(np.median(np.abs(np.expm1(-residual[data.families == family])))),
                "bias": _round(np.median(residual[data.families == family])),
            }
            for family in np.unique(data.families).tolist()
        },
    }
    return report, residual


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
    graphs = [load_graph(model, cache, "compiled") for model, _, _ in rows]
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
CENTRE = np.array([np.log(0.02), np.log(0.003), np.log(0.7), np.log(0.8), np.log(0.3), -0.1, np.log(WEIGHTS_PER_MS)])
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
    """The batch-1 model for one setting of the fitted numbers: `TERMS`, then the factors by class.

    Args:
        base: (classes, len(PER_CLASS)) of the throughput model.
        numbers: logarithms.
        variant: which of them are used.
    """
    fixed, launch, compute, memory, wave, static, weights = numbers[: len(TERMS)]
    values = base.copy()
    # Where TensorRT's kernels are those of torch under another name, or too rare there to tell.
    values[KERNEL_CLASS["linear"]] = base[KERNEL_CLASS["linear_tokens"]]
    values[KERNEL_CLASS["matmul"], [RATE, HALF_IN, HALF_OUT]] = base[KERNEL_CLASS["attention"], RATE], 0.01, 0.01
    values[:, RATE] /= np.exp(compute)
    values[:, BANDWIDTH] /= np.exp(memory if variant.apart else compute)
    for names, factor in zip(OWN_FACTOR, numbers[len(TERMS) :], strict=True):
        values[[KERNEL_CLASS[name] for name in names], RATE] /= np.exp(factor)
    per_mac, moved = 1e6 / values[:, RATE], 1e6 / values[:, BANDWIDTH]
    tile = variant.tile if variant.wave else 0
    terms = {
        "launch": np.full(len(values), np.exp(launch)),
        "macs": per_mac,
        "macs_per_cin": per_mac * values[:, HALF_IN],
        "macs_per_cout": per_mac * values[:, HALF_OUT],
        # The time that a contraction takes on one multiprocessor however few tiles there are.
        "macs_per_output": per_mac * np.exp(wave) * tile * MULTIPROCESSORS,
        "inputs": moved,
        "outputs": moved,
        "weights": np.full(len(values), 1e6 / np.exp(weights)),
    }
    none = np.zeros(len(values))
    coefficients = np.stack([terms.get(name, none) for name in COEFFICIENTS], axis=1)
    overhead = float(np.exp(fixed))
    model = KernelModel(
        "tensorrt", 0, coefficients, sharpness=GPU_SHARPNESS, overhead_ms=overhead, tile=tile, pads=TENSORRT_PADS
    )
    return Batch1(model, float(static))


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


def report_batch1(anchors: Anchors, setting: Setting, data: Benchmark) -> tuple[dict[str, Any], Array]:
    """Nested: a family is left out of both fits and of the choice of the variant."""
    everything = np.arange(len(anchors.ms))
    residual, by_macs = np.empty(len(everything)), np.empty(len(everything))
    families: dict[str, Any] = {}
    for family in np.unique(anchors.families).tolist():
        train, test = everything[anchors.families != family], everything[anchors.families == family]
        base = fit_roofline(setting, data, np.flatnonzero(data.families != family)).values
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
        kernels = fuse(op_graph(config), model.fusion)
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

    With many families it is what the models of families held out showed. With few, a family's common factor is drawn
    from a t distribution scaled by theirs, and models within a family scatter as they did. `extra` is what priors may
    be off by.
    """
    names = np.unique(families)
    if len(names) >= MANY_FAMILIES:
        rng = np.random.default_rng(0)
        draws = rng.choice(residual, 200_000) + extra * rng.standard_normal(200_000)
        return np.quantile(draws, np.arange(1, values + 1) / (values + 1))
    common = np.array([residual[families == name].mean() for name in names])
    within = np.sqrt(np.mean([residual[families == name].var() for name in names]))
    rng = np.random.default_rng(0)
    draws = np.sqrt(np.mean(common**2)) * rng.standard_t(len(names), 200_000)
    draws += np.hypot(within, extra) * rng.standard_normal(len(draws))
    return np.quantile(draws, np.arange(1, values + 1) / (values + 1))


def interval_check(residual: Array, families: NDArray[np.str_], coverage: float = 0.9) -> dict[str, Any]:
    """How many measurements lie within the interval that the other families' errors give."""
    inside = np.zeros(len(residual), dtype=bool)
    widths = np.empty(len(residual))
    for name in np.unique(families):
        test = families == name
        errors = LogErrors.from_errors(error_distribution(residual[~test], families[~test], 0.0))
        low, high = errors.interval(coverage)
        inside[test] = (residual[test] >= low) & (residual[test] <= high)
        widths[test] = (np.exp(high) - np.exp(low)) / 2
    bounds = binomtest(int(inside.sum()), len(inside)).proportion_ci()
    return {
        "nominal": coverage,
        "covered": _round(inside.mean()),
        "family_mean_covered": _round(np.mean([inside[families == name].mean() for name in np.unique(families)])),
        "binomial_95": [_round(bounds.low), _round(bounds.high)],
        "measurements": len(inside),
        "median_half_width": _round(np.median(widths)),
        "half_width_over_median_error": _round(np.median(widths) / np.median(np.abs(np.expm1(-residual)))),
    }


def unanchored_spread(model: KernelModel) -> float:
    """Log standard deviation that the priors leave in a preset's latency, the largest one."""
    spreads = []
    for config in PRESETS.values():
        kernels = fuse(op_graph(config), model.fusion)
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


def benchmark_profile(roofline: Roofline, data: Benchmark, report: dict[str, Any], residual: Array) -> LatencyPredictor:
    """ms per image, on GPUs at a batch of `LARGE_BATCH`."""
    setting = roofline.setting
    model = with_ranges(roofline.kernel_model(LARGE_BATCH if setting.is_gpu else 1), [Kernels(data.kernels.table)])
    lowformer = {name for config in PRESETS.values() for name in fuse(op_graph(config), setting.runtime).classes}
    missing = sorted(name for name in lowformer if model.counts[KERNEL_CLASS[name]] == 0)
    # A prior for a tenth of the time.
    errors = error_distribution(residual, data.families, 0.1 * UNANCHORED_SPREAD)
    batch = f", batch {LARGE_BATCH}" if setting.is_gpu else ""
    return LatencyPredictor(
        Target.parse(setting.target),
        model,
        LogErrors.from_errors(errors),
        {
            "source": f"timm's published results ({setting.about}); no LowFormer was measured",
            "samples": report["models"],
            "held_out_error": report["mape"]["value"],
            "held_out_median_error": report["median_error"]["value"],
            "macs_only_error": report["macs_alone"]["mape"]["value"],
            "held_out": f"whole families, {report['folds']} folds; mean absolute relative error",
            "held_out_interval": report["interval"],
            "refers_to": f"ms per image, {setting.about}{batch}",
            "not_covered": missing,
            "lowformer_measured": False,
            "experiment": "experiments/published/fit.py",
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
            "experiment": "experiments/published/fit.py",
        },
        allowed=allowed_outside(),
    )


def batch1(anchors: Anchors, setting: Setting, data: Benchmark, base: Array) -> tuple[dict[str, Any], LatencyPredictor]:
    """The report on `rtx3090` and its profile; `base` is the throughput model fitted on all of `data`."""
    report, residual = report_batch1(anchors, setting, data)
    report["interval"] = interval_check(residual, anchors.families)
    everything = np.arange(len(anchors.ms))
    variant = choose(base, anchors, everything)
    fitted = fit_batch1(base, anchors, everything, variant)
    model = with_priors(fitted, anchors)
    presets = predict_presets(model)
    ratio = _round(presets["lowformer_e3"]["ms"] / presets["lowformer_e2"]["ms"])
    profile = batch1_profile(model, anchors, report, residual, len(data.ms), ratio)
    for name, entry in zip(PRESETS, profile.predict(PRESETS.values()), strict=True):
        presets[name]["interval_90_ms"] = [_round(entry.low_ms), _round(entry.high_ms)]
    report["final"] = {
        "chosen": asdict(variant),
        "static_over_dynamic_engine": _round(np.exp(fitted.log_static)),
        "launch_ms": _round(fitted.kernels.coefficients[KERNEL_CLASS["conv_dense"], 0]),
        "fixed_ms": _round(fitted.kernels.overhead_ms),
    }
    report["lowformer"] = {
        "predicted_e3_over_e2": ratio,
        "published_e3_over_e2_titan_rtx": 2.4,
        "log_spread_of_priors": _round(unanchored_spread(model)),
        "presets": presets,
    }
    return report, profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="folder of the published measurements")
    parser.add_argument("--graphs", type=Path, required=True, help="what timm_graphs.py traced")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
    parser.add_argument("--profiles", type=Path, help="write the profiles there (default: nowhere)")
    parser.add_argument("--only", nargs="+", choices=[setting.file for setting in SETTINGS], help="files to fit")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    families = json.loads((arguments.graphs / "families.json").read_text())
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    profiles = []
    for setting in SETTINGS:
        if arguments.only and setting.file not in arguments.only:
            continue
        data, left = load_benchmark(setting, arguments.published, arguments.graphs, families)
        report, residual = report_benchmark(setting, data, developed_on(families))
        report["left_out"] = left
        roofline = fit_roofline(setting, data, np.arange(len(data.ms)))
        report["fitted"] = {
            KERNEL_CLASSES[code]: dict(zip(PER_CLASS, map(_round, roofline.values[code]), strict=True))
            for code in np.unique(data.kernels.table[:, 0]).tolist()
        }
        results[setting.file] = report
        if not setting.check:
            profiles.append(benchmark_profile(roofline, data, report, residual))
        if setting.file == "rtx3090-amp-nhwc.csv":
            report["lowformer_images_per_s"] = {
                name: {
                    "predicted": round(1000 / float(profiles[-1].latency_ms([PRESETS[name]])[0])),
                    "published_a40": a40,
                }
                for name, a40 in A40_IMAGES_PER_S.items()
            }
            anchors = load_anchors(arguments.published / ANCHORS, arguments.graphs, families)
            results[ANCHORS], small = batch1(anchors, setting, data, roofline.values)
            profiles.append(small)
            print(json.dumps({k: v for k, v in results[ANCHORS].items() if k != "anchors_held_out"}, indent=1))
        shown = ("median_error", "mape", "spearman", "families_developed_on", "other_families", "interval")
        print(setting.file, json.dumps({key: report[key] for key in shown}, indent=1), flush=True)
    arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    for predictor in profiles if arguments.profiles else ():
        print(predictor.save(arguments.profiles))


if __name__ == "__main__":
    main()
