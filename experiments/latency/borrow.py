"""A new target from 10 and 20 measurements, with and without borrowing from the profiles of known ones.

python experiments/latency/borrow.py measure --rows borrow_rows.jsonl.gz    # resumable; about ten minutes
python experiments/latency/borrow.py report                                 # writes borrow.json
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import warnings
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lownas.evaluators.measure import measure_latency
from lownas.predictors import Target
from lownas.predictors.calibrate import spread_sample
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
    roles = {f"spread:{i}": config for i, config in enumerate(spread_sample(space, CALIBRATION, 0, LIMIT_MACS))}
    rng = np.random.default_rng(2026)
    taken = {config.id for config in (*roles.values(), *PRESETS.values())}
    while len(roles) < CALIBRATION + RANDOM:
        config = space.sample(rng)
        if config.id not in taken:
            roles[f"random:{len(roles) - CALIBRATION}"] = config
            taken.add(config.id)
    return roles


def read_rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "report"))
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_name("borrow_rows.jsonl.gz"))
    arguments = parser.parse_args()
    if arguments.step == "measure":
        measure(arguments.rows)


if __name__ == "__main__":
    main()
