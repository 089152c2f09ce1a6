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
from ..undisturbed import Look, undisturbed

BLOCK_SIZE_SAMPLES = 6
"""Networks by whose kernels the blocked layout of a device is recognized."""


@dataclass(frozen=True)
class Sample:
    """A measured configuration, from all looks at it.

    Attributes:
        config: what was measured.
        latency_ms: undisturbed time of a run.
        repeatability: its relative standard error over looks.
        kernel_ms: times of kernels by "ROW:ROLE" (`Kernels.keys`), where the runtime reports them.
    """

    config: LowFormerConfig
    latency_ms: float
    repeatability: float
    kernel_ms: Mapping[str, float] | None


@dataclass(frozen=True)
class ConfigLook:
    """One look at a configuration.

    Attributes:
        config, kernel_ms: as in `Sample`.
        look: how long it took, and how fast the machine was meanwhile.
    """

    config: LowFormerConfig
    look: Look
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


def merged(looks: Sequence[ConfigLook], reference_ms: float | None, uneven: float = 1.0) -> Sample:
    """One sample from the looks at a configuration; its kernels' times are put together as its own are.

    `reference_ms` is the sentinel's undisturbed latency, `uneven` how uneven looks are on this machine
    (`undisturbed.unevenness`).
    """
    found = undisturbed([each.look for each in looks], reference_ms, uneven)
    known = [number for number, each in enumerate(looks) if each.kernel_ms]
    tables = [looks[number].kernel_ms or {} for number in known]
    names = set(tables[0]).intersection(*tables) if tables else set()

    def mean_ms(name: str) -> float:
        logs = np.log([table[name] for table in tables]) + np.log(found.factors[known])
        return float(np.exp(np.average(logs, weights=found.weights[known])))

    kernel_ms = {name: mean_ms(name) for name in sorted(names)}
    return Sample(looks[0].config, found.latency_ms, found.repeatability, kernel_ms or None)


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
