"""Zero-cost scores of all networks of the table, on a batch of the images that they were trained on.

    OMP_NUM_THREADS=1 python experiments/proxy_fidelity/zero_cost.py     # half an hour; resumes

Appends to zero_cost.jsonl beside this file: id, seed, scores, seconds.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from lownas.evaluators.zero_cost import zero_cost_scores
from lownas.experiments.tabular.table import TABLE
from lownas.experiments.tabular.training import parts
from lownas.search_space import LowFormerConfig

ROWS = Path(__file__).with_name("zero_cost.jsonl")
BATCH = 64
SEEDS = (0, 1)


def main() -> None:
    torch.set_num_threads(1)
    plan = json.loads(TABLE.with_name("plan.json").read_text())
    configs = sorted((LowFormerConfig.from_dict(entry["config"]) for entry in plan), key=lambda c: (c.resolution, c.id))
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    done = {(row["id"], row["seed"]) for row in rows}
    with ROWS.open("a") as file:
        for config in configs:
            for seed in SEEDS:
                if (config.id, seed) in done:
                    continue
                train = parts(config.resolution)["train"]
                index = torch.arange(seed * BATCH, (seed + 1) * BATCH)
                begin = time.perf_counter()
                scores = zero_cost_scores(config, train.batch(index), train.labels[index], seed)
                seconds = round(time.perf_counter() - begin, 3)
                row = {"id": config.id, "seed": seed, "scores": scores, "seconds": seconds}
                file.write(json.dumps(row) + "\n")
                file.flush()
    print(f"{len(configs)} networks, {len(SEEDS)} seeds")


if __name__ == "__main__":
    main()
