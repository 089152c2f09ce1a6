"""Kills a worker of a search (SIGKILL) every 10 seconds, until it is done.

    python experiments/reliability/killed_workers.py                 # 60 trials of 2 to 6 s, two workers; 3 minutes
    python experiments/reliability/killed_workers.py --poison        # one network kills every worker that takes it

Every trial must finish; a trial whose worker died is tried again at most twice. Writes killed_workers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

from lownas.predictors import LatencyPredictor
from lownas.search import Evaluation, TrainingTask
from lownas.search.run_search import Parts, run_search
from lownas.search.settings import SearchSettings
from lownas.search_space import SearchSpace

RESULTS = Path(__file__).with_suffix(".json")
EVERY_S = 10.0
TRIALS = 60


def evaluate(task: TrainingTask) -> Evaluation:
    """Takes a few seconds, and notes in a file of the trial that it was begun."""
    with (Path(os.environ["LOWNAS_BEGUN"]) / str(task.trial)).open("a") as file:
        file.write("x")
    if task.config.stem_width == int(os.environ["LOWNAS_POISON"]):
        os.kill(os.getpid(), 9)
    time.sleep(2 + 4 * random.Random(task.trial).random())
    return Evaluation(0.5 + task.config.stem_width / 1000, seconds=4.0)


def kill_workers(done: threading.Event, killed: list[str]) -> None:
    rng = random.Random(0)
    while not done.wait(EVERY_S):
        children = psutil.Process().children(recursive=True)
        busy = [process for process in children if "_in_worker" in " ".join(process.cmdline())]
        if busy:
            rng.choice(busy).kill()
            killed.append(time.strftime("%H:%M:%S"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--poison", action="store_true")
    given = parser.parse_args()
    done = threading.Event()
    killed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        begun = Path(folder) / "begun"
        begun.mkdir()
        os.environ["LOWNAS_BEGUN"] = str(begun)
        os.environ["LOWNAS_POISON"] = "16" if given.poison else "-1"
        settings = SearchSettings.from_dict(
            {
                "target": "rtx3090/tensorrt/fp16/b1/t1",
                "latency_budget_ms": 5.0,
                "space": "tiny",
                "data": "digits",
                "rungs": 1,
                "strategy": "random",
                "trials": 12 if given.poison else TRIALS,
                "repeats": 0,
                "evaluations": 1500,
                "workers": 2,
                "run": str(Path(folder) / "run"),
            }
        )
        killer = threading.Thread(target=kill_workers, args=(done, killed))
        if not given.poison:
            killer.start()
        predictor, space = LatencyPredictor.load("rtx3090"), SearchSpace.load("tiny")
        result = run_search(settings, Parts(predictor, space, evaluate=evaluate, plan=lambda request: {}))
        done.set()
        lines = [json.loads(line) for line in (result.run / "results.jsonl").read_text().splitlines()]
        times = Counter(len(path.read_text()) for path in begun.iterdir())
        failed = Counter(line["reason"] for line in lines if line["status"] == "failed")
    row = {
        "workers killed": len(killed) or None,
        "trials": dict(Counter(line["status"] for line in lines)),
        "trials begun so often": {str(count): number for count, number in sorted(times.items())},
        "reasons of failures": dict(failed),
        "seconds": round(result.seconds, 1),
    }
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known["one network kills every worker" if given.poison else f"a worker killed every {EVERY_S:g} s"] = row
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
