"""Fits a roofline per kernel class on one of timm's benchmark files, with physical priors.

A kernel takes its launch and a soft maximum of compute and memory time; it is the physical part of
`lownas.predictors.latency.kernel_model`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from benchmark_settings import (
    BANDWIDTH,
    DEPTHWISE,
    FITTED_PER_CLASS,
    HALF_IN,
    HALF_OUT,
    HALF_PIXELS,
    LAUNCH,
    RATE,
    WEIGHT_BANDWIDTH,
    Setting,
)
from measurements import Array, Benchmark
from numpy.typing import NDArray
from scipy.optimize import minimize

from lownas.predictors.latency.kernel_model import KernelModel
from lownas.predictors.latency.kernel_terms import COEFFICIENTS, physical_terms
from lownas.predictors.latency.kernels import KERNEL_CLASS, KERNEL_CLASSES, Kernels

SHARED_BY_CLASSES = ("launch", "weights", "spill", "overhead")
"""What is fitted once for all kernel classes: factors on every launch and on the rate at which weights are read, the
elements per ms beyond the caches, and the fixed time of a batch."""
LAUNCH_SPREAD = 0.7  # standard deviation of the log of the factor on all launches
WEIGHTS_SPREAD = 0.5  # the same of the factor on the rate at which weights are read
SPILL_PER_MS, SPILL_SPREAD = 7.5e6, 0.5  # prior of the elements per ms beyond the caches, and its log's deviation
OVERHEAD_MS = 0.05  # prior of the fixed time of a batch; its log's deviation is 1

HALF_CHANNELS, HALF_OUTPUT_PIXELS = 8.0, 10.0  # priors of the sizes at which compute takes twice its time
NO_SATURATION = 0.01  # the same where a kernel class does not depend on its channels


@dataclass(frozen=True)
class Roofline:
    """A roofline fitted on a benchmark file.

    Attributes:
        setting: What it was fitted on.
        values: (classes, len(FITTED_PER_CLASS)).
        spill: Elements per ms beyond the caches.
        overhead_ms: Fixed time of a batch.
    """

    setting: Setting
    values: Array
    spill: float
    overhead_ms: float

    def kernel_model(self, batch: int = 1) -> KernelModel:
        """Coefficients in ms per million; launches and weights are shared by the images of a batch."""
        v = self.values
        per_mac, moved = 1e6 / v[:, RATE], 1e6 / v[:, BANDWIDTH]
        none = np.zeros(len(v))
        terms = {
            "launch": v[:, LAUNCH] / batch,
            "macs": per_mac,
            "macs_per_cin": per_mac * v[:, HALF_IN],
            "macs_per_cout": per_mac * v[:, HALF_OUT],
            "macs_per_pixel": none if self.setting.is_gpu else per_mac * v[:, HALF_PIXELS],
            "inputs": moved,
            "outputs": moved,
            "weights": 1e6 / v[:, WEIGHT_BANDWIDTH] / batch,
            "spilled": none if self.setting.is_gpu else np.full(len(v), 1e6 / self.spill),
        }
        return KernelModel(
            self.setting.runtime,
            0,
            np.stack([terms.get(name, none) for name in COEFFICIENTS], axis=1),
            sharpness=self.setting.sharpness,
            overhead_ms=self.overhead_ms / batch,
            pads=self.setting.pads,
            cache=self.setting.cache,
        )


def prior_values(setting: Setting) -> Array:
    """(classes, len(FITTED_PER_CLASS)) centres of the priors."""
    row = [
        setting.launch_ms,
        setting.rate,
        HALF_CHANNELS,
        HALF_CHANNELS,
        HALF_OUTPUT_PIXELS,
        setting.bandwidth,
        setting.weight_bandwidth,
    ]
    values = np.tile(row, (len(KERNEL_CLASSES), 1))
    for name, share in setting.rates.items():
        values[KERNEL_CLASS[name], RATE] = share * setting.rate
    for name in DEPTHWISE:
        values[KERNEL_CLASS[name], [HALF_IN, HALF_OUT]] = NO_SATURATION
    return values


def fit_roofline(setting: Setting, data: Benchmark, used: NDArray[np.int64]) -> Roofline:
    """Fits on the models `used`: the most probable values under robust log errors and the priors."""
    kernels = data.kernels.only(used)
    kind, model, count = torch.tensor(kernels.table[:, 0]), torch.tensor(kernels.model), torch.tensor(kernels.count)
    terms = physical_terms(Kernels(kernels.table), pads=setting.pads, cache=setting.cache)
    compute, memory = (1e6 * torch.tensor(part) for part in terms)
    batch = torch.tensor(data.batch[used])
    sizes = Counter(data.families[used].tolist())
    weight = torch.tensor([sizes[family] ** -setting.family_weight for family in data.families[used].tolist()])
    log_ms = torch.tensor(np.log(data.ms[used]))
    centre, spread = torch.tensor(np.log(prior_values(setting))), torch.tensor(setting.spread)
    power = setting.sharpness

    def unpack(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(classes, len(FITTED_PER_CLASS)) values, spill and overhead from standard normal numbers."""
        launch, weights, spill, overhead = z[-len(SHARED_BY_CLASSES) :]
        shift = torch.zeros(len(FITTED_PER_CLASS), dtype=torch.float64)
        shift[LAUNCH], shift[WEIGHT_BANDWIDTH] = LAUNCH_SPREAD * launch, WEIGHTS_SPREAD * weights
        values = (centre + shift + z[: -len(SHARED_BY_CLASSES)].reshape(centre.shape) * spread).exp()
        return values, SPILL_PER_MS * (SPILL_SPREAD * spill).exp(), OVERHEAD_MS * overhead.exp()

    def loss_and_gradient(flat: Array) -> tuple[float, Array]:
        z = torch.tensor(flat, requires_grad=True)
        values, spill, overhead = unpack(z)
        v, images = values[kind], batch[model]
        work = compute[:, 0] + v[:, HALF_IN] * compute[:, 1] + v[:, HALF_OUT] * compute[:, 2]
        busy = (work + v[:, HALF_PIXELS] * compute[:, 6]) / v[:, RATE] + 1e-12
        moved = (memory[:, 0] + memory[:, 1]) / v[:, BANDWIDTH] + memory[:, 3] / spill
        waiting = moved + memory[:, 2] / v[:, WEIGHT_BANDWIDTH] / images + 1e-12
        time = v[:, LAUNCH] / images + (busy**power + waiting**power) ** (1 / power)
        total = torch.zeros(len(used), dtype=torch.float64).index_add(0, model, time * count) + overhead / batch
        residual = (total.log() - log_ms) / setting.error
        loss = (weight * 2 * ((1 + residual**2 / 2).sqrt() - 1)).sum() + 0.5 * (z**2).sum()
        loss.backward()
        assert z.grad is not None
        return loss.item(), z.grad.numpy()

    zeros = np.zeros(centre.numel() + len(SHARED_BY_CLASSES))
    found = minimize(loss_and_gradient, zeros, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    values, spill, overhead = unpack(torch.tensor(found))
    return Roofline(setting, values.numpy(), float(spill), float(overhead))


def predicted_ms(roofline: Roofline, data: Benchmark) -> Array:
    """(models,) predicted ms per image, each at its own batch size."""
    batch = data.batch[data.kernels.model]
    result = np.empty(len(batch))
    overhead = np.empty(len(data.batch))
    for size in np.unique(data.batch):
        rows, model = batch == size, roofline.kernel_model(int(size))
        result[rows] = model.kernel_ms(Kernels(data.kernels.table[rows]))
        overhead[data.batch == size] = model.overhead_ms
    return data.kernels.total(result) + overhead
