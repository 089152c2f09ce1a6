"""Kills the process of a search (SIGKILL) at random points and resumes it, until it is done.

    python experiments/reliability/killed_driver.py cheap --kills 100     # 50 trials, a made-up accuracy; 15 minutes
    python experiments/reliability/killed_driver.py real --kills 20       # 12 trials that train on digits; 10 minutes

As many searches are made as it takes for so many kills, each with another seed, without and with rungs in turn. Every
one must end as the unbroken search with its seed does (candidates train in the search's process; times are not
compared): no finished trial lost, none twice, none left RUNNING, the same answer. Goes on from killed_driver.json and
adds to it after each search.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_suffix(".json")
TRIALS = {"cheap": 50, "real": 12}
TIMES = ("seconds", "images_per_second", "peak_memory_mb")


def child(kind: str, run: str, seed: int, rungs: int) -> None:
    """Starts the search, or goes on with it, until it is done or killed."""
    import numpy as np

    from lownas.predictors import LatencyPredictor
    from lownas.search import Evaluation, TrainingTask
    from lownas.search.run_search import Parts, run_search
    from lownas.search.settings import SearchSettings
    from lownas.search.training.proxy import PlanRequest, plan_proxy, train_candidate
    from lownas.search_space import SearchSpace

    def cheap(task: TrainingTask) -> Evaluation:
        rng = np.random.default_rng([task.seed, task.config.stem_width])
        return Evaluation(float(0.4 + 0.1 * task.until + 0.1 * rng.random()), seconds=1.0)

    def fixed_plan(request: PlanRequest) -> dict[str, Any]:
        """The plan is timed on this machine; both searches of a seed get the same."""
        return {**plan_proxy(request), "epochs": 9, "train_images": 256, "expected_seconds": 1.0}

    settings = SearchSettings.from_dict(
        {
            "target": "rtx3090/tensorrt/fp16/b1/t1",
            "latency_budget_ms": 0.5,
            "space": "tiny",
            "data": "digits",
            "rungs": rungs,
            "trials": TRIALS[kind],
            "repeats": 3,
            "evaluations": 1500,
            "proxy_budget_s": 20.0,
            "seed": seed,
            "run": run,
        }
    )
    parts = Parts(
        LatencyPredictor.load("rtx3090"),
        SearchSpace.load("tiny"),
        evaluate=cheap if kind == "cheap" else train_candidate,
        plan=(lambda request: {}) if kind == "cheap" else fixed_plan,
    )
    result = run_search(settings, parts, resume=(Path(run) / "run.json").exists())
    assert result.answer is not None
    (Path(run) / "answer.txt").write_text(result.answer.config.id)


def start(kind: str, run: Path, seed: int, rungs: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, kind, "--child", str(run), "--seed", str(seed), "--rungs", str(rungs)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def facts(run: Path) -> list[dict[str, Any]]:
    """The results without times, by trial."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: timeless(part) for name, part in value.items() if name not in TIMES}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    return [timeless(line) for line in sorted(lines, key=lambda line: line["trial"])]


def states(run: Path) -> Counter[str]:
    import optuna

    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{run / 'study.db'}")
    return Counter(trial.state.name for trial in study.trials)


def tortured(kind: str, folder: Path, seed: int, kills: int, rng: random.Random) -> dict[str, Any]:
    """Compares a search that is killed again and again, at most `kills` times, with an unbroken one."""
    rungs = (1, 3)[seed % 2]
    whole, broken = folder / f"whole-{seed}", folder / f"broken-{seed}"
    began = time.monotonic()
    process = start(kind, whole, seed, rungs)
    assert process.wait() == 0, process.stderr.read().decode() if process.stderr else ""
    length = time.monotonic() - began
    killed, lives = 0, 0
    lost: list[int] = []
    while True:
        before = {fact["trial"] for fact in facts(broken)} if (broken / "results.jsonl").exists() else set()
        process = start(kind, broken, seed, rungs)
        lives += 1
        try:
            process.wait(rng.uniform(0.1, 0.6) * length if killed < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        after = set()
        if (broken / "results.jsonl").exists():
            text = (broken / "results.jsonl").read_text()
            after = {json.loads(line)["trial"] for line in text.splitlines(keepends=True) if line.endswith("\n")}
        lost += sorted(before - after)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr.read().decode() if process.stderr else ""
    found, expected = facts(broken), facts(whole)
    return {
        "seed": seed,
        "rungs": rungs,
        "killed": killed,
        "lives": lives,
        "lost": lost,
        "twice": [trial for trial, count in Counter(fact["trial"] for fact in found).items() if count > 1],
        "states": dict(states(broken)),
        "same results": found == expected,
        "same answer": (broken / "answer.txt").read_text() == (whole / "answer.txt").read_text(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=TRIALS)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--child")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rungs", type=int, default=1)
    given = parser.parse_args()
    if given.child:
        child(given.kind, given.child, given.seed, given.rungs)
        return
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows: list[dict[str, Any]] = known.get(given.kind, {}).get("searches", [])
    with tempfile.TemporaryDirectory() as folder:
        while (killed := sum(row["killed"] for row in rows)) < given.kills:
            seed = given.seed + len(rows)
            rows.append(tortured(given.kind, Path(folder), seed, given.kills - killed, random.Random(seed)))
            print(rows[-1], flush=True)
            RESULTS.write_text(json.dumps({**known, given.kind: summed(rows)}, indent=1) + "\n")


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary = {
        "killed": sum(row["killed"] for row in rows),
        "searches": len(rows),
        "trials lost": sum(len(row["lost"]) for row in rows),
        "trials twice": sum(len(row["twice"]) for row in rows),
        "left running": sum(row["states"].get("RUNNING", 0) + row["states"].get("WAITING", 0) for row in rows),
        "ended as the unbroken search": sum(row["same results"] and row["same answer"] for row in rows),
    }
    return {"summary": summary, "searches": rows}


if __name__ == "__main__":
    main()
