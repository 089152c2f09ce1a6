"""The trials of a run, kept twice: results.jsonl is the truth, the Optuna study is there for Optuna's tools."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ...search_space.config import LowFormerConfig
from ...search_space.space import SearchSpace
from ..settings import SAMPLERS, SearchSettings
from .database import open_storage
from .records import EvaluationResult, Role
from .run_folder import RunFolder

STUDY_NAME = "lownas"


@dataclass(frozen=True)
class Proposal:
    """A candidate for the next trial, why, the seed of its training, and what Optuna's sampler notes of it."""

    config: LowFormerConfig
    role: Role
    seed: int
    attrs: Mapping[str, Any] = field(default_factory=dict)


def study_name(settings: SearchSettings, run: RunFolder) -> str:
    """For the study of a new run. A storage may hold those of many: also of folders that are called the same."""
    if settings.storage is None:
        return STUDY_NAME
    return f"{STUDY_NAME}-{run.path.resolve().name}-{secrets.token_hex(4)}"


def directions(settings: SearchSettings) -> list[StudyDirection]:
    """Of the study's objectives: accuracy, and with `pareto` latency."""
    return [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: 1 + settings.pareto]


def values(settings: SearchSettings, objective: float, latency_ms: float) -> list[float]:
    """What a study of these `directions` is told."""
    return [objective, latency_ms] if settings.pareto else [objective]


