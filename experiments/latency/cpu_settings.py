"""How well a calibration predicts the rest of its space in other settings of `cpu`: int8, and two threads.

    python experiments/latency/cpu_settings.py measure --rows rows.jsonl     # resumable; twelve minutes a pass
    python experiments/latency/cpu_settings.py report [--rows rows.jsonl]    # writes cpu_settings.json

Measured are, interleaved and in random order, the configurations that a calibration would choose (`spread_sample`, seed
0), random ones of the default space, which no fit and no choice sees, and the published models, those also in fp32 on
one thread. Several passes are merged as a calibration's looks are; those committed are of one.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from cpu_space import read_rows

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lownas.evaluators.device.measure import measure_for_calibration
from lownas.predictors import Target
from lownas.predictors.latency.fitting.cross_validation import FOLDS, fit_samples
from lownas.predictors.latency.fitting.samples import ConfigLook, Sample, merged
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.sampling import spread_sample
from lownas.predictors.latency.uncertainty import LogErrors
from lownas.predictors.latency.undisturbed import Look
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph

REFERENCE = "cpu"
SETTINGS = ("cpu:int8", "cpu/onnxruntime/fp32/b1/t2")
CALIBRATION = 40
RANDOM = 30
LIMIT_MACS = 2.0**32
"""Of all configurations, calibration and test alike."""
LEAST_RUNS = 10
TRIES = 3
BOOTSTRAPS = 2000


def configs(calibration: int, random: int) -> dict[str, LowFormerConfig]:
    """By role: "spread:7" is the eighth calibration configuration, "random:3" the fourth test configuration."""
    space = SearchSpace.load("default")
    roles = {f"spread:{i}": c for i, c in enumerate(spread_sample(space, calibration, 0, LIMIT_MACS, leaning=0))}
    rng = np.random.default_rng(54321)
    known = {config.id for config in (*roles.values(), *PRESETS.values())}
    while len(roles) < calibration + random:
        config = space.sample(rng)
        if config.id not in known and op_graph(config).macs <= LIMIT_MACS:
            roles[f"random:{len(roles) - calibration}"] = config
            known.add(config.id)
    return roles


def measure(rows: Path, settings: list[str], passes: int, calibration: int, random: int) -> None:
    done = {(row["pass"], row["role"], row["setting"]) for row in read_rows(rows)}
    roles = configs(calibration, random) | PRESETS
    with rows.open("a") as file:
        for number in range(passes):
            for role in np.random.default_rng(number).permutation(list(roles)).tolist():
                for setting in [*settings, *([REFERENCE] if role in PRESETS else [])]:
                    if (number, role, setting) in done:
                        continue
                    for _ in range(TRIES):  # fewer runs: something held the process up
                        m = measure_for_calibration(roles[role], Target.parse(setting))
                        if m.runs >= LEAST_RUNS:
                            break
                    row = {
                        "pass": number,
                        "role": role,
                        "setting": setting,
                        "id": roles[role].id,
                        "median_ms": round(m.median_ms, 5),
                        "undisturbed_ms": round(m.undisturbed_ms, 5),
                        "runs": m.runs,
                        "notes": list(m.notes),
                        "host": dict(m.host),
                        "kernel_ms": {key: round(value, 5) for key, value in (m.kernel_ms or {}).items()},
                    }
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    print(number, role, setting, round(m.median_ms, 2), flush=True)


def samples_of(rows: list[dict], setting: str, roles: dict[str, LowFormerConfig]) -> dict[str, Sample]:
    """By role, the looks at a configuration merged as a calibration does."""
    looks: dict[str, list[ConfigLook]] = {}
    for row in rows:
        if row["setting"] == setting and row["role"] in roles:
            disturbance = max(0.0, row["median_ms"] / row["undisturbed_ms"] - 1)
            look = ConfigLook(roles[row["role"]], Look(row["undisturbed_ms"], disturbance), row["kernel_ms"])
            looks.setdefault(row["role"], []).append(look)
    return {role: merged(several, None) for role, several in looks.items()}


def held_out(setting: str, samples: dict[str, Sample]) -> dict[str, object]:
    """Fits the calibration configurations, and compares with the random ones."""
    kernels = Target.parse(setting).fusion
    block = 16 if kernels == "onnxruntime" else 0
    train = [sample for role, sample in samples.items() if role.startswith("spread")]
    test = [sample for role, sample in samples.items() if role.startswith("random")]
    fit = fit_samples(train, kernels, block)
    errors = LogErrors.from_errors(fit.log_errors)
    center = float(errors.quantile(0.5))
    graphs = [fuse(op_graph(sample.config), kernels, block) for sample in test]
    predicted = np.array([fit.model.graph_ms(graph) for graph in graphs]) * np.exp(center)
    measured = np.array([sample.latency_ms for sample in test])
    low, high = np.exp(np.array(errors.interval(0.9)) - center)
    line = np.polyfit(
        np.log([op_graph(sample.config).macs for sample in train]), np.log([s.latency_ms for s in train]), 1
    )
    macs_only = np.exp(np.polyval(line, np.log([op_graph(sample.config).macs for sample in test])))
    return {
        "setting": str(Target.parse(setting)),
        "calibration": len(train),
        "test": len(test),
        "model": metrics(predicted, measured),
        "macs_only": metrics(macs_only, measured),
        "within_90_percent_interval": round(
            float(np.mean((low * predicted <= measured) & (measured <= high * predicted))), 4
        ),
        "interval_half_width": round(float((high - low) / 2), 4),
        "cross_validated_error": round(fit.held_out_error, 4),
        "folds": FOLDS,
        "form": fit.form,
        "overhead_ms": round(fit.model.overhead_ms, 4),
        "scale": round(fit.model.scale, 4),
        "repeatability": round(float(np.median([s.repeatability for s in (*train, *test)])), 4),
        "kernel_sum_over_whole": round(float(np.median([sum(s.kernel_ms.values()) / s.latency_ms for s in train])), 4),
    }


def metrics(predicted: np.ndarray, measured: np.ndarray) -> dict[str, object]:
    """Errors with 90 % bootstrap intervals over the test configurations."""
    from scipy.stats import spearmanr

    errors = np.abs(predicted / measured - 1)
    again = np.random.default_rng(0).integers(0, len(errors), (BOOTSTRAPS, len(errors)))
    return {
        "mean_error": round(float(errors.mean()), 4),
        "mean_error_90": [round(float(q), 4) for q in np.quantile(errors[again].mean(1), [0.05, 0.95])],
        "median_error": round(float(np.median(errors)), 4),
        "largest_error": round(float(errors.max()), 4),
        "within_5_percent": round(float(np.mean(errors <= 0.05)), 4),
        "spearman": round(float(spearmanr(predicted, measured).statistic), 4),
    }


def report(rows: Path, out: Path, calibration: int, random: int) -> None:
    data = read_rows(rows)
    settings = [setting for setting in SETTINGS if any(row["setting"] == setting for row in data)]
    roles = configs(calibration, random)
    reference = samples_of(data, REFERENCE, dict(PRESETS))
    speedups = []
    for name in reference:
        entry: dict[str, object] = {"preset": name, "cpu_ms": round(reference[name].latency_ms, 3)}
        for setting in settings:
            sample = samples_of(data, setting, dict(PRESETS)).get(name)
            if sample is not None:
                images = Target.parse(setting).batch or 1
                entry[f"{setting}_ms"] = round(sample.latency_ms, 3)
                entry[f"{setting}_speedup"] = round(images * reference[name].latency_ms / sample.latency_ms, 2)
        speedups.append(entry)
    result = {
        "host": data[0]["host"],
        "passes": 1 + max(row["pass"] for row in data),
        "held_out": [held_out(setting, samples_of(data, setting, roles)) for setting in settings],
        "presets": speedups,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "report"))
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_name("cpu_settings_rows.jsonl.gz"))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--samples", type=int, default=CALIBRATION)
    parser.add_argument("--random", type=int, default=RANDOM)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cpu_settings.json"))
    arguments = parser.parse_args()
    if arguments.step == "measure":
        measure(arguments.rows, arguments.settings, arguments.passes, arguments.samples, arguments.random)
    else:
        report(arguments.rows, arguments.out, arguments.samples, arguments.random)


if __name__ == "__main__":
    main()
