"""The order of the trials: the opening, the strategy's proposals, second seeds, and when a search gives up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...search_space.config import LowFormerConfig
from ..feasible_pool import FeasibleSet
from ..objectives.goal import Goal, evenly
from ..randomness import stream, training_seed
from ..trials.records import FIRST_CONTROL, EvaluationResult, Proposal, Role
from .base import SearchState, Strategy
from .evolution import division
from .rungs import Rungs

MIN_FAILURES = 2  # so many trials may fail in any case, and one in FAILURES of those asked for on top
FAILURES = 4


class Schedule:
    """Turns a strategy's suggestions into the trials of a run.

    A run has some candidates that span the sizes and some that evolution finds best for the budget (the strategy's
    opening), then those that its strategy proposes, and a few that are trained again with a second seed. Where the
    objective compares by controls, these come first of all; then half of the second seeds are theirs.

    Attributes:
        controls: networks to train beside the candidates, the second seeds among them, in the order of their numbers.
        repeats: how many candidates are trained with a second seed.
    """

    def __init__(
        self, strategy: Strategy, state: SearchState, repeats: int, controls: Sequence[LowFormerConfig] = ()
    ) -> None:
        """`repeats` networks are trained with a second seed, `controls` before all candidates."""
        again = min(repeats // 2, len(controls))
        self.strategy, self.state, self.repeats = strategy, state, repeats - again
        self.controls = [*controls, *(controls[i] for i in _spread_over(len(controls))[:again])]

    @property
    def _hopeless(self) -> bool:
        """Whether so much has failed that more will."""
        allowed = MIN_FAILURES + (self.state.trials + self.repeats) // FAILURES
        return self.state.history.statuses["failed"] > allowed

    def propose(self, number: int) -> Proposal | None:
        """The candidate for trial `number`, or a control, which is no trial; None if there is none (now)."""
        if self._hopeless or self.state.pool.nothing_fits:
            return None
        count, pool = self.state.history.roles, self.state.pool
        if (control := self.next_control()) is not None:
            return Proposal(self.controls[control - FIRST_CONTROL], "control", training_seed(self.state.seed, control))
        opening = self.strategy.opening(self.state)
        chosen = sum(count[role] for role in ("explore", "exploit", "scaled", "child", "sampled", "enqueued"))
        if count["explore"] < opening.explore:
            target = pool.found.size_target(count["explore"], opening.explore)
            return self._proposal(pool.found.nearest_in_size(target, self.state.history.tried), "explore", number)
        if count["exploit"] < opening.exploit:
            history = self.state.history
            config = self.state.objective.goal.exploiting(pool, history.tried, history.proposed_for_budget())
            return self._proposal(config, "exploit", number)
        if count["scaled"] < opening.scaled and (config := self._published_left()) is not None:
            return self._proposal(config, "scaled", number)
        if opening.second_seeds:
            if (repeated := self.second_seed(number)) is not None:
                return repeated
            if count["repeat"] < self.repeats and self.state.history.open:
                return None
        if chosen >= self.state.trials:
            return self._second_seed(number)
        rng = stream(self.state.seed, self.strategy.purpose, number)
        suggestion = self.strategy.propose(self.state, rng)
        if suggestion is None:
            return None
        seed = training_seed(self.state.seed, number)
        return Proposal(suggestion.config, self.strategy.role, seed, suggestion.attrs)

    def _published_left(self) -> LowFormerConfig | None:
        """A published model scaled to the budget that was not tried, or None."""
        history, objective = self.state.history, self.state.objective
        return self.state.pool.scaled_to_budget(objective.before_training, history.tried, history.proposed("scaled"))

    def next_control(self) -> int | None:
        """The number of the control to train next, from `FIRST_CONTROL` on; None if all are trained or under way."""
        history = self.state.history
        numbers = range(FIRST_CONTROL, FIRST_CONTROL + len(self.controls))
        return next((n for n in numbers if n not in history.controls and n not in history.open), None)

    def _proposal(self, config: LowFormerConfig | None, role: Role, number: int) -> Proposal | None:
        return None if config is None else Proposal(config, role, training_seed(self.state.seed, number))

    def _second_seed(self, number: int) -> Proposal | None:
        """A candidate to train again once all others are trained; with rungs the loop says when (`repeat`)."""
        others = (proposal.role not in ("repeat", "control") for proposal in self.state.history.open.values())
        if self.state.rung_count > 1 or any(others):
            return None
        return self.second_seed(number)

    def second_seed(self, number: int) -> Proposal | None:
        """A candidate to train with a second seed, or None if that is done or there is none."""
        history, pool = self.state.history, self.state.pool
        repeated = sum(result.role == "repeat" for result in history.complete())
        repeated += sum(proposal.role == "repeat" for proposal in history.open.values())
        if repeated >= self.repeats or self._hopeless:
            return None
        once = self._trained_once()
        if once:  # what was measured meanwhile may have shown that some do not fit
            fits = pool.fits([result.config for result in once.values()])
            once = {name: result for (name, result), fit in zip(once.items(), fits, strict=True) if fit}
        if not once:
            return None
        objective = self.state.objective
        config = objective.second_seed_choice(once, repeated, self.repeats, history, self.state.surrogate, pool)
        return Proposal(config, "repeat", training_seed(self.state.seed, number))

    def _trained_once(self) -> dict[str, EvaluationResult]:
        """The complete results, by id, of candidates that were not trained a second time yet."""
        history = self.state.history
        # A second training that failed counts too: it is not tried a third time.
        times = Counter(r.config_id for r in history.results.values() if r.status in ("complete", "failed"))
        times.update(proposal.config.id for proposal in history.open.values())
        return {result.config_id: result for result in history.complete() if times[result.config_id] == 1}


def second_seeds(rungs: Rungs, trials: int, repeats: int) -> int:
    """How many candidates are trained again: with rungs only those that were trained to the end can be."""
    return min(repeats, rungs.reach_end(trials))


def _spread_over(count: int) -> list[int]:
    """All of 0 to `count` - 1, in an order of which every first part lies evenly; the ends come first."""
    order: dict[int, None] = {}
    position = 0
    while len(order) < count:
        order.setdefault(round(evenly(position) * (count - 1)))
        position += 1
    return list(order)


def whole_trainings(rungs: Rungs, trials: int, repeats: int, controls: int = 0) -> float:
    """What a run costs, in whole trainings; without rungs as many as it makes."""
    return rungs.trainings(trials) + second_seeds(rungs, trials, repeats) + controls


def typical_candidates(
    found: FeasibleSet, trials: int, goal: Goal, controls: Sequence[LowFormerConfig] = ()
) -> Sequence[LowFormerConfig]:
    """Networks of the sizes that a run will train, in their proportions, for planning its trainings."""
    explore = division(trials)[0]
    explored = [found.nearest_in_size(found.size_target(position, explore), ()) for position in range(explore)]
    sizes = [config for config in explored if config is not None]
    return [*sizes, *goal.typical_exploiting(found, trials - explore), *controls]
