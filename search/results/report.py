"""The report of a run: one HTML file that needs nothing else. And the tables that it shares with the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from ...predictors.accuracy.prior import AccuracyPrior
from ...search_space.presets import PRESETS, PUBLISHED
from ...search_space.graph.from_config import op_graph
from ..trials.run_folder import write_text
from .outcome import Candidate, Predictor, SearchOutcome


@dataclass(frozen=True)
class PublishedRow:
    """A published model under the same predictor and prior as the candidates.

    Attributes:
        top1: published ImageNet top-1 in percent at 224 pixels.
        prior_top1: what the prior expects of it.
        latency_ms, low_ms, high_ms: predicted for the run's target.
    """

    name: str
    top1: float | None
    prior_top1: float
    latency_ms: float
    low_ms: float
    high_ms: float
    params: int
    macs: int


def published_rows(predictor: Predictor, prior: AccuracyPrior | None = None) -> list[PublishedRow]:
    """The published models, the fastest first."""
    prior = prior or AccuracyPrior()
    names, configs = list(PRESETS), list(PRESETS.values())
    rows = []
    for name, config, top1, latency in zip(
        names, configs, prior.imagenet_top1(configs), predictor.predict(configs), strict=True
    ):
        graph = op_graph(config)
        published = PUBLISHED[name].top1.get(config.resolution) if name in PUBLISHED else None
        rows.append(
            PublishedRow(
                name,
                published,
                float(top1),
                float(latency.latency_ms),
                float(latency.low_ms),
                float(latency.high_ms),
                graph.params,
                graph.macs,
            )
        )
    return sorted(rows, key=lambda row: row.latency_ms)


def write_report(outcome: SearchOutcome, published: Sequence[PublishedRow] = ()) -> None:
    """Writes report.html into the run folder: objective against latency, the candidates and the published models."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = (resources.files(__package__) / "report.html.jinja").read_text(encoding="utf-8")
    text = environment.from_string(template).render(
        outcome=outcome,
        settings=outcome.settings,
        candidates=outcome.candidates,
        front={candidate.config.id for candidate in outcome.front},
        published=published,
        figure=_figure(outcome, published),
        on_user_data=outcome.settings.data is not None,
    )
    write_text(outcome.run / "report.html", text)


def _figure(outcome: SearchOutcome, published: Sequence[PublishedRow]) -> str:
    """The scatter plot as HTML, plotly's script included."""
    import plotly.graph_objects as go  # type: ignore[import-untyped, unused-ignore]

    on_user_data = outcome.settings.data is not None
    figure = go.Figure()
    for source in ("predicted", "measured"):
        shown = [candidate for candidate in outcome.candidates if candidate.latency_source == source]
        if shown:
            figure.add_trace(_points(shown, source))
    front = outcome.front
    figure.add_trace(
        go.Scatter(
            x=[candidate.latency_ms for candidate in front],
            y=[candidate.objective for candidate in front],
            mode="lines",
            name="Pareto front",
            line={"shape": "hv", "dash": "dot"},
        )
    )
    if published and not on_user_data:
        figure.add_trace(
            go.Scatter(
                x=[row.latency_ms for row in published],
                y=[row.prior_top1 for row in published],
                text=[row.name for row in published],
                mode="markers",
                name="published models (prior)",
                marker={"symbol": "diamond-open"},
            )
        )
    if outcome.answer is not None:
        figure.add_trace(
            go.Scatter(
                x=[outcome.answer.latency_ms],
                y=[outcome.answer.objective],
                text=[outcome.answer.config.id],
                mode="markers",
                name="answer",
                marker={"symbol": "star", "size": 16},
            )
        )
    figure.add_vline(x=outcome.settings.latency_budget_ms, line_dash="dash", annotation_text="budget")
    figure.update_layout(
        xaxis_title=f"latency (ms), {outcome.settings.target}",
        yaxis_title="proxy accuracy, estimated (%)" if on_user_data else "ImageNet top-1, estimated (%)",
        template="plotly_white",
        height=520,
    )
    html: str = figure.to_html(full_html=False, include_plotlyjs=True)
    return html


def _points(candidates: Sequence[Candidate], name: str) -> object:
    import plotly.graph_objects as go  # type: ignore[import-untyped, unused-ignore]

    return go.Scatter(
        x=[candidate.latency_ms for candidate in candidates],
        y=[candidate.objective for candidate in candidates],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [candidate.high_ms - candidate.latency_ms for candidate in candidates],
            "arrayminus": [candidate.latency_ms - candidate.low_ms for candidate in candidates],
            "thickness": 1,
        },
        text=[f"{candidate.config.id} (trial {candidate.trial})" for candidate in candidates],
        mode="markers",
        name=name,
    )
