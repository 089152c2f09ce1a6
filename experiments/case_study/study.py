"""What searches find, trained and measured beside what an engineer would take: on a CPU, within latency budgets.

    python experiments/case_study/study.py networks --work WORK     # the arms that need no search; 20 minutes
    python experiments/case_study/pruned.py --work WORK             # FastNAS's, with nvidia-modelopt; 2 hours
    python experiments/case_study/study.py searches --work WORK     # one after the other, on all cores; hours
    python experiments/case_study/study.py train --work WORK        # one process a core; hours
    python experiments/case_study/study.py measure --work WORK      # all networks in turn, at rest; 20 minutes
    python experiments/case_study/study.py judge --work WORK        # the test part, once for each training
    python experiments/case_study/report.py                         # tables and figures, from the rows

Every step adds rows to `rows/` as it goes, and leaves out what is there already: an interrupted step is just started
again. Rows of another recipe or of other data are refused. `--task scenes` is a second, smaller study.

The arms of each budget (`arms.py` makes them): the answer of a search by its defaults with more time; random search
with as many trainings; the same search with MACs in the place of latency; published LowFormers and CPUBone scaled in
width, and in a second form in resolution; timm's MobileNetV3-Small, EfficientNet-Lite and ResNet scaled in width;
LowFormer-B0 pruned by FastNAS; and, at one budget, the search without rungs and without its surrogate.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lownas.experiments.case_study import arms
from lownas.experiments.case_study.arms import TASKS, Network, Task

SEEDS, MORE_SEEDS = (0, 1, 2), (3, 4)
"""Seeds of every network's trainings, and more of them for the best two of each budget."""
ROUNDS, ROUND_PAUSE_S = 30, 5.0


