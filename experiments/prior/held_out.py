"""How far the prior can be trusted on families that it was not fitted on, and on LowFormers left out.

    python experiments/prior/held_out.py --published FOLDER [--cache FOLDER]

Whole modules of timm are left out in ten folds, three times divided at random, and all variances are fitted without
them. (The form of the law was chosen on other divisions of the same families: eight folds of seeds 21 and 22.) Takes
some three minutes of one core and writes results.json; fit.py quotes its summary.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fit import RESULTS, arguments
from hierarchical import SHIPPED, Fitted, Form, centred, features_form, folds
from numpy.typing import NDArray
from rows import Rows, load_rows
from scipy.stats import kendalltau

from lownas.predictors import AccuracyPrior
from lownas.predictors.accuracy.features import MAIN, NAMES
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph
from lownas.search_space.presets import PUBLISHED

Floats = NDArray[np.float64]

SEEDS = (31, 32, 33)
FOLDS = 10
DRAWS = 2000
NORMAL_90 = 1.6449
CHOICE_SEEDS, CHOICE_FOLDS = (21, 22), 8
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS = (0.35, 0.5, 0.7, 1.0)

MACS = Form(main=(0,), side=(), curved=False)
PLAIN = Form(main=(0, 1, 2, 3), side=(), curved=False)
LAWS: dict[str, tuple[Form, bool]] = {
    "MACs alone": (MACS, True),
    "MACs, parameters, resolution, layers": (PLAIN, True),
    "MACs / k alone": (features_form(["compute"]), False),
    "the five main features": (features_form(MAIN), False),
    "shipped": (SHIPPED, False),
}
"""By name: the form, and whether it looks at the plain features."""


def left_out(rows: Rows, form: Form, seed: int) -> dict[str, Floats]:
    """Of each row, predicted without its module: error of y, that with the level of its family and recipe given, and
    both in standard deviations (nan where the level is all that a row tells)."""
    found = {name: np.full(len(rows), np.nan) for name in ("unknown", "known", "unknown_z", "known_z")}
    fold = folds(rows, FOLDS, seed)
    for number in range(FOLDS):
        held = fold == number
        mean, covariance = Fitted(rows[~held], form).predict(rows[held])
        error = rows.y[held] - mean
        found["unknown"][held], found["unknown_z"][held] = error, error / np.sqrt(np.diag(covariance))
        found["known"][held] = centred(error, rows.group[held])
        z = np.full(len(error), np.nan)
        for group in np.unique(rows.group[held]):
            members = np.flatnonzero(rows.group[held] == group)
            if len(members) == 1:
                continue
            middle = np.eye(len(members)) - 1 / len(members)
            spread = np.diag(middle @ covariance[np.ix_(members, members)] @ middle)
            z[members] = middle @ error[members] / np.sqrt(np.maximum(spread, 1e-12))
        found["known_z"][held] = z
    return found


def within(errors: Floats) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def covers(z: Floats) -> float:
    """The share of errors within the 90 % interval, of those that tell something."""
    return float(np.mean(np.abs(z[np.isfinite(z)]) < NORMAL_90))


def tau_within(rows: Rows, errors: Floats) -> float:
    """Kendall's tau of predicted and published accuracy within families of one recipe, weighted by pairs."""
    total = pairs = 0.0
    for group in np.unique(rows.group):
        members = rows.group == group
        count = members.sum() * (members.sum() - 1) / 2
        tau = kendalltau(rows.y[members], rows.y[members] - errors[members]).statistic
        if np.isfinite(tau):
            total, pairs = total + count * tau, pairs + count
    return total / pairs


