"""How many more trials two workers get through than one, one thread each.

    python experiments/workers/run.py                          # 17 minutes a pair on two free cores; into results.json
    python experiments/workers/run.py --trials 20 --epochs 12  # as long a pair, of fewer and longer trainings

The same candidates, drawn at random from the tiny space, each trained on digits by the same plan; with one worker and
with two in turn. Counted is the whole training phase, from the start of Ray until it has stopped: so also the last
training, when one of two workers has nothing left to do, which weighs the more the fewer trials there are.
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
from lownas.search.run_search import Parts, run_search
from lownas.search.settings import SearchSettings
from lownas.search.training.proxy import PlanRequest, plan_proxy
from lownas.search.trials.status import SearchStatus
from lownas.search_space import SearchSpace

RESULTS = Path(__file__).with_name("results.json")


def trials_per_minute(workers: int, trials: int, epochs: int) -> float:
    began: dict[str, float] = {}  # each phase of the search, in seconds of `time.monotonic`

    def watch(status: SearchStatus) -> None:
        began.setdefault(status.phase, time.monotonic())

    def fixed_plan(request: PlanRequest) -> dict[str, Any]:
        return {**plan_proxy(request), "epochs": epochs, "train_images": 1400}

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
                "trials": trials,
                "workers": workers,
                "run": str(Path(folder) / "run"),
            }
        )
        predictor, space = LatencyPredictor.load("rtx3090"), SearchSpace.load("tiny")
        result = run_search(settings, Parts(predictor, space, plan=fixed_plan, progress=watch))
    assert result.counts["complete"] == trials
    return 60 * trials / (began["done"] - began["train"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=4)
    asked = parser.parse_args()
    rows = []
    for number in range(asked.pairs):
        order = (1, 2) if number % 2 == 0 else (2, 1)
        found = {workers: trials_per_minute(workers, asked.trials, asked.epochs) for workers in order}
        rows.append({"one worker": round(found[1], 2), "two workers": round(found[2], 2)})
        print(rows[-1], flush=True)
    ratios = [row["two workers"] / row["one worker"] for row in rows]
    kind = {"trials": asked.trials, "epochs": asked.epochs}
    run = {**kind, "median ratio": round(float(np.median(ratios)), 3), "rows": rows}
    others = [other for other in json.loads(RESULTS.read_text())["runs"] if {**other, **kind} != other]
    document = {
        "what": "trials a minute",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "runs": [*others, run],
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(f"median ratio {run['median ratio']}")


if __name__ == "__main__":
    main()
