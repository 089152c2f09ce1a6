"""Making a profile: measure a spread-out sample of a space, fit, report the held-out error, save.

The measuring function is handed in, so that this module needs neither onnxruntime nor torch. Measurements are appended
to a JSON Lines file as they come; a calibration that broke goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...search_space import PRESETS, LowFormerConfig, OpGraph, SearchSpace, op_graph
from .fit import FOLDS, QUIET, Fit, Probe, Sample, blocked_channels, fit_samples, held_out_bound, merged
from .fusion import fuse_config
from .kernel_model import KernelModel
from .kernels import KERNEL_CLASSES
from .predictor import LatencyPredictor
from .target import Target, profile_folders, user_profiles
from .transfer import MIN_MEASUREMENTS, Part, StackedModel, fit_transfer, leave_one_out
from .uncertainty import LogErrors

Array = NDArray[np.float64]

DEFAULT_SAMPLES = 40
DEFAULT_TIME_LIMIT_S = 195.0
MIN_SAMPLES = 8
MOST_SAMPLES = 200
UNTIL_TIME_LIMIT_S = 1800.0
LEAST_UNTIL = 12
CHECK_EVERY = 6
SENTINEL_EVERY = 4
SWING = 0.1
"""Swing of the sentinel, from its fastest to its slowest look, above which a machine counts as disturbed."""
POOL = 1500
WORTH_BORROWING = 0.95
"""Held-out error with known devices over that without, up to which a profile leans on them."""


class Measured(Protocol):
    """What calibration needs of a measurement (`evaluators.LatencyMeasurement` has it)."""

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
    """Where a calibration stands."""

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
        space: what to draw configs from; the published models are never among them.
        samples: configs to measure, at least `MIN_SAMPLES`; by default `DEFAULT_SAMPLES`, or with `until` at most
            `MOST_SAMPLES`. Fewer are used once `time_limit_s` has passed.
        until: stops as soon as the mean error on held-out configs is below this with 90 % confidence (0.03 is 3 %), as
            seen after every `CHECK_EVERY` configs; with many looks the confidence in the last is less.
        probes: small graphs of operators that the space lacks, so that other networks can be predicted too; measured
            where the runtime tells kernel times. By default `search_space.probes.probe_graphs()`; {} for none.
        seed: of the sample.
        time_limit_s: no measurement is begun after this time, but for the first `MIN_SAMPLES` configs. By default
            `DEFAULT_TIME_LIMIT_S`, with `until` `UNTIL_TIME_LIMIT_S`.
        progress: called after every measurement. What was left out for want of time is a warning.
        profiles: folder for the profile; default: the user's own.
        path: measurements file; default: beside the profile.
    """
    target = Target.parse(target)
    if samples is None:
        samples = DEFAULT_SAMPLES if until is None else MOST_SAMPLES
    if time_limit_s is None:
        time_limit_s = DEFAULT_TIME_LIMIT_S if until is None else UNTIL_TIME_LIMIT_S
    if samples < MIN_SAMPLES:
        raise ValueError(f"a calibration needs at least {MIN_SAMPLES} samples, given {samples}")
    if until is not None and not 0 < until < 1:
        raise ValueError(f"the held-out error to reach is between 0 and 100 %, given {until:.0%}")
    if isinstance(space, str):
        space = SearchSpace.load(space)
    if probes is None:
        from ...search_space.probes import probe_graphs

        probes = probe_graphs()
    folder = Path(profiles) if profiles is not None else user_profiles()
    file = Path(path) if path is not None else folder / f"{target.file_name.removesuffix('.json')}.measurements.jsonl"
    begin = time.monotonic()

    def elapsed() -> float:
        return time.monotonic() - begin

    def say(message: str) -> None:
        if progress:
            progress(Progress(len(taken.looks), samples, elapsed(), message))

    sentinel = sentinel_config()
    first = measure(sentinel, target)
    header = {"calibration": str(target), "fingerprint": dict(first.host), "space": space.name, "seed": seed}
    header["choices"] = hashlib.sha256(space.choices.model_dump_json().encode()).hexdigest()[:12]  # a file may change
    taken = _Measurements(file, header | {"samples": samples, "until": until})
    if taken.looks:
        say(f"resumed from {file}")
    taken.add_sentinel(first.undisturbed_ms)
    # From the calibration's first look at the machine, so that one that resumes draws the same sample.
    limit = _affordable_macs(taken.sentinels_ms[0], sentinel)
    chosen = spread_sample(space, samples, seed, limit)
    measured = 0

    def look(config: LowFormerConfig) -> None:
        nonlocal measured
        measurement = measure(config, target)
        disturbance = max(0.0, measurement.median_ms / measurement.undisturbed_ms - 1)
        taken.add_look(Sample(config, measurement.undisturbed_ms, disturbance, measurement.kernel_ms))
        measured += 1
        if measured % SENTINEL_EVERY == 0:
            taken.add_sentinel(measure(sentinel, target).undisturbed_ms)
        say(f"{config.id}: {measurement.median_ms:.2f} ms")

    def round_of(configs: Sequence[LowFormerConfig], looks: int) -> None:
        """Looks at the configs that have had fewer than `looks` looks, as far as time goes."""
        for config in configs:
            enough = len(taken.looks) >= MIN_SAMPLES and elapsed() >= time_limit_s
            if len(taken.looks.get(config.id, ())) < looks and not enough:
                look(config)

    skipped = 0
    if first.kernel_ms is not None:
        for name, graph in probes.items():
            if name in taken.probes:
                continue
            if elapsed() >= time_limit_s / 4:
                skipped += 1
                continue
            taken.add_probe(name, measure(graph, target).kernel_ms or {})
            say(f"probe {name}")
    # A machine's speed swings within seconds: every config is looked at twice, with others in between.
    batch, bound = samples if until is None else CHECK_EVERY, np.inf
    for start in range(0, len(chosen), batch):
        configs = chosen[start : start + batch]
        round_of(configs, 1)
        round_of(configs[::-1], 2)
        if until is not None and len(taken.looks) >= LEAST_UNTIL:
            bound = held_out_bound(*taken.to_fit(target, probes))
            say(f"held-out error below {bound:.1%}")
            if bound <= until:
                break
    if taken.disturbed:
        round_of(chosen[: len(taken.looks)], 3)

    if skipped:
        warnings.warn(
            f"{skipped} of {len(probes)} probes were not measured for want of time: networks other than LowFormers are "
            "predicted worse, and their intervals do not show it",
            stacklevel=2,
        )
    if until is not None and bound > until:
        sure = (
            f"surely below {bound:.1%} only"
            if np.isfinite(bound)
            else f"not sure with fewer than {LEAST_UNTIL} configs"
        )
        warnings.warn(f"held-out error: {sure}, asked for was {until:.1%}", stacklevel=2)
    elif until is None and len(taken.looks) < len(chosen):
        warnings.warn(f"{len(taken.looks)} of {len(chosen)} configs were measured for want of time", stacklevel=2)
    say("fitting")
    known, runtime, block, probed = taken.to_fit(target, probes)
    fit = fit_samples(known, runtime, block, probes=probed)
    borrowed = borrow(fit, known, str(target), _other_profiles(target, profiles))
    model: KernelModel | StackedModel
    model, log_errors, held_out_error = borrowed or (fit.model, fit.log_errors, fit.held_out_error)
    provenance: dict[str, Any] = {
        "source": f"measured on {'this machine' if target.is_local else target.device} with {target.runtime}",
        "samples": len(known),
        "probes": len(probed),
        "space": space.name,
        "seed": seed,
        "held_out_error": round(held_out_error, 5),
        "macs_only_error": round(fit.macs_only_error, 5),
        "folds": min(FOLDS, len(known)),
        "corrected": fit.corrected,
        "quiet_factor": round(fit.quiet_factor, 4),
        "sentinel_drift": round(max(taken.sentinels_ms) / min(taken.sentinels_ms) - 1, 4),
        "measurements": measured,
        "disturbance": round(float(np.median([sample.disturbance for sample in known])), 4),
        "fastest_ms": round(min(sample.latency_ms for sample in known), 4),
        "slowest_ms": round(max(sample.latency_ms for sample in known), 4),
        "versions": dict(first.versions),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(elapsed(), 1),
    }
    if isinstance(model, StackedModel):
        shares = {part.name: part.share for part in model.parts}
        provenance["borrowed"] = {"shares": shares, "held_out_error_without": round(fit.held_out_error, 5)}
        leans = [f"{name} ({share:.0%})" for name, share in shares.items() if name != str(target)]
        provenance["source"] += f", leaning on known devices: {', '.join(leans)}"
    predictor = LatencyPredictor(target, model, LogErrors.from_errors(log_errors), provenance, dict(first.host))
    predictor.save(profiles)
    taken.complete(held_out_error)
    say(f"held-out error {held_out_error:.1%} (MACs alone {fit.macs_only_error:.1%})")
    return predictor