def _slim(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry at a rung without its configuration, which the trial has."""
    return {name: value for name, value in entry.items() if name != "config"}


class Journal:
    """What has come of every trial so far. Counts are kept as trials come, so that no decision walks through them all.

    Attributes:
        results: by trial, in order.
        rungs: by trial what it had reached at each rung, in order, as in rungs.jsonl.
        configs: of the trials that reached a rung.
        open: by trial what was asked for and has no result yet: it trains, or waits at a rung.
        roles: so many of each role are complete, were stopped at a rung, or are open.
        statuses: so many results of each status.
        tried: by configuration id, how many trials it has had or has.
        rung_log, result_log: the entries at rungs, and the results, as they came.
        asked: by trial what the study was told when it began (parameters, attributes, constraints), where a sampler of
            Optuna wants to know.
        study: Optuna's.
    """

    def __init__(self, settings: SearchSettings, run: RunFolder, space: SearchSpace) -> None:
        self.settings, self.run, self.space = settings, run, space
        self.results: dict[int, EvaluationResult] = {}
        self.rungs: dict[int, list[Mapping[str, Any]]] = {}
        self.configs: dict[int, LowFormerConfig] = {}
        self.rung_log: list[Mapping[str, Any]] = []
        self.result_log: list[EvaluationResult] = []
        self.open: dict[int, Proposal] = {}
        self.roles, self.statuses, self.tried = Counter[str](), Counter[str](), Counter[str]()
        self.asked: dict[int, FrozenTrial] = {}
        self._ids: dict[int, int] = {}  # of the trials that have their constraints
        self._last_id, self._count = -1, 0  # of what is known of the study
        self._waiting: list[int] = []
        self.storage = open_storage(settings.storage or f"sqlite:///{(run.path / 'study.db').resolve()}")
        name = str(run.about.get("study", STUDY_NAME))
        self.study = optuna.create_study(
            study_name=name,
            storage=self.storage,
            directions=directions(settings),
            sampler=optuna.samplers.RandomSampler(seed=settings.seed),
            load_if_exists=True,
        )
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.CategoricalDistribution(choices) for name, choices in space.parameters.items()
        }
        self.study_id = self.storage.get_study_id_from_name(name)

    def reconcile(self) -> None:
        """Makes the study agree with results.jsonl, which is the truth. No trial is left RUNNING.

        A trial whose result was written but not told is told; one that was cut off waits to be asked again, under the
        same number; one that the study knows and the file has lost is written again from the study's copy.
        """
        self.results = {result.trial: result for result in self.run.load_results()}
        self.rungs = {}
        for entry in self.run.load_rungs():
            self.rungs.setdefault(entry["trial"], []).append(entry)
            self.rung_log.append(_slim(entry))
            self._place(entry)
        trials = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        for trial in trials.values():
            self._note(trial)
        for number, trial in trials.items():
            if number in self.results:
                if not trial.state.is_finished():
                    self._tell(number, self.results[number])
            elif trial.state.is_finished():
                if "result" in trial.user_attrs:
                    result = EvaluationResult.from_dict(trial.user_attrs["result"])
                    self.run.append_result(result)
                    self.results[number] = result
            elif trial.state == TrialState.RUNNING:
                self.set_waiting(number)
        for number in range(len(trials), max((*self.results, *self.rungs), default=-1) + 1):
            self._restore(number)
        self.result_log = list(self.results.values())
        self.results = dict(sorted(self.results.items()))
        for number, entries in self.rungs.items():
            self.rungs[number] = [_slim(entry) for entry in entries]
        for result in self.result_log:
            self._tally(result)

    def begin(self, number: int, proposal: Proposal) -> None:
        """The trial is open from now on."""
        self.open[number] = proposal
        self.roles[proposal.role] += 1
        self.tried[proposal.config.id] += 1

    def _abandon(self, number: int) -> None:
        """It is open no more, and as if it had never been."""
        if (proposal := self.open.pop(number, None)) is not None:
            self.roles[proposal.role] -= 1
            self.tried[proposal.config.id] -= 1

    def _tally(self, result: EvaluationResult) -> None:
        self.statuses[result.status] += 1
        self.tried[result.config_id] += 1
        if result.status in ("complete", "pruned"):
            self.roles[result.role] += 1

    def _note(self, trial: FrozenTrial) -> None:
        """Remembers what must be known of a trial."""
        if "latency" in trial.constraints:
            self._ids[trial.number] = trial._trial_id
        if self.settings.strategy_name in SAMPLERS and self.settings.strategy_name != "random":
            self.asked[trial.number] = trial

    def _look(self) -> None:
        """Takes notice of the trials that are new in the study, ours or enqueued from outside."""
        for trial_id, number, state in self.storage.news(self.study_id, self._last_id):
            self._last_id, self._count = trial_id, max(self._count, number + 1)
            if state == TrialState.WAITING.name:
                self._waiting.append(number)

    def _restore(self, number: int) -> None:
        """Adds a trial that the study has lost, so that numbers agree."""
        if number in self.results:
            result = self.results[number]
            self.add(Proposal(result.config, result.role, result.seed))
            self._tell(number, result)
        elif number in self.rungs:
            entry = self.rungs[number][0]
            self.add(Proposal(LowFormerConfig.from_dict(entry["config"]), entry["role"], entry["seed"]))
            self.set_waiting(number)
        else:
            lost = {"status": "failed", "reason": "lost"}
            self.study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=lost))

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def set_waiting(self, number: int) -> None:
        self._look()
        self.storage.set_trial_state_values(self._trial_id(number), TrialState.WAITING)
        if number not in self._waiting:
            self._waiting = sorted((*self._waiting, number))

    def __len__(self) -> int:
        """Trials, whatever their state."""
        self._look()
        return self._count

    def waiting_numbers(self) -> list[int]:
        """The trials that wait to be asked: those that were cut off, and those enqueued from outside."""
        self._look()
        return list(self._waiting)

    def ask(self, number: int) -> optuna.Trial:
        """A trial that waits, RUNNING from now on."""
        trial_id = self._trial_id(number)
        self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        self._waiting = [other for other in self._waiting if other != number]
        return optuna.Trial(self.study, trial_id)

    def note_asked(self, trial: optuna.Trial, constraints: Mapping[str, float]) -> None:
        """Notes what a trial of `ask` is; one enqueued from outside had neither parameters nor constraints before."""
        if trial.number not in self._ids:
            for name, excess in constraints.items():
                trial.set_constraint(name, excess)
            self._note(self.storage.get_trial(trial._trial_id))

    def add(self, proposal: Proposal, constraints: Mapping[str, float] | None = None) -> int:
        """A new trial, RUNNING; gives its number. One transaction, with all that is known of it."""
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=self.space.to_params(proposal.config),
            distributions=self._distributions,
            user_attrs={"role": proposal.role, "seed": proposal.seed, "config_id": proposal.config.id},
            system_attrs=dict(proposal.attrs),
            constraints=dict(constraints or {}),
        )
        created = self.storage._create_new_trial(self.study_id, trial)
        self._note(created)
        return created.number

    def complete(self) -> list[EvaluationResult]:
        return [result for result in self.results.values() if result.status == "complete"]

    def write(self, result: EvaluationResult) -> None:
        """Writes the result, then tells the study; in this order, so that nothing told can be lost."""
        self.run.append_result(result)
        last = next(reversed(self.results), -1)
        self.results[result.trial] = result
        self.result_log.append(result)
        self._abandon(result.trial)
        self._tally(result)
        if result.trial < last:
            self.results = dict(sorted(self.results.items()))
        self._tell(result.trial, result)

    def write_rung(self, entry: Mapping[str, Any]) -> None:
        """Notes what a trial had reached at a rung."""
        self.run.append_rung(entry)
        self.rung_log.append(_slim(entry))
        self.rungs.setdefault(entry["trial"], []).append(self.rung_log[-1])
        self._place(entry)

    def _place(self, entry: Mapping[str, Any]) -> None:
        number = entry["trial"]
        if number in self.results:
            self.configs[number] = self.results[number].config
        elif number in self.open:
            self.configs[number] = self.open[number].config
        elif number not in self.configs:
            self.configs[number] = LowFormerConfig.from_dict(entry["config"])

    def settle(self) -> None:
        """Nothing stays open: what has a result is told it, what was cut off waits for a resumed run."""
        for number in list(self.open):
            self._abandon(number)
        for number in self.storage.running(self.study_id):
            if number in self.results:
                self._tell(number, self.results[number])
            else:
                self.set_waiting(number)

    def _tell(self, number: int, result: EvaluationResult) -> None:
        trial_id = self._ids.get(number)
        if trial_id is None:  # enqueued from outside, or written again
            trial_id = self._trial_id(number)
            trial = optuna.Trial(self.study, trial_id)
            budget = self.settings.latency_budget_ms
            trial.set_constraint("latency", (result.quantile_ms - budget) / budget)
            for name, excess in result.details.get("limits", {}).items():
                trial.set_constraint(name, excess)
            self._note(self.storage.get_trial(trial_id))
        told = None
        if result.status == "complete":
            assert result.objective is not None
            told = values(self.settings, result.objective, result.latency_ms)
        states = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL}
        attrs = {"status": result.status, "config_id": result.config_id, "result": result.to_dict()}
        if result.reason:
            attrs["reason"] = result.reason
        self._waiting = [other for other in self._waiting if other != number]
        self.storage.finish(trial_id, states.get(result.status, TrialState.PRUNED), told, attrs)
