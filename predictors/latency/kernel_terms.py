"""The physical formula for the time of one kernel, and the quantities of a kernel that it is made of.

    t = launch + (compute^p + memory^p)^(1/p)        per kernel class, in ms
    compute = sum of a_i * COMPUTE_TERMS_i            multiply-accumulates, and what saturates them on small shapes
    memory  = sum of b_i * MEMORY_TERMS_i             elements read and written

All coefficients are non-negative, so that more work never costs less. p (`sharpness`) is 1 where compute and memory add
up and grows where they overlap.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .kernels import KERNEL_CLASS, KERNEL_COLUMN, Kernels

Array = NDArray[np.float64]

COMPUTE_TERMS: tuple[str, ...] = (
    "macs",
    "macs_per_cin",
    "macs_per_cout",
    "macs_per_column",
    "tail",
    "macs_per_output",
    "macs_per_pixel",
    "rows",
)
MEMORY_TERMS: tuple[str, ...] = ("inputs", "outputs", "weights", "spilled", "cold")
COEFFICIENTS: tuple[str, ...] = ("launch", *COMPUTE_TERMS, *MEMORY_TERMS)
"""Coefficients of a kernel class: launch in ms, the others in ms per million."""

SHAPE_FEATURES: tuple[str, ...] = ("work", "cin", "cout", "pixels", "window", "stride", "tail")

_ROW_LENGTH = {"softmax": "wout", "layer_norm": "cout"}
"""Classes that go through rows, each of which takes a while, and the column that has their length."""
SPILLING = 1.5
"""Exponent in `cold_share`."""
_TERM_UNIT = 1e6
"""Multiply-accumulates or elements per unit of the terms."""

_BLOCKED_CLASSES = frozenset(
    KERNEL_CLASS[name] for name in ("conv_first", "conv_dense", "conv_pointwise", "conv_depthwise", "conv_grouped")
)


def cold_share(weights: ArrayLike, kept: int) -> Array:
    """The share of networks' weights that has left the caches before the next run, and is read from memory again.

    Nothing up to what the caches keep, then 1 - (kept / weights)^1.5: measured on chains of layers of growing number
    (experiments/restless/caches.py).

    Args:
        weights: (...) elements of all constants of each network.
        kept: elements that the caches keep; 0 if weights are taken to cost the same wherever they are.
    """
    if not kept:
        return np.zeros(np.shape(weights))
    return 1 - np.minimum(kept / np.maximum(np.asarray(weights, dtype=np.float64), 1), 1) ** SPILLING


def physical_terms(
    kernels: Kernels,
    block: int = 0,
    tile: int = 0,
    pads: Mapping[str, int] | None = None,
    cache: int = 0,
    cold: Array | float = 0.0,
) -> tuple[Array, Array]:
    """The work of each kernel: (K, len(COMPUTE_TERMS)) and (K, len(MEMORY_TERMS)), in millions.

    Args:
        kernels: K kernels.
        block: channels of onnxruntime's blocked layout, to which output channels are padded there; 0 for none.
        tile: output elements that a multiprocessor of a GPU computes at a time; 0 for none. With it "macs_per_output"
            is the contraction behind one output, whose time a small map cannot spread over an idle device.
        pads: by class, the number that channels per group are padded to a multiple of, in and out.
        cache: elements that the caches of a CPU of several cores hold; 0 for none. With it "spilled" is what a kernel
            reads and writes beyond them, and "macs_per_pixel" what a small map cannot spread over the cores.
        cold: (K,) or one for all, the `cold_share` of each kernel's network.
    """
    table = kernels.table.astype(np.float64)
    column = {name: table[:, index] for name, index in KERNEL_COLUMN.items()}
    macs = column["macs"].copy()
    if block:
        blocked = np.isin(kernels.column("class"), list(_BLOCKED_CLASSES))
        padded = np.ceil(column["cout"] / block) * block / np.maximum(column["cout"], 1)
        macs = np.where(blocked, macs * padded, macs)
    groups = np.maximum(column["groups"], 1)
    cin = np.maximum(column["cin"] / groups, 1)
    cout = np.maximum(column["cout"] / groups, 1)
    for name, pad in (pads or {}).items():
        padded_rows = np.flatnonzero(kernels.column("class") == KERNEL_CLASS[name])
        for channels in (cin[padded_rows], cout[padded_rows]):
            macs[padded_rows] *= np.ceil(channels / pad) * pad / channels
    columns = np.maximum(column["wout"], 1)
    tail = column["tail"] * column["outputs"]
    none = np.zeros_like(macs)
    rows = none.copy()
    for name, length in _ROW_LENGTH.items():
        mine = kernels.column("class") == KERNEL_CLASS[name]
        rows[mine] = (column["outputs"] / np.maximum(column[length], 1))[mine]
    contraction = macs / np.maximum(column["outputs"], tile) if tile else none
    per_pixel = macs / np.maximum(column["hout"] * column["wout"], 1) if cache else none
    spilled = np.maximum(column["inputs"] + column["outputs"] - cache, 0) if cache else none
    compute = np.stack([macs, macs / cin, macs / cout, macs / columns, tail, contraction, per_pixel, rows], axis=1)
    from_memory = column["weights"] * cold
    memory = np.stack([column["inputs"], column["outputs"], column["weights"], spilled, from_memory], axis=1)
    return compute / _TERM_UNIT, memory / _TERM_UNIT


def shape_features(kernels: Kernels) -> Array:
    """(K, len(SHAPE_FEATURES)) logarithms of sizes on which a kernel's efficiency depends."""
    table = kernels.table.astype(np.float64)
    column = {name: np.maximum(table[:, index], 0) for name, index in KERNEL_COLUMN.items()}
    groups = np.maximum(column["groups"], 1)
    work = np.where(column["macs"] > 0, column["macs"], column["inputs"] + column["outputs"])
    return np.log(
        np.stack(
            [
                np.maximum(work, 1),
                np.maximum(column["cin"] / groups, 1),
                np.maximum(column["cout"] / groups, 1),
                np.maximum(column["hout"] * column["wout"], 1),
                np.maximum(column["kh"] * column["kw"], 1),
                np.maximum(column["stride"], 1),
                1 + column["tail"],
            ],
            axis=1,
        )
    )


def physical_ms(compute: Array, memory: Array, coefficients: Array, sharpness: float) -> Array:
    """(K,) times by the formula in this file's docstring.

    Args:
        compute, memory: `physical_terms`.
        coefficients: (K, len(COEFFICIENTS)) of each kernel's class.
        sharpness: p of the formula.
    """
    split = 1 + len(COMPUTE_TERMS)
    compute_ms = (compute * coefficients[:, 1:split]).sum(1)
    memory_ms = (memory * coefficients[:, split:]).sum(1)
    if sharpness == 1:
        return coefficients[:, 0] + (compute_ms + memory_ms)
    return coefficients[:, 0] + (compute_ms**sharpness + memory_ms**sharpness) ** (1 / sharpness)
