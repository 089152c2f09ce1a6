"""Whether the answer of a search, trained on all of Fashion-MNIST's training images, is any good on the test images.

    OMP_NUM_THREADS=1 python experiments/final_training/fashion.py RUN --seed 0 --budget 15m --precision bf16

RUN is the folder of a search (`lownas --target cpu --latency-budget 1ms --space tiny --data fashion-mnist`), which has
seen the training images alone. Its answer is trained on all 60,000 of them, for at most so many minutes of one core;
then the 10,000 test images are read, once for each seed, after everything is chosen. Rows go to fashion.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lownas.evaluators.data.sources.fashion_mnist import FASHION_FOLDER
from lownas.evaluators.training.final.records import FinalSettings, TrainingStatus
from lownas.evaluators.training.final.store import LocalStore
from lownas.evaluators.training.final.training import train_network
from lownas.search import evaluate
from lownas.search.quantities import parse_duration
from lownas.search.results.files import run_config
from lownas.search_space import op_graph

RESULTS = Path(__file__).with_name("fashion.json")
DATA = f"fashion-mnist:{FASHION_FOLDER}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", default="55m")
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    config = run_config(arguments.run)
    folder = Path(__file__).with_name("work") / f"fashion-{config.id}-{arguments.seed}"

    def report(status: TrainingStatus) -> None:
        if status.row is not None:
            print(dict(status.row), f"{status.seconds_left:.0f} s left", flush=True)

    budget_s = parse_duration(arguments.budget, "--budget")
    choices = {"precision": arguments.precision}
    settings = FinalSettings(budget_s=budget_s, choices=choices, train_on="train+validation", seed=arguments.seed)
    network = train_network(config, DATA, LocalStore(folder), settings, resume=True, report=report)
    judgement = evaluate(folder, DATA, part="test")
    row = {"seed": arguments.seed, "config": config.id, "macs": op_graph(config).macs, "epochs": network.epochs}
    row |= {"core_minutes": round(network.seconds / 60, 1), "test_accuracy": judgement.top1}
    row |= {"calibration_error": judgement.calibration_error, "recipe": network.recipe.to_dict()}
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"config": config.to_dict(), "rows": []}
    found["rows"] = [*(kept for kept in found["rows"] if kept["seed"] != row["seed"]), row]
    accuracies = [kept["test_accuracy"] for kept in found["rows"]]
    found["mean_test_accuracy"] = round(sum(accuracies) / len(accuracies), 5)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print({**row, "recipe": None}, found["mean_test_accuracy"], flush=True)


if __name__ == "__main__":
    main()
