"""From measurements of a device to its latency model, with the errors it makes on networks that it was not fitted on.

Where the runtime tells the times of single kernels, every kernel class is fitted on them and the whole networks' times
set what stands above them (`fit_kernels`, `fit_scale`); without, all classes are fitted on the whole networks at once.
Whether the learned corrections are kept is decided on folds of the samples fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ...search_space import LowFormerConfig, OpGraph, op_graph
from .fusion import fuse
from .kernel_model import KernelModel, fit_corrections, fit_graphs, fit_kernels, fit_scale
from .kernels import KERNEL_CLASS, Kernels

Array = NDArray[np.float64]

FOLDS = 8
QUIET = 0.04
"""Median over undisturbed time, and swing of the sentinel, up to which a machine counts as quiet."""
LEAST_KERNEL_MS = 0.0003
BLOCKS = (16, 8, 4, 0)
"""Channels that onnxruntime's blocked layout may have on a CPU; 0: none."""


@dataclass(frozen=True)
class Sample:
    """One measured config, as it is kept in the measurements file.

    Attributes:
        latency_ms: undisturbed time of a run.
        disturbance: how far the median was above it, relative; 0 on a quiet machine.
        kernel_ms: by "ROW:role", where the runtime tells.
    """

    config: LowFormerConfig
    latency_ms: float
    disturbance: float
    kernel_ms: Mapping[str, float] | None


@dataclass(frozen=True, eq=False)
class Probe:
    """A measured small graph of operators that the samples may lack: it teaches kernels, not whole networks.

    Attributes:
        graph: what was measured.
        kernel_ms: as in `Sample`.
    """

    graph: OpGraph
    kernel_ms: Mapping[str, float]


@dataclass(frozen=True)
class Fit:
    """A fitted model with what is known of its errors, all on graphs held out of fitting.

    Attributes:
        model: fitted on all samples.
        log_errors: (samples,) log of measured over predicted, each by a model fitted without that sample.
        held_out_error: mean absolute relative error of the same predictions.
        macs_only_error: that of a line in log MACs.
        corrected: whether the model has learned corrections.
        quiet_factor: what `quiet_factor` took off the times that other work on the machine had lengthened; 1 if none.
        typical: what the model predicts, the median of a quiet machine's runs, over the times that it was fitted on.
    """

    model: KernelModel
    log_errors: Array
    held_out_error: float
    macs_only_error: float
    corrected: bool
    quiet_factor: float
    typical: float


def merged(looks: Sequence[Sample]) -> Sample:
    """One sample from several looks at a config: the middle of the quiet ones, else the shortest of all.

    Other work on the machine only lengthens a measurement; what is left on a quiet one goes either way.
    """
    quiet = [look for look in looks if look.disturbance <= QUIET]
    if not quiet:
        latency_ms = min(look.latency_ms for look in looks)
        kernels = min((look.kernel_ms for look in looks if look.kernel_ms), key=_total, default=None)
        return Sample(looks[0].config, latency_ms, min(look.disturbance for look in looks), kernels)
    latency_ms = float(np.exp(np.mean([np.log(look.latency_ms) for look in quiet])))
    tables = [look.kernel_ms for look in quiet if look.kernel_ms]
    names = set(tables[0]).intersection(*tables) if tables else set()
    kernels = {name: float(np.exp(np.mean([np.log(table[name]) for table in tables]))) for name in sorted(names)}
    return Sample(quiet[0].config, latency_ms, float(np.mean([look.disturbance for look in quiet])), kernels or None)


def _total(kernel_ms: Mapping[str, float]) -> float:
    return sum(kernel_ms.values())


def blocked_channels(samples: Sequence[Sample]) -> int:
    """Channels of onnxruntime's blocked layout on the device: the setting whose kernels have the measured names."""
    with_kernels = [sample for sample in samples if sample.kernel_ms]
    if not with_kernels:
        return BLOCKS[0]

    def mismatches(block: int) -> int:
        return sum(
            len(set(sample.kernel_ms or ()) ^ set(_names(fuse(op_graph(sample.config), "onnxruntime", block))))
            for sample in with_kernels[:6]
        )

    return min(BLOCKS, key=mismatches)


def _names(kernels: Kernels) -> list[str]:
    return [f"{row}:{role}" for row, role in kernels.keys]


def _kernel_times(kernel_ms: Mapping[str, float], kernels: Kernels) -> Array:
    """(K,) measured time of each kernel, NaN where there is none."""
    return np.array([kernel_ms.get(name, np.nan) for name in _names(kernels)])


