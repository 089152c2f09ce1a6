"""The same measurement in fresh processes and an hour apart, on `cpu`.

    python experiments/latency/repeat.py measure --rows rows.jsonl     # now, and again an hour later
    python experiments/latency/repeat.py report --rows rows.jsonl      # writes repeat.json

A sitting measures six published models with `lownas measure`, each command a process of its own, three times over,
interleaved. Reported is how far the medians lie apart: within a sitting, between sittings, and between sittings when
each is divided by the same sitting's median of `REFERENCE`, which takes out how fast the machine itself was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")

MODELS = ("cpubone_nano", "cpubone_s0", "lowformer_b0", "lowformer_e1", "lowformer_b15", "lowformer_b3")
REFERENCE = "lowformer_b0"
REPEATS = 3


def measure(rows: Path) -> None:
    sitting = int(time.time())
    for repeat in range(REPEATS):
        for model in MODELS:
            command = [sys.executable, "-m", "lownas.nas", "measure", "--target", "cpu", "--preset", model, "--json"]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            row = {"sitting": sitting, "time": int(time.time()), "repeat": repeat} | json.loads(answer)
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row["input"], row["median_ms"], row["repeatability"], flush=True)


def report(rows: Path, out: Path) -> None:
    taken = [json.loads(line) for line in rows.read_text().splitlines()]
    sittings = sorted({row["sitting"] for row in taken})
    table = {}
    within, between, relative = [], [], []
    centers: dict[str, list[float]] = {}
    for model in MODELS:
        medians = {
            s: [row["median_ms"] for row in taken if row["sitting"] == s and row["input"] == model] for s in sittings
        }
        table[model] = {str(s - sittings[0]): values for s, values in medians.items()}
        within += [abs(a / b - 1) for values in medians.values() for a, b in combinations(values, 2)]
        centers[model] = [float(np.median(values)) for values in medians.values()]
        between += [abs(a / b - 1) for a, b in combinations(centers[model], 2)]
    for model in MODELS:
        if model != REFERENCE:
            ratios = np.array(centers[model]) / np.array(centers[REFERENCE])
            relative += [abs(a / b - 1) for a, b in combinations(ratios.tolist(), 2)]
    result = {
        "seconds_between_sittings": [s - sittings[0] for s in sittings],
        "medians_ms_by_sitting": table,
        "repeatability": round(float(np.median([row["repeatability"] for row in taken])), 4),
        "measurements": len(taken),
        "within_a_sitting": _summary(within),
        "between_sittings": _summary(between),
        "between_sittings_relative": _summary(relative),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if "sitting" in key}, indent=1))


def _summary(differences: list[float]) -> dict[str, float | int]:
    values = np.array(differences)
    return {
        "pairs": len(values),
        "median": round(float(np.median(values)), 4),
        "largest": round(float(values.max()), 4),
        "within_3_percent": round(float((values <= 0.03).mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "report"))
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("repeat.json"))
    arguments = parser.parse_args()
    if arguments.step == "measure":
        measure(arguments.rows)
    else:
        report(arguments.rows, arguments.out)


if __name__ == "__main__":
    main()
