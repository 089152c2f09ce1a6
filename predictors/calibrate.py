"""Making a profile: measure a spread-out sample of a space, fit, report the held-out error, save.

The measuring function is handed in, so that this module needs neither onnxruntime nor torch. Measurements are appended
to a JSON Lines file as they come; a calibration that broke goes on from there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph
from .fusion import KERNEL_CLASS, KERNEL_CLASSES, Kernels, fuse, fuse_config
from .kernel_model import KernelModel, fit_corrections, fit_graphs, fit_kernels, fit_scale
from .latency import LatencyPredictor
from .target import Target, user_profiles
from .uncertainty import LogErrors

Array = NDArray[np.float64]

DEFAULT_SAMPLES = 40
DEFAULT_TIME_LIMIT_S = 195.0
MIN_SAMPLES = 8
FOLDS = 8
SENTINEL_EVERY = 4
QUIET = 0.04
"""Median over undisturbed time, and swing of the sentinel, up to which a machine counts as quiet."""
POOL = 1500
BLOCKS = (16, 8, 4, 0)
"""Channels that onnxruntime's blocked layout may have on a CPU; 0: none."""


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


Measure = Callable[[LowFormerConfig, Target], Measured]


@dataclass(frozen=True)
class Progress:
    """Where a calibration stands."""

    done: int
    samples: int
    elapsed_s: float
    message: str


@dataclass(frozen=True)
class Sample:
    """One measured config, as it is kept in the measurements file.

    Attributes:
        latency_ms: undisturbed time of a run.
        disturbance: how far the median was above it, relative; 0 on a quiet machine.
        kernel_ms: by "ROW:role", where the runtime tells.
    """

    config: LowFormerConfig
    latency_ms: float
    disturbance: float
    kernel_ms: Mapping[str, float] | None


@dataclass(frozen=True)
class Fit:
    """A fitted model with what is known of its errors, all on graphs held out of fitting.

    Attributes:
        model: fitted on all samples.
        log_errors: (samples,) log of measured over predicted, each by a model fitted without that sample.
        held_out_error: mean absolute relative error of the same predictions.
        macs_only_error: that of a line in log MACs.
        corrected: whether the model has learned corrections.
        quiet_factor: what `quiet_factor` took off the times that other work on the machine had lengthened; 1 if none.
    """

    model: KernelModel
    log_errors: Array
    held_out_error: float
    macs_only_error: float
    corrected: bool
    quiet_factor: float


