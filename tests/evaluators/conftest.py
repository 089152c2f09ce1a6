"""What tests of several readers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


class Evil:
    """Pickled, it is a program that creates the file `path` when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys of `toys.py` are registered while a test runs, and then forgotten."""
    from lownas.evaluators import tasks
    from lownas.evaluators.data import sources
    from lownas.evaluators.device import runtimes
    from lownas.search_space import heads

    from . import toys

    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    monkeypatch.setattr(sources, "_KINDS", dict(sources._KINDS))
    monkeypatch.setattr(runtimes, "_RUNTIMES", dict(runtimes._RUNTIMES))
    monkeypatch.setattr(heads, "HEADS", dict(heads.HEADS))
    tasks.register_task(toys.Regression())
    sources.register_source("brightness", toys.Brightness.named, "brightness:COUNT")
    runtimes.register_runtime(toys.NumpyRuntime())
    heads.register_head(toys.MeanHead())
