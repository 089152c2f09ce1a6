"""What is fitted to the measurements of a calibration: one model, or one for the networks of each of its spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...search_space import OpGraph
from .fitting.cross_validation import FOLDS, Fit, fit_samples
from .fitting.known_devices import StackedFit, profiles_of_others, stack_with_known
from .fitting.samples import Probe, Sample
from .kernel_model import KernelModel
from .kernel_terms import Array
from .measurement_log import MeasurementLog
from .predictor import LatencyPredictor
from .sizes import Sizes
from .stacked_model import StackedModel
from .target import Target
from .uncertainty import LogErrors

LEAST_SPREAD = 0.5
"""Spread of the errors of an interval over that of the held-out errors, at least, however noisy the looks were."""
OTHER_KINDS = LogErrors.from_errors([
    -0.126, -0.076, -0.037, -0.018, -0.004, 0.003, 0.01, 0.018, 0.025,
    0.027, 0.036, 0.044, 0.05, 0.06, 0.067, 0.087, 0.108, 0.134, 0.278,
])  # fmt: skip
"""Errors on networks of other kinds, with operators or shapes beyond those fitted on, whatever the target.

The quantiles at each 5 % of 78 networks that a calibration of an EPYC predicted: 64 of timm's (the development and test
networks of experiments/latency/cpu_timm.py) and 14 that packages ship (experiments/files/packages.py, those without
operators that have no cost model).
"""
APART_MUST_REDUCE_ERROR_TO = 0.9
"""Held-out error of models for each space over that of one for all, up to which each space has its own."""


@dataclass(frozen=True, eq=False)
class FittedPart:
    """One fitted model.

    Attributes:
        space: the key of the space that its networks are from; of several the first.
        samples, probes: what it was fitted on.
        fit: the target's own model.
        stacked: that stacked with the models of known targets, if that is better.
    """

    space: str
    samples: Sequence[Sample]
    probes: Sequence[Probe]
    fit: Fit
    stacked: StackedFit | None = None

    @property
    def model(self) -> KernelModel | StackedModel:
        return self.fit.model if self.stacked is None else self.stacked.model

    @property
    def log_errors(self) -> Array:
        """(samples,) of predictions for samples held out."""
        return self.fit.log_errors if self.stacked is None else self.stacked.log_errors

    @property
    def held_out_error(self) -> float:
        return self.fit.held_out_error if self.stacked is None else self.stacked.held_out_error

    @property
    def errors(self) -> LogErrors:
        """The held-out errors, drawn together as far as their spread is that of the looks and not the model's."""
        center, rms = float(np.median(self.log_errors)), root_mean_square(self.log_errors)
        kept = max(model_rms(rms, self.fit.noise) / rms, LEAST_SPREAD) if rms > 0 else 1.0
        return LogErrors.from_errors(center + kept * (self.log_errors - center))


@dataclass(frozen=True, eq=False)
class FittedSpaces:
    """All that is fitted to a calibration.

    Attributes:
        parts: the models; the first is for all networks that are of no other's size.
    """

    parts: Sequence[FittedPart]

    def _mean(self, values: Sequence[float]) -> float:
        return float(np.average(values, weights=[len(part.samples) for part in self.parts]))

    @property
    def held_out_error(self) -> float:
        """Mean over all samples, as are the next ones."""
        return self._mean([part.held_out_error for part in self.parts])

    @property
    def macs_only_error(self) -> float:
        return self._mean([part.fit.macs_only_error for part in self.parts])

    @property
    def rms(self) -> float:
        """Root mean square of the log errors, as is the next one."""
        return root_mean_square(np.concatenate([part.log_errors for part in self.parts]))

    @property
    def noise(self) -> float:
        return float(np.sqrt(self._mean([part.fit.noise**2 for part in self.parts])))

    def predictor(self, target: Target, provenance: dict[str, Any], host: Mapping[str, str]) -> LatencyPredictor:
        """The predictor that has all of it."""
        first, *others = self.parts
        sizes = [Sizes.of([sample.config for sample in part.samples]) for part in self.parts]
        further = [
            LatencyPredictor(target, part.model, part.errors, provenance, sizes=own, other_kinds=OTHER_KINDS)
            for part, own in zip(others, sizes[1:], strict=True)
        ]
        own = sizes[0] if further else None
        return LatencyPredictor(
            target,
            first.model,
            first.errors,
            provenance,
            dict(host),
            sizes=own,
            further=further,
            other_kinds=OTHER_KINDS,
        )


def fit_log(
    log: MeasurementLog, target: Target, probes: Mapping[str, OpGraph], profiles: str | Path | None
) -> FittedSpaces:
    """Fits a target's own model to a log, and stacks it with the profiles of other targets in a folder.

    Where networks of several spaces were measured, each space gets a model of its own if that predicts networks held
    out better: tiny networks stay in caches that others overflow.

    Args:
        log: the measurements.
        target: what they are of.
        probes: graphs of the probes by name.
        profiles: folder of the user's own profiles.
    """
    samples, fusion, block, measured = log.to_fit(target, probes)
    first_space = log.spaces[0] if log.spaces else ""
    together = FittedPart(first_space, samples, measured, fit_samples(samples, fusion, block, probes=measured))
    by_space: dict[str, list[Sample]] = {}
    for sample in samples:
        by_space.setdefault(log.space_of(sample.config), []).append(sample)
    parts = [together]
    if len(by_space) > 1 and all(len(own) >= FOLDS for own in by_space.values()):
        apart = [
            FittedPart(space, own, measured, fit_samples(own, fusion, block, probes=measured, within_space=number > 0))
            for number, (space, own) in enumerate(by_space.items())
        ]
        error = root_mean_square(np.concatenate([part.log_errors for part in apart]))
        if error < APART_MUST_REDUCE_ERROR_TO * root_mean_square(together.log_errors):
            parts = apart
    first = parts[0]
    stacked = stack_with_known(first.fit, first.samples, str(target), profiles_of_others(target, profiles))
    return FittedSpaces([FittedPart(first.space, first.samples, first.probes, first.fit, stacked), *parts[1:]])


def root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))


def model_rms(rms: float, noise: float) -> float:
    """Held-out errors without the noise of the looks, in root mean square."""
    return float(np.sqrt(max(0.0, rms**2 - noise**2)))
