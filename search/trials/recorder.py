"""Writes down what happens to trials: to the run folder, which is the truth, then to memory, then to the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.trial import TrialState

from .history import History
from .optuna_study import OptunaStudy, asked_of
from .records import EvaluationResult, Proposal, RungEntry
from .run_folder import RunFolder

# (objective in percent, latency in ms) to the values of the study's objectives
StudyValues = Callable[[float, float], Sequence[float]]


class TrialRecorder:
    """Keeps the three records of a run's trials in agreement: its folder, its history and its study.

    Controls are in the folder and in the history alone: most are no points of the space, so that the study could say
    nothing of them, and they are no candidates for what it looks for.

    Attributes:
        history: what has happened, in memory.
    """

    def __init__(
        self, run: RunFolder, study: OptunaStudy, history: History, budget_ms: float, told: StudyValues
    ) -> None:
        """`told` gives the study's objectives from what was maximized, in percent, and a latency in ms."""
        self.history = history
        self._run, self._study, self._budget_ms, self._told = run, study, budget_ms, told

    def reconcile(self) -> None:
        """Makes the study agree with the run folder, which is the truth. No trial is left RUNNING.

        A trial whose result was written but not told is told; one that was cut off waits to be asked again, under the
        same number; one that the study knows and the file has lost is written again from the study's copy.
        """
        loaded = self._run.load_results()
        controls = [result for result in loaded if result.role == "control"]
        results = {result.trial: result for result in loaded if result.role != "control"}
        rungs = self._run.load_rungs()
        trials = {trial.number: trial for trial in self._study.trials()}
        for trial in trials.values():
            self.history.asked[trial.number] = asked_of(trial)
        for number, trial in trials.items():
            if number in results:
                if not trial.state.is_finished():
                    self._tell(results[number])
            elif trial.state.is_finished():
                if "result" in trial.user_attrs:
                    result = EvaluationResult.from_dict(trial.user_attrs["result"])
                    self._run.append_result(result)
                    results[number] = result
            elif trial.state == TrialState.RUNNING:
                self._study.set_waiting(number)
        first = {entry.trial: entry for entry in reversed(rungs)}
        for number in range(len(trials), max((*results, *first), default=-1) + 1):
            self._restore(number, results.get(number), first.get(number))
        self.history.load([*controls, *results.values()], rungs)

    def _restore(self, number: int, result: EvaluationResult | None, entry: RungEntry | None) -> None:
        """Adds a trial that the study has lost, so that numbers agree."""
        known = result or entry
        if known is None:
            self._study.add_lost()
            return
        _, asked = self._study.add(Proposal(known.config, known.role, known.seed), {})
        self.history.asked[number] = asked
        if result is not None:
            self._tell(result)
        else:
            self._study.set_waiting(number)

    def next_number(self) -> int:
        """The number that the next new trial will get."""
        return len(self._study)

    def waiting(self) -> list[int]:
        """The trials that wait to be asked, also those that were just enqueued from outside."""
        return self._study.waiting()

    def ask(self, number: int) -> optuna.Trial:
        """Takes up a trial that waits."""
        return self._study.ask(number)

    def constrain(self, number: int, constraints: Mapping[str, float]) -> None:
        """Notes by how much a trial that was asked exceeds its limits, if that is not known yet."""
        if not self._study.is_constrained(number):
            self.history.asked[number] = self._study.constrain(number, constraints)

    def add(self, proposal: Proposal, constraints: Mapping[str, float]) -> int:
        """Adds a new trial; gives its number."""
        number, asked = self._study.add(proposal, constraints)
        self.history.asked[number] = asked
        return number

    def write(self, result: EvaluationResult) -> None:
        """Writes the result, then tells the study; in this order, so that nothing told can be lost."""
        self._run.append_result(result)
        self.history.add_result(result)
        if result.role != "control":
            self._tell(result)

    def write_rung(self, entry: RungEntry) -> None:
        """Notes what a trial has reached at a rung."""
        self._run.append_rung(entry)
        self.history.add_rung(entry)

    def close_open_trials(self) -> None:
        """Leaves nothing open: what has a result is told it, what was cut off waits for a resumed run."""
        for number in list(self.history.open):
            self.history.abandon(number)
        for number in self._study.running():
            if number in self.history.results:
                self._tell(self.history.results[number])
            else:
                self._study.set_waiting(number)

    def settle(self, fits: Mapping[str, bool]) -> None:
        """Tells the study which candidates, by their ids, keep the budget by what is known at the end of the search.

        What is measured last may show that the best of those trained do not. A study that cannot be told is no harm.
        """
        trials = {
            result.trial: fits[result.config_id] for result in self.history.complete() if result.config_id in fits
        }
        try:
            self._study.settle(trials)
        except OSError as error:
            self._run.log.warning("the study does not know which candidates turned out to be too slow: %s", error)

    def _tell(self, result: EvaluationResult) -> None:
        excess = (result.quantile_ms - self._budget_ms) / self._budget_ms
        # One that was enqueued from outside or written again has no constraints yet.
        self.constrain(result.trial, {"latency": excess, **result.details.get("limits", {})})
        values = None
        if result.status == "complete":
            assert result.objective is not None
            values = self._told(result.objective, result.latency_ms)
        self._study.finish(result, values)
