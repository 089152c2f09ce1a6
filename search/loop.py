"""The trial loop: asks for candidates, lets a pool train them, records what came of it, promotes from rung to rung."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..evaluators.data.sources import Data
from ..evaluators.tasks import Task
from ..search_space.config import DEFAULT_HEAD, LowFormerConfig
from ..search_space.graph.from_config import op_graph
from ..search_space.heads import Head, head
from ..search_space.presets import published_name
from .latency.tracker import Cost, LatencyTracker
from .randomness import training_seed
from .settings import SearchSettings
from .strategies.base import SearchState
from .strategies.rungs import Rungs, RungScores
from .strategies.schedule import Schedule
from .training.opening import open_pool
from .training.pool import DIED, RETRIES, STOPPED, TrainingPool
from .training.task import Evaluate, SharedInput, TaskOutcome, TrainingTask
from .trials.recorder import TrialRecorder
from .trials.records import EvaluationResult, Proposal, Role, RungEntry
from .trials.run_folder import RunFolder
from .trials.status import Phase, Reporter

EXPORT_S = 3.0  # what writing the results takes; of a short time budget at most EXPORT_SHARE
EXPORT_SHARE = 0.05

# Sees each trial when it ends; the search ends, as if interrupted, if it gives True.
Callback = Callable[[EvaluationResult], "bool | None"]


@dataclass(frozen=True)
class OpenTrial:
    """A trial that was asked for and has no result yet: it trains, or waits at a rung."""

    number: int
    proposal: Proposal
    cost: Cost


@dataclass(frozen=True)
class TrainingSetup:
    """How the candidates of a run are trained: by whom, on what, as the plan says, and with what workers share."""

    evaluate: Evaluate
    proxy: Mapping[str, Any]
    data: Data
    task: str | Task = "classification"
    share: SharedInput | None = None


class TrialLoop:
    """Runs the trials of a search and owns all updates of its records.

    Which candidate comes next depends on the settings, the trial's number and the results so far, and on nothing else;
    so a run that was interrupted goes on as if it had not been.

    Attributes:
        cut_short: whether Ctrl-C ended it; then nothing takes its time any more.
    """

    def __init__(
        self,
        settings: SearchSettings,
        run: RunFolder,
        recorder: TrialRecorder,
        schedule: Schedule,
        rungs: Rungs,
        latency: LatencyTracker,
        report: Reporter,
        started: float,
        callback: Callback | None = None,
    ) -> None:
        """`started` is in seconds of `time.monotonic`."""
        self.settings, self.run, self.recorder, self.latency = settings, run, recorder, latency
        self.schedule, self.rungs, self.report, self.started = schedule, rungs, report, started
        self.state: SearchState = schedule.state
        self.history, self.objective = recorder.history, schedule.state.objective
        self.cut_short = False
        self._callback, self._stopped = callback, False
        self._open: dict[int, OpenTrial] = {}
        self._judged: list[dict[int, tuple[float, ...]]] = [{} for _ in range(rungs.count)]
        self._training: dict[int, int] = {}  # by trial, the rung that it will be judged at

    def train(self, training: TrainingSetup) -> bool:
        """Runs trials until the plan is fulfilled; whether it was stopped before (Ctrl-C, time budget, callback)."""
        self._report("train", 1)
        pool: TrainingPool | None = None
        stopped, finished = False, False
        try:
            self._reopen()
            self._judged = self._judge()
            if self._decide() is None and not self.recorder.waiting():
                finished = True
                return False
            pool = open_pool(training.evaluate, self.settings, self.run.log, training.share)
            stopped = self._run_trials(pool, training)
            finished = not stopped
        except KeyboardInterrupt:
            stopped = self.cut_short = True
            self.run.log.warning("interrupted")
        finally:
            with suppress(KeyboardInterrupt):
                if pool is not None:
                    pool.close()
            self._training.clear()
            if finished:
                self._close()
            self.recorder.close_open_trials()
            self._open.clear()
        return stopped

    def _run_trials(self, pool: TrainingPool, training: TrainingSetup) -> bool:
        """Keeps the pool busy until there is nothing left to do; whether it was stopped before."""
        while True:
            if not pool.pending and self._due_for_leaders():
                self._measure_leaders()
            stopped = self._fill(pool, training)
            if not pool.pending:
                if self._due_for_leaders() and not stopped:
                    continue
                return stopped
            self._report("train", pool.size)
            outcomes = pool.wait(self._seconds_left())
            for outcome in outcomes:
                self._record(outcome)
            self._report("train", pool.size)
            if self._stopped or (not outcomes and self._out_of_time()):
                return True

    def _fill(self, pool: TrainingPool, training: TrainingSetup) -> bool:
        """Starts trials as long as the pool has room; whether time has run out before all were started."""
        while pool.pending < pool.size and not self._due_for_leaders():
            if self._stopped:
                return True
            if self._out_of_time():
                return self._decide() is not None or bool(self.recorder.waiting())
            if not self._start_next(pool, training):
                break
        return False

    # --- what is measured on the way

    def _due_for_leaders(self) -> bool:
        """Whether the best so far should be measured: half-way, where the device is at hand and nothing trains."""
        if not self.latency.leaders_due:
            return False
        done = self.history.statuses["complete"] + self.history.statuses["pruned"]
        done += sum(number in self.history.rungs for number in self._open)
        return 2 * done >= self.settings.trials and not self._out_of_time()

    def _measure_leaders(self) -> None:
        """Measures the best so far; the predictor learns, and candidates are found anew by it."""
        leaders = self.objective.leaders(self.history, self.state.surrogate, self.state.pool)
        self._report("measure", 1)
        self.latency.measure_leaders(leaders)
        self.state.pool.renew()

    # --- what is next

    def _decide(self) -> Proposal | int | None:
        """A candidate to start, the trial that should go on from its rung, or None if there is nothing to do now."""
        judged: list[RungScores] = list(self._judged)
        if (promoted := self.rungs.promotable(judged, self._training, worth=self._worth)) is not None:
            return promoted
        if (proposal := self.schedule.propose(self.recorder.next_number())) is not None:
            return proposal
        if self.rungs.count == 1:
            return None
        if (promoted := self.rungs.promotable(judged, self._training, closing=True, worth=self._worth)) is not None:
            return promoted
        return None if self._training else self.schedule.second_seed(self.recorder.next_number())

    def _start_next(self, pool: TrainingPool, training: TrainingSetup) -> bool:
        """Starts what is next, or settles it without training; whether there was anything."""
        if waiting := self.recorder.waiting():
            trial = self._ask(waiting[0])
        else:
            decision = self._decide()
            if decision is None:
                return False
            if isinstance(decision, int):
                self._submit(self._open[decision], pool, training)
                return True
            trial = self._add(decision)
        self._begin(trial)
        if trial.number not in self.history.rungs and not self._finished_without_training(trial):
            self._submit(trial, pool, training)
        return True

    def _reopen(self) -> None:
        """Lets the trials of an interrupted run that waited at a rung wait there again."""
        for number in self.recorder.waiting():
            if number in self.history.rungs:
                self._begin(self._ask(number))

    def _begin(self, trial: OpenTrial) -> None:
        self._open[trial.number] = trial
        self.history.begin(trial.number, trial.proposal)

    def _ask(self, number: int) -> OpenTrial:
        """Takes up a trial that waited: it was cut off, or enqueued from outside."""
        asked = self.recorder.ask(number)
        config = self.state.pool.space.suggest(asked)
        role = asked.user_attrs.get("role", "enqueued")
        seed = asked.user_attrs.get("seed", training_seed(self.settings.seed, number))
        if role not in get_args(Role):
            raise ValueError(
                f"trial {number} of the study has the role {role!r}, allowed are {', '.join(get_args(Role))}"
            )
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"trial {number} of the study has the seed {seed!r}, allowed are whole numbers from 0 on")
        cost = self.latency.cost(config)
        self.recorder.constrain(number, self.latency.excess(config, cost))
        return OpenTrial(number, Proposal(config, role, seed), cost)

    def _add(self, proposal: Proposal) -> OpenTrial:
        """Makes a new trial of a proposal; a control gets a number of its own, and is none of the study's."""
        cost = self.latency.cost(proposal.config)
        if proposal.role == "control":
            number = self.schedule.next_control()
            assert number is not None  # the schedule has just proposed it
            return OpenTrial(number, proposal, cost)
        number = self.recorder.add(proposal, self.latency.excess(proposal.config, cost))
        return OpenTrial(number, proposal, cost)

    def _judge(self) -> list[dict[int, tuple[float, ...]]]:
        """For each rung what trials that did not fail are compared by there; second seeds take no part."""
        judged: list[dict[int, tuple[float, ...]]] = [{} for _ in range(self.rungs.count)]
        for entry in self.history.rung_log:  # second seeds have none
            result = self.history.results.get(entry.trial)
            if entry.trial in self._open or (result is not None and result.status in ("complete", "pruned")):
                judged[entry.rung][entry.trial] = self._at_rung(entry)
        for result in self.history.result_log:
            if result.status == "complete" and result.trial in self.history.rungs:
                judged[-1][result.trial] = self._at_the_end(result)
        return judged

    def _at_rung(self, entry: RungEntry) -> tuple[float, ...]:
        """What a trial is compared by at a rung; its latency is that predicted when it began, also after a resume."""
        latency_ms = entry.latency_ms
        if latency_ms is None:  # a file of an early version
            waiting = self._open.get(entry.trial)
            known = self.history.results[entry.trial] if waiting is None else waiting.cost.predicted
            latency_ms = float(known.latency_ms)
        return self.objective.goal.comparable(entry.accuracy, latency_ms)

    def _at_the_end(self, result: EvaluationResult) -> tuple[float, ...]:
        """What a trial is compared by that was trained to the end."""
        latency_ms = result.latency_ms if result.predicted_ms is None else result.predicted_ms
        return self.objective.goal.comparable(result.accuracy or 0.0, latency_ms)

    def _worth(self, rung: int, trials: Sequence[int]) -> NDArray[np.float64]:
        """(n, objectives) what trials judged at a rung are compared by, as the objective sees them."""
        worth = np.array([self._judged[rung][number] for number in trials], dtype=np.float64)
        configs = [self.history.rungs[number][0].config for number in trials]
        worth[:, 0] = self.objective.at_rung(configs, worth[:, 0], self.state.surrogate)
        return worth

    def _finished_without_training(self, trial: OpenTrial) -> bool:
        """Whether the trial has its result without training: it is over a limit, known already, or kills workers."""
        if trial.proposal.role in ("repeat", "control"):
            return False
        config = trial.proposal.config
        if reason := self.latency.infeasible(config, trial.cost):
            self._finish(EvaluationResult(status="infeasible", reason=reason, **self._facts(trial)))
            return True
        if self.history.tried[config.id] == 1:
            return False  # never seen before
        earlier = [result for result in self.history.results.values() if result.config_id == config.id]
        deadly = next((result for result in earlier if result.reason in (DIED, STOPPED)), None)
        if deadly is not None:
            reason = f"not tried again: trial {deadly.trial}, the same network, killed {RETRIES + 1} workers"
            self._finish(EvaluationResult(status="failed", reason=reason, **self._facts(trial)))
            return True
        known = next((result for result in earlier if result.status == "complete"), None)
        if known is None:
            return False
        facts = {**self._facts(trial), "seed": known.seed}
        reason = f"the same as trial {known.trial}"
        self._finish(EvaluationResult(status="complete", reason=reason, accuracy=known.accuracy, **facts))
        return True

    def _submit(self, trial: OpenTrial, pool: TrainingPool, training: TrainingSetup) -> None:
        """Gives the trial to the pool, to be trained up to its next rung; second seeds and controls to the end."""
        to_the_end = trial.proposal.role in ("repeat", "control")
        rung = self.rungs.last if to_the_end else len(self.history.rungs.get(trial.number, ()))
        self._training[trial.number] = rung
        pool.submit(
            TrainingTask(
                trial=trial.number,
                config=trial.proposal.config,
                seed=trial.proposal.seed,
                data=training.data,
                proxy=training.proxy,
                task=training.task,
                head=_travelling_head(trial.proposal.config),
                init_from=self.settings.init_from,
                until=self.rungs.shares[rung],
                state=str(self.run.state_path(trial.number).resolve()) if self.rungs.count > 1 else None,
            )
        )

    # --- what has come of it

    def _record(self, outcome: TaskOutcome) -> None:
        """Writes down what came of a task: an entry at a rung, or the trial's result."""
        trial = self._open[outcome.trial]
        rung = self._training.pop(trial.number)
        found = outcome.evaluation
        error = outcome.error or (found.failure if found is not None else "")
        seconds = 0.0 if found is None else float(found.seconds)
        accuracy = None if error or found is None or found.accuracy is None else float(found.accuracy)
        if accuracy is not None and rung < self.rungs.last:
            self._record_rung(trial, rung, accuracy, seconds)
            return
        earlier = self.history.rungs.get(trial.number, [])
        details: dict[str, Any] = {} if found is None else dict(found.details)
        if found is not None and found.loss is not None:
            details["loss"] = found.loss
        if earlier:
            details["rungs"] = _reached(earlier)
        self._finish(
            EvaluationResult(
                status="failed" if error else "complete",
                reason=error,
                accuracy=accuracy,
                seconds=seconds + sum(entry.seconds for entry in earlier),
                history=() if found is None else tuple(dict(entry) for entry in found.history),
                details=details,
                **self._facts(trial),
            )
        )

    def _record_rung(self, trial: OpenTrial, rung: int, accuracy: float, seconds: float) -> None:
        entry = RungEntry(
            trial=trial.number,
            rung=rung,
            share=self.rungs.shares[rung],
            accuracy=accuracy,
            seconds=seconds,
            latency_ms=float(trial.cost.predicted.latency_ms),
            role=trial.proposal.role,
            seed=trial.proposal.seed,
            config=trial.proposal.config,
        )
        self.recorder.write_rung(entry)
        self._judged[rung][trial.number] = self._at_rung(entry)
        self.run.log.info("trial %d at rung %d: accuracy %.4f, %.1f s", trial.number, rung, accuracy, seconds)

    def _facts(self, trial: OpenTrial) -> dict[str, Any]:
        config = trial.proposal.config
        graph = op_graph(config)
        return {
            "trial": trial.number,
            "role": trial.proposal.role,
            "config": config,
            "config_id": config.id,
            "seed": trial.proposal.seed,
            "prior_top1": float(self.objective.prior.imagenet_top1([config])[0]),
            **self.latency.known_latency(config, trial.cost),
            "quantile_ms": trial.cost.quantile_ms,
            "macs": graph.macs,
            "params": graph.params,
        }

    def _finish(self, result: EvaluationResult) -> None:
        """Writes down the result of an open trial."""
        if self.latency.limits:
            excess = {name: round(share, 4) for name, share in self.latency.limits.excess(result.config).items()}
            result = result.model_copy(update={"details": {**result.details, "limits": excess}})
        if result.role == "control":
            result = result.model_copy(update={"details": {**result.details, "model": published_name(result.config)}})
        elif result.status == "complete":
            details = {**result.details, **self.objective.details(result.config)}
            reached = self.objective.reached(result, self.history)
            result = result.model_copy(update={"objective": reached, "details": details})
        self.recorder.write(result)
        if result.status == "failed":
            for judged in self._judged:
                judged.pop(result.trial, None)
        elif result.status == "complete" and result.trial in self.history.rungs:
            self._judged[-1][result.trial] = self._at_the_end(result)
        del self._open[result.trial]
        self.run.state_path(result.trial).unlink(missing_ok=True)
        self._log_result(result)
        if self._callback is not None and self._callback(result):
            self._stopped = True

    def _log_result(self, result: EvaluationResult) -> None:
        self.run.log.info(
            "trial %d %s %s %s: accuracy %s, objective %s, %.3f ms (quantile %.3f), %.0f M MACs, %.1f s %s",
            result.trial,
            result.role,
            result.config_id,
            result.status,
            result.accuracy,
            result.objective,
            result.latency_ms,
            result.quantile_ms,
            result.macs / 1e6,
            result.seconds,
            result.reason,
        )

    def _close(self) -> None:
        """Ends the trials that still wait at a rung, with nothing left to do: they were stopped there."""
        for number, trial in list(self._open.items()):
            entries = self.history.rungs.get(number)
            if entries:
                last = entries[-1]
                reason = f"stopped after {last.share:.2g} of the training, at an accuracy of {last.accuracy:.3f}"
                self._finish(
                    EvaluationResult(
                        status="pruned",
                        reason=reason,
                        seconds=sum(entry.seconds for entry in entries),
                        details={"rungs": _reached(entries)},
                        **self._facts(trial),
                    )
                )

    # --- time

    def _seconds_left(self) -> float | None:
        """Until the finalists must be measured, so that the time budget holds."""
        if self.settings.time_budget_s is None:
            return None
        budget_s = self.settings.time_budget_s
        after_s = self.latency.finalists_s() + min(EXPORT_S, EXPORT_SHARE * budget_s)
        return max(0.0, budget_s - after_s - (time.monotonic() - self.started))

    def _out_of_time(self) -> bool:
        left = self._seconds_left()
        return left is not None and left <= self._typical_s()

    def _typical_s(self) -> float:
        """What a training takes, or where there are rungs, the part from one to the next."""
        seconds = [result.seconds for result in self.history.complete()] if self.rungs.count == 1 else []
        seconds += [result.seconds for result in self.history.controls.values()] if self.rungs.count == 1 else []
        seconds += [entry.seconds for entry in self.history.rung_log]
        return float(np.median(seconds)) if seconds else 0.0

    def _report(self, phase: Phase, size: int) -> None:
        if not self.report.wanted:
            return
        planned = self.settings.trials + self.schedule.repeats + len(self.schedule.controls)
        left = planned - len(self.history.complete()) - len(self.history.controls)
        typical = self._typical_s()
        left_s = typical * max(left, 0) / max(size, 1) if typical and self.rungs.count == 1 else None
        at_rungs = sum(number in self.history.rungs for number in self._open)
        self.report(phase, self.history.with_controls(), len(self._training), left_s, at_rungs)


def _travelling_head(config: LowFormerConfig) -> Head | None:
    """The head of a candidate where workers may not know it: one that was registered in this process."""
    return None if config.head == DEFAULT_HEAD else head(config.head)


def _reached(entries: list[RungEntry]) -> list[dict[str, float]]:
    return [{"share": entry.share, "accuracy": entry.accuracy, "seconds": entry.seconds} for entry in entries]
