"""What a person sees of `elements`: how far it is, and what was found."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..quantities import duration_text
from ..results.printing import print_lines, stdout
from .api import ElementsResult
from .measuring import ElementsProgress


class ElementsBar:
    """Shows how far the measuring of elements is. A context manager; call it with each `ElementsProgress`."""

    def __init__(self, console: Console | None = None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        last = (TextColumn("{task.fields[left]}"), TimeElapsedColumn())
        self._bar = Progress(*columns, *last, console=console or Console(stderr=True))
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._task is None:
            return
        if kind is not None:
            self.say("what was measured is kept: the same command goes on from there")
        self._bar.stop()

    def __call__(self, progress: ElementsProgress) -> None:
        if self._task is None:  # not before the request was found to be right
            self._bar.start()
            self._task = self._bar.add_task("", total=None, left="")
        left = f"about {duration_text(progress.left_s)} left" if progress.left_s else ""
        self._bar.update(
            self._task, description=progress.setting, completed=progress.done, total=progress.total, left=left
        )

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._bar.console.print(line, highlight=False, soft_wrap=True, markup=False)


def print_elements(found: ElementsResult) -> None:
    """What was found about each guideline, and what was written."""
    if found.measured:
        table = Table()
        for name in ("guideline", "here", "found"):
            table.add_column(name)
        for each in found.findings:
            table.add_row(each.guideline, each.verdict, each.text)
        stdout().print(table)
    else:
        print_lines([f"{found.target} was predicted, not measured: no findings are drawn from that"])
    if found.left_out is not None:
        print_lines([f"left out: {each.parameter} = {each.value}: {each.reason}" for each in found.left_out])
        if not found.left_out:
            print_lines(["nothing is dominated here: the space is the whole one"])
    print_lines([str(path) for path in found.files])
