"""Checks what a search without data left in its run folder against what it promises.

    python nas.py --target rtx3090 --latency-budget 2ms --run RUN
    python experiments/main_job/verify.py RUN [--out results.json]

How long it took, how many networks it kept and how far apart in MACs; how much of the budget the answer uses, by the
latency quantile held against it; the lower quantile of its estimate beside the best of 1,000 random configurations that
fit the budget (drawn here, with a seed that the search does not use); whether best.onnx runs in onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from lownas.predictors import LatencyPredictor
from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.predictors.latency.machine import cpu_name
from lownas.search.objectives.base import LOWER_QUANTILE
from lownas.search.settings import SearchSettings
from lownas.search.trials.run_folder import read_about, read_results
from lownas.search_space import LowFormerConfig, SearchSpace

RANDOM = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profiles", type=Path)
    arguments = parser.parse_args()
    about, outcome = read_about(arguments.run), json.loads((arguments.run / "outcome.json").read_text())
    settings, answer = SearchSettings.from_dict(about["settings"]), outcome["answer"]
    kept = [result for result in read_results(arguments.run) if result.status == "predicted"]
    if not kept or answer is None:
        sys.exit(f"{arguments.run}: {'it has no answer' if kept else 'its candidates were trained, not predicted'}")
    random = best_random(settings, LatencyPredictor.load(settings.target, arguments.profiles))
    macs = [result.macs for result in kept]
    results = {
        "target": settings.target,
        "latency_budget_ms": settings.latency_budget_ms,
        "seconds": round(outcome["seconds"], 1),
        "counts": outcome["counts"],
        "distinct": len({result.config_id for result in kept}),
        "macs_span": round(max(macs) / min(macs), 1),
        "answer": answer["id"],
        "answer_latency_ms": round(answer["latency_ms"], 4),
        "answer_latency_source": answer["latency_source"],
        "answer_uses_of_budget": round(answer["quantile_ms"] / settings.latency_budget_ms, 3),
        "answer_top1": [round(answer[name], 2) for name in ("low_top1", "prior_top1", "high_top1")],
        "answer_lower_quantile": round(answer["objective"], 3),
        **random,
        **run_onnx(arguments.run / "best.onnx", answer["config"]["resolution"]),
        "notes": outcome["notes"],
        "versions": about["versions"],
        "cpu": cpu_name(),
        "commit": about["git_commit"],
    }
    print(json.dumps(results, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


def best_random(settings: SearchSettings, predictor: LatencyPredictor) -> dict[str, Any]:
    """The highest lower quantile of random configurations within the budget, and of how many."""
    space = SearchSpace.load(settings.space, settings.resolution)
    rng, drawn = np.random.default_rng(987_654_321), 0
    fitting: list[LowFormerConfig] = []
    while len(fitting) < RANDOM and drawn < 100 * RANDOM:
        batch = [space.sample(rng) for _ in range(RANDOM)]
        quantile = predictor.quantile_ms(batch, settings.confidence)
        fitting += [c for c, ms in zip(batch, quantile, strict=True) if ms <= settings.latency_budget_ms]
        drawn += RANDOM
    best = float(AccuracyPrior.load().quantile(fitting[:RANDOM], LOWER_QUANTILE).max())
    return {"random_feasible": len(fitting[:RANDOM]), "best_random_lower_quantile": round(best, 3)}


def run_onnx(path: Path, size: int) -> dict[str, Any]:
    """The shape of what the network gives, and how long one run takes here."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    start = time.perf_counter()
    (logits,) = session.run(None, {"input": np.zeros((1, 3, size, size), np.float32)})
    return {"onnx_output_shape": list(logits.shape), "onnx_run_ms": round(1e3 * (time.perf_counter() - start), 1)}


if __name__ == "__main__":
    main()
