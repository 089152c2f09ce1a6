"""Runs the trials: proposes, lets a pool train, records, promotes from rung to rung."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..predictors.accuracy.prior import AccuracyPrior
from ..search_space.config import LowFormerConfig
from ..search_space.space import SearchSpace
from ..search_space.graph.from_config import op_graph
from .latency.correction import Corrected
from .latency.finalists import ROUNDS
from .latency.limits import Limits
from .latency.measurements import Rounds
from .results.outcome import Prediction, SearchStatus
from .settings import SAMPLERS, SearchSettings
from .strategies.base import Evolution, Proposer
from .strategies.feasible import Front, surely_over
from .strategies.rungs import Judged, Rungs
from .strategies.surrogate import Learned
from .training.pools import DIED, RETRIES, STOPPED, Evaluate, Outcome, Pool, open_pool
from .training.proxy_task import candidate_data, train_candidate
from .trials.history import Journal, Proposal
from .trials.records import EvaluationResult, Role
from .trials.run_folder import RunFolder

EXPORT_S = 3.0  # what writing the results takes
LEADERS, LEADER_ROUNDS = 3, 3  # how many of the best so far are measured half-way, and how often

Progress = Callable[[SearchStatus], None]

# What an evaluation's value may hold beside "details" of its own.
_KNOWN = {"status", "reason", "accuracy", "seconds", "history"}

logger = logging.getLogger("lownas.search")


class Reporter:
    """Tells `progress` how far a search is."""

    def __init__(self, progress: Progress | None, total: int, started: float) -> None:
        self._progress = progress
        self._total = total
        self._started = started

    @property
    def wanted(self) -> bool:
        """Whether anyone listens."""
        return self._progress is not None

    def __call__(
        self, phase: str, results: Any = (), running: int = 0, left_s: float | None = None, at_rungs: int = 0
    ) -> None:
        """`at_rungs` trials wait at a rung, beside those with `results`."""
        if self._progress is None:
            return
        results = list(results)
        complete = [result for result in results if result.status == "complete" and result.objective is not None]
        done = sum(result.status in ("complete", "pruned") for result in results) + at_rungs
        self._progress(
            SearchStatus(
                phase=phase,
                done=done,
                total=max(self._total, done),
                running=running,
                failed=sum(result.status == "failed" for result in results),
                best=max(complete, key=lambda result: result.objective, default=None),
                elapsed_s=time.monotonic() - self._started,
                left_s=left_s,
            )
        )


def proposer_of(settings: SearchSettings) -> type[Proposer]:
    """Who proposes candidates under the strategy of `settings`."""
    if settings.strategy_name in SAMPLERS:
        from .strategies.optuna_samplers import Sampled

        return Sampled
    return Learned if settings.strategy_name == "surrogate" else Evolution


@dataclass(frozen=True)
class _Open:
    """A trial that was asked for and has no result yet."""

    number: int
    proposal: Proposal
    prediction: Prediction
    quantile_ms: float


class Driver:
    """The one who asks and tells. `proposer` and `journal` know the rest."""

    def __init__(
        self,
        settings: SearchSettings,
        run: RunFolder,
        space: SearchSpace,
        predictor: Corrected,
        limits: Limits,
        prior: AccuracyPrior,
        evolve: Callable[[], Front],
        front: Front,
        rounds: Rounds,
        report: Reporter,
        started: float,
    ) -> None:
        """`evolve` gives the front again, by the predictor as it is then; `front` is what it gave last."""
        self.settings, self.run, self.space = settings, run, space
        self.predictor, self.limits, self.prior = predictor, limits, prior
        self.burden = limits.with_latency(predictor)
        self.rounds, self._evolve = rounds, evolve
        self._corrected = rounds.taken("leader") or not rounds.possible
        self.report, self.started = report, started
        self.journal = Journal(settings, run, space)
        self.proposer = proposer_of(settings)(settings, space, self.burden, prior, front, self.journal)
        self.rungs = Rungs.of(settings)
        self.cut_short = False  # by Ctrl-C: then nothing takes its time any more
        self.open: dict[int, _Open] = {}
        self._judged: list[dict[int, tuple[float, ...]]] = [{} for _ in range(self.rungs.count)]
        self.training: dict[int, int] = {}  # by trial, the rung that it will be judged at

    def train(self, evaluate: Evaluate, proxy: Mapping[str, Any]) -> bool:
        """Runs trials until the plan is fulfilled; whether it was interrupted (Ctrl-C or the time budget)."""
        self._report("train", 1)
        pool: Pool | None = None
        interrupted, finished = False, False
        try:
            self._reopen()
            self._judged = self._judge()
            if self._decide() is None and not self.journal.waiting_numbers():
                finished = True
                return False
            pool = open_pool(evaluate, self.settings, candidate_data if evaluate is train_candidate else None)
            while True:
                if not pool.pending and self._due_for_correction():
                    self._correct()
                while pool.pending < pool.size and not self._due_for_correction():
                    if self._out_of_time():
                        interrupted = self._decide() is not None or bool(self.journal.waiting_numbers())
                        break
                    if not self._start_next(pool, proxy):
                        break
                if not pool.pending:
                    if self._due_for_correction() and not interrupted:
                        continue
                    finished = not interrupted
                    break
                self._report("train", pool.size)
                outcomes = pool.wait(self._seconds_left())
                for outcome in outcomes:
                    self._record(outcome)
                self._report("train", pool.size)
                if not outcomes and self._out_of_time():
                    interrupted = True
                    break
        except KeyboardInterrupt:
            interrupted = self.cut_short = True
            logger.warning("interrupted")
        finally:
            with suppress(KeyboardInterrupt):
                if pool is not None:
                    pool.close()
            self.training.clear()
            if finished:
                self._close()
            self.journal.settle()
            self.open.clear()
        return interrupted

    # --- what is measured on the way

    def _due_for_correction(self) -> bool:
        """Whether the best so far should be measured: half-way, where the device is at hand and nothing trains."""
        if self._corrected:
            return False
        done = self.journal.statuses["complete"] + self.journal.statuses["pruned"]
        done += sum(number in self.journal.rungs for number in self.open)
        return 2 * done >= self.settings.trials and not self._out_of_time()

    def _correct(self) -> None:
        """Measures the best so far; the predictor learns, and what evolution finds by it is found anew."""
        self._corrected = True
        distinct = {config.id: config for config in self.proposer.leaders()}
        self._report("measure", 1)
        for config in self.rounds.take(list(distinct.values())[:LEADERS], LEADER_ROUNDS, "leader"):
            self.predictor.learn(config, float(np.median(self.rounds.medians_ms(config))))
        logger.info("predictions are taken %.3f times from now on", self.predictor.factor)
        try:
            self.proposer.front = self._evolve()
        except ValueError:  # then the finalists will tell
            self.proposer.nothing_fits = True

    # --- what is next

    def _decide(self) -> Proposal | int | None:
        """A candidate to start, the trial that should go on from its rung, or None if there is nothing to do now."""
        judged: list[Judged] = list(self._judged)
        if (promoted := self.rungs.promotable(judged, self.training, worth=self._worth)) is not None:
            return promoted
        if (proposal := self.proposer.propose(len(self.journal))) is not None:
            return proposal
        if self.rungs.count == 1:
            return None
        if (promoted := self.rungs.promotable(judged, self.training, closing=True, worth=self._worth)) is not None:
            return promoted
        return None if self.training else self.proposer.repeat(len(self.journal))

    def _start_next(self, pool: Pool, proxy: Mapping[str, Any]) -> bool:
        """Starts what is next, or settles it without training; whether there was anything."""
        if waiting := self.journal.waiting_numbers():
            trial = self._ask(waiting[0])
        else:
            decision = self._decide()
            if decision is None:
                return False
            if isinstance(decision, int):
                self._submit(self.open[decision], pool, proxy)
                return True
            trial = self._add(decision)
        self._begin(trial)
        if trial.number not in self.journal.rungs and not self._settled(trial):
            self._submit(trial, pool, proxy)
        return True

    def _reopen(self) -> None:
        """Trials of an interrupted run that wait at a rung wait there again."""
        for number in self.journal.waiting_numbers():
            if number in self.journal.rungs:
                self._begin(self._ask(number))

    def _begin(self, trial: _Open) -> None:
        self.open[trial.number] = trial
        self.journal.begin(trial.number, trial.proposal)

    def _ask(self, number: int) -> _Open:
        """A trial that waited: it was cut off, or enqueued from outside."""
        trial = self.journal.ask(number)
        config = self.space.suggest(trial)
        role = trial.user_attrs.get("role", "enqueued")
        seed = trial.user_attrs.get("seed", self.proposer.training_seed(trial.number))
        if role not in get_args(Role):
            raise ValueError(
                f"trial {number} of the study has the role {role!r}, allowed are {', '.join(get_args(Role))}"
            )
        if not isinstance(seed, int) or seed < 0:
            raise ValueError(f"trial {number} of the study has the seed {seed!r}, allowed are whole numbers from 0 on")
        proposal = Proposal(config, role, seed)
        prediction, quantile_ms = self._predict(config)
        self.journal.note_asked(trial, self._constraints(config, quantile_ms))
        return _Open(number, proposal, prediction, quantile_ms)

    def _add(self, proposal: Proposal) -> _Open:
        """A new trial."""
        prediction, quantile_ms = self._predict(proposal.config)
        number = self.journal.add(proposal, self._constraints(proposal.config, quantile_ms))
        return _Open(number, proposal, prediction, quantile_ms)

    def _constraints(self, config: LowFormerConfig, quantile_ms: float) -> dict[str, float]:
        """By how much of it a candidate exceeds the budget, and each limit."""
        budget_ms = self.settings.latency_budget_ms
        return {"latency": (quantile_ms - budget_ms) / budget_ms, **self.limits.excess(config)}

    def _predict(self, config: LowFormerConfig) -> tuple[Prediction, float]:
        quantile_ms = float(self.predictor.quantile_ms([config], self.settings.confidence)[0])
        return self.predictor.predict([config])[0], quantile_ms

    def _judge(self) -> list[dict[int, tuple[float, ...]]]:
        """For each rung what is maximized there, of the trials that did not fail; second seeds take no part."""
        judged: list[dict[int, tuple[float, ...]]] = [{} for _ in range(self.rungs.count)]
        for entry in self.journal.rung_log:  # second seeds have none
            number = entry["trial"]
            result = self.journal.results.get(number)
            if number in self.open:
                latency_ms = self.open[number].prediction.latency_ms
            elif result is not None and result.status in ("complete", "pruned"):
                latency_ms = result.latency_ms
            else:
                continue
            judged[entry["rung"]][number] = self._maximized(entry["accuracy"], latency_ms)
        for result in self.journal.result_log:
            if result.status == "complete" and result.trial in self.journal.rungs:
                judged[-1][result.trial] = self._maximized(result.accuracy or 0.0, result.latency_ms)
        return judged

    def _worth(self, rung: int, trials: Sequence[int]) -> NDArray[np.float64]:
        """(n, objectives) what trials judged at a rung are compared by: on the user's data as all trainings tell, else
        by the prior."""
        worth = np.array([self._judged[rung][number] for number in trials], dtype=np.float64)
        configs = [self.journal.configs[number] for number in trials]
        if self.settings.data is None:
            worth[:, 0] = self.prior.imagenet_top1(configs)
        elif (learned := self.proposer.experience.worth(configs)) is not None:
            worth[:, 0] = learned
        return worth

    def _maximized(self, accuracy: float, latency_ms: float) -> tuple[float, ...]:
        return (accuracy, -latency_ms) if self.settings.pareto else (accuracy,)

    def _settled(self, trial: _Open) -> bool:
        """Whether the trial has its result without training: it is surely over the budget, or known already."""
        if trial.proposal.role == "repeat":
            return False
        over = surely_over(np.array([trial.quantile_ms]), self.settings.latency_budget_ms)[0]
        if over:
            reason = f"latency {trial.quantile_ms:.4g} ms at confidence {self.settings.confidence:g} is over the budget"
            self._finish(EvaluationResult(status="infeasible", reason=reason, **self._facts(trial)))
            return True
        if reason := self.limits.reason(trial.proposal.config):
            self._finish(EvaluationResult(status="infeasible", reason=reason, **self._facts(trial)))
            return True
        config_id = trial.proposal.config.id
        if self.journal.tried[config_id] == 1:
            return False  # never seen before
        deadly = next(
            (r for r in self.journal.results.values() if r.config_id == config_id and r.reason in (DIED, STOPPED)), None
        )
        if deadly is not None:
            reason = f"not tried again: trial {deadly.trial}, the same network, killed {RETRIES + 1} workers"
            self._finish(EvaluationResult(status="failed", reason=reason, **self._facts(trial)))
            return True
        known = next((result for result in self.journal.complete() if result.config_id == config_id), None)
        if known is None:
            return False
        facts = {**self._facts(trial), "seed": known.seed}
        reason = f"the same as trial {known.trial}"
        self._finish(EvaluationResult(status="complete", reason=reason, accuracy=known.accuracy, **facts))
        return True

    def _submit(self, trial: _Open, pool: Pool, proxy: Mapping[str, Any]) -> None:
        """Gives the trial to the pool as plain values, to be trained up to its next rung; second seeds to the end."""
        rung = self.rungs.last if trial.proposal.role == "repeat" else len(self.journal.rungs.get(trial.number, ()))
        self.training[trial.number] = rung
        pool.submit(
            {
                "trial": trial.number,
                "config": trial.proposal.config.to_dict(),
                "seed": trial.proposal.seed,
                "data": self.settings.data or "formula",
                "init_from": self.settings.init_from,
                "proxy": dict(proxy),
                "until": self.rungs.shares[rung],
                "state": str(self.run.state_path(trial.number).resolve()) if self.rungs.count > 1 else None,
            }
        )

    # --- what has come of it

    def _record(self, outcome: Outcome) -> None:
        trial = self.open[outcome.trial]
        rung = self.training.pop(trial.number)
        value = outcome.value or {}
        error = outcome.error
        accuracy = None
        if not error:
            accuracy = value.get("accuracy")
            if accuracy is None or not np.isfinite(accuracy):
                error = str(value.get("reason") or "") or f"the accuracy is {accuracy}"
        seconds = float(value.get("seconds", 0.0))
        if not error and rung < self.rungs.last:
            entry: dict[str, Any] = {
                "trial": trial.number,
                "rung": rung,
                "share": self.rungs.shares[rung],
                "accuracy": float(accuracy or 0.0),
                "seconds": seconds,
                "role": trial.proposal.role,
                "seed": trial.proposal.seed,
                "config": trial.proposal.config.to_dict(),
            }
            self.journal.write_rung(entry)
            self._judged[rung][trial.number] = self._maximized(entry["accuracy"], trial.prediction.latency_ms)
            logger.info("trial %d at rung %d: accuracy %.4f, %.1f s", trial.number, rung, entry["accuracy"], seconds)
            return
        earlier = self.journal.rungs.get(trial.number, [])
        details = {name: value[name] for name in sorted(set(value) - _KNOWN)}
        if earlier:
            details["rungs"] = _reached(earlier)
        self._finish(
            EvaluationResult(
                status="failed" if error else "complete",
                reason=error,
                accuracy=None if error or accuracy is None else float(accuracy),
                seconds=seconds + sum(entry["seconds"] for entry in earlier),
                history=tuple(dict(entry) for entry in value.get("history", ())),
                details=details,
                **self._facts(trial),
            )
        )

    def _facts(self, trial: _Open) -> dict[str, Any]:
        config = trial.proposal.config
        graph = op_graph(config)
        return {
            "trial": trial.number,
            "role": trial.proposal.role,
            "config": config,
            "config_id": config.id,
            "seed": trial.proposal.seed,
            "prior_top1": float(self.prior.imagenet_top1([config])[0]),
            "latency_ms": float(trial.prediction.latency_ms),
            "low_ms": float(trial.prediction.low_ms),
            "high_ms": float(trial.prediction.high_ms),
            "quantile_ms": trial.quantile_ms,
            "macs": graph.macs,
            "params": graph.params,
        }

    def _finish(self, result: EvaluationResult) -> None:
        if self.limits:
            excess = {name: round(share, 4) for name, share in self.limits.excess(result.config).items()}
            result = result.model_copy(update={"details": {**result.details, "limits": excess}})
        if result.status == "complete":
            result = result.model_copy(update={"objective": self.proposer.reached(result)})
        self.journal.write(result)
        if result.status == "failed":
            for judged in self._judged:
                judged.pop(result.trial, None)
        elif result.status == "complete" and result.trial in self.journal.rungs:
            self._judged[-1][result.trial] = self._maximized(result.accuracy or 0.0, result.latency_ms)
        del self.open[result.trial]
        self.run.state_path(result.trial).unlink(missing_ok=True)
        logger.info(
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
        """What still waits at a rung, with nothing left to do, was stopped there."""
        for number, trial in list(self.open.items()):
            entries = self.journal.rungs.get(number)
            if entries:
                last = entries[-1]
                reason = f"stopped after {last['share']:.2g} of the training, at an accuracy of {last['accuracy']:.3f}"
                self._finish(
                    EvaluationResult(
                        status="pruned",
                        reason=reason,
                        seconds=sum(entry["seconds"] for entry in entries),
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
        after_s = self.rounds.expected_s(self.settings.finalists, ROUNDS) + min(EXPORT_S, 0.05 * budget_s)
        return max(0.0, budget_s - after_s - (time.monotonic() - self.started))

    def _out_of_time(self) -> bool:
        left = self._seconds_left()
        return left is not None and left <= self._typical_s()

    def _typical_s(self) -> float:
        """Of a training, or where there are rungs, of the time from one to the next."""
        seconds = [result.seconds for result in self.journal.complete()] if self.rungs.count == 1 else []
        seconds += [entry["seconds"] for entries in self.journal.rungs.values() for entry in entries]
        return float(np.median(seconds)) if seconds else 0.0

    def _report(self, phase: str, size: int) -> None:
        if not self.report.wanted:
            return
        left = self.settings.trials + self.settings.repeats - len(self.journal.complete())
        typical = self._typical_s()
        left_s = typical * max(left, 0) / max(size, 1) if typical and self.rungs.count == 1 else None
        at_rungs = sum(number in self.journal.rungs for number in self.open)
        self.report(phase, self.journal.results.values(), len(self.training), left_s, at_rungs)


def _reached(entries: list[Mapping[str, Any]]) -> list[dict[str, float]]:
    return [{name: entry[name] for name in ("share", "accuracy", "seconds")} for entry in entries]
