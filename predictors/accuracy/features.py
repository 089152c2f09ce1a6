"""What the accuracy prior looks at: where a network spends its compute, from its operator graph or its configuration.

The same numbers come from the operator graph of any network (`graph_features`), by which the prior was fitted on
other families, and in bulk from configurations (`ConfigFeatures`). What sees a single position only, after pooling, is
left out.

A layer with a kernel of k x k counts a k-th of its multiply-accumulates and weights. That is between counting all of
them and counting those of a 1x1 layer of the same channels, and explains published accuracies better than either
(experiments/prior/).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...search_space.config import LowFormerConfig
from ...search_space.graph.operators import COLUMN, KIND, OpGraph
from ...search_space.heads import head
from ...search_space.units import Unit, backbone, unit_graph
from ..costs import garbage_collector_paused

Floats = NDArray[np.float64]

REFERENCE_RESOLUTION = 224
MAIN: tuple[str, ...] = ("compute", "parameters", "resolution", "spatial layers", "few parameters")
"""ln of GMACs / k, ln of millions of weights / k, ln of resolution / 224, ln(1 + layers that look at more than one
position: kernels larger than 1x1, attention), squared distance of "parameters" from `TYPICAL_PARAMETERS`."""
SIDE: tuple[str, ...] = (
    "early compute",
    "compute at stride 8",
    "compute at stride 32",
    "attention",
    "depthwise",
    "dense kernels",
    "grouped",
    "width",
    "activations",
    "layers at stride 16",
    "layers at stride 32",
)
"""Shares of MACs / k at strides up to 4, 8, 32 and more; share of MACs in attention's products, square root of that in
depthwise layers, shares in dense layers with kernels larger than 1x1 and in grouped ones; mean ln of channels; ln of
millions of elements that layers write; ln(1 + layers) at strides 16, 32 and more."""
NAMES = MAIN + SIDE
TYPICAL_PARAMETERS = 3.0
"""ln of millions of weights / k around which "few parameters" is squared."""
MOST_SQUARED = 12.0
"""What "few parameters" is at most: no family that was fitted on shows how the curve goes on."""
STRIDE_ENDS = (5.66, 11.31, 22.63)
"""Strides between those that count as up to 4, 8, 16, 32: the geometric means."""
KERNEL_POWER = 0.5
"""Of a kernel's area, by which a layer's compute and weights are divided."""
HEAD = 5
"""The head's place, after the stem and four stages."""

# Sums over layers, from which the features follow.
_SUMS = (
    *("macs", "early", "at_8", "at_16", "at_32", "weights", "spatial", "attention", "depthwise", "dense", "grouped"),
    *("log_width", "full_layers", "written", "layers_16", "layers_32"),
)
_PLACE = {name: place for place, name in enumerate(_SUMS)}


def graph_features(graph: OpGraph, resolution: int, power: float = KERNEL_POWER) -> Floats:
    """(features,) of a network's operator graph for square images of that many pixels, in the order of `NAMES`.

    What comes after the last layer that sees more than one position is its head. Another `power` than the prior's is
    for comparison.
    """
    table = graph.table
    positions = table[:, COLUMN["hout"]] * table[:, COLUMN["wout"]]
    layers = _layers(table[:, COLUMN["kind"]])
    if not (layers & (positions > 1)).any():
        raise ValueError("the network has no layer that sees more than one position")
    end = int(np.flatnonzero(layers & (positions > 1)).max()) + 1
    strides = resolution / np.sqrt(np.maximum(positions[:end], 1))
    found: Floats = _features(_sums(table[:end], strides, power)[None], np.array([float(resolution)]))[0]
    return found


