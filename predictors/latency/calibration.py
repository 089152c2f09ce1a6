"""Calibration: measures a spread-out sample of a space, fits a latency model, and saves it as the target's profile.

The measuring function is passed in, so that this module needs neither onnxruntime nor torch. Measurements are appended
to a JSON Lines file as they come, from which a broken calibration resumes.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from ...search_space import LowFormerConfig, OpGraph, SearchSpace
from .fitting.cross_validation import FOLDS, Fit, fit_samples, held_out_bound
from .fitting.known_devices import StackedFit, profiles_of_others, stack_with_known
from .fitting.samples import Probe, Sample, block_size
from .kernel_model import KernelModel
from .kernel_terms import Array
from .measurement_log import MeasurementLog
from .predictor import LatencyPredictor
from .sampling import affordable_macs, sentinel_config, spread_sample
from .stacked_model import StackedModel
from .target import Target, user_profiles
from .uncertainty import LogErrors

DEFAULT_SAMPLES = 40
DEFAULT_TIME_LIMIT_S = 195.0
"""With fitting and saving, a default calibration takes less than four minutes."""
MIN_SAMPLES = 8
MAX_SAMPLES = 200
"""Configurations at most where an error is to be reached."""
UNTIL_TIME_LIMIT_S = 1800.0
"""Time limit where an error is to be reached."""
MIN_SAMPLES_TO_CHECK = 12
"""Configurations below which the held-out error is not checked against the one to be reached."""
CONFIGS_PER_CHECK = 6
MEASUREMENTS_PER_SENTINEL = 4
"""Measurements after which the sentinel is measured again."""
PROBES_TIME_SHARE = 4
"""One part in so many of the time limit, after which no more probes are measured."""


class Measured(Protocol):
    """What calibration needs of a measurement; `LatencyMeasurement` in evaluators has it."""

    @property
    def median_ms(self) -> float: ...
    @property
    def undisturbed_ms(self) -> float: ...
    @property
    def kernel_ms(self) -> Mapping[str, float] | None: ...
    @property
    def host(self) -> Mapping[str, str]: ...
    @property
    def versions(self) -> Mapping[str, str]: ...


Measure = Callable[[LowFormerConfig | OpGraph, Target], Measured]


@dataclass(frozen=True)
class Progress:
    """Where a calibration stands.

    Attributes:
        done: configurations measured so far.
        samples: configurations to measure at most.
        elapsed_s: since the beginning.
        message: what was done last.
    """

    done: int
    samples: int
    elapsed_s: float
    message: str


def calibrate(
    target: str | Target,
    measure: Measure,
    *,
    space: str | SearchSpace = "default",
    samples: int | None = None,
    until: float | None = None,
    probes: Mapping[str, OpGraph] | None = None,
    seed: int = 0,
    time_limit_s: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    profiles: str | Path | None = None,
    path: str | Path | None = None,
) -> LatencyPredictor:
    """Measures a sample of `space` on `target`, fits and saves a profile, and returns its predictor.

    Args:
        target: a target that `measure` can measure.
        measure: times one config or operator graph.
        space: the space that configs are drawn from; the published models are never among them.
        samples: configs to measure, at least `MIN_SAMPLES`; by default `DEFAULT_SAMPLES`, or with `until` at most
            `MAX_SAMPLES`. Fewer are measured once `time_limit_s` has passed.
        until: stops as soon as the mean error on held-out configs is below this with 90 % confidence (0.03 is 3 %), as
            checked after every `CONFIGS_PER_CHECK` configs; the more checks, the lower is the confidence in the last.
        probes: small graphs of operators that the space lacks, so that other networks can be predicted too; measured
            if the runtime reports kernel times. By default `search_space.probes.probe_graphs()`; {} for none.
        seed: of the sample.
        time_limit_s: no measurement begins after this time, except of the first `MIN_SAMPLES` configs. By default
            `DEFAULT_TIME_LIMIT_S`, with `until` `UNTIL_TIME_LIMIT_S`.
        progress: called after every measurement.
        profiles: folder for the profile; default: the user's own.
        path: measurements file; default: beside the profile.

    Warns of whatever was not measured for lack of time.

    Raises:
        ValueError: unknown target or space, too few samples, or an impossible error to reach.
    """
    target = Target.parse(target)
    effort = _Effort.of(samples, until, time_limit_s)
    if isinstance(space, str):
        space = SearchSpace.load(space)
    if probes is None:
        from ...search_space.probes import probe_graphs

        probes = probe_graphs()
    file = _log_file(target, profiles) if path is None else Path(path)
    begin = time.monotonic()
    sentinel = sentinel_config()
    first = measure(sentinel, target)
    log = MeasurementLog(file, _header(target, first, space, seed, effort))
    measuring = _Measuring(target, measure, sentinel, log, effort, probes, progress, begin)
    if log.measurements:
        measuring.report(f"resumed from {file}")
    log.add_sentinel(first.undisturbed_ms)
    # By the calibration's first measurement of the sentinel, so that one that resumes draws the same sample.
    limit = affordable_macs(DEFAULT_TIME_LIMIT_S / DEFAULT_SAMPLES, log.sentinels_ms[0], sentinel)
    chosen = spread_sample(space, effort.samples, seed, limit)
    unmeasured_probes = measuring.measure_probes() if first.kernel_ms is not None else 0
    bound = measuring.measure_configs(chosen)
    _warn_of_missing(unmeasured_probes, len(probes), len(log.measurements), len(chosen), bound, effort)
    measuring.report("fitting")
    fitted = _Fitted.of(log, target, probes, profiles)
    provenance = _provenance(target, space, seed, first, log, fitted, measuring)
    errors = LogErrors.from_errors(fitted.log_errors)
    predictor = LatencyPredictor(target, fitted.model, errors, provenance, dict(first.host))
    predictor.save(profiles)
    log.complete(fitted.held_out_error)
    measuring.report(f"held-out error {fitted.held_out_error:.1%} (MACs alone {fitted.fit.macs_only_error:.1%})")
    return predictor


@dataclass(frozen=True)
class _Effort:
    """How much a calibration measures; `calibrate` explains the attributes."""

    samples: int
    until: float | None
    time_limit_s: float

    @classmethod
    def of(cls, samples: int | None, until: float | None, time_limit_s: float | None) -> Self:
        """The effort asked for, with defaults. Raises ValueError for an impossible one."""
        if samples is None:
            samples = DEFAULT_SAMPLES if until is None else MAX_SAMPLES
        if time_limit_s is None:
            time_limit_s = DEFAULT_TIME_LIMIT_S if until is None else UNTIL_TIME_LIMIT_S
        if samples < MIN_SAMPLES:
            raise ValueError(f"a calibration needs at least {MIN_SAMPLES} samples, given {samples}")
        if until is not None and not 0 < until < 1:
            raise ValueError(f"the held-out error to reach is between 0 and 100 %, given {until:.0%}")
        return cls(samples, until, time_limit_s)


def _log_file(target: Target, profiles: str | Path | None) -> Path:
    """The file of a target's measurements beside its profile."""
    folder = Path(profiles) if profiles is not None else user_profiles()
    return folder / f"{target.file_name.removesuffix('.json')}.measurements.jsonl"


