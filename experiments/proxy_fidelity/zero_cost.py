"""Zero-cost scores of the networks of the table, on Fashion-MNIST at each network's resolution.

    python experiments/proxy_fidelity/zero_cost.py        # 25 minutes on one busy core; resumes

Appends to zero_cost.jsonl one row for each network and seed: id, seed, scores, seconds (of all scores together, on a
machine that may have been busy). The seed draws the weights and takes its own 64 training images.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from lownas.evaluators.zero_cost import zero_cost_scores
from lownas.experiments.tabular.training import parts
from lownas.search_space import LowFormerConfig

PLAN = Path(__file__).parents[1] / "tabular" / "plan.json"
ROWS = Path(__file__).with_name("zero_cost.jsonl")
SEEDS = (0, 1)
BATCH = 64


def missing() -> list[tuple[LowFormerConfig, int]]:
    """(network, seed) without a row, by resolution, since images of one resolution take seconds to make."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    done = {(row["id"], row["seed"]) for row in map(json.loads, lines)}
    configs = [LowFormerConfig.from_dict(entry["config"]) for entry in json.loads(PLAN.read_text())]
    jobs = [(config, seed) for config in configs for seed in SEEDS if (config.id, seed) not in done]
    return sorted(jobs, key=lambda job: job[0].resolution)


def main() -> None:
    jobs = missing()
    with ROWS.open("a") as file:
        for number, (config, seed) in enumerate(jobs, start=1):
            train = parts(config.resolution)["train"]
            index = torch.arange(seed * BATCH, (seed + 1) * BATCH)
            begin = time.perf_counter()
            scores = zero_cost_scores(config, train.batch(index), train.labels[index], seed)
            seconds = time.perf_counter() - begin
            row = {"id": config.id, "seed": seed, "scores": scores, "seconds": round(seconds, 3)}
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{number} of {len(jobs)}", json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
