"""Which configurations a calibration measures: spread out over the space, and small enough for its time."""

from __future__ import annotations

import numpy as np

from ...search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph
from .fusion import fuse_config
from .kernel_terms import Array
from .kernels import KERNEL_CLASSES

POOL_SIZE = 1500
"""Random configurations among which the measured ones are chosen."""
LEANING = 1.0
"""How far all parameters of a configuration in the pool lean to small or large values together.

A search goes to the corners of a space, where configurations drawn parameter by parameter hardly ever lie.
"""
CANDIDATES = 50
"""Configurations of the pool that are drawn for each choice (Mitchell's best-candidate sampling)."""
RUNS_PER_MEASUREMENT = 60
"""Warm-up, timed and profiled runs of one measurement, and as many runs' time as loading the network takes."""
REFERENCE_FUSION = "onnxruntime"
"""Fusion rules by whose kernel classes configurations are compared, whatever the target is."""
MACS_PER_ELEMENT = 20.0
"""Multiply-accumulates for which reading or writing one element counts, in the share of a kernel class."""


def sentinel_config() -> LowFormerConfig:
    """A small model that is measured again and again during a calibration, to reveal drift of the machine."""
    return PRESETS["lowformer_b0"].replace(resolution=160, classes=100)


def affordable_macs(measurement_s: float, sentinel_ms: float, sentinel: LowFormerConfig) -> float:
    """MACs up to which measuring a network takes at most `measurement_s`, if it is as fast per MAC as the sentinel.

    A power of two, so that swings of the machine's speed hardly ever change the sample.
    """
    limit = op_graph(sentinel).macs * measurement_s / RUNS_PER_MEASUREMENT / (sentinel_ms / 1e3)
    return float(2 ** np.round(np.log2(max(limit, 1.0))))


def spread_sample(
    space: SearchSpace, samples: int, seed: int, limit_macs: float = np.inf, leaning: float = LEANING
) -> list[LowFormerConfig]:
    """Configurations of `space` spread out over size, shapes and kernel classes; none of the published models.

    Best-candidate sampling (Mitchell 1991): each next configuration is the one of `CANDIDATES` random ones that is
    farthest from all chosen so far. The first are the usual one, and those with the most weights and the most work: a
    search goes there too, and a model that ends before them is wrong there. Networks over `limit_macs` are left out as
    long as a third of the space remains. Without `leaning` parameters are drawn one by one, and no extremes come first.
    """
    rng = np.random.default_rng(seed)
    configs = _pool(space, rng, limit_macs, leaning)
    points = np.array([_description(config) for config in configs])
    spread = points.std(axis=0)
    points = (points - points.mean(axis=0)) / np.where(spread > 0, spread, 1)
    samples = min(samples, len(configs))
    chosen = [int(np.argmin((points**2).sum(axis=1)))]
    if leaning:
        sizes = np.array([(op_graph(config).params, op_graph(config).macs) for config in configs])
        chosen = list(dict.fromkeys([*chosen, *np.argmax(sizes, axis=0).tolist()]))[:samples]
    distance = np.min([((points - points[place]) ** 2).sum(axis=1) for place in chosen], axis=0)
    while len(chosen) < samples:
        left = np.flatnonzero(distance > 0) if (distance > 0).any() else np.setdiff1d(np.arange(len(points)), chosen)
        candidates = rng.choice(left, size=min(CANDIDATES, len(left)), replace=False)
        best = int(candidates[np.argmax(distance[candidates])])
        chosen.append(best)
        distance = np.minimum(distance, ((points - points[best]) ** 2).sum(axis=1))
        distance[chosen] = 0
    return [configs[index] for index in chosen]


def _pool(space: SearchSpace, rng: np.random.Generator, limit_macs: float, leaning: float) -> list[LowFormerConfig]:
    """Random configurations within the limit, without the published models."""
    published = {config.id for config in PRESETS.values()}
    drawn = {config.id: config for config in (_leaning(space, rng, leaning) for _ in range(POOL_SIZE))}
    configs = [config for name, config in drawn.items() if name not in published]
    macs = np.array([op_graph(config).macs for config in configs])
    limit = max(limit_macs, float(np.quantile(macs, 1 / 3)))
    return [config for config, count in zip(configs, macs, strict=True) if count <= limit]


def _leaning(space: SearchSpace, rng: np.random.Generator, leaning: float) -> LowFormerConfig:
    """A random configuration whose parameters, in the order of their values, lean to one side by a random exponent."""
    if not leaning:
        return space.sample(rng)
    places = rng.random(len(space.parameters)) ** np.exp(rng.uniform(-leaning, leaning))
    items = zip(space.parameters.items(), places, strict=True)
    return space.from_params({name: values[int(place * len(values))] for (name, values), place in items})


def _description(config: LowFormerConfig) -> Array:
    """What makes networks different for a device: size, resolution, widths, and the share of each kernel class."""
    kernels = fuse_config(config, REFERENCE_FUSION)
    work = kernels.column("macs") + MACS_PER_ELEMENT * (kernels.column("inputs") + kernels.column("outputs"))
    shares = np.bincount(kernels.column("class"), work, minlength=len(KERNEL_CLASSES)) / work.sum()
    widths = [config.stem_width, *(stage.width for stage in config.stages)]
    size = [2 * np.log(kernels.column("macs").sum()), config.resolution / 32, *(2 * np.log(widths))]
    return np.concatenate([size, np.sqrt(shares)])
