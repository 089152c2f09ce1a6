"""Calibration: measures a spread-out sample of a space, fits a latency model, and saves it as the target's profile.

The measuring function is passed in, so that this module needs neither onnxruntime nor torch. Measurements are appended
to a JSON Lines file as they come, from which a broken calibration resumes.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...search_space import OpGraph, SearchSpace
from .fitting.cross_validation import FOLDS
from .measurement_log import MeasurementLog
from .measuring import (
    DEFAULT_SAMPLES,
    DEFAULT_TIME_LIMIT_S,
    MIN_SAMPLES_TO_CHECK,
    Effort,
    Measure,
    Measured,
    Measuring,
    Progress,
)
from .predictor import LatencyPredictor
from .profile_fit import FittedSpaces, fit_log, model_rms
from .sampling import affordable_macs, sentinel_config, spread_sample
from .sentinel_history import SentinelHistory
from .target import Target, user_profiles
from .undisturbed import SentinelWatch


def calibrate(
    target: str | Target,
    measure: Measure,
    *,
    look_at_sentinel: Callable[[Target], float] | None = None,
    space: str | SearchSpace = "default",
    samples: int | None = None,
    until: float | None = None,
    probes: Mapping[str, OpGraph] | None = None,
    seed: int = 0,
    time_limit_s: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    profiles: str | Path | None = None,
    path: str | Path | None = None,
    adds: bool = False,
) -> LatencyPredictor:
    """Measures a sample of `space` on `target`, fits and saves a profile, and returns its predictor.

    Args:
        target: a target that `measure` can measure.
        measure: times one config or operator graph.
        look_at_sentinel: gives the undisturbed latency of `sampling.sentinel_config()` in ms, from a short look; by
            default `measure` does that.
        space: the space that configs are drawn from; the published models are never among them.
        samples: configs to measure, at least `MIN_SAMPLES`; by default `DEFAULT_SAMPLES`, more where they are quick to
            measure, or with `until` at most `MAX_SAMPLES`. Fewer are measured once `time_limit_s` has passed.
        until: stops as soon as the mean error on held-out configs is below this with 90 % confidence (0.03 is 3 %), as
            checked after every `CONFIGS_PER_CHECK` configs; the more checks, the lower is the confidence in the last.
        probes: small graphs of operators that the space lacks, so that other networks can be predicted too; measured
            if the runtime reports kernel times. By default `search_space.probes.probe_graphs()`; {} for none.
        seed: of the sample.
        time_limit_s: no measurement begins after this time, except of the first `MIN_SAMPLES` configs. By default
            `DEFAULT_TIME_LIMIT_S`, with `until` `UNTIL_TIME_LIMIT_S`.
        progress: called after every look.
        profiles: folder for the profile; default: the user's own.
        path: measurements file; default: beside the profile.
        adds: the configs that were measured before, of other spaces, are kept and fitted on too; networks of each space
            get a model of their own where that predicts them better.

    Warns of whatever was not measured for lack of time.

    Raises:
        ValueError: unknown target or space, too few samples, an impossible error to reach, or settings of the machine
            that are changed meanwhile.
    """
    target = Target.parse(target)
    effort = Effort.of(samples, until, time_limit_s)
    if isinstance(space, str):
        space = SearchSpace.load(space)
    if probes is None:
        from ...search_space.probes import probe_graphs

        probes = probe_graphs()
    file = _log_file(target, profiles) if path is None else Path(path)
    begin = time.monotonic()
    sentinel = sentinel_config()
    first = measure(sentinel, target)
    history = SentinelHistory.of(target, first.host, first.settings, profiles)
    log = MeasurementLog(file, _header(target, first, space, seed, effort, adds), history.known_ms())
    resumed = bool(log.looks) and not adds
    watch = SentinelWatch(lambda: (look_at_sentinel or _looker(measure))(target))
    log.add_sentinel(watch.look())
    measuring = Measuring(target, measure, watch, log, effort, probes, first.settings, progress, begin)
    if resumed:
        measuring.report(f"resumed from {file}")
    # By the first look at the sentinel, so that a calibration that resumes draws the same sample.
    limit = affordable_macs(DEFAULT_TIME_LIMIT_S / DEFAULT_SAMPLES, log.sentinels_ms[0], sentinel)
    chosen = spread_sample(space, effort.samples + effort.more, seed, limit)
    unmeasured_probes = measuring.look_at_probes() if first.kernel_ms is not None else 0
    bound = measuring.look_at_configs(chosen)
    history.add(watch.sentinels_ms)
    _warn_of_missing(unmeasured_probes, len(probes), measuring.done, min(effort.samples, len(chosen)), bound, effort)
    measuring.report("fitting")
    fitted = fit_log(log, target, probes, profiles)
    provenance = _provenance(target, space, seed, first, log, fitted, measuring)
    predictor = fitted.predictor(target, provenance, first.host)
    predictor.save(profiles)
    log.complete(fitted.held_out_error)
    measuring.report(f"held-out error {fitted.held_out_error:.1%} (MACs alone {fitted.macs_only_error:.1%})")
    return predictor


def _looker(measure: Measure) -> Callable[[Target], float]:
    return lambda target: measure(sentinel_config(), target).undisturbed_ms


def space_key(space: SearchSpace) -> str:
    """A space's name, and a digest of its choices: a space's file may change."""
    return f"{space.name}:{hashlib.sha256(space.choices.model_dump_json().encode()).hexdigest()[:12]}"


def _log_file(target: Target, profiles: str | Path | None) -> Path:
    """The file of a target's measurements beside its profile."""
    folder = Path(profiles) if profiles is not None else user_profiles()
    return folder / f"{target.file_name.removesuffix('.json')}.measurements.jsonl"


