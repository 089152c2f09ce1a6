"""Where candidates are evaluated: the seam, and this process as the simplest place. Ray workers are in `ray_pool`.

Whatever an evaluation raises becomes a failed outcome of that trial alone. Evaluations know nothing of the study.
"""

from __future__ import annotations

import logging
from typing import Protocol

from ...evaluators.device.agent.lock import training
from .task import Evaluate, Evaluation, TaskOutcome, TrainingTask

RETRIES = 2  # a trial whose worker died is tried again at most this often
DIED = f"its worker process died, {RETRIES + 1} times"
STOPPED = f"out of memory: Ray stopped its worker to save the machine, {RETRIES + 1} times"


class TrainingPool(Protocol):
    """Evaluates training tasks, `size` at once."""

    size: int

    @property
    def pending(self) -> int:
        """How many submitted tasks have no outcome yet."""

    def submit(self, task: TrainingTask) -> None: ...

    def wait(self, timeout_s: float | None = None) -> list[TaskOutcome]:
        """The outcomes that are there once there is one, or none after `timeout_s`."""

    def close(self) -> None:
        """Gives up what is pending and frees everything. May be called twice."""


def describe_error(error: BaseException) -> str:
    """An exception as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__


class InProcessPool:
    """Evaluates one task at a time, in this process."""

    size = 1

    def __init__(self, evaluate: Evaluate, log: logging.Logger | None = None) -> None:
        self._evaluate = evaluate
        self._log = log
        self._tasks: list[TrainingTask] = []

    @property
    def pending(self) -> int:
        return len(self._tasks)

    def submit(self, task: TrainingTask) -> None:
        self._tasks.append(task)

    def wait(self, timeout_s: float | None = None) -> list[TaskOutcome]:
        """One outcome. An evaluation here cannot be given up, so the timeout has no effect."""
        if not self._tasks:
            return []
        outcome = evaluate_safely(self._evaluate, self._tasks[0], self._log)
        self._tasks.pop(0)
        return [outcome]

    def close(self) -> None:
        self._tasks.clear()


def evaluate_safely(evaluate: Evaluate, task: TrainingTask, log: logging.Logger | None = None) -> TaskOutcome:
    """Evaluates a task; whatever it raises becomes the error of its outcome."""
    try:
        with training():
            found = evaluate(task)
        return TaskOutcome(task.trial, found if isinstance(found, Evaluation) else Evaluation(float(found)))
    except MemoryError as error:
        return TaskOutcome(task.trial, None, f"out of memory: {describe_error(error)}")
    # Any exception of a candidate is that candidate's failure: the one place where all of them are caught.
    except Exception as error:
        if log is not None:
            log.info("trial %s failed", task.trial, exc_info=True)
        return TaskOutcome(task.trial, None, describe_error(error))
