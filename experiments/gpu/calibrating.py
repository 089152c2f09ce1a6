"""A latency profile of the device and its error on other networks: the steps `calibration` and `held_out`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from lownas.experiments.gpu.record import Record, Skipped
from lownas.experiments.gpu.sizes import Sizes

if TYPE_CHECKING:
    from lownas.predictors import LatencyPredictor, Target

MEASURING_SHARE = 0.75  # of the step's time; the rest is for the fit
LOOKS = 2  # at each of the other networks, with all others in between
OTHERS_SEED = 1  # the calibration draws from 0
MARGIN_S = 4.0
COVERAGE = 0.9


def calibration(record: Record, sizes: Sizes) -> str:
    """Makes a profile, as `lownas calibrate` does."""
    sizes.check_device()
    from lownas.predictors import Target
    from lownas.search.devices import calibrate

    target, profiles = Target.load(sizes.target), record.folder / "profiles"
    profile = profiles / target.file_name
    for old in (profile, profiles / f"{profile.stem}.measurements.jsonl"):
        old.unlink(missing_ok=True)  # or it would go on from there
    record.note(target=str(target), space=sizes.space)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        predictor = calibrate(
            target,
            samples=sizes.samples,
            space=sizes.space,
            time_limit=f"{max(1.0, MEASURING_SHARE * record.left_s):.1f}s",
            profiles=profiles,
            progress=lambda at: record.note(progress=vars(at)),
        )
    record.note(
        profile=str(profile.relative_to(record.folder)),
        fingerprint=predictor.fingerprint,
        provenance=predictor.provenance,
        warnings=sorted({str(warning.message) for warning in said}),
    )
    measured, error = predictor.provenance["samples"], predictor.provenance["held_out_error"]
    if predictor.fingerprint.get("gpu") == "none":
        record.note(remark="the GPU's name was not found in /proc: the profile would be taken for any GPU's")
    return f"{target} on {measured} configurations, held-out error {error:.1%}"


def held_out(record: Record, sizes: Sizes) -> str:
    """Holds the profile against other networks of its space: each is looked at twice, far apart."""
    sizes.check_device()
    from lownas.predictors import Target
    from lownas.search.devices import load_predictor, open_meter

    target = Target.load(sizes.target)
    try:
        predictor = load_predictor(target, record.folder / "profiles")
    except ValueError as error:
        raise Skipped(f"the calibration has left no profile that can be used: {error}") from None
    rows = _predicted(predictor, sizes)
    record.note(target=str(target), networks=len(rows))
    with open_meter(target) as meter, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # doubts of single looks; two looks show what they are worth
        for turn in range(LOOKS):
            for row in rows if turn % 2 == 0 else rows[::-1]:
                if not record.has_time(MARGIN_S):
                    break
                with record.timed():
                    found = meter.measure(row["config"], meter.target, time_limit_s=sizes.look_s)
                row["looks_ms"].append(found.undisturbed_ms)
                row["medians_ms"].append(found.median_ms)
                record.note(rows=[_shown(each) for each in rows if each["looks_ms"]])
            if any(row["looks_ms"] for row in rows):
                record.note(errors=errors(rows, target))
    found_errors = record.document.get("errors")
    if found_errors is None:
        raise Skipped("there was no time for a single network")
    return (
        f"{found_errors['networks']} other networks: mean error {found_errors['mean']:.1%}, median "
        f"{found_errors['median']:.1%}, {found_errors['covered']:.0%} within their {COVERAGE:.0%} interval"
    )


def _predicted(predictor: LatencyPredictor, sizes: Sizes) -> list[dict[str, Any]]:
    """Random networks of the space with their predictions."""
    import numpy as np

    from lownas.search_space import SearchSpace, op_graph

    rng, space = np.random.default_rng(OTHERS_SEED), SearchSpace.load(sizes.space)
    configs = [space.sample(rng) for _ in range(sizes.others)]
    rows = []
    for config, prediction in zip(configs, predictor.predict(configs, coverage=COVERAGE), strict=True):
        row: dict[str, Any] = {"config": config, "id": config.id, "macs": op_graph(config).macs}
        row |= {"predicted_ms": prediction.latency_ms, "low_ms": prediction.low_ms, "high_ms": prediction.high_ms}
        rows.append(row | {"outside": list(prediction.outside), "looks_ms": [], "medians_ms": []})
    return rows


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "config"}


def errors(rows: list[dict[str, Any]], target: Target) -> dict[str, Any]:
    """How far predictions are from the looks at the same networks.

    Of each network the error is (predicted - measured) / measured, with the mean of its looks. "repeatability" is the
    standard deviation of single looks at one network, as a share; None as long as no network has two.
    """
    import numpy as np

    looked = [row for row in rows if row["looks_ms"]]
    predicted = np.array([row["predicted_ms"] for row in looked])
    measured = np.array([np.mean(row["looks_ms"]) for row in looked])
    relative = predicted / measured - 1
    inside = [row["low_ms"] <= value <= row["high_ms"] for row, value in zip(looked, measured, strict=True)]
    twice = [np.log(row["looks_ms"]) for row in looked if len(row["looks_ms"]) > 1]
    spread = float(np.sqrt(np.mean([np.var(looks, ddof=1) for looks in twice]))) if twice else None
    return {
        "target": str(target),
        "networks": len(looked),
        "looked_at_twice": len(twice),
        "mean": float(np.mean(np.abs(relative))),
        "median": float(np.median(np.abs(relative))),
        "root_mean_square": float(np.sqrt(np.mean(relative**2))),
        "mean_signed": float(np.mean(relative)),
        "largest": float(np.max(np.abs(relative))),
        "within_5_percent": float(np.mean(np.abs(relative) < 0.05)),
        "coverage_asked": COVERAGE,
        "covered": float(np.mean(inside)),
        "repeatability": spread,
        "fastest_ms": float(measured.min()),
        "slowest_ms": float(measured.max()),
    }