def borrow(
    fit: Fit, samples: Sequence[Sample], own: str, known: Mapping[str, LatencyPredictor]
) -> tuple[StackedModel, Array, float] | None:
    """The device's own model stacked with those of known devices, if that predicts better what was left out.

    Few measurements fit a device's own coefficients badly; known devices' predictions then carry part of the weight.

    Args:
        fit: of the device alone.
        samples: what it was fitted on.
        own: name of the device.
        known: predictors of other devices, by name.

    Returns:
        The model, the (samples,) log errors of stacks fitted without each sample, and their mean absolute relative
        error; None where the device's own model alone is as good.
    """
    times_ms = np.array([sample.latency_ms for sample in samples])
    if not known or len(times_ms) <= MIN_MEASUREMENTS:
        return None
    configs = [sample.config for sample in samples]
    predicted = {own: times_ms / np.exp(fit.log_errors)}
    predicted |= {name: predictor.latency_ms(configs) for name, predictor in known.items()}
    log_errors = leave_one_out(predicted, times_ms)
    error = float(np.mean(np.abs(np.expm1(-log_errors))))
    if error > WORTH_BORROWING * fit.held_out_error:
        return None
    transfer = fit_transfer(predicted, times_ms)
    overhead_ms = fit.typical * transfer.overhead_ms
    # The device's own model predicts typical times already.
    parts = [Part(own, transfer.weights.get(own, 0.0), transfer.shares.get(own, 0.0), fit.model)]
    for name, weight in transfer.weights.items():
        if name == own:
            continue
        lent = known[name].model
        lent = lent if isinstance(lent, StackedModel) else StackedModel.of(lent)
        # What a predictor gives is the median of its errors about its model.
        factor = fit.typical * weight * float(np.exp(known[name].errors.quantile(0.5)))
        overhead_ms += factor * lent.overhead_ms
        parts += [
            Part(name, factor * part.weight, transfer.shares[name] * part.share, part.model) for part in lent.parts
        ]
    return StackedModel(overhead_ms, tuple(parts)), log_errors, error


