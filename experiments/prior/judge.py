"""Searches with a prior that was fitted on one half of the families, and judges what they find by the other half.

    python experiments/prior/judge.py --published FOLDER [--cache FOLDER] [--splits 7] [--quantiles 0.1 mean]
                                      [--targets rtx3090 i7-12700h ...] [--profiles FOLDER]

Whole modules of timm are in one half; the published LowFormers and CPUBones are in both. The judges are a law of the
same form, a Gaussian process in which all families bend in common, and a law that looks at nothing but MACs,
parameters, resolution and layers. One line for each search is appended to judged.jsonl; searches that are there are not
repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fit import arguments
from former import FormerLaw
from hierarchical import Fitted, Form, folds
from numpy.typing import NDArray
from rows import Rows, load_rows, plain_features

from lownas.predictors import AccuracyPrior, LatencyPredictor
from lownas.predictors.accuracy.features import MAIN, NAMES, ConfigFeatures
from lownas.search.feasible_pool import FeasibleSet, evolve
from lownas.search.objectives.goal import evenly
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph
from lownas.search_space.presets import PUBLISHED

Floats = NDArray[np.float64]
Score = Callable[[Sequence[LowFormerConfig]], Floats]

JUDGED = Path(__file__).with_name("judged.jsonl")
BUDGETS_MS = {
    "rtx3090": (0.7, 1.2, 2.0),
    "rtx3090:throughput": (0.1, 0.2, 0.4),
    "i7-12700h": (20.0, 40.0, 75.0),
    "cpu": (15.0, 30.0, 60.0),
}
EVERYTHING_MS = 1e6
"""The budget of a front."""
ON_FRONT = 8
DRAWN = 100
"""Networks of a front that are judged."""
CONFIDENCE = 0.9
OTHER_KIND = Form(main=tuple(range(len(MAIN) - 1)), side=tuple(range(len(NAMES))), shared_curve=True)
PLAIN = Form(main=(0, 1, 2, 3), side=(), curved=False)
FORMER = "former law"


def published_rows() -> Rows:
    """The published LowFormers and CPUBones as one family."""
    points = [(m.config.replace(resolution=r), top1) for m in PUBLISHED.values() for r, top1 in m.top1.items()]
    return config_rows([config for config, _ in points], np.log(100 - np.array([top1 for _, top1 in points])))


_FEATURES = ConfigFeatures()


def config_rows(configs: Sequence[LowFormerConfig], y: Floats | None = None) -> Rows:
    """Configurations as rows of that family."""
    names = np.array([config.replace(resolution=224).id for config in configs])
    family = np.full(len(configs), "lowformer")
    plain = np.array([plain_features(op_graph(config), config.resolution) for config in configs])
    values = np.zeros(len(configs)) if y is None else y
    return Rows(values, _FEATURES(configs), plain, names, family, family, family)


def together(first: Rows, second: Rows) -> Rows:
    """Both."""
    return Rows(*(np.concatenate([getattr(first, n), getattr(second, n)]) for n in first.__dataclass_fields__))


def halves(rows: Rows, seed: int) -> NDArray[np.intp]:
    """(n,) 0 or 1: whole modules in two halves, of `DRAWN` random divisions the one with the most even numbers of rows.

    A division that is even in modules alone may have most of the rows on one side: the largest module has a fifth of
    all.
    """
    drawn = [folds(rows, 2, DRAWN * seed + number) for number in range(DRAWN)]
    return min(drawn, key=lambda half: abs(2 * int(half.sum()) - len(half)))


class Half:
    """What one half of the families teaches: a prior to search with, and three judges."""

    def __init__(self, rows: Rows) -> None:
        self.prior = AccuracyPrior(Fitted(rows).law({}))
        # Variances are fitted without the family, as those of the prior are.
        both = together(rows, published_rows())
        self._other = Fitted(both, OTHER_KIND, Fitted(rows, OTHER_KIND).variances)
        self._plain = Fitted(both.seen_plainly(), PLAIN, Fitted(rows.seen_plainly(), PLAIN).variances)

    def verdicts(self, configs: Sequence[LowFormerConfig]) -> dict[str, list[float]]:
        """Top-1 in percent by each judge."""
        rows = config_rows(configs)
        found = {
            "same form": self.prior.imagenet_top1(configs),
            "other kind": 100 - np.exp(self._other.predict(rows)[0]),
            "plain": 100 - np.exp(self._plain.predict(rows.seen_plainly())[0]),
        }
        return {name: np.round(values, 3).tolist() for name, values in found.items()}


def seeds(space: SearchSpace) -> list[LowFormerConfig]:
    """Published models at all resolutions of the space, as a search begins with them."""
    resolutions = space.parameters["resolution"]
    configs = [preset.replace(resolution=r) for preset in PRESETS.values() for r in resolutions]
    return [config for config in configs if config in space]


def search(score: Score, predictor: LatencyPredictor, budget_ms: float, seed: int) -> FeasibleSet:
    """What evolution finds within a budget, as a search does."""
    space = SearchSpace.load("default")
    rng = np.random.default_rng(seed)
    return evolve(space, predictor, score, budget_ms, rng, confidence=CONFIDENCE, seeds=seeds(space))


def chosen(found: FeasibleSet, *, front: bool) -> list[LowFormerConfig]:
    """The answer, or networks along the front."""
    if not front:
        return [found.configs[found.best_index()]]
    whole = replace(found, budget_ms=float(found.latency_quantile_ms.max()))  # its share 1 is all that there is
    several = [whole.best_within(evenly(place), ()) for place in range(ON_FRONT)]
    return list({config.id: config for config in several if config is not None}.values())


def best_published(predictor: LatencyPredictor, budget_ms: float) -> dict[str, Any]:
    """The most accurate published model within a budget, at any resolution published."""
    points = [(n, m.config.replace(resolution=r), t) for n, m in PUBLISHED.items() for r, t in m.top1.items()]
    quantile = predictor.quantile_ms([config for _, config, _ in points], CONFIDENCE)
    within = [point for point, ms in zip(points, quantile, strict=True) if ms <= budget_ms]
    if not within:
        return {"name": None, "top1": None}
    name, config, top1 = max(within, key=lambda point: point[2])
    return {"name": name, "resolution": config.resolution, "top1": top1}


def judged(case: dict[str, Any], own: AccuracyPrior | None, judge: Half, predictor: LatencyPredictor) -> dict[str, Any]:
    """One search, and what the judge says of it."""
    front = case["budget_ms"] is None
    budget_ms = EVERYTHING_MS if front else case["budget_ms"]
    score: Score
    if own is None:
        score = FormerLaw()
    elif case["maximized"] == "mean":
        score = own.imagenet_top1
    else:
        q, prior = float(case["maximized"]), own
        score = lambda configs: prior.quantile(configs, q)  # noqa: E731
    found = chosen(search(score, predictor, budget_ms, case["split"]), front=front)
    estimate = np.round(FormerLaw()(found) if own is None else own.imagenet_top1(found), 3).tolist()
    graphs = [op_graph(config) for config in found]
    quantile = predictor.quantile_ms(found, CONFIDENCE)
    verdicts = judge.verdicts(found)
    rows = [
        {
            "id": config.id,
            "resolution": config.resolution,
            "quantile_ms": round(float(ms), 4),
            "gmacs": round(graph.macs / 1e9, 2),
            "params_m": round(graph.params / 1e6, 1),
            "estimate": top1,
            "lower": None if own is None else round(float(own.quantile([config], 0.1)[0]), 3),
            "published": best_published(predictor, float(ms) if front else budget_ms),
            **{name: values[i] for name, values in verdicts.items()},
            "config": config.to_dict(),
        }
        for i, (config, graph, ms, top1) in enumerate(zip(found, graphs, quantile, estimate, strict=True))
    ]
    return {**case, "networks": rows}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--splits", type=int, nargs="+", default=[7], help="seeds that divide the modules")
    parser.add_argument("--quantiles", nargs="+", default=["0.1", "mean"], help="what is maximized; also 'former'")
    parser.add_argument("--targets", nargs="+", default=list(BUDGETS_MS))
    parser.add_argument("--profiles", type=Path, help="folder with the profile of cpu")
    given = parser.parse_args()
    rows = load_rows(given.published, given.cache)
    known = [json.loads(line) for line in JUDGED.read_text().splitlines()] if JUDGED.exists() else []
    done = {json.dumps({k: v for k, v in case.items() if k != "networks"}) for case in known}
    for split in given.splits:
        half = halves(rows, split)
        both = [Half(rows[half == place]) for place in (0, 1)]
        for direction in (0, 1):
            for target in given.targets:
                predictor = LatencyPredictor.load(target, given.profiles)
                for budget_ms in (*BUDGETS_MS[target], None):
                    for maximized in given.quantiles:
                        case = {"split": split, "direction": direction, "target": target, "budget_ms": budget_ms}
                        case["maximized"] = FORMER if maximized == "former" else maximized
                        if json.dumps(case) in done:
                            continue
                        own = None if maximized == "former" else both[direction].prior
                        result = judged(case, own, both[1 - direction], predictor)
                        with JUDGED.open("a") as file:
                            file.write(json.dumps(result) + "\n")
                        first = {k: v for k, v in result["networks"][0].items() if k != "config"}
                        print(*case.values(), first, flush=True)


if __name__ == "__main__":
    main()