def fit_samples(
    samples: Sequence[Sample], runtime: str, block: int, folds: int = FOLDS, probes: Sequence[Probe] = ()
) -> Fit:
    """Fits a model, and cross-validates it, the choice of corrections included (nested).

    Args:
        samples: measured networks.
        runtime: whose kernels they ran as (`fusion.RUNTIMES`).
        block: channels of onnxruntime's blocked layout (`blocked_channels`).
        folds: into which the samples are parted.
        probes: measured small graphs, which every fold is fitted on.
    """
    data = _Data.of(samples, runtime, block, probes)
    everything = np.arange(len(samples))
    predicted, line = held_out_ms(data, folds, choose=True)
    model, corrected = _fit_with_choice(data, everything, folds)
    log_errors = np.log(data.times_ms / predicted)
    factor = quiet_factor(log_errors, data.disturbances)
    if factor < 1:
        log_errors = log_errors - np.median(log_errors)
    # What is predicted is the median of a quiet machine's runs, a little above their undisturbed time.
    typical = factor * (1 + float(np.minimum(data.disturbances, QUIET).mean()))
    model = replace(model, overhead_ms=typical * model.overhead_ms, scale=typical * model.scale)
    return Fit(
        model=model,
        log_errors=log_errors,
        held_out_error=float(np.mean(np.abs(predicted / data.times_ms - 1))),
        macs_only_error=float(np.mean(np.abs(line / data.times_ms - 1))),
        corrected=corrected,
        quiet_factor=factor,
        typical=typical,
    )


def held_out_bound(samples: Sequence[Sample], runtime: str, block: int, probes: Sequence[Probe] = ()) -> float:
    """Mean absolute relative error on held-out samples that is not exceeded with 90 % confidence (Student's t)."""
    from scipy.stats import t

    data = _Data.of(samples, runtime, block, probes)
    errors = np.abs(held_out_ms(data, FOLDS, choose=False)[0] / data.times_ms - 1)
    n = len(errors)
    return float(errors.mean() + t.ppf(0.9, n - 1) * errors.std(ddof=1) / np.sqrt(n))


@dataclass(frozen=True, eq=False)
class _Data:
    """Samples as arrays: the first `len(times_ms)` graphs are theirs, the others the probes'."""

    runtime: str
    block: int
    graphs: list[Kernels]
    kernel_times: list[Array] | None
    times_ms: Array
    disturbances: Array

    @classmethod
    def of(cls, samples: Sequence[Sample], runtime: str, block: int, probes: Sequence[Probe]) -> Self:
        graphs = [fuse(op_graph(sample.config), runtime, block) for sample in samples]
        kernel_times = None
        if all(sample.kernel_ms is not None for sample in samples):
            graphs += [fuse(probe.graph, runtime, block) for probe in probes]
            named = [sample.kernel_ms or {} for sample in samples] + [probe.kernel_ms for probe in probes]
            kernel_times = [_kernel_times(times, graph) for times, graph in zip(named, graphs, strict=True)]
        times = np.array([sample.latency_ms for sample in samples])
        disturbances = np.array([sample.disturbance for sample in samples])
        return cls(runtime, block, graphs, kernel_times, times, disturbances)


def held_out_ms(data: _Data, folds: int, *, choose: bool) -> tuple[Array, Array]:
    """(n,) times of the samples by models fitted on the other folds, and by a line in log MACs fitted on the same."""
    n = len(data.times_ms)
    macs = np.array([float(graph.column("macs").sum()) for graph in data.graphs[:n]])
    everything = np.arange(n)
    predicted, line = np.empty(n), np.empty(n)
    for k in range(min(folds, n)):
        train, test = everything[everything % folds != k], everything[everything % folds == k]
        model = _fit_with_choice(data, train, folds)[0] if choose else _fit(data, train, corrected=False)
        predicted[test] = [model.graph_ms(data.graphs[i]) for i in test]
        slope = np.polyfit(np.log(macs[train]), np.log(data.times_ms[train]), 1)
        line[test] = np.exp(np.polyval(slope, np.log(macs[test])))
    return predicted, line


def quiet_factor(log_errors: Array, disturbances: Array) -> float:
    """Factor from the typical measured time to that of a quiet machine, at most 1.

    Other work on the machine only ever lengthens a measurement (its caches and memory are shared even where its cores
    are not). On a quiet machine the errors about the model are its own, and their middle is right; the more disturbed
    the measurements, the closer to their lower edge the undisturbed time lies.

    Args:
        log_errors: (samples,) log of measured over predicted.
        disturbances: (samples,) as in `Sample`.
    """
    disturbance = float(np.median(disturbances))
    level = float(np.interp(disturbance, [0.03, 0.3], [0.5, 0.15]))
    if level >= 0.5:
        return 1.0
    return float(min(1.0, np.exp(np.quantile(log_errors, level))))


