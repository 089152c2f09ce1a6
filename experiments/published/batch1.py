"""Fits the latency of a TensorRT FP16 engine at batch 1 on an RTX 3090: few numbers on top of the throughput roofline.

Latency = factor of the source * (fixed time + the sum over fused kernels). The numbers are fitted on the `Anchors`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from benchmark_settings import BANDWIDTH, GPU_SHARPNESS, HALF_IN, HALF_OUT, RATE, pads_by_class
from measurements import Anchors, Array, KernelCounts
from numpy.typing import NDArray
from scipy.optimize import least_squares

from lownas.predictors.latency.kernel_model import KernelModel
from lownas.predictors.latency.kernel_terms import COEFFICIENTS
from lownas.predictors.latency.kernels import KERNEL_CLASS, Kernels

MULTIPROCESSORS = 82  # of an RTX 3090
TILE = 128 * 128  # output elements that a multiprocessor computes at a time
TENSORRT_PADS = {name: pad for name, pad in pads_by_class(8, 16, 64).items() if name not in ("matmul", "attention")}
WEIGHTS_PER_MS = 0.4e9  # elements in fp16
ANCHOR_ERROR = 0.12  # standard deviation that the fit expects a model's log error to have


@dataclass(frozen=True)
class Variant:
    """The form of the batch-1 model, which is chosen inside the folds.

    Attributes:
        wave: Whether the model has the wave term.
        apart: Whether compute and memory each have a factor over the throughput model's, or share one.
        tile: Output elements of a tile.
        by_class: Standard deviation of a factor on compute per kernel class; 0 for no such factor.
    """

    wave: bool = True
    apart: bool = True
    tile: int = TILE
    by_class: float = 0.0


VARIANTS = [
    Variant(wave, apart, tile, by_class)
    for wave, apart, by_class in itertools.product((True, False), (True, False), (0.0, 0.3))
    for tile in ((TILE, TILE // 4) if wave else (TILE,))
]
NUMBERS = ("fixed", "launch", "compute", "memory", "wave", "static", "weights")
"""What is fitted, as logarithms: ms of a pass and of a launch; factors on compute time, on memory time and of the wave
term; factor of a static engine over a dynamic one; elements of weights read per ms."""
CENTRES = np.array([np.log(0.02), np.log(0.003), np.log(0.7), np.log(0.8), np.log(0.3), -0.1, np.log(WEIGHTS_PER_MS)])
SPREADS = (1.0, 0.7, 0.5, 0.5, 1.2, 0.2, 0.2)
CLASSES_WITH_FACTOR = (("conv_dense", "conv_first"), ("conv_pointwise",), ("conv_depthwise",), ("linear",), ("matmul",))


@dataclass(frozen=True)
class Batch1:
    """A fitted batch-1 model: latency = exp(static * log_static) * (its overhead + the sum over kernels)."""

    kernels: KernelModel
    log_static: float

    def log_ms(self, kernels: KernelCounts, static: Array | float) -> Array:
        """(models,) log latencies; `static` is 1 for engines built for one input size, 0 for dynamic ones."""
        times = kernels.total(self.kernels.kernel_ms(Kernels(kernels.table)))
        return np.log(self.kernels.overhead_ms + times) + self.log_static * static


def assemble(base: Array, numbers: Array, variant: Variant) -> Batch1:
    """Makes the batch-1 model from values for the fitted numbers: `NUMBERS`, then the factors by class.

    Args:
        base: (classes, len(FITTED_PER_CLASS)) values of the throughput model.
        numbers: Logarithms.
        variant: Which of them are used.
    """
    fixed, launch, compute, memory, wave, static, weights = numbers[: len(NUMBERS)]
    values = base.copy()
    # Where TensorRT's kernels are those of torch under another name, or too rare there to tell.
    values[KERNEL_CLASS["linear"]] = base[KERNEL_CLASS["linear_tokens"]]
    values[KERNEL_CLASS["matmul"], [RATE, HALF_IN, HALF_OUT]] = base[KERNEL_CLASS["attention"], RATE], 0.01, 0.01
    values[:, RATE] /= np.exp(compute)
    values[:, BANDWIDTH] /= np.exp(memory if variant.apart else compute)
    for names, factor in zip(CLASSES_WITH_FACTOR, numbers[len(NUMBERS) :], strict=True):
        values[[KERNEL_CLASS[name] for name in names], RATE] /= np.exp(factor)
    per_mac, moved = 1e6 / values[:, RATE], 1e6 / values[:, BANDWIDTH]
    tile = variant.tile if variant.wave else 0
    terms = {
        "launch": np.full(len(values), np.exp(launch)),
        "macs": per_mac,
        "macs_per_cin": per_mac * values[:, HALF_IN],
        "macs_per_cout": per_mac * values[:, HALF_OUT],
        # The time that a contraction takes on one multiprocessor however few tiles there are.
        "macs_per_output": per_mac * np.exp(wave) * tile * MULTIPROCESSORS,
        "inputs": moved,
        "outputs": moved,
        "weights": np.full(len(values), 1e6 / np.exp(weights)),
    }
    none = np.zeros(len(values))
    coefficients = np.stack([terms.get(name, none) for name in COEFFICIENTS], axis=1)
    overhead = float(np.exp(fixed))
    model = KernelModel(
        "tensorrt", 0, coefficients, sharpness=GPU_SHARPNESS, overhead_ms=overhead, tile=tile, pads=TENSORRT_PADS
    )
    return Batch1(model, float(static))


def fit_batch1(base: Array, anchors: Anchors, used: NDArray[np.int64], variant: Variant) -> Batch1:
    """Fits few numbers, each with a prior, on the anchors `used` (maximum a posteriori)."""
    spread = np.array([*SPREADS, *[variant.by_class] * len(CLASSES_WITH_FACTOR)])
    centre = np.concatenate([CENTRES, np.zeros(len(CLASSES_WITH_FACTOR))])
    free = np.array(
        [True, True, True, variant.apart, variant.wave, True, True, *[variant.by_class > 0] * len(CLASSES_WITH_FACTOR)]
    )
    kernels, log_ms, static = anchors.kernels.only(used), np.log(anchors.ms[used]), anchors.static[used]

    def numbers(z: Array) -> Array:
        result = centre.copy()
        result[free] += z * spread[free]
        return result

    def residuals(z: Array) -> Array:
        predicted = assemble(base, numbers(z), variant).log_ms(kernels, static)
        return np.concatenate([(predicted - log_ms) / ANCHOR_ERROR, z])

    found = least_squares(residuals, np.zeros(int(free.sum())), max_nfev=60).x
    return assemble(base, numbers(found), variant)
