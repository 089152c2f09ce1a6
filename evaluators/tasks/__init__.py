"""What networks learn (`Task`), found by name in one registry."""

from __future__ import annotations

from .base import Metric, MixableTask, Recipe, Task
from .classification import Classification

__all__ = ["Metric", "MixableTask", "Recipe", "Task", "register_task", "task", "task_names"]

_TASKS: dict[str, Task] = {known.name: known for known in (Classification(),)}


def register_task(added: Task) -> None:
    """Makes a task available under its name. Raises ValueError if another one has that name."""
    if _TASKS.get(added.name, added) is not added:
        raise ValueError(f"a task named {added.name!r} is registered already")
    _TASKS[added.name] = added


def task(which: str | Task) -> Task:
    """The task of a name, or the one that is given.

    Raises:
        ValueError: an unknown name.
        TypeError: something that is no task.
    """
    if isinstance(which, str):
        if which not in _TASKS:
            raise ValueError(f"unknown task {which!r}; allowed are {', '.join(_TASKS)}")
        return _TASKS[which]
    if not isinstance(which, Task):
        raise TypeError(f"task: a name or a Task is expected, given {type(which).__name__}")
    return which


def task_names() -> list[str]:
    """The names of all tasks that are registered."""
    return list(_TASKS)
