"""Whether a latency budget holds: what searches return, measured afresh, beside the budget that they were given.

    python experiments/budget/run.py          # 20 budgets on `cpu`; about an hour on a quiet machine, resumable

Budgets spread from 1.3 times the fastest of the default space to what the prior's best network takes, however slow it
may be: a search spends no more, so that larger budgets hold by themselves. (The committed rows were begun with a span
that reached beyond; what lay there is kept as "not binding", and budgets in between took its place.) Three searches are
made for each: the default (feasible at confidence 0.9; a few networks measured before, half-way and at the end correct
the predictor), one that measures nothing, and one that measures nothing and takes the predictor's median for the
latency (confidence 0.5). Accuracies are made up, by the ImageNet prior: what is judged is latency alone. The networks
returned are then measured in turn, in three sessions each, with a rest between them; one "exceeds" its budget if the
median of its sessions is more than 3 % over it. Adds to results.json after each budget. Calibrates `cpu` first where
there is no profile of it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from lownas.evaluators.device.measure import measure_for_calibration, measure_latency
from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.predictors.latency.calibration import calibrate
from lownas.predictors.latency.target import profile_folders
from lownas.search import Evaluation, TrainingTask
from lownas.search.feasible_pool import evolve, fastest
from lownas.search.latency.looks import Measuring
from lownas.search.run_search import Parts, run_search
from lownas.search.settings import SearchSettings
from lownas.search_space import LowFormerConfig, SearchSpace

RESULTS = Path(__file__).with_name("results.json")
BUDGETS = 20
LEAST = 1.3  # of the fastest network's latency
ROUNDS, REST_S = 3, 6.0
EXCESS = 1.03
VARIANTS: dict[str, tuple[float, bool]] = {  # confidence, and whether the search measures
    "default": (0.9, True),
    "nothing measured": (0.9, False),
    "nothing measured, median": (0.5, False),
}


def evaluate(task: TrainingTask) -> Evaluation:
    """The prior's accuracy, a little noise, and no time."""
    noise = 0.002 * np.random.default_rng(task.seed).standard_normal()
    return Evaluation(float(AccuracyPrior().imagenet_top1([task.config])[0]) / 100 + noise, seconds=0.01)


def answer(
    variant: str, budget_ms: float, number: int, target: Target, predictor: LatencyPredictor, space: SearchSpace
) -> dict[str, Any]:
    """Searches; gives the configuration of the answer, the latency stated for it, and the seconds that it took."""
    confidence, measures = VARIANTS[variant]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = SearchSettings.from_dict(
            {
                "target": str(target),
                "latency_budget_ms": budget_ms,
                "confidence": confidence,
                "seed": number,
                "run": str(Path(folder) / "run"),
            }
        )
        parts = Parts(
            predictor,
            space,
            evaluate=evaluate,
            plan=lambda request: {},
            measuring=Measuring(lambda config: measure_latency(config, target), rest_s=REST_S) if measures else None,
        )
        result = run_search(settings, parts)
    if result.answer is None:
        return {"config": None, "seconds": round(time.monotonic() - began, 1), "notes": list(result.notes)}
    return {
        "config": result.answer.config.to_dict(),
        "said_ms": round(result.answer.latency_ms, 4),
        "seconds": round(time.monotonic() - began, 1),
    }


def afresh(found: Mapping[str, dict[str, Any]], target: Target) -> None:
    """Measures all answers in turn, several times, and adds to each the medians of its sessions."""
    for number in range(ROUNDS):
        time.sleep(REST_S if number else 0)
        for row in found.values():
            if row["config"] is not None:
                look = measure_latency(LowFormerConfig.from_dict(row["config"]), target)
                row.setdefault("afresh_ms", []).append(round(look.median_ms, 4))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for variant in VARIANTS:
        shares = [
            float(np.median(row[variant]["afresh_ms"])) / row["budget_ms"] for row in rows if row[variant]["config"]
        ]
        found[variant] = {
            "searches": len(rows),
            "returned something": len(shares),
            "over the budget by more than 3 %": sum(share > EXCESS for share in shares),
            "over the budget at all": sum(share > 1 for share in shares),
            "median share of the budget": round(float(np.median(shares)), 3),
            "largest share of the budget": round(max(shares), 3),
            "median seconds": float(np.median([row[variant]["seconds"] for row in rows])),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="budgets after which this process ends")
    limit = parser.parse_args().limit
    target, space = Target.parse("cpu"), SearchSpace.load("default")
    if any((folder / target.file_name).is_file() for folder in profile_folders(None)):
        predictor = LatencyPredictor.load(target)
    else:
        predictor = calibrate(target, measure_for_calibration)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    rows: list[dict[str, Any]] = known["rows"]
    if rows:
        budgets = known["budgets_ms"]
    else:
        rng = np.random.default_rng(0)
        found = evolve(space, predictor, AccuracyPrior().imagenet_top1, 1e6, rng)
        ends = fastest(space, predictor, rng)[1] * LEAST, float(found.quantile_ms[found.best_index()])
        # In random order, so that any first part spreads over all.
        budgets = [float(f"{ms:.3g}") for ms in rng.permutation(np.geomspace(*ends, BUDGETS))]
    for number in range(len(rows), min(BUDGETS, len(rows) + (limit or BUDGETS))):
        answers = {variant: answer(variant, budgets[number], number, target, predictor, space) for variant in VARIANTS}
        afresh(answers, target)
        rows.append({"budget_ms": budgets[number], **answers})
        host = {"target": str(target), "predictor": predictor.provenance, "host": dict(predictor.fingerprint)}
        document = {**known, **host, "summary": summary(rows), "budgets_ms": budgets, "rows": rows}
        temporary = RESULTS.with_suffix(".new")
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(RESULTS)
        print(number, budgets[number], {v: (a.get("said_ms"), a.get("afresh_ms")) for v, a in answers.items()})
    print(json.dumps(known.get("summary") if not rows else summary(rows), indent=1))


if __name__ == "__main__":
    main()
