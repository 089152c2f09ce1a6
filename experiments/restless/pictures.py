"""How much of its latency budget a search on a user's pictures uses, on a restless machine.

    python experiments/restless/pictures.py --work WORK     # ten searches, 3 hours on two cores; --minutes N: no longer

2,000 of Fashion-MNIST's training pictures lie in folders, 200 a class. Ten searches with all defaults (`lownas --target
cpu --latency-budget 1ms --space tiny --data imagefolder:PICTURES`) run one after the other beside the load of
`load.py`; the first one calibrates. What each answers goes to pictures-answers.jsonl, and those that are there are not
run again. Then all answers are looked at in rounds, on and off load; the latency of each is the lower decile of the
medians of its looks. Results go to pictures.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lownas.evaluators.data.sources.fashion_mnist import FashionMnist
from lownas.evaluators.device.measure import measure_latency
from lownas.experiments.restless import load
from lownas.predictors import Target
from lownas.search.results.files import run_config
from lownas.search_space import LowFormerConfig

RESULTS = Path(__file__).with_name("pictures.json")
ANSWERS = Path(__file__).with_name("pictures-answers.jsonl")
TARGET = Target.parse("cpu")
SEARCHES, BUDGET_MS, PER_CLASS = 10, 1.0, 200
ROUNDS, LOOK_S, TRUTH_QUANTILE = 30, 0.4, 0.1


def write_pictures(folder: Path) -> None:
    """A folder of pictures for each class."""
    from PIL import Image

    part = FashionMnist()._part("train")
    order = np.random.default_rng(0).permutation(len(part.labels))
    for label in range(10):
        own = folder / f"class-{label}"
        own.mkdir(parents=True)
        for number in order[part.labels[order] == label][:PER_CLASS]:
            Image.fromarray(np.asarray(part.images[int(number)])).save(own / f"{number:05}.png")


def search(work: Path, number: int) -> dict[str, Any]:
    """One search as a user makes it; gives what it answered."""
    options = ("--target", "cpu", "--latency-budget", f"{BUDGET_MS:g}ms", "--space", "tiny", "--seed", str(number))
    folders = ("--data", f"imagefolder:{work / 'pictures'}", "--profiles", str(work / "profiles"))
    run = work / f"run-{number}"
    shutil.rmtree(run, ignore_errors=True)  # of a search that was interrupted
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "lownas.nas", *options, *folders, "--run", str(run)], check=True)
    answer = json.loads((run / "outcome.json").read_text())["answer"]
    row = {"seed": number, "config": run_config(run).to_dict(), "said_ms": round(answer["latency_ms"], 4)}
    row |= {"estimate": round(answer["objective"], 2), "source": answer["latency_source"]}
    return row | {"seconds": round(time.monotonic() - begin), "day": time.strftime("%Y-%m-%d")}


def answers() -> dict[int, dict[str, Any]]:
    """What was answered so far, by seed."""
    lines = ANSWERS.read_text().splitlines() if ANSWERS.exists() else []
    return {row["seed"]: row for row in map(json.loads, lines)}


def undisturbed(configs: Mapping[int, LowFormerConfig]) -> dict[int, float]:
    """Latencies in ms, by looks in rounds on and off load."""
    looks: dict[int, list[float]] = {number: [] for number in configs}
    for turn in range(ROUNDS):
        started = load.start(600) if turn % 3 == 0 else []
        for number, config in configs.items():
            looks[number].append(measure_latency(config, TARGET, time_limit_s=LOOK_S, min_runs=12).median_ms)
        for process in started:
            process.terminate()
        time.sleep(5)
    return {number: float(np.quantile(values, TRUTH_QUANTILE)) for number, values in looks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=600, help="no search begins after so many")
    arguments = parser.parse_args()
    work, begin = arguments.work.resolve(), time.monotonic()
    if not (work / "pictures").exists():
        write_pictures(work / "pictures")
    started = load.start(4 * 3600)
    for number in range(SEARCHES):
        if number not in answers() and time.monotonic() - begin < 60 * arguments.minutes:
            row = search(work, number)
            with ANSWERS.open("a") as out:
                out.write(json.dumps(row) + "\n")
    for process in started:
        process.terminate()
    rows = answers()
    latencies = undisturbed({number: LowFormerConfig.from_dict(row["config"]) for number, row in rows.items()})
    for number, row in rows.items():
        row |= {"ms": round(latencies[number], 4), "share": round(latencies[number] / BUDGET_MS, 3)}
    shares = [row["share"] for row in rows.values()]
    result = {"median share": float(np.median(shares)), "over by more than 3 %": sum(s > 1.03 for s in shares)}
    RESULTS.write_text(json.dumps(result | {"rows": list(rows.values())}, indent=1) + "\n")
    print(json.dumps(result), sorted(shares))


if __name__ == "__main__":
    main()
