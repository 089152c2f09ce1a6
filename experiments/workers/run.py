"""How many more trials two workers get through than one, one thread each.

    python experiments/workers/run.py      # some minutes a pair on two free cores; writes results.json

The same candidates, drawn at random from the tiny space, each trained on digits by the same plan; with one worker and
with two in turn. Counted is the time from the start of the training phase, Ray's start included, to the last result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lownas.predictors import LatencyPredictor
from lownas.search.driver import Driver
from lownas.search.evaluation import plan_proxy
from lownas.search.settings import SearchSettings
from lownas.search.study import search
from lownas.search_space import SearchSpace

RESULTS = Path(__file__).with_name("results.json")
TRIALS, EPOCHS = 20, 12
train = Driver.train
seconds: list[float] = []


def timed(self: Driver, *arguments: Any) -> bool:
    began = time.monotonic()
    try:
        return train(self, *arguments)
    finally:
        seconds.append(time.monotonic() - began)


def fixed_plan(settings: Any, configs: Any) -> Any:
    return {**plan_proxy(settings, configs), "epochs": EPOCHS, "train_images": 1400}


def trials_per_minute(workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        settings = SearchSettings.from_dict(
            {
                "target": "rtx3090/tensorrt/fp16/b1/t1",
                "latency_budget_ms": 1.0,
                "space": "tiny",
                "data": "digits",
                "strategy": "random",
                "rungs": 1,
                "repeats": 0,
                "trials": TRIALS,
                "workers": workers,
                "run": str(Path(folder) / "run"),
            }
        )
        outcome = search(
            settings, predictor=LatencyPredictor.load("rtx3090"), space=SearchSpace.load("tiny"), plan=fixed_plan
        )
    assert outcome.counts["complete"] == TRIALS
    return 60 * TRIALS / seconds[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    pairs = parser.parse_args().pairs
    Driver.train = timed  # type: ignore[method-assign]
    rows = []
    for number in range(pairs):
        found = {workers: trials_per_minute(workers) for workers in ((1, 2) if number % 2 == 0 else (2, 1))}
        rows.append({"one worker": round(found[1], 2), "two workers": round(found[2], 2)})
        print(rows[-1], flush=True)
    ratios = [row["two workers"] / row["one worker"] for row in rows]
    document = {
        "what": "trials a minute",
        "trials": TRIALS,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "median ratio": round(float(np.median(ratios)), 3),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(f"median ratio {document['median ratio']}")


if __name__ == "__main__":
    main()
