"""How well a calibration predicts the rest of its space on `cpu`: measurements once, any number of fits on them.

    python experiments/latency/cpu_space.py measure --rows rows.jsonl     # resumable; half an hour
    python experiments/latency/cpu_space.py report [--rows rows.jsonl]    # writes cpu_space.json; 8 minutes

Measured are configurations that a calibration would choose (`spread_sample`) and random ones of the default space,
which no fit sees. Each pass goes over all of them in a new random order, so that a disturbance of the machine does not
fall on the same configurations twice. There are two sets: "development", in sight of which the method was chosen, and
"confirmation", measured after that and looked at once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, spearmanr

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lownas.evaluators.device.measure import measure_for_calibration
from lownas.predictors import Target
from lownas.predictors.latency.fitting.cross_validation import fit_samples
from lownas.predictors.latency.fitting.samples import ConfigLook, Sample, merged
from lownas.predictors.latency.fusion import fuse_config
from lownas.predictors.latency.sampling import spread_sample
from lownas.predictors.latency.uncertainty import LogErrors
from lownas.predictors.latency.undisturbed import Look
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph

CALIBRATION = 40
LEAST_RUNS = 10
LIMIT_MACS = 2.0**33
"""What `calibrate` affords on a CPU like this one, which works it out from its sentinel."""
LOOKS = 2
"""Passes that calibration configurations are measured in, as `calibrate` does; the random ones have more."""


@dataclass(frozen=True)
class Set:
    seeds: tuple[int, ...]
    random: int
    random_seed: int
    passes: int


SETS: Mapping[str, Set] = {
    "development": Set(seeds=(0, 1, 2), random=120, random_seed=12345, passes=4),
    "confirmation": Set(seeds=(3,), random=60, random_seed=54321, passes=2),
}


def configs(name: str) -> dict[str, LowFormerConfig]:
    """By role: "spread0:7" is calibration configuration 7 of seed 0, "random:3" is test configuration 3."""
    space = SearchSpace.load("default")
    roles = {
        f"spread{seed}:{i}": config
        for seed in SETS[name].seeds
        for i, config in enumerate(spread_sample(space, CALIBRATION, seed, LIMIT_MACS, leaning=0))
    }
    rng = np.random.default_rng(SETS[name].random_seed)
    known = {config.id for config in (*roles.values(), *PRESETS.values())}
    number = 0
    while number < SETS[name].random:
        config = space.sample(rng)
        if config.id not in known:
            roles[f"random:{number}"] = config
            known.add(config.id)
            number += 1
    return roles


def read_rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()  # noqa: SIM115
    with opened as file:
        return [json.loads(line) for line in file]


def measure(path: Path, name: str) -> None:
    target = Target.parse("cpu")
    done = {(row["set"], row["pass"], row["role"]) for row in read_rows(path)}
    roles = configs(name)
    with path.open("a") as file:
        for number in range(SETS[name].passes):
            for role in np.random.default_rng(number).permutation(list(roles)).tolist():
                if (name, number, role) in done or (number >= LOOKS and not role.startswith("random")):
                    continue
                m = measure_for_calibration(roles[role], target)
                while m.runs < LEAST_RUNS:  # something held the process up
                    m = measure_for_calibration(roles[role], target)
                row = {
                    "set": name,
                    "pass": number,
                    "role": role,
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
                print(name, number, role, row["median_ms"], flush=True)


@dataclass(frozen=True)
class Network:
    """One configuration with all its looks: how a calibration sees it, and its truth."""

    config: LowFormerConfig
    looks: list[ConfigLook]
    median_ms: float
    undisturbed_ms: float

    @property
    def sample(self) -> Sample:
        return merged(self.looks[:LOOKS], None)

    @property
    def macs(self) -> float:
        return float(op_graph(self.config).macs)


def networks(rows: list[dict], name: str) -> dict[str, Network]:
    roles = configs(name)
    result = {}
    for role, config in roles.items():
        mine = sorted((r for r in rows if r["set"] == name and r["role"] == role), key=lambda r: r["pass"])
        if mine:
            looks = [
                ConfigLook(
                    config,
                    Look(r["undisturbed_ms"], max(0.0, r["median_ms"] / r["undisturbed_ms"] - 1)),
                    r["kernel_ms"],
                )
                for r in mine
            ]
            truth = [float(np.median([r[key] for r in mine])) for key in ("median_ms", "undisturbed_ms")]
            result[role] = Network(config, looks, *truth)
    return result


def errors_of(calibration: list[Network], test: list[Network]) -> dict[str, np.ndarray]:
    """Predictions for the test networks by the model and by a line in log MACs, with the interval's log width."""
    fit = fit_samples([network.sample for network in calibration], "onnxruntime", block=16)
    predicted = [fit.model.graph_ms(fuse_config(network.config, "onnxruntime", 16)) for network in test]
    line = np.polyfit(np.log([network.macs for network in calibration]), np.log([n.median_ms for n in calibration]), 1)
    errors = LogErrors.from_errors(fit.log_errors)
    center, (low, high) = float(errors.quantile(0.5)), errors.interval(0.9)
    return {
        "predicted": np.array(predicted) * np.exp(center),
        "low": np.array(predicted) * np.exp(low),
        "high": np.array(predicted) * np.exp(high),
        "macs": np.exp(np.polyval(line, np.log([network.macs for network in test]))),
        "median": np.array([network.median_ms for network in test]),
        "undisturbed": np.array([network.undisturbed_ms for network in test]),
    }