def _other_profiles(target: Target, profiles: str | Path | None) -> dict[str, LatencyPredictor]:
    """Predictors of all other targets that have a profile, whichever machine it is of."""
    found: dict[str, LatencyPredictor] = {}
    for folder in profile_folders(profiles):
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            with suppress(ValueError):  # a broken profile lends nothing
                predictor = LatencyPredictor.read(path, check_host=False)
                if predictor.target != target:
                    found.setdefault(str(predictor.target), predictor)
    return found


def sentinel_config() -> LowFormerConfig:
    """A small model, measured again and again during a calibration to reveal drift of the machine."""
    return PRESETS["lowformer_b0"].replace(resolution=160, classes=100)


def _affordable_macs(sentinel_ms: float, sentinel: LowFormerConfig) -> float:
    """MACs up to which a network takes less than its share of a default calibration, at the sentinel's speed.

    A power of two, so that the machine's swings hardly ever change the sample.
    """
    runs = 60  # warm-up, timed runs and profiled runs of one measurement, with what loading takes
    limit = op_graph(sentinel).macs * DEFAULT_TIME_LIMIT_S / DEFAULT_SAMPLES / runs / (sentinel_ms / 1e3)
    return float(2 ** np.round(np.log2(max(limit, 1.0))))


def spread_sample(space: SearchSpace, samples: int, seed: int, limit_macs: float = np.inf) -> list[LowFormerConfig]:
    """Configs of `space` spread out over size, shapes and kernel classes; none of the presets.

    Best-candidate sampling (Mitchell 1991): each next config is the one of 50 random candidates that is farthest from
    all chosen so far. Networks over `limit_macs` are left out as long as a third of the space remains.
    """
    rng = np.random.default_rng(seed)
    published = {config.id for config in PRESETS.values()}
    pool = {config.id: config for config in (space.sample(rng) for _ in range(POOL))}
    configs = [config for name, config in pool.items() if name not in published]
    macs = np.array([op_graph(config).macs for config in configs])
    limit = max(limit_macs, float(np.quantile(macs, 1 / 3)))
    configs = [config for config, count in zip(configs, macs, strict=True) if count <= limit]
    points = np.array([_describe(config) for config in configs])
    spread = points.std(axis=0)
    points = (points - points.mean(axis=0)) / np.where(spread > 0, spread, 1)
    samples = min(samples, len(configs))
    chosen = [int(np.argmin((points**2).sum(axis=1)))]
    distance = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < samples:
        open_ = np.flatnonzero(distance > 0) if (distance > 0).any() else np.setdiff1d(np.arange(len(points)), chosen)
        candidates = rng.choice(open_, size=min(50, len(open_)), replace=False)
        best = int(candidates[np.argmax(distance[candidates])])
        chosen.append(best)
        distance = np.minimum(distance, ((points - points[best]) ** 2).sum(axis=1))
        distance[chosen] = 0
    return [configs[index] for index in chosen]


