"""What the trainings say of ImageNet top-1, and what of it the accuracy prior does not say already.

For each stage, over the seeds with which all eight models were trained:

- Kendall's tau of the proxy accuracy with the published top-1: of means over seeds, seed by seed, and within the series
  B and E. And tau between seeds.
- Beyond the prior: tau between two residuals. One is the published top-1 minus what the prior expects that was fitted
  without the model; the other is the proxy accuracy's logit minus its linear regression on that expectation.
- The gain: by how much the mean squared error of top-1 falls when a multiple of the proxy's residual is added to the
  prior's expectation. For each model the prior, the regression and the multiple are fitted without it. The others'
  residuals, from which the multiple is learned, are of priors without that other model too.
- The first two for the validation loss in the accuracy's place, which still differs where accuracies near 100 %.

Intervals are 90 % bootstrap intervals over the eight models. The prior is not drawn anew: it has learned from other
published models too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from lownas.experiments.proxy_growth.stages import NAMES, PUBLISHED_RESOLUTION, STAGES, load_rows
from lownas.predictors import AccuracyPrior
from lownas.search_space import PUBLISHED

RESULTS = Path(__file__).with_name("results.json")
BOOTSTRAPS = 2000
LEAST_DISTINCT = 5  # models of a bootstrap draw; with fewer, little is left to fit once one is held out
NO_SPREAD = 1e-9  # squared logits; models that the proxy does not tell apart say nothing of a multiple
QUANTILES = (0.05, 0.95)
FAMILIES = {family: [n.startswith(f"lowformer_{family}") for n in NAMES] for family in "be"}

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]
"""A figure from how often each of the eight models counts."""


@lru_cache
def expectation(left_out: frozenset[str]) -> tuple[float, ...]:
    """Top-1 % that the prior expects of each of the eight models when it has learned without those left out."""
    prior = AccuracyPrior(published={name: model for name, model in PUBLISHED.items() if name not in left_out})
    return tuple(prior.imagenet_top1([PUBLISHED[name].config for name in NAMES]).tolist())


def expectations() -> Floats:
    """(8, 8): in row i and column j, top-1 % expected of model j by the prior without models i and j."""
    return np.array([[expectation(frozenset((i, j)))[n] for n, j in enumerate(NAMES)] for i in NAMES])


def tau(left: Floats, right: Floats) -> float:
    return float(kendalltau(left, right).statistic)


def logit(accuracy: Floats, images: int) -> Floats:
    """Of an accuracy from so many images, with half an image added to both sides: finite also at 0 and 1."""
    right = accuracy * images
    odds: Floats = np.log((right + 0.5) / (images - right + 0.5))
    return odds


def line(x: Floats, y: Floats, weights: Floats) -> Floats:
    """(n,) values at `x` of the weighted least-squares line of `y`."""
    return _line_at(x, x, y, weights)


def _line_at(at: Floats, x: Floats, y: Floats, weights: Floats) -> Floats:
    centre, height = np.average(x, weights=weights), np.average(y, weights=weights)
    slope = np.sum(weights * (x - centre) * (y - height)) / np.sum(weights * (x - centre) ** 2)
    values: Floats = height + slope * (at - centre)
    return values


def beyond_prior(proxy: Floats, top1: Floats, expected: Floats, counts: Floats) -> float:
    """Tau between the residuals of top-1 and of the proxy, each model counted so often."""
    repeated = np.repeat(np.arange(len(top1)), counts.astype(int))
    residual = proxy - line(expected, proxy, counts)
    return tau((top1 - expected)[repeated], residual[repeated])


def with_proxy(proxy: Floats, top1: Floats, table: Floats, counts: Floats) -> Floats:
    """(8,) top-1 % predicted of each model by the prior and the proxy's residual, both learned from the others."""
    predicted = np.empty_like(top1)
    for i in range(len(top1)):
        weights = counts.copy()
        weights[i] = 0
        residual = proxy - _line_at(table[i], table[i], proxy, weights)
        others = top1 - table[i]
        spread = np.sum(weights * residual**2)
        multiple = np.sum(weights * residual * others) / spread if spread > NO_SPREAD else 0.0
        predicted[i] = table[i, i] + multiple * residual[i]
    return predicted


def gain(proxy: Floats, top1: Floats, table: Floats, counts: Floats) -> float:
    """How much of the prior's mean squared error the proxy's residual takes away; negative where it adds error."""
    prior, both = top1 - np.diag(table), top1 - with_proxy(proxy, top1, table, counts)
    return float(np.average(prior**2 - both**2, weights=counts))


def with_interval(statistic: Statistic) -> list[float]:
    """The figure over the eight models, and its 5 % and 95 % quantiles over models drawn anew."""
    rng, size = np.random.default_rng(0), len(NAMES)
    values: list[float] = []
    while len(values) < BOOTSTRAPS:
        counts = np.bincount(rng.integers(size, size=size), minlength=size).astype(np.float64)
        if np.count_nonzero(counts) >= LEAST_DISTINCT:
            values.append(statistic(counts))
    low, high = np.nanquantile(values, QUANTILES)
    return [round(float(value), 3) for value in (statistic(np.ones(size)), low, high)]


def _plain_tau(left: Floats, right: Floats) -> Statistic:
    def statistic(counts: Floats) -> float:
        repeated = np.repeat(np.arange(len(left)), counts.astype(int))
        return tau(left[repeated], right[repeated])

    return statistic