def bootstrap(rows: Rows, statistic: Callable[[NDArray[np.intp]], float], seed: int = 0) -> list[float]:
    """90 % interval of a statistic of row indices, families drawn with replacement."""
    rng, names = np.random.default_rng(seed), np.unique(rows.family)
    members = [np.flatnonzero(rows.family == name) for name in names]
    drawn = [np.concatenate([members[i] for i in rng.integers(len(names), size=len(names))]) for _ in range(DRAWS)]
    return [round(float(v), 4) for v in np.quantile([statistic(places) for places in drawn], (0.05, 0.95))]


def families_held_out(rows: Rows) -> dict[str, Any]:
    """The laws on families left out."""
    errors: dict[str, list[dict[str, Floats]]] = {
        name: [left_out(rows.seen_plainly() if plain else rows, form, seed) for seed in SEEDS]
        for name, (form, plain) in LAWS.items()
    }
    table = {}
    for name, runs in errors.items():
        known = np.concatenate([run["known"] for run in runs])
        times, macs = len(runs), [run["known"] for run in errors["MACs alone"]]

        def spread(places: NDArray[np.intp], runs: list[dict[str, Floats]] = runs) -> float:
            return within(np.concatenate([run["known"][places] for run in runs]))

        def gained(places: NDArray[np.intp], runs: list[dict[str, Floats]] = runs, macs: list[Floats] = macs) -> float:
            return spread(places, runs) - within(np.concatenate([one[places] for one in macs]))

        covered = {k: [covers(run[f"{k}_z"]) for run in runs] for k in ("known", "unknown")}
        table[name] = {
            "sd_within": round(within(known), 4),
            "sd_within_interval": bootstrap(rows, spread),
            "beside_macs_alone": round(gained(np.arange(len(rows))), 4),
            "beside_macs_alone_interval": bootstrap(rows, gained),
            "tau_within": round(float(np.mean([tau_within(rows, run["known"]) for run in runs])), 3),
            "covered_level_known": round(float(np.mean(covered["known"])), 3),
            "covered_level_unknown": round(float(np.mean(covered["unknown"])), 3),
            "divisions": times,
        }
        print(name, table[name], flush=True)
    return table


def by_kernel_power(published: Path, cache: Path) -> dict[str, dict[str, float]]:
    """How well the five main features explain families left out, by what a layer's compute is divided by.

    On the divisions on which the form was chosen, the variances from all families.
    """
    found = {}
    for power in POWERS:
        rows = load_rows(published, cache, power)
        form = features_form(MAIN)
        fitted = Fitted(rows, form)
        errors = []
        for seed in CHOICE_SEEDS:
            fold = folds(rows, CHOICE_FOLDS, seed)
            for number in range(CHOICE_FOLDS):
                held = fold == number
                mean, _ = Fitted(rows[~held], form, fitted.variances).predict(rows[held])
                errors.append(centred(rows.y[held] - mean, rows.group[held]))
        spread = round(within(np.concatenate(errors)), 4)
        found[f"{power:g}"] = {"sd_within": spread, "likelihood": round(fitted.likelihood, 1)}
    return found


def published_left_out() -> dict[str, Any]:
    """The published LowFormers and CPUBones, each predicted without it at any resolution."""
    prior = AccuracyPrior.load()
    errors, deviations = prior.left_out
    models = {}
    for name in PUBLISHED:
        places = [i for i, other in enumerate(prior._names) if other == name]
        models[name] = [round(float(errors[i]), 2) for i in places]
    y = np.log(100 - prior._top1)
    z = (np.log(100 - prior._top1 - errors) - y) / deviations
    of_model = [float(np.mean(np.abs(values))) for values in models.values()]
    return {
        "mean": round(float(np.mean(of_model)), 3),
        "mean_of_accuracies": round(prior.leave_one_out_error, 3),
        "worst": round(prior.worst_leave_one_out_error, 2),
        "covered": round(float(np.mean(np.abs(z) < NORMAL_90)), 3),
        "errors": models,
    }


