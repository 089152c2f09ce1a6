"""What searches find, trained and measured beside what an engineer would take: Fashion-MNIST on a CPU, two budgets.

    python experiments/case_study/study.py networks --work WORK     # the arms that need no search; 20 minutes
    python experiments/case_study/study.py searches --work WORK     # one after the other, on all cores; hours
    python experiments/case_study/study.py train --work WORK        # one process a core; hours
    python experiments/case_study/study.py measure --work WORK      # all networks in turn, at rest; 20 minutes
    python experiments/case_study/study.py judge --work WORK        # the test part, read once
    python experiments/case_study/report.py                         # the table and the figure, from the rows

Every step adds rows to `rows/` as it goes, and leaves out what is there already: an interrupted step is just started
again. Rows of another recipe or of other data are refused.

The arms of each budget (`arms.py` makes them): the answer of a search by its defaults with more time; random search
with as many trainings; the same search with MACs in the place of latency; published LowFormers and CPUBone scaled in
width, and in a second form in resolution; timm's MobileNetV3-Small, EfficientNet-Lite and ResNet scaled in width; and,
at one budget, the search without rungs and without its surrogate.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lownas.experiments.case_study import arms
from lownas.experiments.case_study.arms import DATA, ROWS, Network

RECIPE: Mapping[str, Any] = {"epochs": 8, "recipe": {"precision": "bf16"}, "train_on": "train+validation"}
SEEDS, MORE_SEEDS = (0, 1, 2), (3, 4)
"""Seeds of every network's trainings, and more of them for the best two of each budget."""
ROUNDS, ROUND_PAUSE_S = 30, 5.0


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of one kind so far; without a last line that was cut off."""
    path = ROWS / f"{name}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def add(name: str, row: Mapping[str, Any]) -> None:
    ROWS.mkdir(exist_ok=True)
    with (ROWS / f"{name}.jsonl").open("a") as out:
        out.write(json.dumps(row) + "\n")
    print(time.strftime("%X"), name, json.dumps(row)[:160], flush=True)


def networks() -> dict[str, Network]:
    """All networks so far, by name."""
    return {row["name"]: Network.from_row(row) for row in rows("networks")}


# --- networks that need no search ------------------------------------------------------------------------------------


def make_networks(work: Path) -> None:
    """Scales what is published to just below each budget."""
    known = networks()
    for budget_ms in arms.BUDGETS_MS:
        for arm in arms.scaled_arms(work):
            name = f"{arm.name}@{budget_ms:g}"
            if name not in known:
                add("networks", arm.network(name, budget_ms).to_row())


# --- searches --------------------------------------------------------------------------------------------------------


def run_searches(work: Path) -> None:
    """Runs the searches that are missing, in processes of their own."""
    known = networks()
    for budget_ms, kind in arms.searches():
        name = f"{kind}@{budget_ms:g}"
        if name in known:
            continue
        begin = time.monotonic()
        command = [sys.executable, "-m", "lownas.experiments.case_study.arms", kind, f"{budget_ms:g}", str(work)]
        subprocess.run(command, check=True)
        row = arms.found_by(kind, budget_ms, work, name).to_row()
        add("networks", row | {"seconds": round(time.monotonic() - begin)})


# --- trainings -------------------------------------------------------------------------------------------------------


def wanted_trainings() -> Iterator[tuple[str, int]]:
    """Networks and seeds, all first seeds first."""
    names = list(networks())
    for seed in SEEDS:
        for name in names:
            yield name, seed
    for name in best_two():
        for seed in MORE_SEEDS:
            yield name, seed


def best_two() -> list[str]:
    """The two networks of each budget with the least mean training loss; nothing is chosen by the test part."""
    found: list[str] = []
    for budget_ms in arms.BUDGETS_MS:
        names = [name for name in networks() if name.endswith(f"@{budget_ms:g}")]
        means = {}
        for name in names:
            losses = [row["train_loss"] for row in rows("trainings") if row["network"] == name]
            if len(losses) >= len(SEEDS):
                means[name] = float(np.mean(losses))
        found += sorted(means, key=means.__getitem__)[:2] if len(means) == len(names) else []
    return found


def train_all(work: Path) -> None:
    """Trains what is missing and no other process is training, one after the other."""
    recipe = recipe_key()
    while True:
        done = {(row["network"], row["seed"]) for row in checked(rows("trainings"), recipe)}
        missing = [each for each in wanted_trainings() if each not in done and not claimed(work, *each)]
        if not missing:
            return
        name, seed = missing[0]
        claim = claim_file(work, name, seed)
        claim.parent.mkdir(parents=True, exist_ok=True)
        claim.write_text(str(os.getpid()))
        train_one(work, networks()[name], seed, recipe)


def claim_file(work: Path, name: str, seed: int) -> Path:
    return work / "trainings" / f"{name.replace('/', '-')}-{seed}" / "claim"


def claimed(work: Path, name: str, seed: int) -> bool:
    """Whether a process that runs is training this."""
    path = claim_file(work, name, seed)
    if not path.exists():
        return False
    import psutil

    return psutil.pid_exists(int(path.read_text() or 0))


def train_one(work: Path, network: Network, seed: int, recipe: str) -> None:
    """One training; it goes on where it was interrupted."""
    from lownas import train

    folder = claim_file(work, network.name, seed).parent
    out = folder / "run"
    begin, cpu = time.monotonic(), time.process_time()
    if (out / "training.json").exists():
        trained = train(network.model(), DATA, out=out, resume=True, threads=1)
    else:
        size = None if network.config is not None else network.resolution
        trained = train(network.model(), DATA, out=out, seed=seed, threads=1, device="cpu", resolution=size, **RECIPE)
    row = {"network": network.name, "seed": seed, "recipe": recipe, "epochs": trained.epochs}
    row |= {"train_loss": trained.history[-1].get("train_loss"), "seconds": round(trained.seconds)}
    row |= {"here_s": round(time.monotonic() - begin), "cpu_s": round(time.process_time() - cpu)}
    add("trainings", row | {"folder": str(out)})


def recipe_key() -> str:
    """What all trainings have in common."""
    return json.dumps({"data": DATA, **RECIPE}, sort_keys=True)


def checked(found: list[dict[str, Any]], recipe: str) -> list[dict[str, Any]]:
    """Rows of this recipe; exits for any other."""
    for row in found:
        if row["recipe"] != recipe:
            raise SystemExit(f"{row['network']}, seed {row['seed']} is a row of another recipe: {row['recipe']}")
    return found


# --- latency and accuracy --------------------------------------------------------------------------------------------


def measure_all(work: Path) -> None:
    """Looks at all networks in rounds."""
    files = {name: network.write(work / "onnx") for name, network in networks().items()}
    arms.look_in_rounds(files, ROUNDS, ROUND_PAUSE_S, lambda name, ms: add("looks", {"network": name, "ms": ms}))


def judge_all(work: Path) -> None:
    """Reads the test part, once for each training."""
    from lownas import evaluate

    done = {(row["network"], row["seed"]) for row in rows("tests")}
    for row in checked(rows("trainings"), recipe_key()):
        if (row["network"], row["seed"]) in done:
            continue
        network = networks()[row["network"]]
        accuracy = evaluate(data=DATA, part="test", threads=1, **network.trained(Path(row["folder"]))).top1
        add("tests", {"network": row["network"], "seed": row["seed"], "recipe": row["recipe"], "top1": accuracy})


STEPS: dict[str, Callable[[Path], None]] = {
    "networks": make_networks,
    "searches": run_searches,
    "measure": measure_all,
    "judge": judge_all,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=(*STEPS, "train"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.step != "train":
        STEPS[arguments.step](work)
    elif arguments.processes == 1:
        train_all(work)
    else:
        one = [sys.executable, __file__, "train", "--work", str(work), "--processes", "1"]
        started = []
        for _ in range(arguments.processes):
            started.append(subprocess.Popen(one))
            time.sleep(5)  # so that each sees what the others have begun
        for process in started:
            process.wait()


if __name__ == "__main__":
    main()
