"""Which kernels a runtime executes for an operator graph or a configuration; the rules are in `runtimes`.

Fusion never reaches across a unit's end (`search_space.units`) except through the layout of the tensor handed on, so a
graph's kernels are its units' kernels, given the layout in which each unit's input arrives.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...search_space.config import LowFormerConfig
from ...search_space.graph import OpGraph
from ...search_space.graph.from_config import units
from ...search_space.units import Unit, unit_graph
from .kernels import PLAIN, ROW, Kernels
from .runtimes import Runtime, runtime_of_fusion


def fuse(graph: OpGraph, fusion: str, block: int = 16) -> Kernels:
    """The kernels that are executed for `graph`.

    Args:
        graph: any operator graph.
        fusion: the name of a runtime, or of its fusion rules at some precision (`runtimes.fusion_names()`).
        block: channels of onnxruntime's blocked layout on the device; 0 where it has none. Other runtimes ignore it.

    Raises:
        ValueError: no runtime of that name.
    """
    return runtime_of_fusion(fusion).fuse(graph, fusion, block, PLAIN)[0]


def fuse_config(config: LowFormerConfig, fusion: str, block: int = 16) -> Kernels:
    """`fuse(op_graph(config), ...)` through the cached kernels of its units; the order of rows may differ."""
    layout, start, tables = PLAIN, 0, []
    for unit in units(config):
        kernels, layout = fuse_unit(unit, fusion, block, layout)
        table = kernels.table.copy()
        table[:, ROW] += start
        tables.append(table)
        start += len(unit_graph(unit))
    return Kernels(np.concatenate(tables))


def fuse_unit(unit: Unit, fusion: str, block: int, layout: int) -> tuple[Kernels, int]:
    """The kernels of one unit whose input arrives in `layout`, and the layout of its output."""
    return _fused_unit(runtime_of_fusion(fusion), unit, fusion, block, layout)


@lru_cache(maxsize=65536)
def _fused_unit(runtime: Runtime, unit: Unit, fusion: str, block: int, layout: int) -> tuple[Kernels, int]:
    """As `fuse_unit`, kept by the runtime itself: another one may be registered by the same name later."""
    return runtime.fuse(unit_graph(unit), fusion, block, layout)
