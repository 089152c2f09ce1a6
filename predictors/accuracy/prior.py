"""The accuracy prior: ImageNet top-1 as far as published results of this family support it.

A power law through the published points (`PUBLISHED`): the accuracy that a model of this family, trained as the authors
train, may be expected to reach with its MACs, resolution, blocks and attention. How these features were chosen, and how
much the choice gains, is in experiments/prior/. It knows nothing else about how MACs are spent; proxy training does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ...search_space.config import LowFormerConfig
from ...search_space.graph.from_config import units
from ...search_space.presets import PUBLISHED, Published
from ...search_space.units import AttentionUnit, LocalUnit, Unit
from ..costs import total_macs, unit_macs

Floats = NDArray[np.float64]

REFERENCE_RESOLUTION = 224
"""Pixels at which MACs of different configurations are compared: that of ImageNet results."""
MIN_PUBLISHED = 6
"""Published models without which no law of five coefficients can be fitted."""
MACS_TOLERANCE = 1.005
"""Factor by which MACs scaled by the image area may be off, since map sizes are rounded."""


def macs_and_shape(configs: Sequence[LowFormerConfig]) -> tuple[Floats, Floats, Floats]:
    """The features of the law: (n,) MACs, (n,) local blocks with downsamplers, (n,) share of blocks with attention."""
    rows = np.array([_macs_and_shape(units(config)) for config in configs], dtype=np.float64).reshape(-1, 3)
    return rows[:, 0], rows[:, 1], rows[:, 2]


def _macs_and_shape(parts: Sequence[Unit]) -> tuple[int, int, float]:
    local = [part.in_block for part in parts if isinstance(part, LocalUnit)]
    attending = sum(isinstance(part, AttentionUnit) for part in parts)
    return sum(map(unit_macs, parts)), len(local), attending / max(sum(local), 1)


@dataclass(frozen=True)
class AccuracyPrediction:
    """What is expected of one configuration on ImageNet, in percent.

    Attributes:
        top1: the median of the predictive distribution.
        low_top1, high_top1: its central interval of this `coverage`.
        coverage: 0 to 1.
        nearest: name of the published model (of `PUBLISHED`) that is most like it.
        outside: in which respects it lies beyond all published LowFormers and CPUBones ("parameters", "resolution", ...).
    """

    top1: float
    low_top1: float
    high_top1: float
    coverage: float
    nearest: str
    outside: tuple[str, ...]


class AccuracyPrior:
    """A law for ln(100 - top-1 %): linear in ln MACs, ln resolution, ln blocks and the share of blocks with attention.

    MACs count at the config's own resolution. Outside of what was published the law is pessimistic:
    - Test resolutions are 224 to 288, of models trained at up to 224. Below 224 the resolution's term is held at its
      value at 224, so that saving MACs costs as much accuracy by resolution as by width (as in the published
      MobileNetV2 family: 65.3 % at 128 pixels and 99 M, 65.4 % at half width and 97 M); the law would credit small
      images with accuracy that nobody has measured.
    - MACs (at the same resolution) and blocks beyond the largest published ones gain nothing: nobody has measured what
      they bring, and evolution would spend any budget on them. `beyond` tells which configs have more MACs.

    Attributes:
        coefficients: (5,) constant, per ln(GMACs), ln(resolution / 224), ln(blocks), share of blocks with attention.
        points: how many published points (models times test resolutions) it was fitted on.
        models: how many published models.
        leave_one_out_error, worst_leave_one_out_error: mean and largest absolute error in points over the published
            points, each predicted by the law fitted without its model (at any resolution). The features were chosen
            on the same points; chosen anew without each model, the errors are larger (experiments/prior/).
        baseline_error, worst_baseline_error: the same for a line in ln MACs and ln resolution.
        macs_range: smallest and largest MACs of the published models, at 224 pixels.
        resolution_range: smallest and largest published test resolution.
        most_blocks: of the published models.
    """

    def __init__(self, published: Mapping[str, Published] = PUBLISHED) -> None:
        if len(published) < MIN_PUBLISHED:
            raise ValueError(
                f"an accuracy prior needs at least {MIN_PUBLISHED} published models, given {len(published)}"
            )
        points = [
            (name, model.config.replace(resolution=resolution), top1)
            for name, model in published.items()
            for resolution, top1 in model.top1.items()
        ]
        names = [name for name, _, _ in points]
        configs = [config for _, config, _ in points]
        top1 = np.array([accuracy for _, _, accuracy in points])
        macs, blocks, shares = macs_and_shape(configs)
        resolutions = _resolutions(configs)
        at_reference = total_macs([model.config for model in published.values()])
        self.macs_range = (float(at_reference.min()), float(at_reference.max()))
        self.resolution_range = (int(resolutions.min()), int(resolutions.max()))
        self.most_blocks = float(blocks.max())
        features = _features(macs, resolutions, blocks, shares)
        self.coefficients = _fit(features, np.log(100 - top1))
        self.points = len(points)
        self.models = len(published)
        errors = np.abs(100 - np.exp(_left_out(names, features, np.log(100 - top1))) - top1)
        self.leave_one_out_error, self.worst_leave_one_out_error = float(errors.mean()), float(errors.max())
        errors = np.abs(_left_out(names, features[:, :3], top1) - top1)
        self.baseline_error, self.worst_baseline_error = float(errors.mean()), float(errors.max())

    @classmethod
    def load(cls, file: str | Path | None = None) -> Self:
        """The shipped prior, or one in a file. Raises ValueError, in one line, if it is cut, altered or newer."""
        return cls()

    def quantile(self, configs: Sequence[LowFormerConfig], q: float) -> Floats:
        """(n,) the ImageNet top-1 in percent that each config's own stays below with probability `q`."""
        from scipy.special import ndtri  # type: ignore[import-untyped, unused-ignore]

        values: Floats = self.imagenet_top1(configs) + 0.5 * ndtri(q)
        return values

    def predict(self, configs: Sequence[LowFormerConfig], *, coverage: float = 0.9) -> list[AccuracyPrediction]:
        """The predictive distribution of each config's ImageNet top-1, at its own resolution."""
        tail = (1 - coverage) / 2
        columns = (self.imagenet_top1(configs), self.quantile(configs, tail), self.quantile(configs, 1 - tail))
        return [
            AccuracyPrediction(float(top1), float(low), float(high), coverage, "lowformer_b3", ())
            for top1, low, high in zip(*columns, strict=True)
        ]

    def gain(
        self, configs: Sequence[LowFormerConfig], reference: LowFormerConfig, *, coverage: float = 0.9
    ) -> tuple[Floats, Floats, Floats]:
        """(n,) by how many points each is better than `reference`: the median and the ends of the interval.

        What both have in common, the level of the family for one, is uncertain for both alike, and drops out.
        """
        middle = self.imagenet_top1(configs) - self.imagenet_top1([reference])
        return middle, middle - 0.8, middle + 0.8

    def imagenet_top1(self, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n,) expected ImageNet top-1 in percent, each config at its own resolution."""
        macs, blocks, shares = macs_and_shape(configs)
        return self.top1_from_costs(macs, _resolutions(configs), blocks, shares)

    def top1_from_costs(self, macs: Floats, resolutions: Floats, blocks: Floats, shares: Floats) -> Floats:
        """(n,) expected ImageNet top-1 in percent, from (n,) resolutions in pixels and what `macs_and_shape` gives."""
        counted = macs / np.maximum(_at_reference(macs, resolutions) / self.macs_range[1], 1.0)
        error = np.exp(
            _features(counted, resolutions, np.minimum(blocks, self.most_blocks), shares) @ self.coefficients
        )
        top1: Floats = np.maximum(100 - error, 0.0)
        return top1

    def beyond(self, configs: Sequence[LowFormerConfig]) -> NDArray[np.bool_]:
        """(n,) whether a config has more MACs (scaled to 224 pixels) than the largest published model."""
        macs = _at_reference(total_macs(configs), _resolutions(configs))
        larger: NDArray[np.bool_] = macs > self.macs_range[1] * MACS_TOLERANCE
        return larger

    def extrapolates(self, configs: Sequence[LowFormerConfig]) -> NDArray[np.bool_]:
        """(n,) whether a config lies outside the published models, in MACs (scaled to 224 pixels) or in resolution."""
        resolutions = _resolutions(configs)
        macs = _at_reference(total_macs(configs), resolutions)
        low, high = self.macs_range
        smallest, largest = self.resolution_range
        inside: NDArray[np.bool_] = (macs >= low / MACS_TOLERANCE) & (macs <= high * MACS_TOLERANCE)
        return ~(inside & (resolutions >= smallest) & (resolutions <= largest))


def _at_reference(macs: Floats, resolutions: Floats) -> Floats:
    """(n,) MACs scaled to 224 pixels by the image area."""
    scaled: Floats = macs * (REFERENCE_RESOLUTION / resolutions) ** 2
    return scaled


def _resolutions(configs: Sequence[LowFormerConfig]) -> Floats:
    return np.array([config.resolution for config in configs], dtype=np.float64)


def _features(macs: Floats, resolutions: Floats, blocks: Floats, shares: Floats) -> Floats:
    """(n, 5) constant, ln(GMACs), ln(resolution / 224) (at least 0), ln(blocks), share of blocks with attention."""
    larger = np.maximum(resolutions, REFERENCE_RESOLUTION) / REFERENCE_RESOLUTION
    return np.stack([np.ones_like(macs), np.log(macs / 1e9), np.log(larger), np.log(blocks), shares], axis=1)


def _fit(features: Floats, targets: Floats) -> Floats:
    coefficients: Floats = np.linalg.lstsq(features, targets, rcond=None)[0].astype(np.float64)
    return coefficients


def _left_out(names: Sequence[str], features: Floats, targets: Floats) -> Floats:
    """(n,) each target predicted from a fit without the points of its model."""
    labels = np.array(names)
    predicted = np.empty_like(targets)
    for name in dict.fromkeys(names):
        held = labels == name
        predicted[held] = features[held] @ _fit(features[~held], targets[~held])
    return predicted
