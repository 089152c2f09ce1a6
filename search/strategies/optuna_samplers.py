"""Candidates by a sampler of Optuna, to compare with, or where its ways are wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from ...search_space.config import LowFormerConfig
from ..settings import Strategy
from ..trials.history import Proposal, directions, values
from .base import Proposer, stream
from .feasible import surely_over

DRAWS = 64  # until one is within the budget; if none is, the last becomes a trial that is not trained
MOST_OVER = 20  # such trials for each one asked for; then the search ends


def sampler(strategy: Strategy, seed: int) -> optuna.samplers.BaseSampler:
    """Of a strategy's name. TPE is multivariate, as the choices of a network act together."""
    if strategy == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)
    if strategy == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=20)
    if strategy == "gp":
        return optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)
    return optuna.samplers.RandomSampler(seed=seed)


class Sampled(Proposer):
    """The sampler works on a copy of the study and starts anew each time, seeded by the trial's number: so what it
    proposes depends on the results alone, and a run that was cut off goes on as if it had not been."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._configs: dict[int, LowFormerConfig] = {}

    def next_one(self, number: int) -> Proposal | None:
        count = self.journal.roles
        if count["sampled"] + count["enqueued"] >= self.settings.trials:
            return self.second_seed(number)
        if self.journal.statuses["infeasible"] > MOST_OVER * self.settings.trials:
            return None
        strategy = self.settings.strategy_name
        seed = int(stream(self.settings, "sampler", number).integers(2**31))
        scratch = optuna.create_study(directions=directions(self.settings), sampler=sampler(strategy, seed))
        if strategy != "random":
            scratch.add_trials(self._known())
        tried = self.journal.tried
        for _ in range(DRAWS):
            trial = scratch.ask()
            config = self.space.suggest(trial)
            attrs = dict(scratch.get_trials(deepcopy=False)[-1].system_attrs)
            scratch.tell(trial, state=TrialState.FAIL)
            quantile = np.asarray(self.predictor.quantile_ms([config], self.settings.confidence), float)
            if config.id not in tried and not surely_over(quantile, self.settings.latency_budget_ms)[0]:
                break
        return Proposal(config, "sampled", self.training_seed(number), attrs)

    def _known(self) -> list[FrozenTrial]:
        """What was trained, with what was maximized. With rungs the accuracy at the first one, where all compare, or
        without the user's data the prior."""
        known = []
        trials = [trial for trial in self.journal.asked.values() if trial.params]
        configs = [self._config(trial) for trial in trials]
        latency_ms = self.latency_ms(configs) if self.settings.pareto and trials else np.zeros(len(trials))
        for trial, config, takes_ms in zip(trials, configs, latency_ms.tolist(), strict=True):
            result, rungs = self.journal.results.get(trial.number), self.journal.rungs.get(trial.number)
            value = None if result is None else result.objective
            if rungs:
                prior = self.settings.data is None
                value = float(self.prior.imagenet_top1([config])[0]) if prior else 100 * rungs[0]["accuracy"]
            elif self.settings.rung_count > 1 and value is not None:
                continue  # a second seed, which has no first rung
            state, told = TrialState.COMPLETE, None
            if value is not None:
                told = values(self.settings, value, takes_ms)
            else:
                if result is None or result.status != "infeasible":
                    continue
                state = TrialState.PRUNED  # over the budget: only the constraint tells
            known.append(
                optuna.trial.create_trial(
                    state=state,
                    values=told,
                    params=trial.params,
                    distributions=trial.distributions,
                    system_attrs={name: value for name, value in trial.system_attrs.items() if "generation" in name},
                    constraints=trial.constraints,
                )
            )
        return known

    def _config(self, trial: FrozenTrial) -> LowFormerConfig:
        if trial.number not in self._configs:
            self._configs[trial.number] = self.space.from_params(trial.params)
        return self._configs[trial.number]
