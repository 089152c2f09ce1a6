"""Held-out errors on whole families that a fit has not seen, and the error distributions made from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

import numpy as np
from batch1 import VARIANTS, Variant, fit_batch1
from benchmark_settings import Setting
from measurements import Anchors, Array, Benchmark
from numpy.typing import NDArray
from roofline import fit_roofline, predicted_ms
from scipy.stats import binomtest, spearmanr

from lownas.predictors.latency.uncertainty import LogErrors

FOLDS = 8
DEVELOPMENT_SEED = 7
"""Half of the families, drawn with this seed, are those that the form of the rooflines was developed on; the errors of
the others were looked at once, when it was settled."""
MANY_FAMILIES = 20  # from so many on, errors are drawn from the residuals themselves
BOOTSTRAPS = 1000
ERROR_DRAWS = 200_000


def rounded(value: Any, digits: int = 3) -> float:
    """`value` to `digits` significant digits."""
    return float(f"{float(value):.{digits}g}")


def family_folds(families: NDArray[np.str_], folds: int, seed: int) -> NDArray[np.int64]:
    """(models,) number of each model's fold; all models of a family are in one fold."""
    names = np.unique(families)
    np.random.default_rng(seed).shuffle(names)
    fold = {name: index % folds for index, name in enumerate(names.tolist())}
    return np.array([fold[name] for name in families.tolist()])


def macs_line(macs: Array, ms: Array, source: Array) -> Array:
    """Least-squares coefficients a, b and c of log ms = a + b log MACs + c source."""
    terms = np.stack([np.ones_like(macs), np.log(macs), source], axis=1)
    return np.linalg.lstsq(terms, np.log(ms), rcond=None)[0]


