"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ..trials.candidate import Candidate
from ..trials.run_folder import write_text
from .findings import SearchFindings
from .published import PublishedRow, published_rows


def write_report(result: SearchFindings, published: Sequence[PublishedRow] | None = None) -> Path:
    """Writes report.html into the run folder; gives its path.

    It shows the objective against latency, the candidates, and the published models (None: under the run's predictor).
    """
    import jinja2

    if published is None:
        published = published_rows(result.predictor, result.objective.prior)

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = (resources.files(__package__) / "report.html.jinja").read_text(encoding="utf-8")
    text = environment.from_string(template).render(
        result=result,
        front={candidate.config.id for candidate in result.front},
        published=published,
        figure=_figure(result, published),
    )
    path = result.run / "report.html"
    write_text(path, text)
    return path


def _figure(result: SearchFindings, published: Sequence[PublishedRow]) -> str:
    """The scatter plot as HTML, plotly's script included."""
    import plotly.graph_objects as go  # type: ignore[import-untyped, unused-ignore]

    figure = go.Figure()
    for source in ("predicted", "measured"):
        shown = [candidate for candidate in result.candidates if candidate.latency_source == source]
        if shown:
            figure.add_trace(_points(shown, source))
    front = result.front
    figure.add_trace(
        go.Scatter(
            x=[candidate.latency_ms for candidate in front],
            y=[candidate.objective for candidate in front],
            mode="lines",
            name="Pareto front",
            line={"shape": "hv", "dash": "dot"},
        )
    )
    if published and result.objective.is_imagenet_top1:
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
    if result.answer is not None:
        figure.add_trace(
            go.Scatter(
                x=[result.answer.latency_ms],
                y=[result.answer.objective],
                text=[result.answer.config.id],
                mode="markers",
                name="answer",
                marker={"symbol": "star", "size": 16},
            )
        )
    figure.add_vline(x=result.settings.latency_budget_ms, line_dash="dash", annotation_text="budget")
    figure.update_layout(
        xaxis_title=f"latency (ms), {result.settings.target}",
        yaxis_title=result.objective.axis,
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