def summary(runs: list[dict[str, np.ndarray]], prediction: str, truth: str) -> dict[str, object]:
    """Errors pooled over calibrations; intervals from drawing test networks again, the same ones for all."""

    def figures(index: np.ndarray) -> np.ndarray:
        errors = np.concatenate([np.abs(run[prediction][index] / run[truth][index] - 1) for run in runs])
        ranks = [spearmanr(run[prediction][index], run[truth][index])[0] for run in runs]
        return np.array([errors.mean(), np.median(errors), (errors <= 0.05).mean(), np.mean(ranks)])

    n = len(runs[0][truth])
    rng = np.random.default_rng(0)
    drawn = np.array([figures(rng.integers(0, n, n)) for _ in range(500)])
    names = ("mape", "median_error", "within_5_percent", "spearman")
    values = zip(names, figures(np.arange(n)), np.quantile(drawn, 0.025, 0), np.quantile(drawn, 0.975, 0), strict=True)
    return {name: {"value": round(v, 4), "low": round(lo, 4), "high": round(hi, 4)} for name, v, lo, hi in values}


def coverage(pool: list[Network], samples: int, splits: int) -> dict[str, object]:
    """Share of medians inside the 90 % interval, over random parts of the pool to calibrate on."""
    inside: list[bool] = []
    widths, errors = [], []
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(pool))
        run = errors_of([pool[i] for i in order[:samples]], [pool[i] for i in order[samples:]])
        inside += ((run["low"] <= run["median"]) & (run["median"] <= run["high"])).tolist()
        widths.append(float(np.median((run["high"] - run["low"]) / 2 / run["predicted"])))
        errors.append(float(np.median(np.abs(run["predicted"] / run["median"] - 1))))
    bounds = binomtest(sum(inside), len(inside)).proportion_ci()
    return {
        "splits": splits,
        "predictions": len(inside),
        "coverage": round(float(np.mean(inside)), 4),
        "binomial_95": [round(bounds.low, 4), round(bounds.high, 4)],
        "median_half_width": round(float(np.median(widths)), 4),
        "half_width_over_median_error": round(float(np.median(widths) / np.median(errors)), 2),
    }


def report(rows: list[dict], names: list[str]) -> dict[str, object]:
    result: dict[str, object] = {"target": "cpu", "host": rows[0]["host"]}
    for name in names:
        known = networks(rows, name)
        test = [network for role, network in known.items() if role.startswith("random")]
        part: dict[str, object] = {"test_networks": len(test), "calibrations": len(SETS[name].seeds)}
        for samples in (40, 10):
            runs = [errors_of([known[f"spread{seed}:{i}"] for i in range(samples)], test) for seed in SETS[name].seeds]
            part[f"{samples} samples"] = {
                "against_median": summary(runs, "predicted", "median"),
                "against_undisturbed": summary(runs, "predicted", "undisturbed"),
                "macs_only": summary(runs, "macs", "median"),
                "coverage": coverage(list(known.values()), samples, splits=20),
            }
        result[name] = part
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "report"))
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_name("cpu_space_rows.jsonl.gz"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cpu_space.json"))
    parser.add_argument("--set", choices=tuple(SETS), action="append", help="only this set")
    arguments = parser.parse_args()
    if arguments.step == "measure":
        for name in arguments.set or SETS:
            measure(arguments.rows, name)
    else:
        result = report(read_rows(arguments.rows), arguments.set or list(SETS))
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
