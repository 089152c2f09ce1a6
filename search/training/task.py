"""What is given to workers and what comes back: a training task, its evaluation, and the outcome of a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...evaluators.data.sources import Data
from ...evaluators.tasks import Task
from ...search_space.config import LowFormerConfig
from ...search_space.heads import Head


@dataclass(frozen=True)
class TrainingTask:
    """One training, or a part of one, as plain values that can be sent to another machine.

    Attributes:
        trial: number of the trial.
        config: the architecture.
        seed: of weights, order and augmentation.
        data: what is trained on.
        proxy: how, as the run's plan says (JSON values, the same for all candidates of a run).
        task, head: what the network is to do with an image, and with which head; a worker may not know it by name.
        init_from: checkpoint that weights are inherited from, or None.
        until: share of the whole training after which it is judged; 1 is the end.
        state: file in which a training that stops early waits, and that it goes on from, or None.
        shared: what `SharedInput` made for the task, where evaluations run in workers.
    """

    trial: int
    config: LowFormerConfig
    seed: int
    data: Data = "formula"
    proxy: Mapping[str, Any] = field(default_factory=dict)
    task: str | Task = "classification"
    head: Head | None = None
    init_from: str | None = None
    until: float = 1.0
    state: str | None = None
    shared: Any = None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation function gives for a task.

    Attributes:
        accuracy: score on held-out images, 0 to 1, higher is better; None if the training failed.
        loss: on the same images, where there is one.
        seconds: that it took.
        reason: why it failed, in one line.
        history: what happened on the way, one mapping of JSON values per epoch.
        details: anything else worth keeping, as JSON values.
    """

    accuracy: float | None
    loss: float | None = None
    seconds: float = 0.0
    reason: str = ""
    history: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failure(self) -> str:
        """Why there is no accuracy, in one line; empty if there is one."""
        if self.accuracy is not None and math.isfinite(self.accuracy):
            return ""
        return self.reason or f"the accuracy is {self.accuracy}"


# What judges candidates: a function of a task alone, that gives an evaluation or just the accuracy.
Evaluate = Callable[[TrainingTask], "Evaluation | float"]

# Of a task, the name of something large that its evaluation needs, and what makes it. It is made once; evaluations in
# workers find it in their task as `shared`.
SharedInput = Callable[[TrainingTask], tuple[Hashable, Callable[[], Any]]]


@dataclass(frozen=True)
class TaskOutcome:
    """What came of a task: its evaluation, or None and the error in one line."""

    trial: int
    evaluation: Evaluation | None
    error: str = ""
