"""How much of its latency budget a search on a user's pictures uses, on a restless machine.

    python experiments/restless/pictures.py --work WORK       # ten searches, about 90 minutes on two cores, resumable

2,000 of Fashion-MNIST's training pictures lie in folders, 200 a class. Ten searches with all defaults (`lownas --target
cpu --latency-budget 1ms --space tiny --data imagefolder:PICTURES`) run one after the other beside the load of
`load.py`; the first one calibrates. Then all answers are looked at in rounds, on and off load; the latency of each is
the lower decile of the medians of its looks. Results go to pictures.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lownas.evaluators.data.sources.fashion_mnist import FashionMnist
from lownas.evaluators.device.measure import measure_latency
from lownas.experiments.restless import load
from lownas.predictors import Target
from lownas.search.results.files import run_config

RESULTS = Path(__file__).with_name("pictures.json")
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


def search(work: Path, number: int) -> None:
    """One search as a user makes it."""
    options = ("--target", "cpu", "--latency-budget", f"{BUDGET_MS:g}ms", "--space", "tiny", "--seed", str(number))
    folders = ("--data", f"imagefolder:{work / 'pictures'}", "--profiles", str(work / "profiles"))
    run = work / f"run-{number}"
    shutil.rmtree(run, ignore_errors=True)  # of a search that was interrupted
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "lownas.nas", *options, *folders, "--run", str(run)], check=True)
    (work / f"seconds-{number}").write_text(f"{time.monotonic() - begin:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work.resolve()
    if not (work / "pictures").exists():
        write_pictures(work / "pictures")
    started = load.start(4 * 3600)
    for number in range(SEARCHES):
        if not (work / f"seconds-{number}").exists():
            search(work, number)
    for process in started:
        process.terminate()
    found = {number: run_config(work / f"run-{number}") for number in range(SEARCHES)}
    looks: dict[int, list[float]] = {number: [] for number in found}
    for turn in range(ROUNDS):
        started = load.start(600) if turn % 3 == 0 else []
        for number, config in found.items():
            looks[number].append(measure_latency(config, TARGET, time_limit_s=LOOK_S, min_runs=12).median_ms)
        for process in started:
            process.terminate()
        time.sleep(5)
    rows: list[dict[str, Any]] = []
    for number, config in found.items():
        answer = json.loads((work / f"run-{number}" / "outcome.json").read_text())["answer"]
        ms = float(np.quantile(looks[number], TRUTH_QUANTILE))
        row = {
            "seed": number,
            "config": config.to_dict(),
            "ms": round(ms, 4),
            "said_ms": round(answer["latency_ms"], 4),
        }
        row |= {"estimate": round(answer["objective"], 2), "seconds": int((work / f"seconds-{number}").read_text())}
        rows.append(row | {"source": answer["latency_source"], "share": round(ms / BUDGET_MS, 3)})
    shares = [row["share"] for row in rows]
    result = {"median share": float(np.median(shares)), "over by more than 3 %": sum(s > 1.03 for s in shares)}
    RESULTS.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")
    print(json.dumps(result), sorted(shares))


if __name__ == "__main__":
    main()
