"""The tables that a person sees, of a search, predictions, measurements and targets; and their rows as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ...predictors import LatencyPrediction, Target
from ...predictors.accuracy.prior import AccuracyPrediction
from ..trials.candidate import Candidate
from .search_result import SearchResult

if TYPE_CHECKING:
    from ...evaluators.training.final.judging import Judgement
    from ...evaluators.training.final.planning import Plan
    from ..latency.looks import MeasuredLatency

LISTED_CLASSES = 25  # that a table of a judgement lists


def result_table(result: SearchResult) -> Table:
    """The answer and the next best, or the front; then the published models within the budget, the fastest first.

    Of ImageNet top-1 it shows the estimate and its interval, of anything else what was maximized.
    """
    top1 = result.objective.is_imagenet_top1
    table = Table(title=result.title, box=box.SIMPLE, padding=(0, 1, 0, 0))  # it fits 100 columns
    table.add_column("model", no_wrap=True)
    table.add_column("ImageNet\ntop-1 %" if top1 else result.objective.label, justify="right")
    if top1:
        table.add_column("90 %\ninterval", justify="right", no_wrap=True)
    table.add_column("published\ntop-1 %", justify="right")
    table.add_column("latency\nms", justify="right")
    table.add_column("90 %\ninterval", justify="right", no_wrap=True)
    table.add_column("params\nM", justify="right")
    table.add_column("MACs\nM", justify="right")
    for candidate in result.shown:
        table.add_row(*_cells(candidate, top1), style="bold green" if candidate == result.answer else None)
    within = [row for row in result.published if not row.over_budget]
    if within:
        table.add_section()
    for row in within:
        table.add_row(
            row.name,
            f"{row.prior_top1:.1f}" if top1 else "",
            *([f"{row.low_top1:.1f} to {row.high_top1:.1f}"] if top1 else []),
            f"{row.top1:.1f}" if row.top1 is not None else "",
            f"{row.latency_ms:.3g}",
            f"{row.low_ms:.3g} to {row.high_ms:.3g}",
            f"{row.params / 1e6:.1f}",
            f"{row.macs / 1e6:.0f}",
        )
    legend = ["latency: undisturbed"]
    if top1 and any(candidate.extrapolated for candidate in result.shown):
        legend.append("* far from what was published: the estimate is extrapolated")
    if any(candidate.latency_source == "measured" for candidate in result.shown):
        legend.append("m: measured")
    if over := len(result.published) - len(within):
        legend.append(f"published models over the budget: {over}, see report.html")
    table.caption = "; ".join(legend) or None
    return table


def _cells(candidate: Candidate, top1: bool) -> list[str]:
    shown = f"{candidate.prior_top1:.1f}{'*' if candidate.extrapolated else ''}"
    name, published = candidate.published, candidate.published_top1
    measured = " m" if candidate.latency_source == "measured" else ""
    return [
        candidate.config.id + (f"\n{name}, {candidate.config.resolution} px" if name else ""),
        shown if top1 else f"{candidate.objective:.1f}",
        *([f"{candidate.low_top1:.1f} to {candidate.high_top1:.1f}"] if top1 else []),
        "" if published is None else f"{published:.1f}",
        f"{candidate.latency_ms:.3g}{measured}",
        f"{candidate.low_ms:.3g} to {candidate.high_ms:.3g}",
        f"{candidate.params / 1e6:.1f}",
        f"{candidate.macs / 1e6:.0f}",
    ]


def prediction_table(
    target: Target,
    found: Sequence[tuple[str, LatencyPrediction]],
    coverage: float,
    accuracy: Sequence[AccuracyPrediction | None] | None = None,
) -> Table:
    """Predicted latencies by what people called the networks; beside each its `accuracy`, where that is wanted."""
    per, interval = " per image" if target.batch is None else "", f"{100 * coverage:g} % interval"
    table = Table(title=f"predicted latency{'' if accuracy is None else ' and ImageNet top-1'} on {target}")
    table.add_column("model")
    table.add_column(f"ms{per}", justify="right")
    table.add_column(interval, justify="right")
    table.add_column("outside of what was measured")
    if accuracy is not None:
        table.add_column("top-1 %", justify="right")
        table.add_column(interval, justify="right")
        table.add_column("most like")
        if any(expected is not None and expected.outside for expected in accuracy):
            table.add_column("outside of what was published")
    for (name, one), expected in zip(found, accuracy or [None] * len(found), strict=True):
        row = [escape(name), f"{one.latency_ms:.4g}", f"{one.low_ms:.3g} - {one.high_ms:.3g}", ", ".join(one.outside)]
        if expected is not None:
            row += [f"{expected.top1:.1f}", f"{expected.low_top1:.1f} - {expected.high_top1:.1f}", expected.nearest]
            row += [", ".join(expected.outside)] if expected.outside else []
        table.add_row(*row)
    return table


def measurement_table(target: Target, found: Mapping[str, MeasuredLatency]) -> Table:
    """Measured latencies by what people called the networks."""
    table = Table(title=f"measured latency on {target}")
    table.add_column("model")
    for column in ("undisturbed\nms", "+- %", "under load:\nmedian ms", "p90 ms", "p99 ms", "looks", "runs"):
        table.add_column(column, justify="right")
    for name, one in found.items():
        under_load = (f"{one.under_load[quantile]:.4g}" for quantile in ("p50", "p90", "p99"))
        error = f"{100 * one.repeatability:.1f}"
        table.add_row(
            escape(name), f"{one.undisturbed_ms:.4g}", error, *under_load, str(len(one.rounds)), str(one.runs)
        )
    table.caption = "+-: standard error of the undisturbed latency over looks"
    return table


def targets_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """The targets that have a profile or can get one here, as `predictors.list_profiles` gives them."""
    table = Table(title="targets")
    for column in ("name", "setting", "measured", "mean held-out error", "MACs alone"):
        table.add_column(column, justify="left" if column in ("name", "setting") else "right", no_wrap=True)
    for entry in entries:
        if entry["path"] is None and not entry["target"].startswith("cpu/"):
            continue
        errors = [entry["held_out_error"], entry["macs_only_error"]]
        table.add_row(
            entry["alias"] or "",
            entry["target"],
            "not yet" if entry["path"] is None else str(entry["samples"] or "not usable"),
            *("" if error is None else f"{100 * error:.1f} %" for error in errors),
        )
    return table


def recipe_table(plan: Plan) -> Table:
    """Every choice of a final training's recipe, and what made it."""
    title = "recipe" if plan.epoch_s is None else f"recipe: {plan.recipe.epochs} epochs of {plan.epoch_s:.3g} s"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("choice", "value", "because of"):
        table.add_column(column)
    for name, value in plan.recipe.to_dict().items():
        table.add_row(name, _choice(value), Text(plan.why[name]))
    return table


