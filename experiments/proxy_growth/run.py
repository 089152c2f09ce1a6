"""Trains the eight published LowFormers on `formula`, longer and longer, and compares with their ImageNet accuracy.

    OMP_NUM_THREADS=1 python experiments/proxy_growth/run.py --hours 2.3
    OMP_NUM_THREADS=1 python experiments/proxy_growth/run.py --stages 2000@32 --seeds 1 --hours 3
    python experiments/proxy_growth/run.py --summarize

Every finished training is a row of trainings.jsonl beside this file, and is not repeated. A stage with a seed is left
out if it is not expected to end in the hours given. `--summarize` trains nothing and writes results.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence
from typing import Any

import torch

from lownas.evaluators.data.loading import data_identity
from lownas.evaluators.training.proxy import load_proxy_data, train_proxy
from lownas.experiments.proxy_growth.stages import (
    NAMES,
    PUBLISHED_RESOLUTION,
    STAGES,
    TRAININGS,
    Stage,
    drop_broken_end,
    load_rows,
)
from lownas.search_space import PRESETS

Rows = list[dict[str, Any]]
MACHINE = {
    "torch": torch.__version__,
    "threads": 1,
    "processor": platform.machine(),
    "python": platform.python_version(),
}


def expected_seconds(name: str, stage: Stage, rows: Rows) -> float | None:
    """How long a training may take, by the model's images a second so far; None where it has not been trained yet.

    At a resolution at which it has not been trained yet, time is taken to grow with the area of the image, which
    overestimates the larger one.
    """
    known = [row for row in rows if row["model"] == name and row["images_per_second"] > 0]
    if not known:
        return None
    nearest = min(abs(row["resolution"] - stage.resolution) for row in known)
    known = [row for row in known if abs(row["resolution"] - stage.resolution) == nearest]
    images = stage.train_images * stage.epochs
    seconds = []
    for row in known:
        evaluation = row["seconds"] - row["train_images"] * row["epochs"] / row["images_per_second"]
        area = (stage.resolution / row["resolution"]) ** 2
        seconds.append(area * (images / row["images_per_second"] + max(evaluation, 0.0)))
    return sum(seconds) / len(seconds)


def train_stage(stage: Stage, seed: int, models: Sequence[str], rows: Rows, deadline: float) -> bool:
    """Trains what is missing of a stage with a seed, and says whether it came to its end before the deadline."""
    done = {row["model"] for row in rows if (row["stage"], row["seed"]) == (stage.name, seed)}
    missing = [name for name in models if name not in done]
    if not missing:
        return True
    estimates = [expected_seconds(name, stage, rows) for name in missing]
    expected = sum(value for value in estimates if value is not None)
    left = deadline - time.monotonic()
    unknown = " for those trained before" if None in estimates else ""
    print(f"{stage.name} seed {seed}: {len(missing)} trainings, expected {expected:.0f} s{unknown}, {left:.0f} s left")
    if expected > left:
        print(f"{stage.name} seed {seed}: left out", flush=True)
        return False
    settings = stage.settings(seed)
    begin = time.perf_counter()
    data = load_proxy_data(settings, PUBLISHED_RESOLUTION)
    identity = data_identity(data)
    print(f"{stage.name} seed {seed}: images rendered in {time.perf_counter() - begin:.1f} s", flush=True)
    for row in rows:
        if (row["stage"], row["seed"]) == (stage.name, seed) and row["data"] != identity:
            raise SystemExit(f"{TRAININGS.name} holds trainings on other images of {stage.name}, seed {seed}")
    for name in missing:
        if time.monotonic() + (expected_seconds(name, stage, rows) or 0.0) > deadline:
            print(f"{stage.name} seed {seed}: stopped before {name}, which would not end in time", flush=True)
            return False
        result = train_proxy(PRESETS[name], data, settings, seed=seed)
        rows.append(
            {
                **{"stage": stage.name, "steps": stage.steps, "resolution": stage.resolution, "seed": seed},
                **{"model": name, "status": result.status, "accuracy": result.accuracy, "loss": result.loss},
                **{"train_loss": result.history[-1].train_loss if result.history else None, "reason": result.reason},
                **{"seconds": round(result.seconds, 1), "images_per_second": round(result.images_per_second, 1)},
                **{"train_images": stage.train_images, "epochs": stage.epochs, "classes": stage.classes},
                **{"data": identity, "machine": MACHINE},
            }
        )
        with TRAININGS.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(stage.name, seed, name, result.status, result.accuracy, f"{result.seconds:.1f} s", flush=True)
    return True


def train(stages: Sequence[Stage], seeds: Sequence[int] | None, models: Sequence[str], hours: float) -> None:
    deadline = time.monotonic() + hours * 3600
    drop_broken_end()
    rows = load_rows()
    for stage in stages:
        for seed in stage.seeds if seeds is None else seeds:
            train_stage(stage, seed, models, rows, deadline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0, help="time to spend, default 2")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: each stage's own")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), metavar="STAGE", help=" ".join(STAGES))
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES, metavar="MODEL", help="default: all")
    parser.add_argument("--summarize", action="store_true", help="write results.json from what has been trained")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.stages if name not in STAGES]:
        raise SystemExit(f"--stages: unknown {', '.join(unknown)}; allowed are {', '.join(STAGES)}")
    if not (math.isfinite(arguments.hours) and arguments.hours > 0):
        raise SystemExit(f"--hours: a positive number is expected, given {arguments.hours}")
    if arguments.seeds and min(arguments.seeds) < 0:
        raise SystemExit(f"--seeds: at least 0, given {min(arguments.seeds)}")
    if not arguments.summarize:
        stages = [stage for name, stage in STAGES.items() if name in arguments.stages]
        train(stages, arguments.seeds, arguments.models, arguments.hours)
    from lownas.experiments.proxy_growth.analysis import summarize

    summarize()


if __name__ == "__main__":
    main()
