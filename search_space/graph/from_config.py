"""The operator graph of a configuration: its units in order, and their operators joined into one graph.

No forward pass and no torch: what a unit's operators are is cached, and a whole graph is a concatenation of cached
tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config import LowFormerConfig
from ..heads import head
from ..units import Unit, backbone, unit_graph
from .operators import OpGraph


def units(config: LowFormerConfig) -> list[Unit]:
    """Gives the units of a configuration in order, those of its head included.

    Raises ValueError if its head is not registered.
    """
    sections = backbone(config)
    result: list[Unit] = []
    for section in sections:
        result += section.units
    last = sections[-1]
    result += head(config.head).units(config, last.width, last.size)
    return result


def op_graph(config: LowFormerConfig) -> OpGraph:
    """Gives the operator graph of a configuration, for one image.

    Raises ValueError if its head is not registered.
    """
    return joined(units(config))


def joined(sequence: Sequence[Unit]) -> OpGraph:
    """Gives the operator graph of units that follow each other, of which there is at least one."""
    parts = [unit_graph(unit) for unit in sequence]
    table = np.concatenate([part.table for part in parts])
    edges = np.concatenate([part.edges for part in parts])
    # A unit's input (-1) is the last row of the unit before it, which is exactly -1 + the row where the unit starts.
    starts = np.cumsum([0] + [len(part.table) for part in parts[:-1]], dtype=np.int32)
    edges += np.repeat(starts, [len(part.edges) for part in parts])[:, None]
    return OpGraph(table, edges)
