"""Which features of an architecture predict published ImageNet accuracy, and what choosing them is worth.

    python experiments/prior/run.py        # two minutes on one core; writes results.json beside this file

A law is a line in ln MACs or a power law of the error, with up to two features beside MACs and resolution. It is judged
by leaving one model out; the choice of a law by making it anew without each model ("nested"). Because searches maximize
what is shipped, the laws are also maximized, within a latency budget.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lownas.predictors import AccuracyPrior, LatencyPredictor
from lownas.search.feasible_pool import evolve
from lownas.search_space import PRESETS, PUBLISHED, LowFormerConfig, SearchSpace, op_graph
from lownas.search_space.graph.from_config import units
from lownas.search_space.units import AttentionUnit, LocalUnit, MlpUnit, unit_graph

Floats = NDArray[np.float64]

RESULTS = Path(__file__).with_name("results.json")
TARGET, BUDGETS_MS, SEEDS, EVALUATIONS = "rtx3090", (0.8, 2.0), (0, 1), 8_000
LARGEST = max(model.macs for model in PUBLISHED.values()) / 1e9
POOLS = {
    "attention": ("attention",),
    "attention, blocks": ("attention", "blocks"),
    "and parameters, MLPs": ("attention", "blocks", "parameters", "mlp"),
    "and the share of stage 4": ("attention", "blocks", "parameters", "mlp", "stage 4"),
    "and grouping": ("attention", "blocks", "parameters", "mlp", "stage 4", "grouped"),
}


class Law(NamedTuple):
    """top-1 ("line") or ln(100 - top-1) ("power") as linear in ln MACs, ln resolution and `extra` features."""

    form: str
    extra: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join((self.form, *self.extra))

    def target(self, top1: Floats) -> Floats:
        return top1 if self.form == "line" else np.log(100 - top1)

    def top1(self, target: Floats) -> Floats:
        return target if self.form == "line" else 100 - np.exp(target)


SHIPPED = Law("power", ("blocks", "attention"))
SHOWN = (Law("line"), Law("line", ("attention",)), SHIPPED, Law("power", ("blocks", "stage 4")))


@lru_cache(maxsize=200_000)
def features(config: LowFormerConfig) -> dict[str, float]:
    """GMACs and resolution, and the candidates: shares of LowFormer blocks, of local blocks and of MACs are 0 to 1."""
    parts = units(config)
    local = [part for part in parts if isinstance(part, LocalUnit)]
    in_block = max(sum(part.in_block for part in local), 1)
    macs = [unit_graph(part).macs for part in parts]
    last = [i for i, part in enumerate(parts) if isinstance(part, LocalUnit) and part.stride == 2][-1]
    return {
        "gmacs": sum(macs) / 1e9,
        "resolution": float(config.resolution),
        "attention": sum(isinstance(part, AttentionUnit) for part in parts) / in_block,
        "mlp": sum(isinstance(part, MlpUnit) for part in parts) / in_block,
        "blocks": float(np.log(len(local))),
        "stage 4": sum(macs[last:-1]) / sum(macs),  # the last unit is the head
        "parameters": float(np.log(op_graph(config).params / 1e6)),
        "grouped": sum(part.groups > 1 for part in local) / len(local),
    }


def columns(law: Law, table: Sequence[dict[str, float]]) -> Floats:
    """(n, 3 + extra), a constant first."""
    larger = [max(row["resolution"], 224) / 224 for row in table]
    base = [[1.0, np.log(row["gmacs"]), np.log(ratio)] for row, ratio in zip(table, larger, strict=True)]
    return np.hstack([base, np.array([[row[name] for name in law.extra] for row in table]).reshape(len(table), -1)])


POINTS = [
    (name, model.config.replace(resolution=resolution), top1)
    for name, model in PUBLISHED.items()
    for resolution, top1 in model.top1.items()
]
NAMES = np.array([name for name, _, _ in POINTS])
TABLE = [features(config) for _, config, _ in POINTS]
TOP1 = np.array([top1 for _, _, top1 in POINTS])


def predicted(law: Law, seen: NDArray[np.bool_], held: NDArray[np.bool_]) -> Floats:
    matrix = columns(law, TABLE)
    fitted = np.linalg.lstsq(matrix[seen], law.target(TOP1[seen]), rcond=None)[0]
    return law.top1(matrix[held] @ fitted)


def left_out(law: Law, among: NDArray[np.bool_]) -> Floats:
    """Signed errors in points of the points `among`, each predicted without its model."""
    errors = np.full(len(TOP1), np.nan)
    for name in dict.fromkeys(NAMES[among].tolist()):
        held = among & np.equal(NAMES, name)
        errors[held] = predicted(law, among & ~held, held) - TOP1[held]
    return errors[among]


def nested(laws: Sequence[Law]) -> tuple[Floats, dict[str, int]]:
    """(n,) signed errors of laws chosen, by leaving one of the other models out, without the model; and these laws."""
    errors, chosen = np.full(len(TOP1), np.nan), []
    for name in PUBLISHED:
        held = np.equal(NAMES, name)
        law = min(laws, key=lambda law, seen=~held: float(np.abs(left_out(law, seen)).mean()))  # type: ignore[misc]
        errors[held] = predicted(law, ~held, held) - TOP1[held]
        chosen.append(str(law))
    return errors, dict(Counter(chosen).most_common())


def summary(errors: Floats) -> dict[str, float]:
    return {"mean": round(float(np.abs(errors).mean()), 3), "worst": round(float(np.abs(errors).max()), 2)}


def by_model(errors: Floats) -> dict[str, float]:
    """The largest error of each model, with its sign."""
    return {name: round(float(max(errors[np.equal(NAMES, name)], key=abs)), 2) for name in PUBLISHED}


def maximized(law: Law) -> list[dict[str, Any]]:
    """What evolution makes of a law whose features are held within the published ones."""
    matrix = columns(law, TABLE)
    fitted = np.linalg.lstsq(matrix, law.target(TOP1), rcond=None)[0]
    low, high = matrix[:, 3:].min(axis=0), matrix[:, 3:].max(axis=0)
    space, predictor, prior = SearchSpace.load("default"), LatencyPredictor.load(TARGET), AccuracyPrior()

    def score(configs: Sequence[LowFormerConfig]) -> Floats:
        rows = columns(law, [features(config) for config in configs])
        rows[:, 3:] = np.clip(rows[:, 3:], low, high)
        return law.top1(rows @ fitted)

    found = []
    for budget_ms, seed in itertools.product(BUDGETS_MS, SEEDS):
        feasible = evolve(
            space,
            predictor,
            score,
            budget_ms,
            np.random.default_rng(seed),
            evaluations=EVALUATIONS,
            seeds=list(PRESETS.values()),
            excluded=prior.beyond,
        )
        best = feasible.configs[feasible.best_index()]
        row = features(best)
        found.append(
            {
                "budget_ms": budget_ms,
                "seed": seed,
                "top1": round(float(feasible.score.max()), 2),
                "best_random": round(feasible.random_best, 2),
                "gmacs_at_224": round(row["gmacs"] * (224 / row["resolution"]) ** 2, 2),
                "resolution": best.resolution,
                "blocks": round(float(np.exp(row["blocks"]))),
                "attention": round(row["attention"], 2),
                "stage_4": round(row["stage 4"], 2),
                "config": best.to_dict(),
            }
        )
    return found


def main() -> None:
    everything = np.ones(len(TOP1), dtype=bool)
    results: dict[str, Any] = {"models": len(PUBLISHED), "points": len(TOP1), "laws": {}, "pools": {}}
    for law in SHOWN:
        errors = left_out(law, everything)
        fitted = np.linalg.lstsq(columns(law, TABLE), law.target(TOP1), rcond=None)[0]
        results["laws"][str(law)] = {
            **summary(errors),
            "coefficients": fitted.round(4).tolist(),
            "by_model": by_model(errors),
            "maximized": maximized(law),
        }
    for name, pool in POOLS.items():
        extras = [extra for count in range(3) for extra in itertools.combinations(pool, count)]
        for forms in (("power",), ("line", "power")):
            laws = [Law(form, extra) for form in forms for extra in extras]
            errors, chosen = nested(laws)
            entry = {"candidates": len(laws), **summary(errors), "chosen": chosen, "by_model": by_model(errors)}
            results["pools"][f"{' or '.join(forms)}: {name}"] = entry
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
