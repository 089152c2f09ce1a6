"""How far a search is, told to whoever wants to know."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from .records import EvaluationResult

Phase = Literal["propose", "plan", "train", "measure", "done"]


@dataclass(frozen=True)
class SearchStatus:
    """How far a search is.

    Attributes:
        phase: what it does.
        done: trials that were trained, at least to a rung, or networks predicted where nothing trains.
        total: trials, or networks, that there will be.
        running: trials that train now.
        failed: trials that failed.
        best: the result with the highest objective so far, or None.
        elapsed_s: since the search began or went on.
        left_s: that the trainings will take, or None if that cannot be told.
    """

    phase: Phase
    done: int
    total: int
    running: int
    failed: int
    best: EvaluationResult | None
    elapsed_s: float
    left_s: float | None


Progress = Callable[[SearchStatus], None]


class Reporter:
    """Tells `progress` how far a search is."""

    def __init__(self, progress: Progress | None, total: int, started: float) -> None:
        """`total` trials are expected; `started` is in seconds of `time.monotonic`."""
        self._progress, self._total, self._started = progress, total, started

    @property
    def wanted(self) -> bool:
        """Whether anyone listens."""
        return self._progress is not None

    def __call__(
        self,
        phase: Phase,
        results: Collection[EvaluationResult] = (),
        running: int = 0,
        left_s: float | None = None,
        at_rungs: int = 0,
    ) -> None:
        """Tells the status; `at_rungs` trials wait at a rung, beside those with `results`."""
        if self._progress is None:
            return
        final = ("complete", "predicted")
        known = [
            result
            for result in results
            if result.status in final and result.role != "control" and result.objective is not None
        ]
        done = sum(result.status in (*final, "pruned") for result in results) + at_rungs
        self._progress(
            SearchStatus(
                phase=phase,
                done=done,
                total=max(self._total, done),
                running=running,
                failed=sum(result.status == "failed" for result in results),
                best=max(known, key=lambda result: result.objective or 0.0, default=None),
                elapsed_s=time.monotonic() - self._started,
                left_s=left_s,
            )
        )
