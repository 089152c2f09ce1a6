"""What it costs to use a latency profile on its own: import and load in a fresh process, and predictions a second.

python experiments/latency/speed.py       # writes speed.json; one core
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

os.environ["OMP_NUM_THREADS"] = "1"

from lownas.predictors import LatencyPredictor
from lownas.search_space import SearchSpace

PROCESSES = 15
CONFIGS = 50_000
ROUNDS = 5
LOAD = "from lownas.predictors import LatencyPredictor; LatencyPredictor.load('rtx3090')"


def main() -> None:
    def seconds(code: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - begin

    pairs = [(seconds("pass"), seconds(LOAD)) for _ in range(PROCESSES)]
    bare, loaded = np.median(pairs, axis=0)

    rng = np.random.default_rng(0)
    space = SearchSpace.load("default")
    configs = [space.sample(rng) for _ in range(2 * CONFIGS)]
    predictor = LatencyPredictor.load("rtx3090")

    def rate(some: list) -> float:
        begin = time.process_time()
        predictor.latency_ms(some)
        return len(some) / (time.process_time() - begin)

    first = rate(configs[:CONFIGS])
    again = [rate(configs[:CONFIGS]) for _ in range(ROUNDS)]
    begin = time.process_time()
    predictor.predict(configs[:500])
    single = 500 / (time.process_time() - begin)
    result = {
        "processes": PROCESSES,
        "interpreter_s": round(float(bare), 3),
        "import_and_load_s": round(float(loaded), 3),
        "configs": CONFIGS,
        "bulk_first_pass_per_s": round(first),
        "bulk_new_configs_per_s": round(rate(configs[CONFIGS:])),
        "bulk_known_configs_per_s": round(float(np.median(again))),
        "predict_with_interval_per_s": round(single),
        "profile_bytes": {p.name: p.stat().st_size for p in sorted(_profiles().glob("*.json"))},
    }
    Path(__file__).with_name("speed.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _profiles() -> Path:
    from lownas.predictors.latency.target import shipped_profiles

    return shipped_profiles()


if __name__ == "__main__":
    main()