def worth_by_stage() -> list[dict[str, Any]]:
    """What one more block is worth, in points and in points per 100 M MACs, of each published LowFormer and stage."""
    prior = AccuracyPrior.load()
    found = []
    for name, config in PRESETS.items():
        for number in (1, 2, 3, 4):
            more = _deeper(config, number)
            added = (op_graph(more).macs - op_graph(config).macs) / 1e8
            # What a model was measured to be is left out: both sides are as the law has them.
            middle, low, high = _law_gain(prior, more, config)
            entry = {"model": name, "stage": number, "stride": 2 ** (number + 1), "macs_m": round(100 * added, 1)}
            found.append({**entry, "points": [round(v / added, 3) for v in (middle, low, high)]})
    return found


def _law_gain(prior: AccuracyPrior, more: LowFormerConfig, config: LowFormerConfig) -> tuple[float, float, float]:
    """Points by which `more` is better by level and slopes alone, with the 90 % interval of the slopes."""
    design = prior._distribution([more, config]).design
    step = design[0] - design[1]
    covariance = prior.law.linear_covariance(np.eye(len(step)), np.eye(len(step)))
    across = prior.law.linear_covariance(np.eye(len(step)), prior._design)
    posterior = covariance - across @ prior._inverse @ across.T
    error = 100 - float(prior.imagenet_top1([config])[0])
    middle, spread = -float(step @ prior._slopes), NORMAL_90 * float(np.sqrt(step @ posterior @ step))
    return error * middle, error * (middle - spread), error * (middle + spread)


def _deeper(config: LowFormerConfig, number: int) -> LowFormerConfig:
    stages = list(config.stages)
    stages[number - 1] = stages[number - 1].model_copy(update={"depth": stages[number - 1].depth + 1})
    return config.replace(stages=tuple(stages))


def shares(rows: Rows) -> dict[str, list[float]]:
    """Slopes of ln error per unit of the share of MACs / k at each stride (against stride 16), at equal MACs / k."""
    form = features_form(["compute", *(name for name in NAMES if name.startswith(("early", "compute at")))])
    fitted = Fitted(rows, form)
    spread = np.sqrt(np.diag(fitted._uncertain))[1:] * NORMAL_90
    found = {}
    for place, slope, width in zip(form.main, fitted.slopes[1:], spread, strict=True):
        scale = fitted.scale[place]
        found[NAMES[place]] = [round(float(v / scale), 3) for v in (slope, slope - width, slope + width)]
    return found


def configurations_a_second() -> int:
    """Lower quantiles of 20,000 random configurations by one core; the best of five, of CPU time."""
    prior, space, rng = AccuracyPrior.load(), SearchSpace.load("default"), np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(20_000)]
    times = []
    for _ in range(6):
        begin = time.process_time()
        prior.quantile(configs, 0.1)
        times.append(time.process_time() - begin)
    return int(len(configs) / min(times[1:]))


def main() -> None:
    given = arguments(__doc__).parse_args()
    rows = load_rows(given.published, given.cache)
    table, own = families_held_out(rows), published_left_out()
    shipped = table["shipped"]
    lengths = {}
    for length in LENGTHS:
        fitted = Fitted(rows, Form(length=length))
        lengths[str(length)] = round(fitted.likelihood, 1)
    results = {
        "rows": len(rows),
        "families": len(set(rows.family.tolist())),
        "groups": len(set(rows.group.tolist())),
        "modules": len(set(rows.module.tolist())),
        "summary": {
            "lowformers_mean": own["mean"],
            "lowformers_worst": own["worst"],
            "families_sd_of_ln_error": shipped["sd_within"],
            "interval_covers": [shipped["covered_level_known"], shipped["covered_level_unknown"]],
        },
        "families_left_out": table,
        "lowformers": own,
        "likelihood_by_length": lengths,
        "by_kernel_power": by_kernel_power(given.published, given.cache),
        "shares_at_equal_compute": shares(rows),
        "one_more_block": worth_by_stage(),
        "configurations_a_second": configurations_a_second(),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
