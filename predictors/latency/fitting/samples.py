"""What was measured of a device: whole networks, and small graphs of operators that the networks lack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ....search_space import LowFormerConfig, OpGraph, op_graph
from ..fusion import fuse
from ..kernel_terms import Array
from ..kernels import Kernels
from ..runtimes import runtime_of_fusion

QUIET_DISTURBANCE = 0.04
"""Relative excess of the median over the undisturbed time, up to which a machine counts as quiet."""
BLOCK_SIZE_SAMPLES = 6
"""Networks by whose kernels the blocked layout of a device is recognized."""


@dataclass(frozen=True)
class Sample:
    """A measured configuration: one measurement, or several merged into one.

    Attributes:
        config: what was measured.
        latency_ms: undisturbed time of a run.
        disturbance: how far the median was above it, relative; 0 on a quiet machine.
        kernel_ms: times of kernels by "ROW:ROLE" (`Kernels.keys`), where the runtime reports them.
    """

    config: LowFormerConfig
    latency_ms: float
    disturbance: float
    kernel_ms: Mapping[str, float] | None


@dataclass(frozen=True, eq=False)
class Probe:
    """A measured small graph of operators that the samples may lack. It teaches kernels, not whole networks.

    Attributes:
        graph: what was measured.
        kernel_ms: as in `Sample`.
    """

    graph: OpGraph
    kernel_ms: Mapping[str, float]


def merged(measurements: Sequence[Sample]) -> Sample:
    """One sample from several measurements of a configuration.

    It is the geometric mean of those on a quiet machine, whose errors go either way. Without any it is the shortest:
    other work on the machine only lengthens a measurement.
    """
    quiet = [measurement for measurement in measurements if measurement.disturbance <= QUIET_DISTURBANCE]
    if not quiet:
        latency_ms = min(measurement.latency_ms for measurement in measurements)
        tables = [measurement.kernel_ms for measurement in measurements if measurement.kernel_ms]
        shortest = min(tables, key=lambda table: sum(table.values()), default=None)
        disturbance = min(measurement.disturbance for measurement in measurements)
        return Sample(measurements[0].config, latency_ms, disturbance, shortest)
    latency_ms = float(np.exp(np.mean([np.log(measurement.latency_ms) for measurement in quiet])))
    tables = [measurement.kernel_ms for measurement in quiet if measurement.kernel_ms]
    names = set(tables[0]).intersection(*tables) if tables else set()
    kernel_ms = {name: float(np.exp(np.mean([np.log(table[name]) for table in tables]))) for name in sorted(names)}
    disturbance = float(np.mean([measurement.disturbance for measurement in quiet]))
    return Sample(quiet[0].config, latency_ms, disturbance, kernel_ms or None)


def block_size(samples: Sequence[Sample], fusion: str = "onnxruntime") -> int:
    """Channels of the runtime's blocked layout on the device: the choice whose kernels have the names measured.

    Args:
        samples: measured networks; without kernel times the runtime's first choice is taken.
        fusion: the fusion rules by which they ran (`Target.fusion`).
    """
    choices = runtime_of_fusion(fusion).block_sizes(fusion)
    with_kernels = [sample for sample in samples if sample.kernel_ms]
    if not with_kernels or len(choices) == 1:
        return choices[0]

    def mismatches(block: int) -> int:
        return sum(
            len(set(sample.kernel_ms or ()) ^ set(kernel_names(fuse(op_graph(sample.config), fusion, block))))
            for sample in with_kernels[:BLOCK_SIZE_SAMPLES]
        )

    return min(choices, key=mismatches)


def kernel_names(kernels: Kernels) -> list[str]:
    """(K,) "ROW:ROLE" of each kernel, as measurements name them."""
    return [f"{row}:{role}" for row, role in kernels.keys]


def kernel_times_ms(kernel_ms: Mapping[str, float], kernels: Kernels) -> Array:
    """(K,) measured time of each kernel, NaN where there is none."""
    return np.array([kernel_ms.get(name, np.nan) for name in kernel_names(kernels)])