def _fit_with_choice(data: _Data, train: NDArray[np.int64], folds: int) -> tuple[KernelModel, bool]:
    """A model of the samples `train`, corrected if that helps on folds of theirs."""
    if data.kernel_times is None:
        return _fit(data, train, corrected=False), False
    inner = max(2, folds // 2)
    part = np.arange(len(train)) % inner
    errors = {False: 0.0, True: 0.0}
    for k in range(inner):
        kept, left = train[part != k], train[part == k]
        plain = _fit(data, kept, corrected=False)
        learned = _fit(data, kept, corrected=True)
        for corrected, model in ((False, plain), (True, learned)):
            errors[corrected] += sum(abs(np.log(model.graph_ms(data.graphs[i]) / data.times_ms[i])) for i in left)
    corrected = bool(errors[True] < 0.97 * errors[False])
    return _fit(data, train, corrected=corrected), corrected


def _fit(data: _Data, train: NDArray[np.int64], corrected: bool) -> KernelModel:
    mine = [data.graphs[i] for i in train]
    times = data.times_ms[train]
    weights = 1 / (0.02**2 + np.minimum(data.disturbances[train], 1.0) ** 2)
    weights /= weights.mean()
    if data.kernel_times is None:
        return fit_graphs(mine, times, data.runtime, block=data.block, weights=weights)
    networks = len(times)
    graphs = mine + data.graphs[len(data.times_ms) :]
    raw = [data.kernel_times[i] for i in train] + data.kernel_times[len(data.times_ms) :]
    extra = profiling_ms(raw[:networks], times)
    kernel_times = [np.maximum(t - extra, LEAST_KERNEL_MS) for t in raw]
    # A probe's kernels count as if they stood in a network of the usual size.
    totals = np.array([np.nansum(t) for t in kernel_times])
    totals[networks:] = np.maximum(totals[networks:], np.median(totals[:networks]))
    slowdowns = np.ones(len(graphs))
    # Other work on the machine slows all kernels of a graph by one factor, which would else pass for their own.
    for _ in range(2):
        model = fit_kernels(graphs, kernel_times, data.runtime, block=data.block, slowdowns=slowdowns, totals_ms=totals)
        factors = [_common_factor(model, g, t) for g, t in zip(mine, kernel_times, strict=False)]
        slowdowns[:networks] = np.array(factors) / np.median(factors)
    if corrected:
        model = fit_corrections(model, graphs, kernel_times, slowdowns=slowdowns)
    return fit_scale(model, mine, times, weights)


def profiling_ms(kernel_times: Sequence[Array], times_ms: Array) -> float:
    """What the profiler adds to every kernel: by how much their sum exceeds the unprofiled network, per kernel.

    Args:
        kernel_times: for each network the times of its kernels under the profiler, NaN where unknown.
        times_ms: (n,) of the networks without it.
    """
    sums = np.array([np.nansum(t) for t in kernel_times])
    counts = np.array([float(np.isfinite(t).sum()) for t in kernel_times])
    # times = scale * sums - extra * counts, in relative errors, with what is expected of both as two more equations.
    error, expected, spread = 0.03, 0.002, 0.0015
    design: Array = np.stack([sums, -counts], axis=1) / times_ms[:, None] / error
    prior = np.diag([1 / 0.02, 1 / spread])
    trust = np.ones(len(times_ms))
    solution = np.array([1.0, expected])
    for _ in range(20):
        root = np.sqrt(trust)
        matrix = np.concatenate([design * root[:, None], prior])
        values = np.append(root / error, np.array([1 / 0.02, expected / spread]))
        solution = np.linalg.lstsq(matrix, values, rcond=None)[0]
        errors = np.abs(error * (design @ solution) - 1)
        trust = np.minimum(1, 2 * (np.median(errors) + 1e-4) / np.maximum(errors, 1e-12))
    return float(max(0.0, solution[1]))


def _common_factor(model: KernelModel, graph: Kernels, times_ms: Array) -> float:
    """Median of measured over modelled kernel times, each weighted by its share of the graph's time."""
    fitted = model.kernel_ms(graph)
    known = np.isfinite(times_ms) & (fitted > 0) & (graph.column("class") != KERNEL_CLASS["other"])
    ratios, shares = times_ms[known] / fitted[known], fitted[known]
    order = np.argsort(ratios)
    middle = np.searchsorted(np.cumsum(shares[order]), shares.sum() / 2)
    return float(ratios[order][min(middle, len(order) - 1)])
