"""The progress lines that a person sees while a search or a calibration runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ...predictors.latency.calibration import Progress as CalibrationProgress
from ..quantities import duration_text
from ..trials.records import EvaluationResult
from ..trials.status import Phase, SearchStatus

if TYPE_CHECKING:
    from ...evaluators.training.final.records import TrainingStatus

_PHASES: Mapping[Phase, str] = {
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
            best = f"best {_accuracy(status.best)} at {status.best.latency_ms:.3g} ms{failed}"
        self._progress.update(
            self._task,
            description=_PHASES[status.phase],
            completed=status.done,
            total=status.total,
            best=best or failed.removeprefix(", "),
            left=f"about {duration_text(status.left_s)} left" if status.left_s and status.phase == "train" else "",
        )


def _accuracy(result: EvaluationResult) -> str:
    """What was maximized, in percent; of ImageNet top-1 the estimate with its interval, as in the table at the end."""
    low, high = result.details.get("low_top1"), result.details.get("high_top1")
    if low is None or high is None:
        return f"{result.objective:.1f} %"
    return f"{result.prior_top1:.1f} % ({low:.1f} to {high:.1f})"


class TrainingProgress:
    """Shows each `TrainingStatus` of a final training on one line: epochs, loss, accuracy, time left.

    A context manager; call it with each.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("training"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[epochs]}"),
            TextColumn("{task.fields[last]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console or Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=None, epochs="", last="", left="")
        self._last = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def __call__(self, status: TrainingStatus) -> None:
        if status.row is not None:
            shown = [f"loss {status.row['train_loss']:.3g}"]
            if (score := status.row.get("validation_accuracy")) is not None:
                shown.append(f"validation {100 * score:.1f} %")
            self._last = ", ".join(shown)
        self._progress.update(
            self._task,
            completed=(status.epoch - 1) * status.steps + status.step,
            total=status.epochs * status.steps,
            epochs=f"epoch {status.epoch} of {status.epochs}",
            last=self._last,
            left=f"about {duration_text(status.seconds_left)} left" if status.seconds_left else "",
        )


class CalibrationBar:
    """Shows how far a calibration is, if it is to be shown. A context manager; call it with each `Progress`."""

    def __init__(self, console: Console | None = None, *, shown: bool = True) -> None:
        columns = (TextColumn("measuring"), BarColumn(bar_width=24), MofNCompleteColumn())
        last = (TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, *last, console=console or Console(stderr=True))
        self._task = self._bar.add_task("", total=None)
        self._shown, self._started = shown, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if not self._started:
            return
        if kind is KeyboardInterrupt:
            self._bar.console.print("what was measured is kept: the same command goes on from there", soft_wrap=True)
        self._bar.stop()

    def __call__(self, progress: CalibrationProgress) -> None:
        if not self._shown:
            return
        if not self._started:  # not before the request was found to be right
            self._bar.start()
            self._started = True
        self._bar.update(self._task, completed=progress.done, total=progress.samples, description=progress.message)
        if progress.message.startswith("resumed"):
            self._bar.console.print(progress.message, highlight=False, soft_wrap=True)