def _header(target: Target, first: Measured, space: SearchSpace, seed: int, effort: _Effort) -> dict[str, Any]:
    """The first line of a calibration in its file: whatever must be equal for it to be resumed."""
    choices = hashlib.sha256(space.choices.model_dump_json().encode()).hexdigest()[:12]  # a space's file may change
    return {
        "calibration": str(target),
        "fingerprint": dict(first.host),
        "space": space.name,
        "seed": seed,
        "choices": choices,
        "samples": effort.samples,
        "until": effort.until,
    }


class _Measuring:
    """The measurements of one calibration: what is measured next, until enough was or the time is over.

    Attributes:
        measured: measurements of configurations so far, without those that were resumed from.
    """

    def __init__(
        self,
        target: Target,
        measure: Measure,
        sentinel: LowFormerConfig,
        log: MeasurementLog,
        effort: _Effort,
        probes: Mapping[str, OpGraph],
        progress: Callable[[Progress], None] | None,
        begin: float,
    ) -> None:
        self.measured = 0
        self._target = target
        self._measure = measure
        self._sentinel = sentinel
        self._log = log
        self._effort = effort
        self._probes = probes
        self._progress = progress
        self._begin = begin

    @property
    def elapsed_s(self) -> float:
        """Time since the calibration began."""
        return time.monotonic() - self._begin

    def report(self, message: str) -> None:
        """Tells the caller of the calibration how it stands."""
        if self._progress:
            self._progress(Progress(len(self._log.measurements), self._effort.samples, self.elapsed_s, message))

    def measure_probes(self) -> int:
        """Measures the probes that the log lacks, as far as time allows. Returns how many are left."""
        left = 0
        for name, graph in self._probes.items():
            if name in self._log.probes:
                continue
            if self.elapsed_s >= self._effort.time_limit_s / PROBES_TIME_SHARE:
                left += 1
                continue
            self._log.add_probe(name, self._measure(graph, self._target).kernel_ms or {})
            self.report(f"probe {name}")
        return left

    def measure_configs(self, configs: Sequence[LowFormerConfig]) -> float:
        """Measures each configuration twice, and on a disturbed machine a third time, as far as time allows.

        A machine's speed swings within seconds: between the measurements of one configuration lie those of others.

        Returns:
            The bound of the held-out error; infinite if none was asked for, or too few were measured to tell.
        """
        until, bound = self._effort.until, np.inf
        batch = self._effort.samples if until is None else CONFIGS_PER_CHECK
        for start in range(0, len(configs), batch):
            part = configs[start : start + batch]
            self._measure_up_to(part, 1)
            self._measure_up_to(part[::-1], 2)
            if until is not None and len(self._log.measurements) >= MIN_SAMPLES_TO_CHECK:
                bound = held_out_bound(*_to_fit(self._log, self._target, self._probes))
                self.report(f"held-out error below {bound:.1%}")
                if bound <= until:
                    break
        if self._log.disturbed:
            self._measure_up_to(configs[: len(self._log.measurements)], 3)
        return bound

    def _measure_up_to(self, configs: Sequence[LowFormerConfig], times: int) -> None:
        """Measures once each configuration that was measured fewer than `times` times, as far as time allows."""
        for config in configs:
            enough = len(self._log.measurements) >= MIN_SAMPLES
            if self._log.count(config) < times and not (enough and self.elapsed_s >= self._effort.time_limit_s):
                self._measure_config(config)

    def _measure_config(self, config: LowFormerConfig) -> None:
        measurement = self._measure(config, self._target)
        disturbance = max(0.0, measurement.median_ms / measurement.undisturbed_ms - 1)
        self._log.add_measurement(Sample(config, measurement.undisturbed_ms, disturbance, measurement.kernel_ms))
        self.measured += 1
        if self.measured % MEASUREMENTS_PER_SENTINEL == 0:
            self._log.add_sentinel(self._measure(self._sentinel, self._target).undisturbed_ms)
        self.report(f"{config.id}: {measurement.median_ms:.2f} ms")


