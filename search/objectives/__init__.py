"""What is maximized: the ImageNet prior or the accuracy on the user's data, for the best within a budget or a front."""

from __future__ import annotations

from ...evaluators.tasks import Task
from ...evaluators.tasks import task as find_task
from ...predictors.accuracy.prior import AccuracyPrior
from .base import Objective
from .data_accuracy import DataAccuracy
from .goal import BestWithinBudget, Goal, ParetoFront
from .imagenet_prior import ImageNetPrior

__all__ = ["BestWithinBudget", "Goal", "Objective", "ParetoFront", "make_objective", "register_objective"]

OBJECTIVES: dict[str, type[Objective]] = {}


def register_objective(objective: type[Objective]) -> type[Objective]:
    """Makes an objective known by its name; can be used as a decorator."""
    OBJECTIVES[objective.name] = objective
    return objective


register_objective(ImageNetPrior)
register_objective(DataAccuracy)


def make_objective(
    wanted: str | type[Objective] | None,
    *,
    on_data: bool,
    front: bool,
    prior: AccuracyPrior,
    task: str | Task = "classification",
) -> Objective:
    """The objective of a run.

    Args:
        wanted: its name or class; None is accuracy where the user gives data, and else the ImageNet prior.
        on_data: whether the user gives data.
        front: whether the front is wanted, not the best within the budget.
        task: what the networks learn.

    Raises ValueError for an unknown name, or an objective that needs data.
    """
    if wanted is None:
        wanted = DataAccuracy if on_data else ImageNetPrior
    if isinstance(wanted, str):
        if wanted not in OBJECTIVES:
            raise ValueError(f"objective: unknown {wanted!r}, known are {', '.join(OBJECTIVES)}")
        wanted = OBJECTIVES[wanted]
    if wanted.learns and not on_data:
        raise ValueError(f"objective {wanted.name!r} is learned from trainings on your data: it needs data (--data)")
    return wanted(ParetoFront() if front else BestWithinBudget(), prior, find_task(task).metric)
