"""The accuracy prior: what published results let one expect of a configuration's ImageNet top-1, and how surely.

What some hundred other families teach (`family_law`) meets the published LowFormers and CPUBones, which are taken as
one family: their level and their own slopes follow from them. The rest is uncertain, the more the farther a network
lies from what was published, in any of the features. How the law was found, and how far it can be trusted, is in
experiments/prior/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ...search_space.config import LowFormerConfig
from ...search_space.presets import PUBLISHED, Published
from .family_law import FamilyLaw
from .features import MAIN, NAMES, ConfigFeatures

Floats = NDArray[np.float64]

FAR = 2.0
"""A configuration counts as far from what was published if its estimate is so many times as uncertain as those of the
published models are, each left out, in the mean."""
BEYOND = 0.05
"""Standard deviations of a feature by which a network must exceed all published ones to be named as outside."""
SAME = 1e-9
"""Difference in the features of one architecture at one resolution, by rounding."""

_OF_ARCHITECTURE = [NAMES.index(name) for name in ("parameters", "spatial layers", "width")]  # at any resolution
_PARAMETERS = [1 + MAIN.index(name) for name in ("parameters", "few parameters")]  # one curve together
_SHOWN = [place for place, name in enumerate(NAMES) if name != "few parameters"]


@dataclass(frozen=True)
class AccuracyPrediction:
    """What is expected of one configuration on ImageNet, in percent.

    Attributes:
        top1: the median of the predictive distribution.
        low_top1, high_top1: its central interval of this `coverage`.
        coverage: 0 to 1.
        nearest: name of the published model (of `PUBLISHED`) that is most like it.
        outside: the features in which it lies beyond all published LowFormers and CPUBones.
    """

    top1: float
    low_top1: float
    high_top1: float
    coverage: float
    nearest: str
    outside: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Distribution:
    """Of n networks' ln(100 - top-1 %): (n,) means, (n,) variances without noise; and (n, points) covariances."""

    mean: Floats
    variance: Floats
    across: Floats
    design: Floats


