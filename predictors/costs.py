"""Multiply-accumulates and parameters of many configurations, through the cached costs of their units."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..search_space.config import LowFormerConfig
from ..search_space.graph.from_config import units
from ..search_space.units import Unit, unit_graph

Floats = NDArray[np.float64]


@lru_cache(maxsize=65536)
def unit_macs(unit: Unit) -> int:
    """Multiply-accumulates of one unit."""
    return unit_graph(unit).macs


@lru_cache(maxsize=65536)
def _unit_params(unit: Unit) -> int:
    return unit_graph(unit).params


def total_macs(configs: Sequence[LowFormerConfig]) -> Floats:
    """(n,) MACs of `configs` at their own resolution, tens of thousands a second once their units have been seen."""
    return np.array([sum(map(unit_macs, units(config))) for config in configs], dtype=np.float64)


def total_params(configs: Sequence[LowFormerConfig]) -> Floats:
    """(n,) parameters as trained, BatchNorm included."""
    return np.array([sum(map(_unit_params, units(config))) for config in configs], dtype=np.float64)


@contextmanager
def garbage_collector_paused() -> Iterator[None]:
    """Pauses the garbage collector, which would search again and again what bulk prediction allocates and keeps."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