def _header(
    target: Target, first: Measured, space: SearchSpace, seed: int, effort: Effort, adds: bool
) -> dict[str, Any]:
    """The first line of a calibration in its file: whatever must be equal for it to be resumed."""
    return {
        "calibration": str(target),
        "fingerprint": dict(first.host),
        "settings": dict(first.settings),
        "space": space_key(space),
        "seed": seed,
        "samples": effort.samples,
        "until": effort.until,
        "adds": adds,
    }


def _warn_of_missing(
    unmeasured_probes: int, probes: int, measured: int, chosen: int, bound: float, effort: Effort
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


def _provenance(
    target: Target,
    space: SearchSpace,
    seed: int,
    first: Measured,
    log: MeasurementLog,
    fitted: FittedSpaces,
    measuring: Measuring,
) -> dict[str, Any]:
    """What a profile says about its measurements and its fit."""
    first_fit, samples = fitted.parts[0], [sample for part in fitted.parts for sample in part.samples]
    provenance: dict[str, Any] = {
        "source": f"measured on {'this machine' if target.is_local else target.device} with {target.runtime}",
        "samples": len(samples),
        "probes": len(first_fit.probes),
        "space": space.name,
        "spaces": log.spaces,
        "seed": seed,
        "held_out_error": round(fitted.held_out_error, 5),
        "macs_only_error": round(fitted.macs_only_error, 5),
        "folds": min(FOLDS, len(samples)),
        "form": first_fit.fit.form,
        "held_out_rms": round(fitted.rms, 5),
        "noise_rms": round(fitted.noise, 5),
        "model_rms": round(model_rms(fitted.rms, fitted.noise), 5),
        "looks": sum(len(looks) for looks in log.looks.values()),
        "more_looks_would_help": not measuring.enough,
        "sentinel_ms": round(log.reference_ms or 0.0, 5),
        "slowness": round(float(np.mean(log.sentinels_ms)) / (log.reference_ms or 1.0) - 1, 4),
        "settings": dict(first.settings),
        "fastest_ms": round(min(sample.latency_ms for sample in samples), 4),
        "slowest_ms": round(max(sample.latency_ms for sample in samples), 4),
        "versions": dict(first.versions),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(measuring.elapsed_s, 1),
    }
    if len(fitted.parts) > 1:
        provenance["held_out_error_by_space"] = {part.space: round(part.held_out_error, 5) for part in fitted.parts}
    if (stacked := first_fit.stacked) is not None:
        shares = {part.name: part.share for part in stacked.model.parts}
        provenance["borrowed"] = {"shares": shares, "held_out_error_without": round(first_fit.fit.held_out_error, 5)}
        others = [f"{name} ({share:.0%})" for name, share in shares.items() if name != str(target)]
        provenance["source"] += f", leaning on known devices: {', '.join(others)}"
    return provenance