def calibrate(
    target: str | Target,
    measure: Measure,
    *,
    space: str | SearchSpace = "default",
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    time_limit_s: float = DEFAULT_TIME_LIMIT_S,
    progress: Callable[[Progress], None] | None = None,
    profiles: str | Path | None = None,
    path: str | Path | None = None,
) -> LatencyPredictor:
    """Measures a sample of `space` on `target`, fits and saves a profile, and returns its predictor.

    Args:
        target: a target that `measure` can measure.
        measure: times one config.
        space: what to draw configs from; the published models are never among them.
        samples: configs to measure; at least `MIN_SAMPLES`. Fewer are used once `time_limit_s` has passed.
        seed: of the sample.
        time_limit_s: no measurement is begun after this time, as long as `MIN_SAMPLES` were made.
        progress: called after every measurement.
        profiles: folder for the profile; default: the user's own.
        path: measurements file; default: beside the profile.
    """
    target = Target.parse(target)
    if samples < MIN_SAMPLES:
        raise ValueError(f"a calibration needs at least {MIN_SAMPLES} samples, given {samples}")
    if target.runtime not in ("onnxruntime", "torch", "torch-graph", "torch-compile", "tensorrt"):
        raise ValueError(f"{target}: no fusion rules for runtime {target.runtime!r} yet, so it can only be measured")
    if isinstance(space, str):
        space = SearchSpace.load(space)
    folder = Path(profiles) if profiles is not None else user_profiles()
    file = Path(path) if path is not None else folder / f"{target.file_name.removesuffix('.json')}.measurements.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    header = {
        "calibration": str(target),
        "fingerprint": target.fingerprint(),
        "space": space.name,
        "samples": samples,
        "seed": seed,
    }
    done, sentinels = _resume(file, header)
    if done and progress:
        progress(Progress(len(done), samples, 0.0, f"resumed from {file}"))

    sentinel = sentinel_config()
    versions: dict[str, str] = {}

    def watch() -> None:
        measurement = measure(sentinel, target)
        versions.update(measurement.versions)
        sentinels.append(measurement.undisturbed_ms)
        _append(file, {"sentinel_ms": measurement.undisturbed_ms})

    watch()
    # From the calibration's first look at the machine, so that one that resumes draws the same sample.
    chosen = spread_sample(space, samples, seed, _affordable_macs(sentinels[0], sentinel, samples, time_limit_s))

    def look(config: LowFormerConfig) -> None:
        """Measures `config`; of two looks at it the less disturbed one counts."""
        measurement = measure(config, target)
        disturbance = max(0.0, measurement.median_ms / measurement.undisturbed_ms - 1)
        sample = Sample(config, measurement.undisturbed_ms, disturbance, measurement.kernel_ms)
        _append(file, {"config": config.to_dict(), **_sample_record(sample)})
        done[config.id] = less_disturbed(done[config.id], sample) if config.id in done else sample
        looks.append(config.id)
        if len(looks) % SENTINEL_EVERY == 0:
            watch()
        if progress:
            message = f"{config.id}: {measurement.median_ms:.2f} ms"
            progress(Progress(len(done), samples, time.monotonic() - begin, message))

    looks: list[str] = []
    for config in chosen:
        if config.id not in done and (len(done) < MIN_SAMPLES or time.monotonic() - begin < time_limit_s):
            look(config)
    # A machine with other work is looked at a second time, as far as time goes: its swings last seconds.
    if _was_disturbed(list(done.values()), sentinels):
        for config in [sample.config for sample in done.values()]:
            if time.monotonic() - begin < time_limit_s:
                look(config)

    if progress:
        progress(Progress(len(done), samples, time.monotonic() - begin, "fitting"))
    taken = list(done.values())
    block = blocked_channels(taken) if target.runtime == "onnxruntime" else 0
    fit = fit_samples(taken, target.runtime, block)
    drift = float(np.max(sentinels) / np.min(sentinels) - 1)
    provenance: dict[str, Any] = {
        "source": f"measured on this machine with {target.runtime}",
        "samples": len(done),
        "space": space.name,
        "seed": seed,
        "held_out_error": round(fit.held_out_error, 5),
        "macs_only_error": round(fit.macs_only_error, 5),
        "folds": min(FOLDS, len(done)),
        "corrected": fit.corrected,
        "quiet_factor": round(fit.quiet_factor, 4),
        "sentinel_drift": round(drift, 4),
        "measurements": len(looks),
        "disturbance": round(float(np.median([sample.disturbance for sample in taken])), 4),
        "fastest_ms": round(min(sample.latency_ms for sample in taken), 4),
        "slowest_ms": round(max(sample.latency_ms for sample in taken), 4),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(time.monotonic() - begin, 1),
    }
    predictor = LatencyPredictor(
        target, fit.model, LogErrors.from_errors(fit.log_errors), provenance, target.fingerprint()
    )
    predictor.save(profiles)
    _append(file, {"complete": True, "held_out_error": provenance["held_out_error"]})
    if progress:
        error, line = fit.held_out_error, fit.macs_only_error
        message = f"held-out error {error:.1%} (MACs alone {line:.1%})"
        progress(Progress(len(done), samples, time.monotonic() - begin, message))
    return predictor


def less_disturbed(one: Sample, other: Sample) -> Sample:
    """The better of two measurements of one config, for the whole and for its kernels: other work only lengthens."""
    if one.kernel_ms is None or other.kernel_ms is None:
        kernels = one.kernel_ms or other.kernel_ms
    else:
        kernels = min(one.kernel_ms, other.kernel_ms, key=lambda times: sum(times.values()))
    latency_ms = min(one.latency_ms, other.latency_ms)
    return Sample(one.config, latency_ms, min(one.disturbance, other.disturbance), kernels)


def _was_disturbed(samples: Sequence[Sample], sentinels: Sequence[float]) -> bool:
    median = float(np.median([sample.disturbance for sample in samples]))
    return median > QUIET or float(np.ptp(sentinels)) / min(sentinels) > QUIET


def sentinel_config() -> LowFormerConfig:
    """A small model, measured again and again during a calibration to reveal drift of the machine."""
    return PRESETS["cpubone_nano"].replace(resolution=192, classes=100)


