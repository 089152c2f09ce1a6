"""Lets optuna-dashboard read a study while its search runs.

    pip install optuna-dashboard
    python experiments/reliability/dashboard.py      # 200 trials that take no time; a minute

Several readers ask the dashboard for the list of studies, for the trials, for the importance of parameters and for a
CSV, as fast as it answers (URLError: it is not up yet). The search must end with every trial, and the dashboard must
show them all. Writes dashboard.json.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lownas.predictors import LatencyPredictor
from lownas.search import Evaluation, TrainingTask
from lownas.search.run_search import Parts, run_search
from lownas.search.settings import SearchSettings
from lownas.search.trials.run_folder import read_results
from lownas.search_space import SearchSpace

RESULTS = Path(__file__).with_suffix(".json")
TRIALS, READERS = 200, 3
PATHS = ("/api/studies", "/api/studies/1", "/api/studies/1/param_importances", "/csv/1")


def evaluate(task: TrainingTask) -> Evaluation:
    rng = np.random.default_rng(task.seed)
    time.sleep(0.05)
    return Evaluation(float(0.4 + 0.1 * task.until + 0.1 * rng.random()), seconds=0.05)


def read(port: int, done: threading.Event, answers: Counter[str], first: int) -> None:
    """Asks again and again, and counts the answers by path and status."""
    number = first
    while not done.is_set():
        path = PATHS[number % len(PATHS)]
        number += 1
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                answer.read()
                answers[f"{path} {answer.status}"] += 1
        except (OSError, urllib.error.URLError) as error:
            answers[f"{path} {getattr(error, 'code', type(error).__name__)}"] += 1
            time.sleep(0.2)


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = SearchSettings.from_dict(
            {
                "target": "rtx3090/tensorrt/fp16/b1/t1",
                "latency_budget_ms": 0.5,
                "space": "tiny",
                "data": "digits",
                "trials": TRIALS,
                "repeats": 3,
                "evaluations": 1500,
                "run": str(run),
            }
        )
        done, answers = threading.Event(), Counter[str]()
        command = ["optuna-dashboard", f"sqlite:///{run / 'study.db'}", "--port", str(port)]
        dashboard: list[subprocess.Popen[bytes]] = []

        def watch() -> None:
            while not (run / "study.db").exists() and not done.is_set():
                time.sleep(0.05)
            time.sleep(1)  # the tables are made
            dashboard.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            readers = [threading.Thread(target=read, args=(port, done, answers, i)) for i in range(READERS)]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.monotonic()
        try:
            predictor, space = LatencyPredictor.load("rtx3090"), SearchSpace.load("tiny")
            run_search(settings, Parts(predictor, space, evaluate=evaluate, plan=lambda request: {}))
            seconds = time.monotonic() - began
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/csv/1", timeout=60) as answer:
                shown = len(answer.read().decode().strip().splitlines()) - 1
        finally:
            done.set()
            watcher.join()
            for process in dashboard:
                process.terminate()
        results = read_results(run)
        found = {
            "trials": len(results),
            "status": dict(Counter(result.status for result in results)),
            "shown by the dashboard at the end": shown,
            "seconds": round(seconds, 1),
            "answers": dict(sorted(answers.items())),
        }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