def _choice(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "/".join(f"{one:.3g}" for one in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def judgement_tables(judgement: Judgement) -> list[Table]:
    """A network's figures, its classes (the worst ones where there are many), and which it takes for which."""
    summary = Table(title=f"{judgement.images} images judged", box=box.SIMPLE, show_header=False)
    for name, text in _judged_rows(judgement):
        summary.add_row(name, text)
    tables = [summary]
    if judgement.classes:
        order = sorted(judgement.classes, key=lambda one: (one.recall is None, one.recall or 0.0))
        few = len(order) <= LISTED_CLASSES
        title = "classes" if few else f"the {LISTED_CLASSES} of {len(order)} classes that are recognized least"
        table = Table(title=title, box=box.SIMPLE)
        for column in ("class", "images", "recall %", "precision %"):
            table.add_column(column, justify="left" if column == "class" else "right")
        for one in judgement.classes if few else order[:LISTED_CLASSES]:
            table.add_row(Text(one.name), str(one.images), _percent(one.recall), _percent(one.precision))
        tables.append(table)
    if judgement.confusions:
        table = Table(title="most confused", box=box.SIMPLE)
        for column in ("images", "of the class", "taken for"):
            table.add_column(column, justify="right" if column == "images" else "left")
        for pair in judgement.confusions:
            table.add_row(str(pair.count), Text(pair.true), Text(pair.predicted))
        tables.append(table)
    return tables


def _judged_rows(judgement: Judgement) -> list[tuple[str, str]]:
    loss = ("mean loss", f"{judgement.loss:.4g}")
    if judgement.top1 is None:
        return [(judgement.metric, f"{judgement.value:.4g}"), loss]
    top5 = judgement.top5_note or "" if judgement.top5 is None else f"{_percent(judgement.top5)} %"
    return [
        ("top-1", f"{_percent(judgement.top1)} %"),
        ("top-5", top5),
        ("balanced accuracy", f"{_percent(judgement.balanced_accuracy)} %"),
        loss,
        ("expected calibration error", f"{_percent(judgement.calibration_error)} %"),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def accuracy_record(expected: AccuracyPrediction | None) -> dict[str, Any] | None:
    """An estimate of ImageNet top-1 in percent as JSON values; None where there is none."""
    return None if expected is None else {**asdict(expected), "outside": list(expected.outside)}


def prediction_record(name: str, target: Target, prediction: LatencyPrediction) -> dict[str, Any]:
    """A prediction as JSON values, with what people called the network."""
    return {
        "input": name,
        "target": str(target),
        "latency_ms": prediction.latency_ms,
        "low_ms": prediction.low_ms,
        "high_ms": prediction.high_ms,
        "coverage": prediction.coverage,
        "source": prediction.source,
        "outside": list(prediction.outside),
    }


def measurement_record(name: str, target: Target, measured: MeasuredLatency) -> dict[str, Any]:
    """A measurement as JSON values, with all its looks, and with what people called the network."""
    return {"input": name, "target": str(target), **measured.to_dict()}
