"""ImageNet top-1 as far as published results of this family support it: the accuracy prior.

A line through the published points (`PUBLISHED`) in log MACs, log resolution and the share of blocks that attend: what
a model of this family, trained as the authors train, may be expected to reach. Of how the MACs are spent otherwise it
knows nothing; proxy training corrects it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..search_space.config import LowFormerConfig
from ..search_space.graph import AttentionUnit, LocalUnit, Unit, unit_graph, units
from ..search_space.presets import PRESETS, PUBLISHED, Published

Floats = NDArray[np.float64]

REFERENCE_RESOLUTION = 224
_ROUNDING = 1.005  # MACs do not scale exactly with the resolution's square


@lru_cache(maxsize=65536)
def _unit_macs(unit: Unit) -> int:
    return unit_graph(unit).macs


def total_macs(configs: Sequence[LowFormerConfig]) -> Floats:
    """(n,) MACs of `configs` at their own resolution, tens of thousands a second once their units have been seen."""
    return np.array([sum(map(_unit_macs, units(config))) for config in configs], dtype=np.float64)


def attending_share(config: LowFormerConfig) -> float:
    """Share of the LowFormer blocks that have attention, 0 to 1; 0 without such blocks."""
    return _attending_share(units(config))


def _attending_share(parts: Sequence[Unit]) -> float:
    blocks = sum(isinstance(part, LocalUnit) and part.in_block for part in parts)
    return sum(isinstance(part, AttentionUnit) for part in parts) / blocks if blocks else 0.0


class AccuracyPrior:
    """top-1 (%) = intercept + slope_macs ln(MACs / 1e9) + slope_resolution ln(resolution / 224) + gain_attention share.

    MACs count at the config's own resolution. Outside what was published it is careful:
    - Test resolutions are 224 to 288, of models trained at up to 224. Below 224 the resolution's term is held at its
      value at 224, so that there a multiply-accumulate is worth the same whether resolution or width saves it (as the
      published MobileNetV2 family has it: 65.3 % at 128 pixels and 99 M, 65.4 % at half width and 97 M); the line would
      credit small images with accuracy that nobody has measured.
    - MACs beyond those of the largest published model (at the same resolution) earn nothing: nobody has measured what
      they bring, and evolution would spend any budget on them. `beyond` tells which configs have them.

    Attributes:
        intercept, slope_macs, slope_resolution, gain_attention: the coefficients, in percentage points.
        points: how many published points (models times test resolutions) it was fitted on.
        models: how many models.
        leave_one_out_error: mean absolute error in points over the published points, each predicted from a fit without
            its model (at any resolution).
        baseline_error: the same for a line in MACs and resolution alone.
        macs_range: smallest and largest MACs of the published models, at 224 pixels.
        resolution_range: smallest and largest published test resolution.
    """

    def __init__(self, published: Mapping[str, Published] = PUBLISHED) -> None:
        if len(published) < 5:
            raise ValueError(f"an accuracy prior needs at least 5 published models, given {len(published)}")
        names: list[str] = []
        rows: list[tuple[float, float, float]] = []
        top1: list[float] = []
        for name, model in published.items():
            # CPUBone-B0, B1 and B2, which cannot be built here, attend in all their blocks.
            share = attending_share(PRESETS[model.preset]) if model.preset else 1.0
            for resolution, accuracy in model.top1.items():
                names.append(name)
                rows.append((_published_macs(model, resolution), resolution, share))
                top1.append(accuracy)
        macs, resolutions, shares = np.array(rows, dtype=np.float64).T
        at_reference = [model.macs for model in published.values()]
        self.macs_range = (min(at_reference), max(at_reference))
        self.resolution_range = (int(resolutions.min()), int(resolutions.max()))
        features, accuracies = _features(macs, resolutions, shares), np.array(top1)
        coefficients = _fit(features, accuracies)
        self.intercept, self.slope_macs, self.slope_resolution, self.gain_attention = map(float, coefficients)
        self.points = len(names)
        self.models = len(published)
        self.leave_one_out_error = _leave_one_model_out(names, features, accuracies)
        self.baseline_error = _leave_one_model_out(names, features[:, :3], accuracies)

    def imagenet_top1(self, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n,) expected ImageNet top-1 in percent, each config at its own resolution."""
        parts = [units(config) for config in configs]
        macs = np.array([sum(map(_unit_macs, part)) for part in parts], dtype=np.float64)
        shares = np.array([_attending_share(part) for part in parts], dtype=np.float64)
        return self.top1_from_costs(macs, np.array([config.resolution for config in configs], dtype=np.float64), shares)

    def top1_from_costs(self, macs: Floats, resolutions: Floats, attending_shares: Floats) -> Floats:
        """(n,) the same from (n,) MACs at (n,) resolutions in pixels and (n,) shares of blocks that attend."""
        earning = macs / np.maximum(_at_reference(macs, resolutions) / self.macs_range[1], 1.0)
        coefficients = np.array([self.intercept, self.slope_macs, self.slope_resolution, self.gain_attention])
        top1: Floats = np.clip(_features(earning, resolutions, attending_shares) @ coefficients, 0.0, 100.0)
        return top1

    def beyond(self, configs: Sequence[LowFormerConfig]) -> NDArray[np.bool_]:
        """(n,) whether a config has more MACs (scaled to 224 pixels) than the largest published model."""
        resolutions = np.array([config.resolution for config in configs], dtype=np.float64)
        larger: NDArray[np.bool_] = _at_reference(total_macs(configs), resolutions) > self.macs_range[1] * _ROUNDING
        return larger

    def extrapolates(self, configs: Sequence[LowFormerConfig]) -> NDArray[np.bool_]:
        """(n,) whether a config lies outside the published models, in MACs (scaled to 224 pixels) or in resolution."""
        resolutions = np.array([config.resolution for config in configs], dtype=np.float64)
        macs = _at_reference(total_macs(configs), resolutions)
        low, high = self.macs_range
        smallest, largest = self.resolution_range
        inside: NDArray[np.bool_] = (macs >= low / _ROUNDING) & (macs <= high * _ROUNDING)
        return ~(inside & (resolutions >= smallest) & (resolutions <= largest))


