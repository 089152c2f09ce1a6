"""The search's own time and memory over thousands of trials, with 200 simulated workers.

    python experiments/driver/run.py random        # the search alone; minutes
    python experiments/driver/run.py surrogate     # and the default strategy

Evaluations take 30 to 60 s each on 200 workers of a simulated clock, which also runs by the search's real time; so what
is measured is how long a free worker waits for the search. Rungs are as by default. The strategy's own time is what it
takes to propose a candidate and to rank the candidates that wait at a rung; everything else is counted as the
framework's. Adds to results.json.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
from numpy.typing import NDArray

from lownas.predictors import LatencyPredictor
from lownas.search import Evaluation, SearchState, Strategy, Suggestion, TrainingTask, loop
from lownas.search.objectives.data_accuracy import DataAccuracy
from lownas.search.objectives.run_surrogate import RunSurrogate
from lownas.search.run_search import Parts, run_search
from lownas.search.settings import SearchSettings
from lownas.search.strategies import make_strategy
from lownas.search.training.task import TaskOutcome
from lownas.search_space import LowFormerConfig, SearchSpace

RESULTS = Path(__file__).with_name("results.json")
WORKERS = 200
EVALUATION_S = (30.0, 60.0)
STEP = 100  # trials from one look at time and memory to the next


class Stopwatch:
    """Adds up the seconds that are spent within it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._began


def timed_strategy(name: str, watch: Stopwatch) -> Strategy:
    """The strategy of that name, whose proposals are timed."""
    kind = type(make_strategy(name))

    class Timed(kind):  # type: ignore[misc, valid-type]
        def propose(self, state: SearchState, rng: np.random.Generator) -> Suggestion | None:
            with watch:
                found: Suggestion | None = super().propose(state, rng)
            return found

    timed: Strategy = Timed()
    return timed


def timed_objective(watch: Stopwatch) -> type[DataAccuracy]:
    """The objective on the user's data, whose ranking at rungs is timed."""

    class Timed(DataAccuracy):
        def at_rung(
            self, configs: Sequence[LowFormerConfig], accuracies: NDArray[np.float64], surrogate: RunSurrogate
        ) -> NDArray[np.float64]:
            with watch:
                return super().at_rung(configs, accuracies, surrogate)

    return Timed


class SimulatedPool:
    """Workers on a clock that goes on by the search's real time, and from one end of an evaluation to the next.

    Attributes:
        busy_s, idle_s: of all workers together.
        looks: trials that reached a rung, the time, the strategy's part of it (both in s) and memory (MB), every `STEP`
            trials.
    """

    size = WORKERS

    def __init__(self, strategy: Stopwatch) -> None:
        self.busy_s, self.idle_s = 0.0, 0.0
        self.looks: list[tuple[int, float, float, float]] = []
        self._rng = np.random.default_rng(0)
        self._clock, self._since = 0.0, time.monotonic()
        self._running: list[tuple[float, int, TrainingTask]] = []
        self._free_since = [0.0] * WORKERS
        self._strategy, self._process = strategy, psutil.Process()
        self._judged: set[int] = set()

    @property
    def pending(self) -> int:
        return len(self._running)

    def _now(self) -> float:
        real = time.monotonic()
        self._clock += real - self._since
        self._since = real
        return self._clock

    def submit(self, task: TrainingTask) -> None:
        seconds = float(self._rng.uniform(*EVALUATION_S))
        self.idle_s += self._now() - self._free_since.pop(0)
        self.busy_s += seconds
        heapq.heappush(self._running, (self._clock + seconds, task.trial, task))

    def wait(self, timeout_s: float | None = None) -> list[TaskOutcome]:
        self._look()
        end, trial, task = heapq.heappop(self._running)
        self._clock = max(self._now(), end)
        self._free_since.append(end)  # the search may come later
        self._judged.add(trial)
        quality = np.tanh(task.config.stem_width / 50 + sum(stage.depth for stage in task.config.stages) / 40)
        accuracy = 0.5 * task.until**0.1 * quality + 0.01 * self._rng.standard_normal()
        return [TaskOutcome(trial, Evaluation(float(np.clip(accuracy, 0.01, 0.99)), seconds=EVALUATION_S[0]))]

    def _look(self) -> None:
        trials = len(self._judged)
        if trials and (not self.looks or trials >= self.looks[-1][0] + STEP):
            memory_mb = self._process.memory_info().rss / 1e6
            self.looks.append((trials, time.perf_counter(), self._strategy.seconds, memory_mb))

    def close(self) -> None:
        self._running.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strategy", choices=["random", "evolution", "surrogate"])
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    watch = Stopwatch()
    pool = SimulatedPool(watch)
    loop.open_pool = lambda *_: pool  # type: ignore[assignment]  # a search takes no pool of one's own
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
        parts = Parts(
            LatencyPredictor.load("rtx3090"),
            SearchSpace.load("tiny"),
            strategy=timed_strategy(given.strategy, watch),
            objective=timed_objective(watch),
            plan=lambda request: {},
        )
        result = run_search(settings, parts)
    steps = []
    for before, after in pairwise(pool.looks):
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
        "evaluations": int(sum(result.counts.values())),
        "framework ms a trial, first fifth": mean("framework ms", steps[:fifth]),
        "framework ms a trial, last fifth": mean("framework ms", steps[-fifth:]),
        "strategy ms a trial, first fifth": mean("strategy ms", steps[:fifth]),
        "strategy ms a trial, last fifth": mean("strategy ms", steps[-fifth:]),
        "memory growth MB": round(pool.looks[-1][3] - pool.looks[1][3], 1),
        "workers busy": round(pool.busy_s / (pool.busy_s + pool.idle_s), 4),
        "machine": platform.processor() or platform.machine(),
        "steps": steps,
    }
    known = json.loads(given.results.read_text()) if given.results.exists() else {}
    given.results.write_text(json.dumps({**known, given.strategy: row}, indent=1) + "\n")
    print({name: value for name, value in row.items() if name != "steps"})


if __name__ == "__main__":
    main()