def _to_fit(
    log: MeasurementLog, target: Target, probes: Mapping[str, OpGraph]
) -> tuple[list[Sample], str, int, list[Probe]]:
    """Samples, fusion, block and probes, as `held_out_bound` takes them."""
    samples = log.samples()
    return samples, target.fusion, block_size(samples, target.fusion), log.measured_probes(probes)


def _warn_of_missing(
    unmeasured_probes: int, probes: int, measured: int, chosen: int, bound: float, effort: _Effort
) -> None:
    """Warns of probes and configurations that were not measured, or of an error that was not reached."""
    if unmeasured_probes:
        warnings.warn(
            f"{unmeasured_probes} of {probes} probes were not measured for want of time: networks other than "
            "LowFormers are predicted worse, and their intervals do not show it",
            stacklevel=3,
        )
    if effort.until is not None and bound > effort.until:
        sure = (
            f"surely below {bound:.1%} only"
            if np.isfinite(bound)
            else f"not sure with fewer than {MIN_SAMPLES_TO_CHECK} configs"
        )
        warnings.warn(f"held-out error: {sure}, asked for was {effort.until:.1%}", stacklevel=3)
    elif effort.until is None and measured < chosen:
        warnings.warn(f"{measured} of {chosen} configs were measured for want of time", stacklevel=3)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """What was fitted to the measurements of a calibration.

    Attributes:
        samples, probes: what was fitted on.
        fit: the target's own model.
        stacked: its model stacked with those of known targets, if that is better.
    """

    samples: list[Sample]
    probes: list[Probe]
    fit: Fit
    stacked: StackedFit | None

    @classmethod
    def of(
        cls, log: MeasurementLog, target: Target, probes: Mapping[str, OpGraph], profiles: str | Path | None
    ) -> Self:
        """Fits the target's own model, and stacks it with the profiles of other targets."""
        samples, fusion, block, measured_probes = _to_fit(log, target, probes)
        fit = fit_samples(samples, fusion, block, probes=measured_probes)
        stacked = stack_with_known(fit, samples, str(target), profiles_of_others(target, profiles))
        return cls(samples, measured_probes, fit, stacked)

    @property
    def model(self) -> KernelModel | StackedModel:
        return self.fit.model if self.stacked is None else self.stacked.model

    @property
    def log_errors(self) -> Array:
        return self.fit.log_errors if self.stacked is None else self.stacked.log_errors

    @property
    def held_out_error(self) -> float:
        return self.fit.held_out_error if self.stacked is None else self.stacked.held_out_error