def _at_reference(macs: Floats, resolutions: Floats) -> Floats:
    """(n,) MACs brought to 224 pixels by the area."""
    scaled: Floats = macs * (REFERENCE_RESOLUTION / resolutions) ** 2
    return scaled


def _published_macs(model: Published, resolution: int) -> float:
    """MACs of a published model at `resolution`: counted where we can build it, else scaled by the area."""
    if resolution == REFERENCE_RESOLUTION:
        return model.macs
    if model.preset is not None:
        return float(total_macs([PRESETS[model.preset].replace(resolution=resolution)])[0])
    return model.macs * (resolution / REFERENCE_RESOLUTION) ** 2


def _features(macs: Floats, resolutions: Floats, attending_shares: Floats) -> Floats:
    """(n, 4) constant, ln(GMACs), ln(resolution / 224) (not below 0), share of blocks that attend."""
    larger = np.maximum(resolutions, REFERENCE_RESOLUTION) / REFERENCE_RESOLUTION
    return np.stack([np.ones_like(macs), np.log(macs / 1e9), np.log(larger), attending_shares], axis=1)


def _fit(features: Floats, accuracies: Floats) -> Floats:
    coefficients: Floats = np.linalg.lstsq(features, accuracies, rcond=None)[0].astype(np.float64)
    return coefficients


def _leave_one_model_out(names: Sequence[str], features: Floats, accuracies: Floats) -> float:
    labels = np.array(names)
    errors: list[float] = []
    for name in dict.fromkeys(names):
        held = labels == name
        coefficients = _fit(features[~held], accuracies[~held])
        errors.extend(np.abs(features[held] @ coefficients - accuracies[held]).tolist())
    return float(np.mean(errors))
