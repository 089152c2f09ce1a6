"""Peak memory of an inference: the weights, and the activations that are alive at once.

Operators run in the order of the graph, one after the other; a tensor lives from the operator that writes it to the
last one that reads it; pointwise operators write over an input that nobody reads afterwards. A runtime needs more (its
own code, workspaces): onnxruntime on a CPU took 0.77 to 1.48 times the estimate, 1.16 in the median of 32 networks
(experiments/memory/).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..search_space.config import LowFormerConfig
from ..search_space.graph import COLUMN, GRAPH_INPUT, KINDS, OpGraph
from ..search_space.graph.from_config import units
from ..search_space.units import Unit, unit_graph

BYTES: dict[str, tuple[int, int]] = {"fp32": (4, 4), "fp16": (2, 2), "bf16": (2, 2), "amp": (4, 2), "int8": (1, 1)}
"""Bytes of a weight and of an element of an activation, by precision; "amp" keeps its weights in fp32."""
THROUGHPUT_BATCH = 256
"""Images at a time where a target says "as many as fit": what the published throughputs were measured with, see
experiments/published/."""
IN_PLACE = frozenset(
    {"hardswish", "gelu", "relu", "sigmoid", "silu", "hardsigmoid", "tanh", "add", "mul", "batch_norm"}
)
"""Operators that may write over one of their inputs."""


def peak_activations(graph: OpGraph) -> int:
    """The most elements alive at once for one image, those of the graph's input and output included."""
    sources = graph.inputs_of()
    last_use = {source: row for row, feeding in enumerate(sources) for source in feeding}
    first = graph.table[0]
    size = {GRAPH_INPUT: int(first[COLUMN["cin"]] * first[COLUMN["hin"]] * first[COLUMN["win"]])}
    alive = {GRAPH_INPUT}
    peak = current = size[GRAPH_INPUT]
    for row, written in enumerate(graph.column("outputs").tolist()):
        size[row] = written
        ending = {source for source in sources[row] if last_use[source] == row and source in alive}
        over = KINDS[graph.table[row, COLUMN["kind"]]] in IN_PLACE and any(size[source] == written for source in ending)
        current += written
        peak = max(peak, current - (written if over else 0))
        current -= sum(size[source] for source in ending)
        alive = (alive - ending) | {row}
    return peak


@lru_cache(maxsize=65536)
def _unit_memory(unit: Unit) -> tuple[int, int]:
    """Peak activations and weights of one unit, in elements.

    Between units one tensor is alive, so a network's peak is the largest of its units' peaks.
    """
    graph = unit_graph(unit)
    return peak_activations(graph), int(graph.column("weights").sum())


def peak_memory_bytes(
    configs: Sequence[LowFormerConfig], precision: str = "fp32", batch: int | None = 1
) -> NDArray[np.float64]:
    """(n,) bytes of weights and of the activations of `batch` images (None: `THROUGHPUT_BATCH`), at a precision.

    Raises ValueError for a precision that is not in `BYTES`.
    """
    if precision not in BYTES:
        raise ValueError(f"precision: one of {sorted(BYTES)}, given {precision!r}")
    parts = [[_unit_memory(unit) for unit in units(config)] for config in configs]
    activations = (batch or THROUGHPUT_BATCH) * np.array([max(peak for peak, _ in part) for part in parts], np.float64)
    weights = np.array([sum(weights for _, weights in part) for part in parts], np.float64)
    per_weight, per_activation = BYTES[precision]
    return per_weight * weights + per_activation * activations
