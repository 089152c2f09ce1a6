"""What a person sees of a search: a progress line on stderr, and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from .outcome import Candidate, SearchOutcome, SearchStatus
from .report import PublishedRow

_PHASES = {
    "propose": "searching for candidates",
    "plan": "timing the proxy training",
    "train": "training candidates",
    "measure": "measuring latency",
    "done": "done",
}


class SearchProgress:
    """Shows each `SearchStatus` on one line: done, best so far, time left. A context manager; call it with each."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[best]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console or Console(stderr=True),
        )
        self._task = self._progress.add_task(_PHASES["propose"], total=None, best="", left="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def __call__(self, status: SearchStatus) -> None:
        failed = f", {status.failed} failed" if status.failed else ""
        best = ""
        if status.best is not None:
            best = f"best {status.best.objective:.1f} % at {status.best.latency_ms:.3g} ms{failed}"
        self._progress.update(
            self._task,
            description=_PHASES[status.phase],
            completed=status.done,
            total=status.total,
            best=best or failed.removeprefix(", "),
            left=f"about {duration(status.left_s)} left" if status.left_s and status.phase == "train" else "",
        )


def duration(seconds: float) -> str:
    """Seconds as a person says it: "40 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def outcome_table(outcome: SearchOutcome, published: Sequence[PublishedRow] = (), *, rows: int = 5) -> Table:
    """The answer and the next best, or the front; and the published models beside them, the fastest of these first."""
    on_user_data = outcome.settings.data is not None
    table = Table(title=outcome.settings.title)
    table.add_column("model")
    table.add_column("accuracy %, estimated" if on_user_data else "ImageNet top-1 %, estimated", justify="right")
    table.add_column("published %", justify="right")
    table.add_column("latency ms", justify="right")
    table.add_column("interval", justify="right")
    table.add_column("", justify="left")
    table.add_column("params M", justify="right")
    table.add_column("MACs M", justify="right")
    shown = [outcome.answer] if outcome.answer else []
    shown += [candidate for candidate in outcome.candidates if candidate != outcome.answer][: max(rows - len(shown), 0)]
    if outcome.settings.pareto:
        shown = outcome.front
    for candidate in shown:
        table.add_row(*_cells(candidate, on_user_data), style="bold green" if candidate == outcome.answer else None)
    if published:
        table.add_section()
    for row in published:
        table.add_row(
            row.name,
            "" if on_user_data else f"{row.prior_top1:.1f} (prior)",
            f"{row.top1:.1f}" if row.top1 is not None else "",
            f"{row.latency_ms:.3g}",
            f"{row.low_ms:.3g} to {row.high_ms:.3g}",
            "predicted",
            f"{row.params / 1e6:.1f}",
            f"{row.macs / 1e6:.0f}",
        )
    return table


def _cells(candidate: Candidate, on_user_data: bool) -> list[str]:
    extrapolated = candidate.extrapolated and not on_user_data
    return [
        candidate.config.id,
        f"{candidate.objective:.1f}{'*' if extrapolated else ''}",
        "",
        f"{candidate.latency_ms:.3g}",
        f"{candidate.low_ms:.3g} to {candidate.high_ms:.3g}",
        candidate.latency_source,
        f"{candidate.params / 1e6:.1f}",
        f"{candidate.macs / 1e6:.0f}",
    ]
