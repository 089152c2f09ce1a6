"""Reads the published measurements, each with the kernels that its traced network runs.

A `Benchmark` is one of timm's files (ms per image at a batch size); the `Anchors` are the batch-1 latencies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from benchmark_settings import Setting
from kinds import kind_of
from numpy.typing import NDArray
from timm_graphs import BENCHMARKS, anchor_rows, benchmark_rows, load_graph

from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernels import KERNEL_COLUMN
from lownas.search_space.graph import OpGraph

Array = NDArray[np.float64]


@dataclass(frozen=True)
class KernelCounts:
    """The kernels of several models, equal ones of a model in one row.

    Attributes:
        table: (rows, columns) kernels, with the columns of `KERNEL_COLUMN`.
        model: (rows,) number of the model that runs the kernel.
        count: (rows,) how often the model runs it.
        models: Number of models.
    """

    table: NDArray[np.int64]
    model: NDArray[np.int64]
    count: Array
    models: int

    def total(self, kernel_ms: Array) -> Array:
        """(models,) sums of the kernels' times (rows,)."""
        return np.asarray(np.bincount(self.model, kernel_ms * self.count, minlength=self.models), dtype=np.float64)

    def only(self, wanted: NDArray[np.int64]) -> KernelCounts:
        """The models `wanted`, renumbered in that order."""
        number = np.full(self.models, -1)
        number[wanted] = np.arange(len(wanted))
        kept = number[self.model] >= 0
        return KernelCounts(self.table[kept], number[self.model[kept]], self.count[kept], len(wanted))


def count_kernels(graphs: Sequence[OpGraph], runtime: str) -> KernelCounts:
    """Fuses each graph by the rules of `runtime` and counts equal kernels."""
    tables, models, counts = [], [], []
    for number, graph in enumerate(graphs):
        table = fuse(graph, runtime).table.copy()
        table[:, KERNEL_COLUMN["row"]] = 0
        rows, count = np.unique(table, axis=0, return_counts=True)
        tables.append(rows)
        models.append(np.full(len(rows), number))
        counts.append(count)
    return KernelCounts(
        np.concatenate(tables), np.concatenate(models), np.concatenate(counts).astype(float), len(graphs)
    )


@dataclass(frozen=True)
class Benchmark:
    """The measurements of one of timm's benchmark files: published ms per image, and the batch size of each."""

    names: list[str]
    families: NDArray[np.str_]
    kernels: KernelCounts
    macs: Array
    batch: Array
    ms: Array

    @cached_property
    def kinds(self) -> NDArray[np.str_]:
        """(models,) the kind of each (`kinds.py`)."""
        return np.array([kind_of(name, family) for name, family in zip(self.names, self.families, strict=True)])


def load_benchmark(
    setting: Setting, published: Path, cache: Path, families: dict[str, str]
) -> tuple[Benchmark, dict[str, int]]:
    """Rows with a traced graph whose parameters are those of the row, and how many were left out and why."""
    left_out = Counter[str]()
    rows = []
    for model, row in benchmark_rows(published / setting.file):
        graph = load_graph(model, cache, BENCHMARKS[setting.file])
        if graph is None:
            left_out["not traced"] += 1
        elif abs(graph.params / 1e6 - row["param_count"]) > 0.02 + 0.003 * row["param_count"]:
            left_out["parameters differ from the row's: the model has changed since"] += 1
        else:
            rows.append((model.name, graph, row["infer_batch_size"], row["infer_step_time"]))
    batch = np.array([row[2] for row in rows])
    data = Benchmark(
        [row[0] for row in rows],
        np.array([families[row[0]] for row in rows]),
        count_kernels([row[1] for row in rows], setting.runtime),
        np.array([row[1].macs for row in rows], dtype=float),
        batch,
        np.array([row[3] for row in rows]) / batch,
    )
    return data, dict(left_out)


@dataclass(frozen=True)
class Anchors:
    """Published batch-1 latencies. `static` is 1 for engines built for the one input size that was timed."""

    names: list[str]
    families: NDArray[np.str_]
    kernels: KernelCounts
    macs: Array
    ms: Array
    static: Array
    sources: list[str]


def load_anchors(path: Path, cache: Path, families: dict[str, str]) -> Anchors:
    """All batch-1 latencies of the file.

    Raises:
        SystemExit: If a network has not been traced.
    """
    rows = anchor_rows(path)
    graphs = [load_graph(model, cache, "compiled") for model, _, _ in rows]
    missing = [model.key for (model, _, _), graph in zip(rows, graphs, strict=True) if graph is None]
    if missing:
        raise SystemExit(f"not traced: {', '.join(missing)}; run timm_graphs.py")
    present = [graph for graph in graphs if graph is not None]
    return Anchors(
        [model.key for model, _, _ in rows],
        np.array([families[model.name] for model, _, _ in rows]),
        count_kernels(present, "tensorrt"),
        np.array([graph.macs for graph in present], dtype=float),
        np.array([ms for _, ms, _ in rows]),
        np.array([float(not source.startswith("WillBrennan")) for _, _, source in rows]),
        [source for _, _, source in rows],
    )
