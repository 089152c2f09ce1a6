"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ..trials.candidate import Candidate
from ..trials.run_folder import write_text
from .findings import SearchFindings
from .published import PublishedRow
from .trained import TrainedAnswer

_Intervals = Sequence[tuple[float, float, float]]  # a value and the ends of its interval, for each point


def write_report(result: SearchFindings) -> Path:
    """Writes report.html into the run folder; gives its path.

    It shows accuracy against latency, the candidates, the published models, and the final training if there was one.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = (resources.files(__package__) / "report.html.jinja").read_text(encoding="utf-8")
    text = environment.from_string(template).render(
        result=result,
        front={candidate.config.id for candidate in result.front},
        figure=_figure(result, result.published),
        curve=_curve(result.final) if result.final is not None and result.final.history else "",
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
            figure.add_trace(_points(shown, source, top1=result.objective.is_imagenet_top1))
    front = result.front
    figure.add_trace(
        go.Scatter(
            x=[candidate.latency_ms for candidate in front],
            y=[_height(candidate, result.objective.is_imagenet_top1) for candidate in front],
            mode="lines",
            name="Pareto front",
            line={"shape": "hv", "dash": "dot"},
        )
    )
    if published and result.objective.is_imagenet_top1:
        known = [(row, row.top1) for row in published if row.top1 is not None]
        intervals = [(row.prior_top1, row.low_top1, row.high_top1) for row in published]
        figure.add_trace(
            go.Scatter(
                x=[row.latency_ms for row in published],
                y=[row.prior_top1 for row in published],
                error_y=_bars(intervals),
                text=[row.name for row in published],
                mode="markers",
                name="published models, estimated",
                marker={"symbol": "diamond-open"},
            )
        )
        figure.add_trace(
            go.Scatter(
                x=[row.latency_ms for row, _ in known],
                y=[top1 for _, top1 in known],
                text=[row.name for row, _ in known],
                mode="markers",
                name="published models, published top-1",
                marker={"symbol": "diamond"},
            )
        )
    if result.answer is not None:
        figure.add_trace(
            go.Scatter(
                x=[result.answer.latency_ms],
                y=[_height(result.answer, result.objective.is_imagenet_top1)],
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


def _curve(final: TrainedAnswer) -> str:
    """Loss and accuracy over the epochs of a final training, as HTML; plotly's script is in the scatter plot."""
    import plotly.graph_objects as go  # type: ignore[import-untyped, unused-ignore]

    figure = go.Figure()
    epochs = [row["epoch"] for row in final.history]
    for part, colour in (("train", "#7f7f7f"), ("validation", "#1f77b4")):
        for what, axis, dash in (("loss", "y", "dot"), ("accuracy", "y2", "solid")):
            values = [row.get(f"{part}_{what}") for row in final.history]
            if all(value is None for value in values):
                continue
            name = f"{what}, {'training' if part == 'train' else part}"
            line = {"color": colour, "dash": dash}
            figure.add_trace(
                go.Scatter(x=epochs, y=values, yaxis=axis, name=name, line=line, connectgaps=True, mode="lines")
            )
    score = "accuracy" if final.metric == "accuracy" else f"score of the {final.metric}"
    figure.update_layout(
        xaxis_title="epoch",
        yaxis={"title": "loss"},
        yaxis2={"title": score, "overlaying": "y", "side": "right", "showgrid": False, "tickformat": ".0%"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02},
        template="plotly_white",
        height=420,
    )
    html: str = figure.to_html(full_html=False, include_plotlyjs=False)
    return html


def _height(candidate: Candidate, top1: bool) -> float:
    """Where a candidate stands: at the estimate of ImageNet top-1, or at what was maximized."""
    return candidate.prior_top1 if top1 else candidate.objective


def _points(candidates: Sequence[Candidate], source: str, *, top1: bool) -> object:
    import plotly.graph_objects as go  # type: ignore[import-untyped, unused-ignore]

    intervals = [(candidate.prior_top1, candidate.low_top1, candidate.high_top1) for candidate in candidates]
    return go.Scatter(
        x=[candidate.latency_ms for candidate in candidates],
        y=[_height(candidate, top1) for candidate in candidates],
        error_x=_bars([(candidate.latency_ms, candidate.low_ms, candidate.high_ms) for candidate in candidates]),
        error_y=_bars(intervals) if top1 else None,
        text=[f"{candidate.config.id} (number {candidate.trial})" for candidate in candidates],
        mode="markers",
        name=f"candidates, latency {source}",
    )


def _bars(intervals: _Intervals) -> dict[str, object]:
    """Error bars for plotly."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, _, high in intervals],
        "arrayminus": [value - low for value, low, _ in intervals],
        "thickness": 1,
    }
