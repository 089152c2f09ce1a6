"""How accurate a calibration of few measurements is, with and without the profiles of known devices.

    python experiments/latency/borrow.py measure --rows rows.jsonl     # resumable; about fifteen minutes
    python experiments/latency/borrow.py report [--rows rows.jsonl]    # writes borrow.json

Two new targets, each seen through 10, 20 and 40 measurements (as many as there are) and tested on random configurations
that no fit sees: `cpu:torch`, whose runtime tells no kernel times, with `cpu` (onnxruntime on the same machine) and the
shipped profiles known; and `cpu` with its kernel times (`cpu_space_rows.jsonl.gz`), the shipped profiles known.
Whether these profiles are used is decided as a calibration decides it.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path

import numpy as np
from cpu_space import networks, read_rows
from scipy.stats import spearmanr

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lownas.evaluators.device.measure import measure_latency
from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.latency.fitting.cross_validation import fit_samples
from lownas.predictors.latency.fitting.known_devices import stack_with_known
from lownas.predictors.latency.fitting.samples import ConfigLook, Sample, block_size, merged
from lownas.predictors.latency.sampling import spread_sample
from lownas.predictors.latency.target import shipped_profiles
from lownas.predictors.latency.uncertainty import LogErrors
from lownas.predictors.latency.undisturbed import Look
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace

NEW = "cpu:torch"
KNOWN = "cpu"
CALIBRATION = 20
RANDOM = 40
PASSES = 2
LIMIT_MACS = 2.0**32
LEAST_RUNS = 10
TRIES = 4


def configs() -> dict[str, LowFormerConfig]:
    """By role: "spread:7" is the eighth calibration configuration, "random:3" the fourth test configuration."""
    space = SearchSpace.load("default")
    roles = {
        f"spread:{i}": config for i, config in enumerate(spread_sample(space, CALIBRATION, 0, LIMIT_MACS, leaning=0))
    }
    rng = np.random.default_rng(2026)
    taken = {config.id for config in (*roles.values(), *PRESETS.values())}
    while len(roles) < CALIBRATION + RANDOM:
        config = space.sample(rng)
        if config.id not in taken:
            roles[f"random:{len(roles) - CALIBRATION}"] = config
            taken.add(config.id)
    return roles


def measure(path: Path) -> None:
    done = {(row["pass"], row["role"], row["target"]) for row in read_rows(path)}
    roles = configs()
    with path.open("a") as file:
        for number in range(PASSES):
            for role in np.random.default_rng(number).permutation(list(roles)).tolist():
                for name in (NEW, KNOWN) if role.startswith("spread") else (NEW,):
                    if (number, role, name) in done:
                        continue
                    for _ in range(TRIES):  # fewer runs: something held the process up
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            m = measure_latency(
                                roles[role], Target.parse(name), time_limit_s=6.0, min_runs=12, kernels=True
                            )
                        if m.runs >= LEAST_RUNS:
                            break
                    row = {
                        "pass": number,
                        "role": role,
                        "target": name,
                        "id": roles[role].id,
                        "median_ms": round(m.median_ms, 5),
                        "undisturbed_ms": round(m.undisturbed_ms, 5),
                        "runs": m.runs,
                        "notes": list(m.notes),
                        "host": dict(m.host),
                        "kernel_ms": m.kernel_ms and {key: round(value, 5) for key, value in m.kernel_ms.items()},
                    }
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    print(number, role, name, row["median_ms"], m.runs, flush=True)


def sample_of(config: LowFormerConfig, rows: list[dict]) -> Sample:
    """The measurements of a configuration, merged as a calibration does."""
    looks = [Look(r["undisturbed_ms"], max(0.0, r["median_ms"] / r["undisturbed_ms"] - 1)) for r in rows]
    return merged([ConfigLook(config, look, r["kernel_ms"]) for look, r in zip(looks, rows, strict=True)], None)


def shipped() -> dict[str, LatencyPredictor]:
    paths = sorted(shipped_profiles().glob("*.json"))
    return {str(predictor.target): predictor for predictor in map(LatencyPredictor.read, paths)}


def errors(
    name: str, train: list[Sample], test: list[tuple[LowFormerConfig, float]], known: dict[str, LatencyPredictor]
) -> dict[str, object]:
    """Errors on `test` (configurations and their median ms) of a fit alone, and of what a calibration would save."""
    target = Target.parse(name)
    block = block_size(train, target.fusion)
    fit = fit_samples(train, target.fusion, block)
    stacked_fit = stack_with_known(fit, train, name, known)
    configs, measured = [config for config, _ in test], np.array([ms for _, ms in test])
    alone = LatencyPredictor(target, fit.model, LogErrors.from_errors(fit.log_errors), {})
    result: dict[str, object] = {"measurements": len(train), "test": len(test)}
    result["alone"] = summary(alone, configs, measured)
    if stacked_fit is None:
        result["as_calibrated"], result["leans_on"] = result["alone"], {}
        return result
    stacked = LatencyPredictor(target, stacked_fit.model, LogErrors.from_errors(stacked_fit.log_errors), {})
    result["as_calibrated"] = summary(stacked, configs, measured)
    result["leans_on"] = {part.name: round(part.share, 3) for part in stacked_fit.model.parts if part.name != name}
    return result


def summary(predictor: LatencyPredictor, configs: list[LowFormerConfig], measured: np.ndarray) -> dict[str, object]:
    predicted = predictor.latency_ms(configs)
    error = np.abs(predicted / measured - 1)
    drawn = np.random.default_rng(0).integers(0, len(error), (2000, len(error)))
    low, high = (predictor.quantile_ms(configs, q) for q in (0.05, 0.95))
    return {
        "mape": round(float(error.mean()), 4),
        "mape_95": [round(float(q), 4) for q in np.quantile(error[drawn].mean(1), [0.025, 0.975])],
        "median_error": round(float(np.median(error)), 4),
        "spearman": round(float(spearmanr(predicted, measured).statistic), 4),
        "within_90_percent_interval": round(float(np.mean((low <= measured) & (measured <= high))), 4),
    }


def report(path: Path) -> dict[str, object]:
    known = shipped()
    result: dict[str, object] = {}
    rows = read_rows(path)
    if rows:
        roles = configs()
        looks: dict[tuple[str, str], list[dict]] = {}
        for row in rows:
            looks.setdefault((row["target"], row["role"]), []).append(row)
        spread = [role for role in roles if role.startswith("spread")]
        neighbour = [sample_of(roles[role], looks[KNOWN, role]) for role in spread]
        fit = fit_samples(neighbour, "onnxruntime", block_size(neighbour))
        own = LatencyPredictor(Target.parse(KNOWN), fit.model, LogErrors.from_errors(fit.log_errors), {})
        train = [sample_of(roles[role], looks[NEW, role]) for role in spread]
        test = [
            (config, float(np.median([row["median_ms"] for row in looks[NEW, role]])))
            for role, config in roles.items()
            if role.startswith("random")
        ]
        entries = [errors(NEW, train[:count], test, known | {str(own.target): own}) for count in (10, 20)]
        result[NEW] = {"host": rows[0]["host"], "calibrations": entries}
    measured = networks(read_rows(Path(__file__).with_name("cpu_space_rows.jsonl.gz")), "confirmation")
    test = [(network.config, network.median_ms) for role, network in measured.items() if role.startswith("random")]
    train = [measured[f"spread3:{i}"].sample for i in range(40)]
    result[KNOWN] = {"calibrations": [errors(KNOWN, train[:count], test, known) for count in (10, 20, 40)]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "report"))
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_name("borrow_rows.jsonl.gz"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("borrow.json"))
    arguments = parser.parse_args()
    if arguments.step == "measure":
        measure(arguments.rows)
    else:
        result = report(arguments.rows)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