def _provenance(
    target: Target,
    space: SearchSpace,
    seed: int,
    first: Measured,
    log: MeasurementLog,
    fitted: _Fitted,
    measuring: _Measuring,
) -> dict[str, Any]:
    """What a profile says about its measurements and its fit."""
    samples, fit = fitted.samples, fitted.fit
    provenance: dict[str, Any] = {
        "source": f"measured on {'this machine' if target.is_local else target.device} with {target.runtime}",
        "samples": len(samples),
        "probes": len(fitted.probes),
        "space": space.name,
        "seed": seed,
        "held_out_error": round(fitted.held_out_error, 5),
        "macs_only_error": round(fit.macs_only_error, 5),
        "folds": min(FOLDS, len(samples)),
        "corrected": fit.corrected,
        "quiet_factor": round(fit.quiet_factor, 4),
        "sentinel_drift": round(max(log.sentinels_ms) / min(log.sentinels_ms) - 1, 4),
        "measurements": measuring.measured,
        "disturbance": round(float(np.median([sample.disturbance for sample in samples])), 4),
        "fastest_ms": round(min(sample.latency_ms for sample in samples), 4),
        "slowest_ms": round(max(sample.latency_ms for sample in samples), 4),
        "versions": dict(first.versions),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(measuring.elapsed_s, 1),
    }
    if fitted.stacked is not None:
        shares = {part.name: part.share for part in fitted.stacked.model.parts}
        provenance["borrowed"] = {"shares": shares, "held_out_error_without": round(fit.held_out_error, 5)}
        others = [f"{name} ({share:.0%})" for name, share in shares.items() if name != str(target)]
        provenance["source"] += f", leaning on known devices: {', '.join(others)}"
    return provenance