def _affordable_macs(sentinel_ms: float, sentinel: LowFormerConfig, samples: int, time_limit_s: float) -> float:
    """MACs up to which a network takes less than its share of the time, at the sentinel's speed; a power of two."""
    runs = 60  # warm-up, timed runs and profiled runs of one measurement, with what loading takes
    limit = op_graph(sentinel).macs * time_limit_s / samples / runs / (sentinel_ms / 1e3)
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


# --- the measurements file -------------------------------------------------------------------------------------------


def _append(file: Path, record: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(record, separators=(",", ":")) + "\n")
        out.flush()
        os.fsync(out.fileno())


def _sample_record(sample: Sample) -> dict[str, Any]:
    kernels = None if sample.kernel_ms is None else {key: round(ms, 5) for key, ms in sample.kernel_ms.items()}
    return {"latency_ms": sample.latency_ms, "disturbance": sample.disturbance, "kernel_ms": kernels}


def _resume(file: Path, header: dict[str, Any]) -> tuple[dict[str, Sample], list[float]]:
    """What the file's last calibration measured, if it was the same one and broke off; else a new one begins there."""
    done: dict[str, Sample] = {}
    sentinels: list[float] = []
    resuming = False
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for line in text.splitlines():
        try:
            record = json.loads(line)
            if "calibration" in record:
                resuming = record == header
                done, sentinels = {}, []
            elif "complete" in record:
                resuming = False
            elif "sentinel_ms" in record:
                sentinels.append(float(record["sentinel_ms"]))
            else:
                config = LowFormerConfig.from_dict(record["config"])
                kernels = record["kernel_ms"]
                sample = Sample(config, float(record["latency_ms"]), float(record["disturbance"]), kernels)
                done[config.id] = less_disturbed(done[config.id], sample) if config.id in done else sample
        except (ValueError, KeyError, TypeError):
            continue  # cut off where the machine stopped; that config is measured again
    if resuming:
        if text and not text.endswith("\n"):
            with file.open("a", encoding="utf-8") as out:
                out.write("\n")
        return done, sentinels
    _append(file, header)
    return {}, []


# --- fitting ---------------------------------------------------------------------------------------------------------


def blocked_channels(samples: Sequence[Sample]) -> int:
    """Channels of onnxruntime's blocked layout on the device: the setting whose kernels have the measured names."""
    with_kernels = [sample for sample in samples if sample.kernel_ms]
    if not with_kernels:
        return BLOCKS[0]

    def mismatches(block: int) -> int:
        return sum(
            len(set(sample.kernel_ms or ()) ^ set(_names(fuse(op_graph(sample.config), "onnxruntime", block))))
            for sample in with_kernels[:6]
        )

    return min(BLOCKS, key=mismatches)


def _names(kernels: Kernels) -> list[str]:
    return [f"{row}:{role}" for row, role in kernels.keys]


def _kernel_times(sample: Sample, kernels: Kernels) -> Array:
    """(K,) measured time of each kernel, NaN where there is none. What was measured beside them is shared out."""
    assert sample.kernel_ms is not None
    return np.array([sample.kernel_ms.get(name, np.nan) for name in _names(kernels)])


def fit_samples(samples: Sequence[Sample], runtime: str, block: int, folds: int = FOLDS) -> Fit:
    """Fits a model, and cross-validates it, the choice of corrections included (nested)."""
    graphs = [fuse(op_graph(sample.config), runtime, block) for sample in samples]
    macs = np.array([float(graph.column("macs").sum()) for graph in graphs])
    times = np.array([sample.latency_ms for sample in samples])
    everything = np.arange(len(samples))
    fold = everything % folds
    predicted, line = np.empty(len(samples)), np.empty(len(samples))
    for k in range(min(folds, len(samples))):
        train, test = everything[fold != k], everything[fold == k]
        model, _ = _fit_with_choice(samples, graphs, train, runtime, block, folds)
        predicted[test] = [model.graph_ms(graphs[i]) for i in test]
        slope = np.polyfit(np.log(macs[train]), np.log(times[train]), 1)
        line[test] = np.exp(np.polyval(slope, np.log(macs[test])))
    model, corrected = _fit_with_choice(samples, graphs, everything, runtime, block, folds)
    log_errors = np.log(times / predicted)
    factor = quiet_factor(log_errors, np.array([sample.disturbance for sample in samples]))
    if factor < 1:
        model = replace(model, overhead_ms=factor * model.overhead_ms, scale=factor * model.scale)
        log_errors = log_errors - np.median(log_errors)
    return Fit(
        model=model,
        log_errors=log_errors,
        held_out_error=float(np.mean(np.abs(predicted / times - 1))),
        macs_only_error=float(np.mean(np.abs(line / times - 1))),
        corrected=corrected,
        quiet_factor=factor,
    )


