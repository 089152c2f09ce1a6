"""The operator graph against torch on 200 random configurations, and how fast graphs are built.

    OMP_NUM_THREADS=1 python experiments/space/check.py

Counts: MACs (torch's FlopCounterMode / 2) and parameters of the built model, on the meta device, must equal the graph's
exactly. Speed: graphs of random configurations of the default space, on one core, first with cold caches, then warm.
Writes results.json beside this file.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from lownas.predictors.latency.machine import cpu_name
from lownas.search_space import SearchSpace, build_model, op_graph

CONFIGS = 200
TIMED = 20_000


def main() -> None:
    different = []
    for name in ("default", "tiny"):
        space, rng = SearchSpace.load(name), np.random.default_rng(2026)
        for _ in range(CONFIGS // 2):
            config = space.sample(rng)
            graph = op_graph(config)
            with torch.device("meta"):
                model = build_model(config).eval()
                with FlopCounterMode(display=False) as counter:
                    model(torch.zeros(1, 3, config.resolution, config.resolution))
            params = sum(parameter.numel() for parameter in model.parameters())
            if (graph.macs, graph.params) != (counter.get_total_flops() // 2, params):
                different.append(config.to_dict())
    space, rng = SearchSpace.load("default"), np.random.default_rng(1)
    configs = [space.sample(rng) for _ in range(TIMED)]
    speeds = []
    for _ in ("cold", "warm"):
        start = time.perf_counter()
        for config in configs:
            op_graph(config)
        speeds.append(round(TIMED / (time.perf_counter() - start)))
    results = {
        "configs": CONFIGS,
        "different_counts": len(different),
        "graphs_per_second_cold": speeds[0],
        "graphs_per_second_warm": speeds[1],
        "cpu": cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    print(json.dumps(results, indent=2))
    Path(__file__).with_name("results.json").write_text(json.dumps(results, indent=2) + "\n")
    assert not different, different[0]


if __name__ == "__main__":
    main()
