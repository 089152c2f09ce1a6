"""Bulk prediction of configurations: what their units cost is kept between calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...search_space.config import LowFormerConfig
from ...search_space.graph.from_config import units
from ...search_space.units import Unit
from ..costs import garbage_collector_paused
from .fusion import fuse_unit
from .kernel_model import KernelModel
from .kernel_terms import cold_share
from .kernels import KERNEL_CLASSES, PLAIN, Kernels


class UnitCosts:
    """Predicts whole configurations by one model from the cached costs of their units, tens of thousands a second.

    Attributes:
        model: the latency model.
    """

    def __init__(self, model: KernelModel) -> None:
        self.model = model
        # By layout of the input: unit -> (its place in the arrays below, layout of its output).
        self._known: defaultdict[int, dict[Unit, tuple[int, int]]] = defaultdict(dict)
        self._ms = np.empty(0)
        self._cold_ms = np.empty(0)  # what is added where all weights are read from memory
        self._weights = np.empty(0)
        self._outside = np.empty(0, dtype=np.uint64)
        self._names: dict[int, tuple[str, ...]] = {}
        self._new: list[Kernels] = []

    def graphs(self, configs: Sequence[LowFormerConfig]) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
        """(n,) times of whole networks, and (n,) which of their kernels the model was not fitted on (`names`)."""
        if not configs:
            return np.empty(0), np.empty(0, dtype=np.uint64)
        known = self._known
        rows: list[int] = []
        starts: list[int] = []
        with garbage_collector_paused():
            for config in configs:
                layout, of_layout = PLAIN, known[PLAIN]
                starts.append(len(rows))
                for unit in units(config):
                    entry = of_layout.get(unit)
                    if entry is None:
                        entry = self._add(unit, layout)
                    row, after = entry
                    if after != layout:
                        layout, of_layout = after, known[after]
                    rows.append(row)
        self._cost_new()
        sums = np.add.reduceat(self._ms[rows], starts)
        if self.model.kept:
            share = cold_share(np.add.reduceat(self._weights[rows], starts), self.model.kept)
            sums += share * np.add.reduceat(self._cold_ms[rows], starts)
        outside = np.bitwise_or.reduceat(self._outside[rows], starts)
        return self.model.overhead_ms + self.model.scale * sums, outside

    def names(self, outside: int) -> tuple[str, ...]:
        """The kernel classes that a number from `graphs` stands for, as `KernelModel.outside` gives them."""
        if outside not in self._names:
            codes = [code for code in range(len(KERNEL_CLASSES)) if outside >> code & 1]
            self._names[outside] = tuple(map(self.model.outside_name, codes))
        return self._names[outside]

    def _add(self, unit: Unit, layout: int) -> tuple[int, int]:
        """Adds a unit whose input arrives in `layout`. Returns its place and the layout of its output."""
        kernels, after = fuse_unit(unit, self.model.fusion, self.model.block, layout)
        entry = len(self._ms) + len(self._new), after
        self._known[layout][unit] = entry
        self._new.append(kernels)
        return entry

    def _cost_new(self) -> None:
        """Computes the costs of all units added since the last call, at once."""
        if not self._new:
            return
        new, self._new = self._new, []
        kernels = Kernels(np.concatenate([unit.table for unit in new]))
        owner = np.repeat(np.arange(len(new)), [len(unit) for unit in new])
        codes = kernels.column("class")
        unseen, shape = self.model.extrapolated(kernels)
        outside = np.zeros(len(new), dtype=np.uint64)
        for code in np.unique(codes[unseen | shape]).tolist():
            outside[np.unique(owner[(unseen | shape) & (codes == code)])] |= np.uint64(1 << code)

        def summed(values: NDArray[Any]) -> NDArray[np.float64]:
            return np.bincount(owner, values, minlength=len(new)).astype(np.float64)

        warm_ms = self.model.kernel_ms(kernels, 0.0)
        self._ms = np.append(self._ms, summed(warm_ms))
        self._cold_ms = np.append(self._cold_ms, summed(self.model.kernel_ms(kernels, 1.0) - warm_ms))
        self._weights = np.append(self._weights, summed(kernels.column("weights")))
        self._outside = np.append(self._outside, outside)