def quiet_factor(log_errors: Array, disturbances: Array) -> float:
    """Factor from the typical measured time to that of a quiet machine, at most 1.

    Other work on the machine only ever lengthens a measurement (its caches and memory are shared even where its cores
    are not). On a quiet machine the errors about the model are its own, and their middle is right; the more disturbed
    the measurements, the closer to their lower edge the undisturbed time lies.

    Args:
        log_errors: (samples,) log of measured over predicted.
        disturbances: (samples,) as in `Sample`.
    """
    disturbance = float(np.median(disturbances))
    level = float(np.interp(disturbance, [0.03, 0.3], [0.5, 0.15]))
    if level >= 0.5:
        return 1.0
    return float(min(1.0, np.exp(np.quantile(log_errors, level))))


def _fit_with_choice(
    samples: Sequence[Sample], graphs: Sequence[Kernels], train: NDArray[np.int64], runtime: str, block: int, folds: int
) -> tuple[KernelModel, bool]:
    """A model of the samples `train`, corrected if that helps on folds of theirs."""
    if any(samples[i].kernel_ms is None for i in train):
        return _fit(samples, graphs, train, runtime, block, corrected=False), False
    inner = max(2, folds // 2)
    part = np.arange(len(train)) % inner
    errors = {False: 0.0, True: 0.0}
    for k in range(inner):
        kept, left = train[part != k], train[part == k]
        plain = _fit(samples, graphs, kept, runtime, block, corrected=False)
        learned = _fit(samples, graphs, kept, runtime, block, corrected=True)
        for corrected, model in ((False, plain), (True, learned)):
            errors[corrected] += sum(abs(np.log(model.graph_ms(graphs[i]) / samples[i].latency_ms)) for i in left)
    corrected = bool(errors[True] < 0.97 * errors[False])
    return _fit(samples, graphs, train, runtime, block, corrected=corrected), corrected


def _fit(
    samples: Sequence[Sample],
    graphs: Sequence[Kernels],
    train: NDArray[np.int64],
    runtime: str,
    block: int,
    corrected: bool,
) -> KernelModel:
    mine = [graphs[i] for i in train]
    times = np.array([samples[i].latency_ms for i in train])
    weights = np.array([1 / (0.02**2 + min(samples[i].disturbance, 1.0) ** 2) for i in train])
    weights /= weights.mean()
    if any(samples[i].kernel_ms is None for i in train):
        return fit_graphs(mine, times, runtime, block=block, weights=weights)
    kernel_times = [_kernel_times(samples[i], graphs[i]) for i in train]
    slowdowns = np.ones(len(mine))
    # Other work on the machine slows all kernels of a graph by one factor, which would else pass for their own.
    for _ in range(2):
        model = fit_kernels(mine, kernel_times, runtime, block=block, slowdowns=slowdowns)
        slowdowns = np.array([_common_factor(model, g, t) for g, t in zip(mine, kernel_times, strict=True)])
        slowdowns /= np.median(slowdowns)
    if corrected:
        model = fit_corrections(model, mine, kernel_times, slowdowns=slowdowns)
    return fit_scale(model, mine, times, weights)


def _common_factor(model: KernelModel, graph: Kernels, times_ms: Array) -> float:
    """Median of measured over modelled kernel times, each weighted by its share of the graph's time."""
    fitted = model.kernel_ms(graph)
    known = np.isfinite(times_ms) & (fitted > 0) & (graph.column("class") != KERNEL_CLASS["other"])
    ratios, shares = times_ms[known] / fitted[known], fitted[known]
    order = np.argsort(ratios)
    middle = np.searchsorted(np.cumsum(shares[order]), shares.sum() / 2)
    return float(ratios[order][min(middle, len(order) - 1)])
