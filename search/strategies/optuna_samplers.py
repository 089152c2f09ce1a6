"""Optuna's samplers as strategies, to compare with, or where their ways are wanted."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ..trials.database import quiet_optuna
from .base import SearchState, Strategy, Suggestion

DRAWS = 64  # until one is within the budget; if none is, the last becomes a trial that is not trained
MOST_OVER = 20  # such trials for each one asked for; then the search ends


class OptunaSampler(Strategy):
    """Draws from the space with a sampler of Optuna.

    The sampler works on a copy of the study and starts anew each time, seeded by the trial's number: so what it
    proposes depends on the results alone, and a run that was cut off goes on as if it had not been.
    """

    role = "sampled"
    purpose = "sampler"
    looks_back: ClassVar[bool] = True  # whether it wants to know what was trained

    @abstractmethod
    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Makes the sampler."""

    def propose(self, state: SearchState, rng: np.random.Generator) -> Suggestion | None:
        if state.history.statuses["infeasible"] > MOST_OVER * state.trials:
            return None
        seed = int(rng.integers(2**31))
        directions = [StudyDirection[name.upper()] for name in state.objective.goal.directions]
        with quiet_optuna():
            scratch = optuna.create_study(directions=directions, sampler=self.sampler(seed))
        if self.looks_back:
            scratch.add_trials(self._known(state))
        for _ in range(DRAWS):
            trial = scratch.ask()
            config = state.pool.space.suggest(trial)
            attrs = dict(scratch.get_trials(deepcopy=False)[-1].system_attrs)
            scratch.tell(trial, state=TrialState.FAIL)
            if config.id not in state.history.tried and state.pool.fits([config])[0]:
                break
        return Suggestion(config, attrs)

    def _known(self, state: SearchState) -> list[FrozenTrial]:
        """What was trained, with what was maximized; with rungs as the first one tells, where all compare."""
        history, objective, pool = state.history, state.objective, state.pool
        distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.CategoricalDistribution(choices)
            for name, choices in pool.space.parameters.items()
        }
        known = []
        asked = {number: trial for number, trial in history.asked.items() if trial.params}
        configs = [pool.space.from_params(dict(trial.params)) for trial in asked.values()]
        latency_ms = pool.latency_ms(configs) if objective.goal.front and configs else np.zeros(len(configs))
        for (number, trial), config, takes_ms in zip(asked.items(), configs, latency_ms.tolist(), strict=True):
            result, rungs = history.results.get(number), history.rungs.get(number)
            value = None if result is None else result.objective
            if rungs:
                value = objective.value_at_first_rung(config, rungs[0].accuracy)
            elif state.rung_count > 1 and value is not None:
                continue  # a second seed, which has no first rung
            if value is None and (result is None or result.status != "infeasible"):
                continue
            known.append(
                optuna.trial.create_trial(
                    # Of a trial over the budget only the constraint tells.
                    state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
                    values=None if value is None else list(objective.goal.told(value, takes_ms)),
                    params=dict(trial.params),
                    distributions=distributions,
                    system_attrs={name: note for name, note in trial.attrs.items() if "generation" in name},
                    constraints=dict(trial.constraints),
                )
            )
        return known


class Tpe(OptunaSampler):
    """Tree-structured Parzen estimators; multivariate, as the choices of a network act together."""

    name = "tpe"

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)


class Nsga2(OptunaSampler):
    """The genetic algorithm NSGA-II."""

    name = "nsga2"
    population = 20

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population)


class Gp(OptunaSampler):
    """Optuna's Gaussian process."""

    name = "gp"

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)


class Random(OptunaSampler):
    """Random search."""

    name = "random"
    looks_back = False

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=seed)
