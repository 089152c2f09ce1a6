"""Fits one model to measured networks: robust to other work on the machine, and freed of what profiling adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from ....search_space import op_graph
from ..fusion import fuse
from ..kernel_model import KernelModel
from ..kernel_terms import Array
from ..kernels import KERNEL_CLASS, KERNEL_CLASSES, Kernels
from ..runtimes import runtime_of_fusion
from .corrections import fit_corrections
from .kernel_times import fit_kernels
from .samples import Probe, Sample, kernel_times_ms
from .whole_graphs import fit_graphs, fit_launches, fit_scale

LEAST_ERROR = 0.02
"""Relative error that a network's time has for the model anyway; what looks do not repeat adds to it."""
Form = Literal["kernels", "corrected", "refined"]
FORMS: tuple[Form, ...] = get_args(Form)
"""How a model is fitted: to the times of kernels; with learned corrections of these; or its coefficients are refined by
the times of whole networks, which tell more where kernels take microseconds, as the profiler counts in these."""
REFINED_PULL = 0.05
"""Strength of the pull to the coefficients of kernels, where whole networks refine them (`fit_graphs`)."""
PROFILED_UNCERTAINTY_MS = 0.0015
"""What the time of a single kernel is uncertain by, as what the profiler adds is not the same for all."""
MIN_KERNEL_MS = 0.0003
"""Time that a kernel takes at least, once what the profiler adds has been taken off."""
SLOWDOWN_ROUNDS = 2
"""Fits of the kernels, between which the slowdown of each network is estimated anew."""

NETWORK_ERROR = 0.03
"""Relative error of a network's time as the sum of its kernels."""
PROFILED_SCALE = (1.0, 0.02)
"""Mean and standard deviation expected of a network's time over the sum of its kernels' true times."""
PROFILER_MS = (0.002, 0.0015)
"""Mean and standard deviation expected of the time that the profiler adds to a node, ms."""
REWEIGHTINGS = 20
"""Rounds of least squares, between which the weights of outliers are lowered."""
OUTLIER_MEDIANS = 2.0
"""Errors above so many median errors count less."""


@dataclass(frozen=True, eq=False)
class MeasuredNetworks:
    """Measured networks and probes as arrays, of which any part can be fitted.

    Attributes:
        fusion, block: as in `KernelModel`.
        graphs: kernels of the n networks, then those of the probes.
        kernel_times: for each graph the measured times of its kernels, NaN where unknown; None without any.
        times_ms: (n,) of the networks.
        repeatabilities: (n,) as in `Sample`.
        within_space: whether only networks like these will be predicted.
        kept: as in `KernelModel`.
    """

    fusion: str
    block: int
    graphs: list[Kernels]
    kernel_times: list[Array] | None
    times_ms: Array
    repeatabilities: Array
    within_space: bool = False
    kept: int = 0

    @classmethod
    def of(
        cls, samples: Sequence[Sample], fusion: str, block: int, probes: Sequence[Probe], *, within_space: bool = False
    ) -> Self:
        """The arrays for samples and probes. Probes are left out if the samples have no kernel times."""
        graphs = [fuse(op_graph(sample.config), fusion, block) for sample in samples]
        kernel_times = None
        if all(sample.kernel_ms is not None for sample in samples):
            graphs += [fuse(probe.graph, fusion, block) for probe in probes]
            named = [sample.kernel_ms or {} for sample in samples] + [probe.kernel_ms for probe in probes]
            kernel_times = [kernel_times_ms(times, graph) for times, graph in zip(named, graphs, strict=True)]
        times = np.array([sample.latency_ms for sample in samples])
        repeatabilities = np.array([sample.repeatability for sample in samples])
        return cls(fusion, block, graphs, kernel_times, times, repeatabilities, within_space)

    def fit(self, train: NDArray[np.int64], form: Form = "kernels") -> KernelModel:
        """A model of the networks `train` (indices) and of all probes, in one of the `FORMS`."""
        graphs, times = [self.graphs[i] for i in train], self.times_ms[train]
        weights = 1 / (LEAST_ERROR**2 + np.minimum(self.repeatabilities[train], 1.0) ** 2)
        weights /= weights.mean()
        if self.kernel_times is None:
            return fit_graphs(graphs, times, self.fusion, block=self.block, weights=weights)
        model = self._fit_kernels(train, self.kernel_times, corrected=form == "corrected")
        scaled = fit_launches(fit_scale(model, graphs, times, weights), graphs, times, weights)
        if form != "refined":
            return scaled
        refined = fit_graphs(
            graphs,
            times,
            self.fusion,
            block=self.block,
            sharpness=scaled.sharpness,
            prior=scaled,
            strength=REFINED_PULL,
            weights=weights,
            kept=self.kept,
        )
        return replace(refined, counts=scaled.counts, low=scaled.low, high=scaled.high)  # what is known of the probes

    def probe_errors(self, model: KernelModel) -> Array:
        """(probes,) log of modelled over measured time of all kernels of each probe."""
        found = zip(self.graphs[len(self.times_ms) :], (self.kernel_times or [])[len(self.times_ms) :], strict=True)
        sums = [(model.kernel_ms(graph)[np.isfinite(times)].sum(), np.nansum(times)) for graph, times in found]
        return np.array([np.log(modelled / measured) for modelled, measured in sums if modelled > 0 and measured > 0])

    def _fit_kernels(self, train: NDArray[np.int64], kernel_times: list[Array], *, corrected: bool) -> KernelModel:
        """A model of the kernels' times, whose scale is still to be fitted."""
        mine = [self.graphs[i] for i in train]
        graphs = mine + self.graphs[len(self.times_ms) :]
        raw = [kernel_times[i] for i in train] + kernel_times[len(self.times_ms) :]
        networks = len(train)
        of_class = profiled_nodes(self.fusion)
        nodes = [of_class[graph.column("class")] for graph in graphs]
        added_ms = profiling_ms(raw[:networks], nodes[:networks], self.times_ms[train])
        times = [np.maximum(t - added_ms * count, MIN_KERNEL_MS) for t, count in zip(raw, nodes, strict=True)]
        # A probe's kernels count as if they stood in a network of the usual size.
        totals = np.array([np.nansum(t) for t in times])
        totals[networks:] = np.maximum(totals[networks:], np.median(totals[:networks]))
        slowdowns = np.ones(len(graphs))
        # Other work on the machine slows all kernels of a graph by one factor, which must not pass for their own time.
        for _ in range(SLOWDOWN_ROUNDS):
            model = fit_kernels(
                graphs,
                times,
                self.fusion,
                block=self.block,
                slowdowns=slowdowns,
                totals_ms=totals,
                uncertainty_ms=PROFILED_UNCERTAINTY_MS,
                kept=self.kept,
            )
            factors = [_common_factor(model, graph, t) for graph, t in zip(mine, times, strict=False)]
            slowdowns[:networks] = np.array(factors) / np.median(factors)
        return fit_corrections(model, graphs, times, slowdowns=slowdowns) if corrected else model