class ConfigFeatures:
    """The features of configurations in bulk: the sums of their units are kept between calls."""

    def __init__(self) -> None:
        self._rows: tuple[dict[Unit, int], ...] = tuple({} for _ in range(HEAD + 1))  # by section
        self._sums = np.empty((0, len(_SUMS)))
        self._new: list[Floats] = []

    def __call__(self, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n, features) in the order of `NAMES`."""
        if not configs:
            return np.empty((0, len(NAMES)))
        rows: list[int] = []
        starts: list[int] = []
        with garbage_collector_paused():
            for config in configs:
                starts.append(len(rows))
                sections = backbone(config)
                for place, section in enumerate(sections):
                    known = self._rows[place]
                    for unit in section.units:
                        row = known.get(unit)
                        rows.append(self._add(unit, section.size, place) if row is None else row)
                last, known = sections[-1], self._rows[HEAD]
                for unit in head(config.head).units(config, last.width, last.size):
                    row = known.get(unit)
                    rows.append(self._add(unit, last.size, HEAD) if row is None else row)
        if self._new:
            self._sums = np.vstack([self._sums, *self._new])
            self._new = []
        totals = np.add.reduceat(self._sums[rows], starts, axis=0)
        return _features(totals, np.array([config.resolution for config in configs], dtype=np.float64))

    def _add(self, unit: Unit, size: int, place: int) -> int:
        """Adds a unit of the section at that place, which gives maps of `size`; gives its row."""
        row = len(self._sums) + len(self._new)
        self._rows[place][unit] = row
        table = unit_graph(unit).table
        positions = table[:, COLUMN["hout"]] * table[:, COLUMN["wout"]]
        if place == HEAD:
            table, positions = table[positions > 1], positions[positions > 1]
        strides = 2.0 ** min(place + 1, HEAD) * size / np.sqrt(np.maximum(positions, 1))
        self._new.append(_sums(table, strides)[None])
        return row


def _layers(kind: NDArray[np.int64]) -> NDArray[np.bool_]:
    layers: NDArray[np.bool_] = np.isin(kind, [KIND["conv"], KIND["conv_transpose"], KIND["linear"]])
    return layers


def _sums(table: NDArray[np.int64], strides: Floats, power: float = KERNEL_POWER) -> Floats:
    """(len(_SUMS),) over the operators of a table, each at its output's stride relative to the image."""
    column = {name: table[:, place].astype(np.float64) for name, place in COLUMN.items()}
    layers = _layers(table[:, COLUMN["kind"]])
    macs, area = column["macs"], column["kh"] * column["kw"]
    narrow = np.minimum(column["cin"], column["cout"])
    grouped = layers & (column["groups"] > 1)
    depthwise = grouped & (column["groups"] >= narrow / 2)
    attends, products = (column["kind"] == KIND[name] for name in ("softmax", "matmul"))
    full = layers & ~depthwise & (column["hout"] * column["wout"] > 1)
    per_k = np.maximum(area, 1) ** -power
    compute = np.where(layers, macs * per_k, 0.0)
    ends = np.searchsorted(STRIDE_ENDS, strides, side="left")
    sums = {
        "macs": macs.sum(),
        **{name: compute[ends == place].sum() for place, name in enumerate(("early", "at_8", "at_16", "at_32"))},
        "weights": np.where(layers, column["weights"] * per_k, 0.0).sum(),
        "spatial": ((layers & (area > 1)) | attends).sum(),
        "attention": macs[products].sum(),
        "depthwise": macs[depthwise].sum(),
        "dense": macs[layers & ~grouped & (area > 1)].sum(),
        "grouped": macs[grouped & ~depthwise].sum(),
        "log_width": np.log(np.maximum(narrow, 1))[full].sum(),
        "full_layers": full.sum(),
        "written": column["outputs"][layers].sum(),
        "layers_16": (layers & (ends == 2)).sum(),
        "layers_32": (layers & (ends == 3)).sum(),
    }
    return np.array([sums[name] for name in _SUMS], dtype=np.float64)


def _features(sums: Floats, resolution: Floats) -> Floats:
    """(n, len(NAMES)) from (n, len(_SUMS)) and (n,) pixels."""
    total = {name: sums[:, place] for name, place in _PLACE.items()}
    compute = total["early"] + total["at_8"] + total["at_16"] + total["at_32"]
    parameters = np.log(total["weights"] / 1e6)
    macs = total["macs"]
    columns = (
        np.log(compute / 1e9),
        parameters,
        np.log(resolution / REFERENCE_RESOLUTION),
        np.log1p(total["spatial"]),
        np.minimum((parameters - TYPICAL_PARAMETERS) ** 2, MOST_SQUARED),
        total["early"] / compute,
        total["at_8"] / compute,
        total["at_32"] / compute,
        total["attention"] / macs,
        np.sqrt(total["depthwise"] / macs),
        total["dense"] / macs,
        total["grouped"] / macs,
        total["log_width"] / np.maximum(total["full_layers"], 1),
        np.log(total["written"] / 1e6),
        np.log1p(total["layers_16"]),
        np.log1p(total["layers_32"]),
    )
    features: Floats = np.stack(columns, axis=1)
    return features