def judged(accuracy: Mapping[int, Floats], images: int, top1: Floats) -> dict[str, Any]:
    """All figures of a stage from (8,) accuracies, 0 to 1, of each seed."""
    table = expectations()
    expected = np.diag(table)
    mean = np.mean(list(accuracy.values()), axis=0)
    by_seed = {seed: logit(values, images) for seed, values in accuracy.items()}
    proxy = np.mean(list(by_seed.values()), axis=0)
    residuals = {seed: values - line(expected, values, np.ones(len(NAMES))) for seed, values in by_seed.items()}
    pairs = list(combinations(accuracy, 2))
    predicted = with_proxy(proxy, top1, table, np.ones(len(NAMES)))
    residual = proxy - line(expected, proxy, np.ones(len(NAMES)))
    within = {
        family: round(tau(mean[own], top1[own]), 3) if np.ptp(mean[own]) else None for family, own in FAMILIES.items()
    }
    return {
        "seeds": list(accuracy),
        "proxy_accuracy": _named(mean, 4),
        "tau_published": with_interval(_plain_tau(mean, top1)),
        "tau_published_by_seed": {str(seed): round(tau(values, top1), 3) for seed, values in accuracy.items()},
        "tau_published_within": within,
        "tau_between_seeds": [round(tau(accuracy[a], accuracy[b]), 3) for a, b in pairs],
        "tau_beyond_prior": with_interval(lambda counts: beyond_prior(proxy, top1, expected, counts)),
        "tau_of_residuals_between_seeds": [round(tau(residuals[a], residuals[b]), 3) for a, b in pairs],
        "proxy_residual_logit": _named(residual, 3),
        "mean_squared_error": round(float(np.mean((top1 - predicted) ** 2)), 3),
        "squared_error_reduction": with_interval(lambda counts: gain(proxy, top1, table, counts)),
        "top1_with_proxy": _named(predicted, 2),
    }


def judged_loss(loss: Mapping[int, Floats], top1: Floats) -> dict[str, Any]:
    """The two taus of a stage from (8,) validation losses of each seed; lower ones count as better."""
    expected = np.diag(expectations())
    proxy = -np.mean(np.log(list(loss.values())), axis=0)
    return {
        "tau_published": with_interval(_plain_tau(proxy, top1)),
        "tau_beyond_prior": with_interval(lambda counts: beyond_prior(proxy, top1, expected, counts)),
    }


def _named(values: Floats, digits: int) -> dict[str, float]:
    return {name: round(float(value), digits) for name, value in zip(NAMES, values, strict=True)}


def complete_seeds(rows: list[dict[str, Any]], stage: str, key: str = "accuracy") -> dict[int, Floats]:
    """(8,) accuracies, or losses, of each seed with which all models were trained in this stage."""
    own = {(row["seed"], row["model"]): row[key] for row in rows if row["stage"] == stage}
    seeds = sorted({seed for seed, _ in own})
    whole = [seed for seed in seeds if all(own.get((seed, name)) is not None for name in NAMES)]
    return {seed: np.array([own[seed, name] for name in NAMES]) for seed in whole}


def summarize() -> None:
    """Writes results.json from trainings.jsonl, and prints the README's table."""
    rows = load_rows()
    top1 = np.array([PUBLISHED[name].top1[PUBLISHED_RESOLUTION] for name in NAMES])
    expected = np.diag(expectations())
    macs = np.array([PUBLISHED[name].macs for name in NAMES])
    stages = {}
    for name, stage in STAGES.items():
        if accuracy := complete_seeds(rows, name):
            seconds = sum(row["seconds"] for row in rows if row["stage"] == name and row["seed"] in accuracy)
            stages[name] = {
                "hours_per_seed": round(seconds / len(accuracy) / 3600, 3),
                **judged(accuracy, stage.settings(0).validation_images, top1),
                "of_loss": judged_loss(complete_seeds(rows, name, "loss"), top1),
            }
    document = {
        "published_top1_percent": _named(top1, 2),
        "prior": {
            "expected_without_the_model": _named(expected, 2),
            "residual": _named(top1 - expected, 2),
            "mean_squared_error": round(float(np.mean((top1 - expected) ** 2)), 3),
            "tau_published": with_interval(_plain_tau(expected, top1)),
            "tau_published_of_macs": round(tau(macs, top1), 3),
        },
        "stages": stages,
        "failed": [[row["stage"], row["seed"], row["model"], row["reason"]] for row in rows if row["reason"]],
        "machines": sorted({json.dumps(row["machine"], sort_keys=True) for row in rows}),
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print("| stage | seeds | tau | of loss | between seeds | beyond the prior | of loss | squared error less by |")
    print("|---|---|---|---|---|---|---|---|")
    for name, figures in stages.items():
        loss = figures["of_loss"]
        cells = [
            name,
            " ".join(map(str, figures["seeds"])),
            _cell(figures["tau_published"]),
            _cell(loss["tau_published"]),
            " ".join(f"{value:.2f}" for value in figures["tau_between_seeds"]) or "-",
            _cell(figures["tau_beyond_prior"]),
            _cell(loss["tau_beyond_prior"]),
            _cell(figures["squared_error_reduction"]),
        ]
        print(f"| {' | '.join(cells)} |")


def _cell(figure: list[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*figure)