def developed_on(families: dict[str, str], known: Collection[str]) -> set[str]:
    """The families in sight of which the form of the rooflines was developed.

    Args:
        families: by model.
        known: the models that there were measurements of at that time.
    """
    names = sorted({family for name, family in families.items() if name in known})
    np.random.default_rng(DEVELOPMENT_SEED).shuffle(names)
    return set(names[: len(names) // 2])


def figures(predicted: Array, ms: Array, families: NDArray[np.str_]) -> dict[str, Any]:
    """Median error, mean error and rank correlation, with 95 % bootstrap intervals over families."""
    error = np.abs(predicted / ms - 1)
    names = np.unique(families)
    members = [np.flatnonzero(families == name) for name in names]
    rng = np.random.default_rng(0)
    drawn = [np.concatenate([members[i] for i in rng.integers(0, len(names), len(names))]) for _ in range(BOOTSTRAPS)]

    def entry(function: Any) -> dict[str, float]:
        low, high = np.quantile([function(rows) for rows in drawn], [0.025, 0.975])
        return {"value": rounded(function(np.arange(len(ms)))), "low": rounded(low), "high": rounded(high)}

    return {
        "models": len(ms),
        "families": len(names),
        "median_error": entry(lambda rows: np.median(error[rows])),
        "mape": entry(lambda rows: error[rows].mean()),
        "spearman": entry(lambda rows: spearmanr(predicted[rows], ms[rows])[0]),
    }


def report_benchmark(setting: Setting, data: Benchmark, development: set[str]) -> tuple[dict[str, Any], Array]:
    """Held-out errors by whole families, and the residuals log(measured / predicted)."""
    fold = family_folds(data.families, FOLDS, seed=0)
    predicted, by_macs = np.empty(len(fold)), np.empty(len(fold))
    for index in range(FOLDS):
        train, test = np.flatnonzero(fold != index), np.flatnonzero(fold == index)
        predicted[test] = predicted_ms(fit_roofline(setting, data, train), data)[test]
        line = macs_line(data.macs[train], data.ms[train], np.zeros(len(train)))
        by_macs[test] = np.exp(line[0] + line[1] * np.log(data.macs[test]))
    seen = np.array([family in development for family in data.families])
    residual = np.log(data.ms / predicted)
    report = {
        "target": setting.target,
        "file": setting.file,
        "folds": FOLDS,
        **figures(predicted, data.ms, data.families),
        "families_developed_on": figures(predicted[seen], data.ms[seen], data.families[seen]),
        "other_families": figures(predicted[~seen], data.ms[~seen], data.families[~seen]),
        "macs_alone": figures(by_macs, data.ms, data.families),
        "interval": interval_check(residual, data.families),
        "by_family": by_group(residual, data.families),
    }
    return report, residual


def report_kinds(setting: Setting, data: Benchmark) -> tuple[dict[str, Any], Array]:
    """Errors on whole kinds left out, and the residuals; forms of intervals are chosen among the other kinds."""
    predicted, by_macs = np.empty(len(data.ms)), np.empty(len(data.ms))
    for kind in np.unique(data.kinds):
        train, test = np.flatnonzero(data.kinds != kind), np.flatnonzero(data.kinds == kind)
        predicted[test] = predicted_ms(fit_roofline(setting, data, train), data)[test]
        line = macs_line(data.macs[train], data.ms[train], np.zeros(len(train)))
        by_macs[test] = np.exp(line[0] + line[1] * np.log(data.macs[test]))
    residual = np.log(data.ms / predicted)
    report = {
        **figures(predicted, data.ms, data.kinds),
        "macs_alone": figures(by_macs, data.ms, data.kinds),
        "interval": interval_check(residual, data.kinds, chosen=True),
        "by_kind": by_group(residual, data.kinds),
    }
    return report, residual


def by_group(residual: Array, groups: NDArray[np.str_]) -> dict[str, dict[str, float]]:
    """For each group how many models, their median error, and their common factor (median log residual)."""
    return {
        group: {
            "models": int((groups == group).sum()),
            "median_error": rounded(np.median(np.abs(np.expm1(-residual[groups == group])))),
            "bias": rounded(np.median(residual[groups == group])),
        }
        for group in np.unique(groups).tolist()
    }


def held_out(base: Array, anchors: Anchors, used: NDArray[np.int64], variant: Variant) -> Array:
    """log(measured / predicted) of the anchors `used`, each family predicted from the others among them."""
    result = np.full(len(anchors.ms), np.nan)
    for family in np.unique(anchors.families[used]).tolist():
        test = used[anchors.families[used] == family]
        model = fit_batch1(base, anchors, used[anchors.families[used] != family], variant)
        result[test] = np.log(anchors.ms[test]) - model.log_ms(anchors.kernels.only(test), anchors.static[test])
    return result[used]


def family_error(residual: Array, families: NDArray[np.str_]) -> float:
    """Mean absolute relative error; every family has the same weight."""
    return float(np.mean([np.abs(np.expm1(-residual[families == name])).mean() for name in np.unique(families)]))


def best_variant(base: Array, anchors: Anchors, used: NDArray[np.int64]) -> Variant:
    """The variant with the least error on held-out families among `used`."""
    return min(VARIANTS, key=lambda v: family_error(held_out(base, anchors, used, v), anchors.families[used]))


def report_batch1(anchors: Anchors, setting: Setting, data: Benchmark) -> tuple[dict[str, Any], Array]:
    """Held-out errors by family, and the residuals log(measured / predicted).

    The folds are nested: a family is left out of the roofline's fit, of the batch-1 fit and of the choice of the
    variant.
    """
    everything = np.arange(len(anchors.ms))
    residual, by_macs = np.empty(len(everything)), np.empty(len(everything))
    families: dict[str, Any] = {}
    for family in np.unique(anchors.families).tolist():
        train, test = everything[anchors.families != family], everything[anchors.families == family]
        base = fit_roofline(setting, data, np.flatnonzero(data.families != family)).values
        variant = best_variant(base, anchors, train)
        model = fit_batch1(base, anchors, train, variant)
        residual[test] = np.log(anchors.ms[test]) - model.log_ms(anchors.kernels.only(test), anchors.static[test])
        line = macs_line(anchors.macs[train], anchors.ms[train], anchors.static[train])
        terms = np.stack([np.ones(len(test)), np.log(anchors.macs[test]), anchors.static[test]], axis=1)
        by_macs[test] = np.log(anchors.ms[test]) - terms @ line
        families[family] = {
            "anchors": len(test),
            "mape": rounded(np.abs(np.expm1(-residual[test])).mean()),
            "median_ratio_predicted_to_measured": rounded(np.exp(-np.median(residual[test]))),
            "macs_alone_mape": rounded(np.abs(np.expm1(-by_macs[test])).mean()),
            "chosen": asdict(variant),
        }
    report = {
        "anchors": len(everything),
        "families": len(families),
        "mape": rounded(np.abs(np.expm1(-residual)).mean()),
        "median_error": rounded(np.median(np.abs(np.expm1(-residual)))),
        "family_mean_of_mape": rounded(family_error(residual, anchors.families)),
        "macs_alone": {
            "mape": rounded(np.abs(np.expm1(-by_macs)).mean()),
            "median_error": rounded(np.median(np.abs(np.expm1(-by_macs)))),
        },
        "by_family": families,
        "anchors_held_out": {
            f"{name} ({'static' if static else 'dynamic'})": {
                "measured_ms": float(ms), "predicted_ms": rounded(ms * np.exp(-r), 4)
            }
            for name, ms, r, static in zip(anchors.names, anchors.ms, residual, anchors.static, strict=True)
        },
    }  # fmt: skip
    return report, residual


def error_distribution(
    residual: Array, groups: NDArray[np.str_], extra: float, form: str | None = None, values: int = 199
) -> Array:
    """(values,) quantiles of log(measured / predicted) for a model of a group that the fit has not seen.

    Args:
        residual: (models,) of groups left out.
        groups: (models,) their families or kinds.
        extra: a further log standard deviation, for errors of the priors.
        form: "models": errors are drawn from the residuals. "groups": the same, each group as often as any other.
            "tails": a group's common error is drawn from a t distribution scaled by the groups' mean residuals, and a
            model's own error with the residuals' spread within groups. By default the first with `MANY_FAMILIES`, the
            last with fewer.
        values: how many.
    """
    names, rng = np.unique(groups), np.random.default_rng(0)
    form = form or ("models" if len(names) >= MANY_FAMILIES else "tails")
    if form == "tails":
        common = np.array([residual[groups == name].mean() for name in names])
        apart = residual - common[np.searchsorted(names, groups)]
        within = np.sqrt((apart**2).sum() / max(len(residual) - len(names), 1))  # each group's mean is estimated, too
        draws = np.sqrt(np.mean(common**2)) * rng.standard_t(len(names), ERROR_DRAWS)
        draws += np.hypot(within, extra) * rng.standard_normal(len(draws))
    else:
        sizes = {name: (groups == name).sum() for name in names.tolist()}
        weight = np.array([1 / sizes[name] if form == "groups" else 1.0 for name in groups.tolist()])
        draws = rng.choice(residual, ERROR_DRAWS, p=weight / weight.sum()) + extra * rng.standard_normal(ERROR_DRAWS)
    return np.quantile(draws, np.arange(1, values + 1) / (values + 1))


def covered(
    residual: Array, groups: NDArray[np.str_], form: str | None, coverage: float
) -> tuple[NDArray[np.bool_], Array]:
    """(models,) whether each lies within the interval made of the errors of the other groups, and half its width."""
    inside, widths = np.zeros(len(residual), dtype=bool), np.empty(len(residual))
    for name in np.unique(groups):
        test = groups == name
        errors = LogErrors.from_errors(error_distribution(residual[~test], groups[~test], 0.0, form))
        low, high = errors.interval(coverage)
        inside[test] = (residual[test] >= low) & (residual[test] <= high)
        widths[test] = (np.exp(high) - np.exp(low)) / 2
    return inside, widths


def chosen_form(residual: Array, groups: NDArray[np.str_], coverage: float) -> str:
    """The form with the narrowest intervals among those that hold what they promise; else that which holds most.

    What an interval holds is the mean of the share of all models and of that of a group.
    """
    held, width = {}, {}
    for form in ("models", "groups", "tails"):
        inside, widths = covered(residual, groups, form, coverage)
        by_group = [inside[groups == name].mean() for name in np.unique(groups)]
        held[form], width[form] = (inside.mean() + np.mean(by_group)) / 2, float(np.median(widths))
    good = [form for form in held if held[form] >= coverage]
    return min(good, key=width.__getitem__) if good else max(held, key=held.__getitem__)


def interval_check(
    residual: Array, families: NDArray[np.str_], coverage: float = 0.9, *, chosen: bool = False
) -> dict[str, Any]:
    """How many measurements lie within the interval that is made from the errors of the other families.

    With `chosen` each family's form is chosen on the other families.
    """
    if not chosen:
        inside, widths = covered(residual, families, None, coverage)
    else:
        inside, widths = np.zeros(len(residual), dtype=bool), np.empty(len(residual))
        for name in np.unique(families):
            test = families == name
            form = chosen_form(residual[~test], families[~test], coverage)
            inside[test], widths[test] = (each[test] for each in covered(residual, families, form, coverage))
    bounds = binomtest(int(inside.sum()), len(inside)).proportion_ci()
    return {
        "nominal": coverage,
        "covered": rounded(inside.mean()),
        "family_mean_covered": rounded(np.mean([inside[families == name].mean() for name in np.unique(families)])),
        "binomial_95": [rounded(bounds.low), rounded(bounds.high)],
        "measurements": len(inside),
        "median_half_width": rounded(np.median(widths)),
        "half_width_over_median_error": rounded(np.median(widths) / np.median(np.abs(np.expm1(-residual)))),
    }
