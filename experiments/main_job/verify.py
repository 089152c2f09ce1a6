"""Checks what a search left in its run folder against what it promises.

    python nas.py --target rtx3090 --latency-budget 2ms --run RUN
    python experiments/main_job/verify.py RUN [--out results.json]

For a run without the user's data: how many distinct candidates were trained and how far apart in MACs; their accuracy
beside chance and a logistic regression on the same images and split; how much of the budget the answer uses, by the
latency quantile held against it; the answer's prior beside the best of 1,000 random configs that fit the budget (drawn
here, with a seed that the search does not use); whether best.onnx runs in onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime

from lownas.evaluators.data.loading import linear_baseline
from lownas.evaluators.training.proxy import load_proxy_data
from lownas.evaluators.training.settings import ProxySettings
from lownas.predictors import LatencyPredictor
from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.predictors.latency.machine import cpu_name
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
    complete = [result for result in read_results(arguments.run) if result.status == "complete"]
    proxy = ProxySettings.from_dict(about["proxy"])

    linear = {}
    for resolution in sorted({proxy.proxy_resolution(result.config.resolution) for result in complete}):
        linear[resolution] = linear_baseline(load_proxy_data(proxy, resolution))
    lead = [(result.accuracy or 0.0) - linear[proxy.proxy_resolution(result.config.resolution)] for result in complete]

    space = SearchSpace.load(settings.space, settings.resolution)
    predictor = LatencyPredictor.load(settings.target, arguments.profiles)
    prior = AccuracyPrior()
    rng, drawn = np.random.default_rng(987_654_321), 0
    fitting: list[LowFormerConfig] = []
    while len(fitting) < RANDOM and drawn < 100 * RANDOM:
        batch = [space.sample(rng) for _ in range(RANDOM)]
        quantile = predictor.quantile_ms(batch, settings.confidence)
        fitting += [c for c, ms in zip(batch, quantile, strict=True) if ms <= settings.latency_budget_ms]
        drawn += RANDOM
    random_best = float(prior.imagenet_top1(fitting[:RANDOM]).max())

    session = onnxruntime.InferenceSession(arguments.run / "best.onnx", providers=["CPUExecutionProvider"])
    size = answer["config"]["resolution"]
    start = time.perf_counter()
    (logits,) = session.run(None, {"input": np.zeros((1, 3, size, size), np.float32)})

    macs = [result.macs for result in complete]
    results = {
        "target": settings.target,
        "latency_budget_ms": settings.latency_budget_ms,
        "seconds": round(outcome["seconds"]),
        "trainings": len(complete),
        "failed": sum(count for status, count in outcome["counts"].items() if status == "failed"),
        "distinct": len({result.config_id for result in complete}),
        "macs_span": round(max(macs) / min(macs), 1),
        "accuracy_lowest": round(min(result.accuracy or 0.0 for result in complete), 3),
        "accuracy_highest": round(max(result.accuracy or 0.0 for result in complete), 3),
        "chance": round(1 / proxy.classes, 3),
        "logistic_regression": {str(size): round(value, 3) for size, value in linear.items()},
        "lowest_lead_over_logistic_regression": round(min(lead), 3),
        "answer": answer["id"],
        "answer_latency_ms": round(answer["latency_ms"], 4),
        "answer_latency_source": answer["latency_source"],
        "answer_uses_of_budget": round(answer["quantile_ms"] / settings.latency_budget_ms, 3),
        "answer_prior_top1": round(answer["prior_top1"], 3),
        "random_feasible": len(fitting[:RANDOM]),
        "best_random_prior_top1": round(random_best, 3),
        "onnx_output_shape": list(logits.shape),
        "onnx_run_ms": round(1e3 * (time.perf_counter() - start), 1),
        "notes": outcome["notes"],
        "proxy": about["proxy"],
        "versions": about["versions"],
        "cpu": cpu_name(),
        "commit": about["git_commit"],
    }
    print(json.dumps(results, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
