"""What reading a weight costs, by how many weights a network has: what caches keep from one run to the next.

    python experiments/restless/caches.py      # writes caches.json, two minutes on a machine at rest

Chains of equal layers on onnxruntime, one thread: linear ones on a vector, and 1x1 convolutions on maps of 4x4 pixels.
The least time of several looks, per million weights. Beside it the share of weights that `kernel_terms.cold_share`
takes to be read from memory, for the number of kept weights that fits the chains best.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lownas.evaluators.device.measure import measure_latency
from lownas.predictors import Target
from lownas.predictors.latency.kernel_terms import cold_share
from lownas.search_space.graph import GRAPH_INPUT, GraphBuilder, OpGraph

RESULTS = Path(__file__).with_name("caches.json")
TARGET = Target.parse("cpu")
WIDTH, LOOKS, LOOK_S = 512, 5, 0.4
MEGABYTES = (1, 2, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128)
KEPT_MEGABYTES = tuple(2 ** (n / 4) for n in range(4, 26))


def linear_chain(layers: int) -> OpGraph:
    build, row = GraphBuilder(), GRAPH_INPUT
    row = build.add_op("global_pool", [row], shape_in=(WIDTH, 1, 1), shape_out=(WIDTH, 1, 1))
    for _ in range(layers):
        row = build.linear(row, WIDTH, WIDTH, bias=True)
    return build.build()


def convolution_chain(layers: int) -> OpGraph:
    build, row, shape = GraphBuilder(), GRAPH_INPUT, (WIDTH, 4, 4)
    for _ in range(layers):
        row, shape = build.conv(row, shape, WIDTH)
    return build.build()


def best_fit(weights: np.ndarray, per_weight: np.ndarray) -> dict[str, Any]:
    """The number of kept weights that explains the chains, as one cost in the caches and one beyond."""
    found = []
    for kept_mb in KEPT_MEGABYTES:
        design = np.stack([np.ones_like(weights), cold_share(weights, int(kept_mb * 2**18))], axis=1)
        cost = np.linalg.lstsq(design / per_weight[:, None], np.ones_like(weights), rcond=None)[0]
        error = float(np.sqrt(np.mean((design @ cost / per_weight - 1) ** 2)))
        found.append((error, kept_mb, cost, design[:, 1]))
    error, kept_mb, cost, shares = min(found, key=lambda each: each[0])
    return {
        "kept, MB": round(kept_mb, 1),
        "ms per million weights in the caches": round(float(cost[0]), 4),
        "more from memory": round(float(cost[1]), 4),
        "error, rms": round(error, 4),
        "shares from memory": [round(float(share), 3) for share in shares],
    }


def main() -> None:
    result: dict[str, Any] = {"fingerprint": TARGET.fingerprint(), "megabytes": MEGABYTES}
    for name, chain in (("linear", linear_chain), ("1x1 convolutions, 4x4 pixels", convolution_chain)):
        looks: dict[int, list[float]] = {megabytes: [] for megabytes in MEGABYTES}
        for _ in range(LOOKS):
            for megabytes in MEGABYTES:
                measured = measure_latency(chain(megabytes), TARGET, time_limit_s=LOOK_S, min_runs=10)
                looks[megabytes].append(measured.median_ms)
        weights = np.array(MEGABYTES) * float(WIDTH**2)
        per_weight = np.array([min(looks[megabytes]) for megabytes in MEGABYTES]) / (weights / 1e6)
        fitted = {"ms per million weights": [round(float(ms), 4) for ms in per_weight]} | best_fit(weights, per_weight)
        result[name] = fitted
        print(name, json.dumps(fitted))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
