"""Predictions of several networks on several targets: one table, and a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ...predictors import LatencyPrediction, Target
from ...predictors.accuracy.prior import AccuracyPrediction
from ..trials.run_folder import write_text

Predictions = Mapping[Target, Sequence[tuple[str, LatencyPrediction]]]
"""For each target the networks by their names, in one order, with what is predicted."""


def short_name(target: Target) -> str:
    """What a target is called in a heading; latencies at the largest batch are of one image."""
    return (target.alias or str(target)) + (" (per image)" if target.batch is None else "")


def comparison_table(
    found: Predictions, coverage: float, accuracy: Sequence[AccuracyPrediction | None] | None = None
) -> Table:
    """A row for each network, a column for each target; * where a kernel is outside of what was measured there.

    With `accuracy` a last column has ImageNet top-1 of each network.
    """
    table = Table(title=f"predicted latency, ms, and {100 * coverage:g} % interval")
    table.add_column("model", no_wrap=True, overflow="fold")
    for target in found:
        table.add_column(short_name(target).replace(":", ":\n").replace(" (", "\n("), justify="right")
    if accuracy is not None:
        table.add_column("top-1 %", justify="right")
    for number, row in enumerate(zip(*found.values(), strict=True)):
        cells = [_cell(one) for _, one in row]
        if accuracy is not None and (expected := accuracy[number]) is not None:
            cells.append(f"{expected.top1:.1f}\n{expected.low_top1:.1f} - {expected.high_top1:.1f}")
        table.add_row(escape(row[0][0]), *cells)
    if any(one.outside for rows in found.values() for _, one in rows):
        table.caption = "* has kernels outside of what was measured there; --json names them"
    return table


def _cell(one: LatencyPrediction) -> str:
    return f"{one.latency_ms:.3g}{'*' * bool(one.outside)}\n{one.low_ms:.2g} - {one.high_ms:.2g}"


def write_chart(found: Predictions, coverage: float, path: Path) -> None:
    """Writes a chart as one HTML file that needs nothing else: latencies with intervals, a colour for each target.

    Raises OSError, in one line, if it cannot be written.
    """
    import plotly.graph_objects as go  # type: ignore[import-untyped, unused-ignore]

    figure = go.Figure()
    for target, rows in found.items():
        figure.add_trace(
            go.Scatter(
                x=[name for name, _ in rows],
                y=[one.latency_ms for _, one in rows],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [one.high_ms - one.latency_ms for _, one in rows],
                    "arrayminus": [one.latency_ms - one.low_ms for _, one in rows],
                },
                text=["outside: " + ", ".join(one.outside) if one.outside else "" for _, one in rows],
                mode="markers",
                name=short_name(target),
            )
        )
    title = f"predicted latency, with {100 * coverage:g} % intervals"
    figure.update_layout(title=title, yaxis={"title": "ms", "type": "log"}, template="plotly_white")
    write_text(path, figure.to_html(include_plotlyjs=True, full_html=True))
