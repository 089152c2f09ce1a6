"""The base class of all strategies, who propose candidates, and what they decide by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ...search_space.config import LowFormerConfig
from ..feasible_pool import FeasiblePool
from ..objectives.base import Objective
from ..objectives.run_surrogate import RunSurrogate
from ..trials.history import History
from ..trials.records import Role


@dataclass(frozen=True)
class SearchState:
    """What strategies decide by.

    Attributes:
        history: all trials so far.
        pool: the candidates within the budget.
        objective: what is maximized, and whether for the best or for a front.
        surrogate: of the accuracies so far, for those who want one.
        rung_count: how many rungs the run has; with 1 every candidate is trained to the end.
        trials: how many distinct candidates the run is to train.
        seed: of the run.
    """

    history: History
    pool: FeasiblePool
    objective: Objective
    surrogate: RunSurrogate
    rung_count: int
    trials: int
    seed: int


@dataclass(frozen=True)
class Opening:
    """How a run begins, before its strategy is asked.

    Attributes:
        explore: so many candidates span the sizes.
        exploit: so many are the best for the budget by the estimate before training.
        scaled: so many are published models scaled to the budget, which what is found has to beat.
        second_seeds: whether second seeds are trained right after them, not at the end of the run.
    """

    explore: int = 0
    exploit: int = 0
    scaled: int = 0
    second_seeds: bool = False


@dataclass(frozen=True)
class Suggestion:
    """A candidate, and what a sampler wants to be noted of it with its trial (JSON values)."""

    config: LowFormerConfig
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Strategy(ABC):
    """Proposes what is trained next, from what was trained and what is within the budget.

    To write another one, derive from this class, set `name`, and implement `propose`. Then register an instance
    (`lownas.search.register_strategy`) and name it (`strategy="..."`), or pass the instance itself. For example:

        class Nearest(Strategy):
            name = "nearest"

            def propose(self, state, rng):
                best = state.objective.leaders(state.history, state.surrogate, state.pool)
                found, _ = state.pool.mutants(best[:1] or [state.pool.found.configs[0]], rng, 100)
                fresh = [config for config in found if config.id not in state.history.tried]
                return Suggestion(fresh[0]) if fresh else None

    A strategy knows nothing of the search's loop: which trials train where, rungs, second seeds, failures and how many
    trials there are is the schedule's concern. It keeps no state of its own: what it proposes must depend on `state`
    and `rng` alone, so that a run that was interrupted goes on as if it had not been. What it proposes should be within
    the budget (`state.pool.fits`); a candidate that is not becomes a trial that is not trained.

    Attributes:
        name: in run.json and on the command line.
        role: of its proposals in the results.
        purpose: which stream of random numbers it gets, one of those in `search.randomness`.
    """

    name: ClassVar[str]
    role: ClassVar[Role] = "child"
    purpose: ClassVar[str] = "children"

    def check(self, objective: Objective) -> None:
        """Raises ValueError if the strategy cannot work towards `objective`."""
        return None

    def opening(self, state: SearchState) -> Opening:
        """How the run begins before `propose` is asked; with nothing by default."""
        return Opening()

    @abstractmethod
    def propose(self, state: SearchState, rng: np.random.Generator) -> Suggestion | None:
        """The next candidate, or None if there is none; then nothing more is proposed for now.

        Raises whatever is wrong with its own work; the search ends then.
        """
