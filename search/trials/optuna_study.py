"""The trials of a run as an ordinary Optuna study: for Optuna's tools, and for trials enqueued from outside.

All but the states of `OptunaStudy.settle` is written by public methods of Optuna; see `database.PatientStorage`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ...search_space.space import SearchSpace
from .database import open_storage, quiet_optuna
from .history import AskedTrial
from .records import EvaluationResult, Proposal

STUDY_NAME = "lownas"
_STATES = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL}  # all others are PRUNED


def study_name(storage: str | None, run: Path) -> str:
    """The name for the study of a new run.

    A storage may hold the studies of many runs, also of folders with the same name.
    """
    if storage is None:
        return STUDY_NAME
    return f"{STUDY_NAME}-{run.resolve().name}-{secrets.token_hex(4)}"


class OptunaStudy:
    """The study of one run. One process writes it; others may read it and enqueue trials.

    Attributes:
        study: Optuna's.
    """

    def __init__(
        self, url: str, name: str, space: SearchSpace, directions: Sequence[str], seed: int, log: logging.Logger
    ) -> None:
        """Opens the study, or creates it; `log` is told of waiting. Raises OSError if the database cannot be used."""
        self.space = space
        self._storage = open_storage(url, log)
        with quiet_optuna():
            self.study = optuna.create_study(
                study_name=name,
                storage=self._storage,
                directions=[StudyDirection[direction.upper()] for direction in directions],
                sampler=optuna.samplers.RandomSampler(seed=seed),
                load_if_exists=True,
            )
        self._study_id = self._storage.get_study_id_from_name(name)
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.CategoricalDistribution(choices) for name, choices in space.parameters.items()
        }
        self._ids: dict[int, int] = {}  # the database's ids of trials by their numbers
        self._within: dict[int, bool] = {}  # of trials that have their constraints, whether they keep them
        self._count = 0

    def trials(self) -> list[FrozenTrial]:
        """All trials, in the order of their numbers."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            self._note(trial)
        return trials

    def _note(self, trial: FrozenTrial) -> None:
        self._count = max(self._count, trial.number + 1)
        if "latency" in trial.constraints:
            self._within[trial.number] = _keeps(trial.constraints)

    def __len__(self) -> int:
        """How many trials are known here, whatever their state."""
        return self._count

    def waiting(self) -> list[int]:
        """The trials that wait to be asked: those that were cut off, and those enqueued from outside."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        for trial in trials:
            self._note(trial)
        return sorted(trial.number for trial in trials)

    def running(self) -> list[int]:
        """The trials that are RUNNING."""
        return [trial.number for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]

    def add(self, proposal: Proposal, constraints: Mapping[str, float]) -> tuple[int, AskedTrial]:
        """Adds a trial that is RUNNING; gives its number, and what the study knows of it now."""
        params = self.space.to_params(proposal.config)
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=self._distributions,
            user_attrs={"role": proposal.role, "seed": proposal.seed, "config_id": proposal.config.id},
            system_attrs=dict(proposal.attrs),
            constraints=dict(constraints),
        )
        trial_id = self._storage.create_new_trial(self._study_id, trial)
        number = self._storage.get_trial_number_from_id(trial_id)
        self._ids[number] = trial_id
        self._count = max(self._count, number + 1)
        if constraints:
            self._within[number] = _keeps(constraints)
        return number, AskedTrial(params, dict(proposal.attrs), dict(constraints))

    def add_lost(self) -> None:
        """Adds a failed trial in the place of one of which nothing is known, so that numbers agree."""
        lost = {"status": "failed", "reason": "lost"}
        self.study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=lost))
        self._count += 1

    def ask(self, number: int) -> optuna.Trial:
        """Takes up a trial that waits; it is RUNNING from now on."""
        trial_id = self._id(number)
        self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        return optuna.Trial(self.study, trial_id)

    def is_constrained(self, number: int) -> bool:
        """Whether the study knows by how much a trial exceeds its limits; not so of one enqueued from outside."""
        return number in self._within

    def constrain(self, number: int, constraints: Mapping[str, float]) -> AskedTrial:
        """Notes by how much a trial exceeds its limits; gives what the study knows of it then."""
        trial_id = self._id(number)
        trial = optuna.Trial(self.study, trial_id)
        for name, excess in constraints.items():
            trial.set_constraint(name, excess)
        self._within[number] = _keeps(constraints)
        return asked_of(self._storage.get_trial(trial_id))

    def set_waiting(self, number: int) -> None:
        """Lets a trial that was cut off wait to be asked again, under the same number."""
        self._storage.set_trial_state_values(self._id(number), TrialState.WAITING)

    def finish(self, result: EvaluationResult, values: Sequence[float] | None) -> None:
        """Tells the study what came of a trial; `values` are its objectives, if it is complete.

        One that was trained although it exceeds a limit is PRUNED: Optuna's summaries of studies take the best value of
        all that are COMPLETE, whatever their constraints. Its samplers learn from the constraints all the same.
        """
        trial_id = self._id(result.trial)
        attrs = {"status": result.status, "config_id": result.config_id, "result": result.to_dict()}
        if result.reason:
            attrs["reason"] = result.reason
        for name, value in attrs.items():
            self._storage.set_trial_user_attr(trial_id, name, value)
        # Last, as a finished trial cannot be changed: one that is cut off here is told again on resume.
        state = _STATES.get(result.status, TrialState.PRUNED)
        if state == TrialState.COMPLETE and not self._within.get(result.trial, True):
            state = TrialState.PRUNED
        self._storage.set_trial_state_values(trial_id, state, values)

    def settle(self, fits: Mapping[int, bool]) -> None:
        """Lets trained trials be COMPLETE if they keep the budget, as is known now, and PRUNED if not; by numbers."""
        finished = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        changed = {}
        for trial in finished:
            if trial.number in fits and trial.values is not None:
                complete = fits[trial.number] and _keeps(trial.constraints)
                state = TrialState.COMPLETE if complete else TrialState.PRUNED
                if state != trial.state:
                    changed[trial.number] = state
        if changed:
            self._storage.change_states(self._study_id, changed)

    def _id(self, number: int) -> int:
        if number not in self._ids:
            self._ids[number] = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        return self._ids[number]


def _keeps(constraints: Mapping[str, float]) -> bool:
    return all(excess <= 0.0 for excess in constraints.values())


def asked_of(trial: FrozenTrial) -> AskedTrial:
    """What a study knows of a trial since it began."""
    return AskedTrial(trial.params, trial.system_attrs, trial.constraints)