def _describe(config: LowFormerConfig) -> Array:
    """What makes networks different for a device: size, resolution, widths, and the share of each kernel class."""
    kernels = fuse_config(config, "onnxruntime")
    work = kernels.column("macs") + 20.0 * (kernels.column("inputs") + kernels.column("outputs"))
    shares = np.bincount(kernels.column("class"), work, minlength=len(KERNEL_CLASSES)) / work.sum()
    widths = [config.stem_width, *(stage.width for stage in config.stages)]
    size = [2 * np.log(kernels.column("macs").sum()), config.resolution / 32, *(2 * np.log(widths))]
    return np.concatenate([size, np.sqrt(shares)])


class _Measurements:
    """What was measured, and the JSON Lines file that it is appended to as it comes.

    The file's last calibration is gone on with if it was the same one and broke off; else a new one begins there.
    """

    def __init__(self, file: Path, header: dict[str, Any]) -> None:
        self.file = file
        self.looks: dict[str, list[Sample]] = {}
        self.probes: dict[str, Mapping[str, float]] = {}
        self.sentinels_ms: list[float] = []
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        resuming = False
        for line in text.splitlines():
            try:
                record = json.loads(line)
                if "calibration" in record:
                    resuming = record == header
                    self.looks, self.probes, self.sentinels_ms = {}, {}, []
                elif "complete" in record:
                    resuming = False
                elif "sentinel_ms" in record:
                    self.sentinels_ms.append(float(record["sentinel_ms"]))
                elif "probe" in record:
                    self.probes[str(record["probe"])] = record["kernel_ms"]
                else:
                    config = LowFormerConfig.from_dict(record["config"])
                    times = float(record["latency_ms"]), float(record["disturbance"])
                    self._keep(Sample(config, *times, record["kernel_ms"]))
            except (ValueError, KeyError, TypeError):
                continue  # cut off where the machine stopped; that one is measured again
        if text and not text.endswith("\n"):
            with file.open("a", encoding="utf-8") as out:
                out.write("\n")
        if not resuming:
            self.looks, self.probes, self.sentinels_ms = {}, {}, []
            self._append(header)

    def add_sentinel(self, sentinel_ms: float) -> None:
        self.sentinels_ms.append(sentinel_ms)
        self._append({"sentinel_ms": sentinel_ms})

    def add_look(self, sample: Sample) -> None:
        self._keep(sample)
        times = {"latency_ms": sample.latency_ms, "disturbance": sample.disturbance}
        self._append({"config": sample.config.to_dict(), **times, "kernel_ms": _rounded(sample.kernel_ms)})

    def add_probe(self, name: str, kernel_ms: Mapping[str, float]) -> None:
        self.probes[name] = kernel_ms
        self._append({"probe": name, "kernel_ms": _rounded(kernel_ms)})

    def complete(self, held_out_error: float) -> None:
        self._append({"complete": True, "held_out_error": round(held_out_error, 5)})

    @property
    def disturbed(self) -> bool:
        """Whether other work showed, in the samples themselves or in the sentinel's swing."""
        median = float(np.median([look.disturbance for looks in self.looks.values() for look in looks]))
        return median > QUIET or float(np.ptp(self.sentinels_ms)) / min(self.sentinels_ms) > SWING

    def to_fit(self, target: Target, probes: Mapping[str, OpGraph]) -> tuple[list[Sample], str, int, list[Probe]]:
        """(samples, runtime, block, probes), as `fit_samples` takes them."""
        samples = [merged(looks) for looks in self.looks.values()]
        block = blocked_channels(samples) if target.kernels == "onnxruntime" else 0
        known = [Probe(probes[name], kernel_ms) for name, kernel_ms in self.probes.items() if name in probes]
        return samples, target.kernels, block, known

    def _keep(self, sample: Sample) -> None:
        self.looks.setdefault(sample.config.id, []).append(sample)

    def _append(self, record: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, separators=(",", ":")) + "\n")
            out.flush()
            os.fsync(out.fileno())


def _rounded(kernel_ms: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if kernel_ms is None else {key: round(ms, 5) for key, ms in kernel_ms.items()}