class AccuracyPrior:
    """A predictive distribution of ImageNet top-1, at each configuration's own resolution.

    What nobody has measured earns nothing: a feature beyond all published LowFormers and CPUBones counts as theirs
    where it would gain accuracy, and as it is where it costs some; and it widens the interval in any case.

    Attributes:
        law: what other families teach.
        published: the models of this family that it is conditioned on, by name.
        points: how many published accuracies that are (models times test resolutions).
    """

    def __init__(self, law: FamilyLaw | None = None, published: Mapping[str, Published] = PUBLISHED) -> None:
        if not published:
            raise ValueError("an accuracy prior needs at least one published model of the family")
        self.law = law or _shipped()
        self.published = published
        listed = [
            (name, model.config.replace(resolution=resolution), top1)
            for name, model in published.items()
            for resolution, top1 in model.top1.items()
        ]
        self._names = [name for name, _, _ in listed]
        self._configs = [config for _, config, _ in listed]
        self._top1 = np.array([top1 for _, _, top1 in listed])
        self._features = _FEATURES(self._configs)
        self._design = self.law.design(self._features)
        self._low, self._high = self._design.min(axis=0), self._design.max(axis=0)
        covariance = self._covariance(self._features, self._design)
        covariance[np.diag_indices(len(listed))] += self.law.noise_sd**2
        self._inverse = np.linalg.inv(covariance)
        self._weights = self._inverse @ (np.log(100 - self._top1) - self._design @ self.law.slopes)
        own = self.law.linear_covariance(np.eye(self._design.shape[1]), self._design) @ self._weights
        self._slopes = self.law.slopes + own

    @classmethod
    def load(cls, file: str | Path | None = None) -> Self:
        """The shipped prior, or one in a file. Raises ValueError, in one line, if it is cut, altered or newer."""
        if file is None:
            return cls()
        try:
            return cls(FamilyLaw.load(file))
        except np.linalg.LinAlgError:
            raise ValueError(f"broken accuracy prior {file}: standard deviations that no fit gives") from None

    def without(self, name: str) -> Self:
        """The prior that was not told of a published model, at any resolution."""
        return type(self)(self.law, {other: model for other, model in self.published.items() if other != name})

    @property
    def points(self) -> int:
        return len(self._top1)

    # --- predicting

    def imagenet_top1(self, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n,) the median ImageNet top-1 in percent; tens of thousands of configurations a second."""
        top1: Floats = 100 - np.exp(self._distribution(configs).mean)
        return top1

    def quantile(self, configs: Sequence[LowFormerConfig], q: float) -> Floats:
        """(n,) the ImageNet top-1 in percent that each network stays below with probability `q`."""
        found = self._distribution(configs)
        return self._quantile(found.mean, self._deviation(found), q)

    def predict(self, configs: Sequence[LowFormerConfig], *, coverage: float = 0.9) -> list[AccuracyPrediction]:
        """The predictive distribution of each configuration."""
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must be between 0 and 1, given {coverage:g}")
        if not configs:
            return []
        found = self._distribution(configs)
        tail = (1 - coverage) / 2
        columns = [self._quantile(found.mean, self._deviation(found), q).tolist() for q in (0.5, tail, 1 - tail)]
        nearest, outside = self._nearest(found.design), self._outside(found.design)
        return [
            AccuracyPrediction(top1, low, high, coverage, name, beyond)
            for top1, low, high, name, beyond in zip(*columns, nearest, outside, strict=True)
        ]

    def gain(
        self, configs: Sequence[LowFormerConfig], reference: LowFormerConfig, *, coverage: float = 0.9
    ) -> tuple[Floats, Floats, Floats]:
        """(n,) by how many points each is better than `reference`: the median and the ends of the interval.

        Where the reference's accuracy was published it is taken as it is. Else both are uncertain, and what they have
        in common drops out.
        """
        found, other = self._distribution(configs), self._distribution([reference])
        error, other_error = np.exp(found.mean), float(np.exp(other.mean[0]))
        noise = self.law.noise_sd**2
        known = self._published_top1(reference)
        if known is None:
            common = self._covariance(_FEATURES(configs), found.design, _FEATURES([reference]), other.design)[:, 0]
            common -= found.across @ self._inverse @ other.across[0]
            middle = other_error - error
            variance = error**2 * (found.variance + noise) + other_error**2 * (other.variance[0] + noise)
            variance = variance - 2 * error * other_error * common
        else:
            middle = (100 - known) - error
            variance = error**2 * (found.variance + noise)
        same = np.array([config == reference for config in configs])
        spread = NormalDist().inv_cdf((1 + coverage) / 2) * np.sqrt(np.maximum(variance, 0.0))
        middle, spread = np.where(same, 0.0, middle), np.where(same, 0.0, spread)
        return middle, middle - spread, middle + spread

    def extrapolates(self, configs: Sequence[LowFormerConfig]) -> NDArray[np.bool_]:
        """(n,) whether a configuration lies far from what was published (`FAR`)."""
        far: NDArray[np.bool_] = self._deviation(self._distribution(configs)) > FAR * self._left_out_deviation
        return far

    # --- how far it can be trusted

    @cached_property
    def left_out(self) -> tuple[Floats, Floats]:
        """(points,) errors in points, predicted minus published, and (points,) standard deviations in ln error: of each
        published accuracy, predicted by the prior without its model, at any resolution."""
        if len(self.published) < 2:
            raise ValueError("leaving a model out needs at least two published ones")
        errors, deviations = np.empty(self.points), np.empty(self.points)
        for name in self.published:
            held = np.array([other == name for other in self._names])
            without = self.without(name)
            found = without._distribution([c for c, out in zip(self._configs, held, strict=True) if out])
            errors[held] = 100 - np.exp(found.mean) - self._top1[held]
            deviations[held] = without._deviation(found)
        return errors, deviations

    @property
    def leave_one_out_error(self) -> float:
        """Mean absolute error in points of published models, each left out at all its resolutions."""
        return float(np.abs(self.left_out[0]).mean())

    @property
    def worst_leave_one_out_error(self) -> float:
        """The largest of these errors."""
        return float(np.abs(self.left_out[0]).max())

    @cached_property
    def _left_out_deviation(self) -> float:
        return float(self.left_out[1].mean()) if len(self.published) > 1 else np.inf

    # --- the distribution

    def _distribution(self, configs: Sequence[LowFormerConfig]) -> _Distribution:
        features = _FEATURES(configs)
        design = self.law.design(features)
        across = self._covariance(features, design, self._features, self._design)
        within = np.clip(design, self._low, self._high)
        local = self._local_covariance(features, within, self._features, self._design)
        variance = self.law.linear_variance(design) + self.law.smooth_sd**2 + self.law.architecture_sd**2
        variance -= np.einsum("ij,ij->i", across @ self._inverse, across)
        mean = self._linear(design) + local @ self._weights
        return _Distribution(mean, np.maximum(variance, 0.0), across, design)

    def _linear(self, design: Floats) -> Floats:
        """(n,) level and slopes; what would gain beyond all published models gains nothing there.

        The curve of parameters is flat above them: its fall there would come from its form alone.
        """
        within = np.clip(design, self._low, self._high)
        beyond = (design - within) * self._slopes
        together = np.where(
            design[:, _PARAMETERS[0]] < self._low[_PARAMETERS[0]], beyond[:, _PARAMETERS].sum(axis=1), 0.0
        )
        beyond[:, _PARAMETERS] = 0.0
        mean: Floats = within @ self._slopes + np.maximum(beyond, 0.0).sum(axis=1) + np.maximum(together, 0.0)
        return mean

    def _covariance(
        self, first: Floats, design: Floats, second: Floats | None = None, other: Floats | None = None
    ) -> Floats:
        """(n, m) of networks of this family, without noise; with themselves if no others are given."""
        second, other = (first, design) if second is None or other is None else (second, other)
        return self.law.linear_covariance(design, other) + self._local_covariance(first, design, second, other)

    def _local_covariance(self, first: Floats, design: Floats, second: Floats, other: Floats) -> Floats:
        """(n, m) of what no slope says: smooth departures, and the luck of an architecture."""
        same = np.ones((len(first), len(second)), dtype=np.bool_)
        for place in _OF_ARCHITECTURE:
            same &= np.abs(first[:, place, None] - second[None, :, place]) < SAME
        covariance: Floats = self.law.smooth_covariance(design, other) + self.law.architecture_sd**2 * same
        return covariance

    def _deviation(self, found: _Distribution) -> Floats:
        """(n,) standard deviations of what a training would reach."""
        deviation: Floats = np.sqrt(found.variance + self.law.noise_sd**2)
        return deviation

    @staticmethod
    def _quantile(mean: Floats, deviation: Floats, q: float) -> Floats:
        top1: Floats = np.maximum(100 - np.exp(mean - NormalDist().inv_cdf(q) * deviation), 0.0)
        return top1

    # --- beside the published models

    def _published_top1(self, config: LowFormerConfig) -> float | None:
        return next((float(t) for c, t in zip(self._configs, self._top1, strict=True) if c == config), None)

    def _nearest(self, design: Floats) -> list[str]:
        """The name of the published model that lies nearest, by the standardized features."""
        places = [1 + place for place in _SHOWN]
        gaps = design[:, None, places] - self._design[None, :, places]
        return [self._names[i] for i in np.argmin((gaps**2).sum(axis=2), axis=1)]

    def _outside(self, design: Floats) -> list[tuple[str, ...]]:
        beyond = np.maximum(design - self._high, self._low - design)[:, 1:] > BEYOND
        return [tuple(NAMES[place] for place in _SHOWN if row[place]) for row in beyond]


_FEATURES = ConfigFeatures()


@cache
def _shipped() -> FamilyLaw:
    return FamilyLaw.load()