def profiled_nodes(fusion: str) -> Array:
    """(len(KERNEL_CLASSES),) nodes that the profiler sees of a kernel of each class (`Runtime.profiled_nodes`)."""
    counts = runtime_of_fusion(fusion).profiled_nodes(fusion)
    return np.array([float(counts.get(name, 1)) for name in KERNEL_CLASSES])


def profiling_ms(kernel_times: Sequence[Array], nodes: Sequence[Array], times_ms: Array) -> float:
    """The time that the profiler adds to every node, from the excess of their sum over the unprofiled network.

    Args:
        kernel_times: for each network the times of its kernels under the profiler, NaN where unknown.
        nodes: for each graph the nodes that its kernels are profiled as.
        times_ms: (n,) times of the networks without the profiler.
    """
    sums = np.array([np.nansum(t) for t in kernel_times])
    counts = np.array([count[np.isfinite(t)].sum() for t, count in zip(kernel_times, nodes, strict=True)])
    # times = scale * sums - added * counts, in relative errors, with a prior of each unknown as one more equation.
    design: Array = np.stack([sums, -counts], axis=1) / times_ms[:, None] / NETWORK_ERROR
    (scale, scale_spread), (added_ms, added_spread) = PROFILED_SCALE, PROFILER_MS
    prior = np.diag([1 / scale_spread, 1 / added_spread])
    trust = np.ones(len(times_ms))
    solution = np.array([scale, added_ms])
    for _ in range(REWEIGHTINGS):
        root = np.sqrt(trust)
        matrix = np.concatenate([design * root[:, None], prior])
        values = np.append(root / NETWORK_ERROR, np.array([scale / scale_spread, added_ms / added_spread]))
        solution = np.linalg.lstsq(matrix, values, rcond=None)[0]
        errors = np.abs(NETWORK_ERROR * (design @ solution) - 1)
        trust = np.minimum(1, OUTLIER_MEDIANS * (np.median(errors) + 1e-4) / np.maximum(errors, 1e-12))
    return float(max(0.0, solution[1]))


def _common_factor(model: KernelModel, graph: Kernels, times_ms: Array) -> float:
    """The median of measured over modelled kernel times, weighted by the kernels' shares of the graph's time."""
    fitted = model.kernel_ms(graph)
    known = np.isfinite(times_ms) & (fitted > 0) & (graph.column("class") != KERNEL_CLASS["other"])
    ratios, shares = times_ms[known] / fitted[known], fitted[known]
    order = np.argsort(ratios)
    middle = np.searchsorted(np.cumsum(shares[order]), shares.sum() / 2)
    return float(ratios[order][min(middle, len(order) - 1)])