@dataclass(frozen=True)
class Study:
    """The study of one task.

    Attributes:
        task: what is trained on.
        work: folder of what is not committed: runs, trainings, ONNX files.
    """

    task: Task
    work: Path

    # --- rows

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of one kind so far; without a last line that was cut off."""
        path = self.task.rows / f"{name}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        self.task.rows.mkdir(parents=True, exist_ok=True)
        with (self.task.rows / f"{name}.jsonl").open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(time.strftime("%X"), name, json.dumps(row)[:160], flush=True)

    def networks(self) -> dict[str, Network]:
        """All networks so far, by name."""
        return {row["name"]: Network.from_row(row) for row in self.rows("networks")}

    @property
    def recipe(self) -> str:
        """What all trainings have in common."""
        return json.dumps({"data": self.task.data, **self.task.recipe}, sort_keys=True)

    def trainings(self) -> list[dict[str, Any]]:
        """Those that are finished; exits for any of another recipe."""
        found = self.rows("trainings")
        for row in found:
            if row["recipe"] != self.recipe:
                raise SystemExit(f"{row['network']}, seed {row['seed']} is a row of another recipe: {row['recipe']}")
        return found

    # --- networks

    def make_networks(self) -> None:
        """Scales what is published to just below each budget."""
        known = self.networks()
        for budget_ms in self.task.budgets_ms:
            for arm in arms.scaled_arms(self.task, self.work):
                name = f"{arm.name}@{budget_ms:g}"
                if name not in known:
                    self.add("networks", arm.network(name, budget_ms).to_row())

    def run_searches(self) -> None:
        """Runs the searches that are missing, in processes of their own."""
        for budget_ms, kind in self.missing_searches():
            begin = time.monotonic()
            module = (sys.executable, "-m", "lownas.experiments.case_study.arms")
            subprocess.run([*module, self.task.data, kind, f"{budget_ms:g}", str(self.work)], check=True)
            row = arms.found_by(self.task, kind, budget_ms, self.work, f"{kind}@{budget_ms:g}").to_row()
            self.add("networks", row | {"seconds": round(time.monotonic() - begin)})

    def missing_searches(self) -> list[tuple[float, str]]:
        known = self.networks()
        return [(ms, kind) for ms, kind in arms.searches(self.task) if f"{kind}@{ms:g}" not in known]

    # --- trainings

    def wanted_trainings(self) -> Iterator[tuple[str, int]]:
        """Networks and seeds, all first seeds first."""
        names = list(self.networks())
        for seed in SEEDS:
            for name in names:
                yield name, seed
        for name in self.best_two():
            for seed in MORE_SEEDS:
                yield name, seed

    def best_two(self) -> list[str]:
        """The two networks of each budget with the least mean training loss; nothing is chosen by the test part."""
        found: list[str] = []
        trainings = self.trainings()
        for budget_ms in self.task.budgets_ms:
            names = [name for name in self.networks() if name.endswith(f"@{budget_ms:g}")]
            means = {}
            for name in names:
                losses = [row["train_loss"] for row in trainings if row["network"] == name]
                if len(losses) >= len(SEEDS):
                    means[name] = float(np.mean(losses))
            found += sorted(means, key=means.__getitem__)[:2] if len(means) == len(names) else []
        return found

    def train_all(self) -> None:
        """Trains what is missing and no other process is training, one after the other."""
        while True:
            judged = {(row["network"], row["seed"]) for row in self.rows("tests")}
            trained = {(row["network"], row["seed"]) for row in self.trainings()}
            done = {each for each in trained if each in judged or self.training(*each).exists()}
            missing = [each for each in self.wanted_trainings() if each not in done and not self.claimed(*each)]
            if not missing:
                return
            name, seed = missing[0]
            claim = self.training(name, seed) / "claim"
            claim.parent.mkdir(parents=True, exist_ok=True)
            claim.write_text(str(os.getpid()))
            self.train_one(self.networks()[name], seed)

    def training(self, name: str, seed: int) -> Path:
        """The folder of one training."""
        return self.work / "trainings" / self.task.data / f"{name.replace('/', '-')}-{seed}"

    def claimed(self, name: str, seed: int) -> bool:
        """Whether a process that runs is training this."""
        path = self.training(name, seed) / "claim"
        if not path.exists():
            return False
        import psutil

        return psutil.pid_exists(int(path.read_text() or 0))

    def train_one(self, network: Network, seed: int) -> None:
        """One training; it goes on where it was interrupted."""
        from lownas import train

        out = self.training(network.name, seed) / "run"
        begin, cpu = time.monotonic(), time.process_time()
        model, fixed = network.model(self.work), {"out": out, "threads": 1}
        if (out / "training.json").exists():
            trained = train(model, self.task.data, resume=True, **fixed)
        else:
            size = network.resolution if network.is_module else None
            chosen = {"seed": seed, "device": "cpu", "resolution": size, **self.task.recipe}
            trained = train(model, self.task.data, **fixed, **chosen)
        row = {"network": network.name, "seed": seed, "recipe": self.recipe, "epochs": trained.epochs}
        row |= {"train_loss": trained.history[-1].get("train_loss"), "seconds": round(trained.seconds)}
        here = {"here_s": round(time.monotonic() - begin), "cpu_s": round(time.process_time() - cpu)}
        self.add("trainings", row | here)

    # --- latency and accuracy

    def measure_all(self) -> None:
        """Looks at all networks in rounds."""
        files = {name: network.write(self.work / "onnx", self.work) for name, network in self.networks().items()}

        def tell(name: str, ms: float) -> None:
            self.add("looks", {"network": name, "ms": ms})

        arms.look_in_rounds(files, ROUNDS, ROUND_PAUSE_S, tell)

    def judge_all(self) -> None:
        """Reads the test part, once for each training, when all networks are chosen."""
        from lownas import evaluate

        if missing := self.missing_searches():
            raise SystemExit(f"not everything is chosen yet: {len(missing)} searches are missing, {missing[0]} first")
        networks, done = self.networks(), {(row["network"], row["seed"]) for row in self.rows("tests")}
        for row in self.trainings():
            name, seed = row["network"], row["seed"]
            folder = self.training(name, seed) / "run"
            if (name, seed) in done or not folder.exists():
                continue
            judged = networks[name].trained(folder, self.work)
            accuracy = evaluate(data=self.task.data, part="test", threads=1, **judged).top1
            self.add("tests", {"network": name, "seed": seed, "recipe": row["recipe"], "top1": accuracy})


STEPS: Mapping[str, Callable[[Study], None]] = {
    "networks": Study.make_networks,
    "searches": Study.run_searches,
    "train": Study.train_all,
    "measure": Study.measure_all,
    "judge": Study.judge_all,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--task", choices=TASKS, default=next(iter(TASKS)))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.step != "train" or arguments.processes == 1:
        STEPS[arguments.step](Study(TASKS[arguments.task], work))
        return
    one = [sys.executable, __file__, "train", "--task", arguments.task, "--work", str(work), "--processes", "1"]
    started = []
    for _ in range(arguments.processes):
        started.append(subprocess.Popen(one))
        time.sleep(5)  # so that each sees what the others have begun
    for process in started:
        process.wait()


if __name__ == "__main__":
    main()
