"""`search`, `resume`, `train` and `evaluate` for code, and what can be added: strategies, objectives, exporters.

Names are resolved on first use, so that importing this stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import replay, resume, search
    from .devices import calibrate, measure, predict
    from .feasible_pool import NothingFits
    from .final.evaluate import evaluate
    from .final.train import FinalTraining, train
    from .objectives import Objective, register_objective
    from .results.exporters import Exporter, register_exporter
    from .results.search_result import SearchResult
    from .strategies import SearchState, Strategy, Suggestion, register_strategy
    from .training.task import Evaluation, TrainingTask
    from .trials.candidate import Candidate
    from .trials.records import EvaluationResult

__all__ = [
    "Candidate",
    "Evaluation",
    "EvaluationResult",
    "Exporter",
    "FinalTraining",
    "NothingFits",
    "Objective",
    "SearchResult",
    "SearchState",
    "Strategy",
    "Suggestion",
    "TrainingTask",
    "calibrate",
    "evaluate",
    "measure",
    "predict",
    "register_exporter",
    "register_objective",
    "register_strategy",
    "replay",
    "resume",
    "search",
    "train",
]

_LATE = {
    "Candidate": "trials.candidate",
    "Evaluation": "training.task",
    "EvaluationResult": "trials.records",
    "Exporter": "results.exporters",
    "FinalTraining": "final.train",
    "NothingFits": "feasible_pool",
    "Objective": "objectives",
    "SearchResult": "results.search_result",
    "SearchState": "strategies",
    "Strategy": "strategies",
    "Suggestion": "strategies",
    "TrainingTask": "training.task",
    "calibrate": "devices",
    "evaluate": "final.evaluate",
    "measure": "devices",
    "predict": "devices",
    "register_exporter": "results.exporters",
    "register_objective": "objectives",
    "register_strategy": "strategies",
    "replay": "api",
    "resume": "api",
    "search": "api",
    "train": "final.train",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LATE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
