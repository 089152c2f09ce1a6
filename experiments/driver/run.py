"""The driver's own time and memory, from the first trial to the 5,000th, with 200 simulated workers.

    python experiments/driver/run.py random        # framework alone; minutes
    python experiments/driver/run.py surrogate     # and the default strategy

Evaluations take 30 to 60 s each on 200 workers of a simulated clock, that runs on by the driver's real time; so what is
measured is how long a worker that is free waits for the driver. Rungs as by default. The strategy's own time is what it
takes to propose a candidate and to rank those that wait at a rung; all else is the framework's. Adds to results.json.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil

from lownas.predictors import LatencyPredictor
from lownas.search import loop as driver_module
from lownas.search.loop import Driver
from lownas.search.run_search import search
from lownas.search.settings import SearchSettings
from lownas.search.training.pools import Outcome
from lownas.search_space import SearchSpace

RESULTS = Path(__file__).with_name("results.json")
WORKERS = 200
EVALUATION_S = (30.0, 60.0)


class SimulatedPool:
    """Workers on a clock that goes on by the driver's real time, and from one end of an evaluation to the next."""

    size = WORKERS

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.clock, self.since = 0.0, time.monotonic()
        self.busy_s, self.idle_s = 0.0, 0.0
        self.running: list[tuple[float, int, Mapping[str, Any]]] = []
        self.free_since = [0.0] * WORKERS

    @property
    def pending(self) -> int:
        return len(self.running)

    def now(self) -> float:
        real = time.monotonic()
        self.clock += real - self.since
        self.since = real
        return self.clock

    def submit(self, task: Mapping[str, Any]) -> None:
        seconds = float(self.rng.uniform(*EVALUATION_S))
        self.idle_s += self.now() - self.free_since.pop(0)
        self.busy_s += seconds
        heapq.heappush(self.running, (self.clock + seconds, int(task["trial"]), task))

    def wait(self, timeout_s: float | None = None) -> list[Outcome]:
        end, trial, task = heapq.heappop(self.running)
        self.clock = max(self.now(), end)
        self.free_since.append(end)  # the driver may come later
        quality = np.tanh(
            task["config"]["stem_width"] / 50 + sum(stage["depth"] for stage in task["config"]["stages"]) / 40
        )
        accuracy = 0.5 * task["until"] ** 0.1 * quality + 0.01 * self.rng.standard_normal()
        return [Outcome(trial, {"accuracy": float(np.clip(accuracy, 0.01, 0.99)), "seconds": EVALUATION_S[0]})]

    def close(self) -> None:
        self.running.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strategy", choices=["random", "evolution", "surrogate"])
    parser.add_argument("--trials", type=int, default=5000)
    given = parser.parse_args()
    pool = SimulatedPool()
    driver_module.open_pool = lambda *_: pool  # type: ignore[assignment]
    proposing: list[float] = []
    at: list[tuple[int, float, float, float]] = []  # trials, seconds, of these proposing, memory in MB
    propose = driver_module.proposer_of

    def timed(settings: SearchSettings) -> Any:
        kind = propose(settings)

        class Timed(kind):  # type: ignore[misc, valid-type]
            def propose(self, *arguments: Any) -> Any:
                began = time.perf_counter()
                try:
                    return super().propose(*arguments)
                finally:
                    proposing.append(time.perf_counter() - began)

        return Timed

    driver_module.proposer_of = timed
    worth = Driver._worth

    def timed_worth(self: Driver, *arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return worth(self, *arguments)
        finally:
            proposing.append(time.perf_counter() - began)

    Driver._worth = timed_worth  # type: ignore[method-assign]
    process = psutil.Process()
    record = Driver._record

    def recorded(self: Driver, outcome: Outcome) -> None:
        record(self, outcome)
        trials = len(self.journal.rungs)
        if not at or trials >= at[-1][0] + 100:
            at.append((trials, time.perf_counter(), sum(proposing), process.memory_info().rss / 1e6))

    Driver._record = recorded  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        settings = SearchSettings.from_dict(
            {
                "target": "rtx3090/tensorrt/fp16/b1/t1",
                "latency_budget_ms": 5.0,
                "space": "tiny",
                "data": "digits",
                "strategy": given.strategy,
                "trials": given.trials,
                "repeats": 0,
                "workers": WORKERS,
                "run": str(Path(folder) / "run"),
            }
        )
        outcome = search(
            settings,
            predictor=LatencyPredictor.load("rtx3090"),
            space=SearchSpace.load("tiny"),
            evaluate=lambda _: {},
            plan=lambda *_: {},
        )
    steps = []
    for before, after in pairwise(at):
        count = after[0] - before[0]
        total, own = (after[1] - before[1]) / count, (after[2] - before[2]) / count
        steps.append(
            {"trials": after[0], "framework ms": round(1e3 * (total - own), 2), "strategy ms": round(1e3 * own, 2)}
        )
    fifth = max(len(steps) // 5, 1)

    def mean(name: str, part: list[dict[str, float]]) -> float:
        return round(float(np.mean([step[name] for step in part])), 2)

    row = {
        "trials": given.trials,
        "evaluations": int(sum(outcome.counts.values())),
        "framework ms a trial, first fifth": mean("framework ms", steps[:fifth]),
        "framework ms a trial, last fifth": mean("framework ms", steps[-fifth:]),
        "strategy ms a trial, first fifth": mean("strategy ms", steps[:fifth]),
        "strategy ms a trial, last fifth": mean("strategy ms", steps[-fifth:]),
        "memory growth MB": round(at[-1][3] - at[1][3], 1),
        "workers busy": round(pool.busy_s / (pool.busy_s + pool.idle_s), 4),
        "machine": platform.processor() or platform.machine(),
        "steps": steps,
    }
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, given.strategy: row}, indent=1) + "\n")
    print({name: value for name, value in row.items() if name != "steps"})


if __name__ == "__main__":
    main()
