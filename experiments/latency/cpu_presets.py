"""Calibrates `cpu` into a temporary folder, then compares prediction with measurement for all presets.

    python experiments/latency/cpu_presets.py [--samples 40] [--out results.json]

The presets are in no part of the calibration. They are measured in interleaved rounds, so that a disturbance of the
machine does not fall on one of them alone, and their times pooled.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lownas.evaluators.device.measure import LatencyMeasurement, measure_for_calibration, measure_latency
from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.latency.calibration import DEFAULT_SAMPLES, calibrate
from lownas.search_space import PRESETS, op_graph

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=DEFAULT_SAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("cpu_presets.json"))
    parser.add_argument("--profiles", type=Path, help="keep profile and raw measurements here (and resume from them)")
    arguments = parser.parse_args()

    target = Target.parse("cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.profiles or temporary
        begin = time.perf_counter()
        calibrate(
            target,
            measure_for_calibration,
            samples=arguments.samples,
            seed=arguments.seed,
            profiles=folder,
            progress=lambda p: print(f"{p.done}/{p.samples} {p.elapsed_s:.0f} s {p.message}", flush=True),
        )
        seconds = time.perf_counter() - begin
        predictor = LatencyPredictor.load("cpu", profiles=folder)

    rounds: dict[str, list[LatencyMeasurement]] = {name: [] for name in PRESETS}
    for _ in range(ROUNDS):
        for name, config in PRESETS.items():
            rounds[name].append(measure_latency(config, target, time_limit_s=4.0, min_runs=15))
    rows = []
    predictions = predictor.predict(PRESETS.values())
    for (name, config), prediction in zip(PRESETS.items(), predictions, strict=True):
        pooled = [t for measurement in rounds[name] for t in measurement.times_ms]
        row = {
            "preset": name,
            "macs": op_graph(config).macs,
            "predicted_ms": round(prediction.latency_ms, 3),
            "low_ms": round(prediction.low_ms, 3),
            "high_ms": round(prediction.high_ms, 3),
            "median_ms": round(float(np.median(pooled)), 3),
            "undisturbed_ms": round(min(m.undisturbed_ms for m in rounds[name]), 3),
            "runs": len(pooled),
            "noisy_rounds": sum(m.noisy for m in rounds[name]),
            "outside": list(prediction.outside),
        }
        rows.append(row)
        print(row, flush=True)
    summary = {f"against_{key}": compare(rows, f"{key}_ms") for key in ("median", "undisturbed")}
    result = {
        "target": str(target),
        "host": target.fingerprint(),
        "versions": predictor.provenance["versions"],
        "calibration": {**predictor.provenance, "wall_seconds": round(seconds, 1)},
        "rounds": ROUNDS,
        "summary": summary,
        "presets": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


def compare(rows: list[dict], key: str) -> dict[str, object]:
    """Errors of the predictions against `key`, and pairs that differ by more than 5 % but come in the wrong order."""
    predicted = np.array([row["predicted_ms"] for row in rows])
    measured = np.array([row[key] for row in rows])
    inside = [row["low_ms"] <= row[key] <= row["high_ms"] for row in rows]
    errors = np.abs(predicted / measured - 1)
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if measured[j] > 1.05 * measured[i]]
    wrong = [f"{rows[i]['preset']} < {rows[j]['preset']}" for i, j in pairs if predicted[i] >= predicted[j]]
    return {
        "median_error": round(float(np.median(errors)), 4),
        "mean_error": round(float(errors.mean()), 4),
        "largest_error": round(float(errors.max()), 4),
        "within_interval": f"{sum(inside)}/{len(rows)}",
        "pairs_over_5_percent": len(pairs),
        "wrong_order": wrong,
    }


if __name__ == "__main__":
    main()
