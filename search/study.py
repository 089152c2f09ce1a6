"""The search itself: one driver that talks to the Optuna study, and a pool that evaluates what it proposes.

Which candidate comes next depends on the settings, the trial's number and the results so far, and on nothing else; so a
run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState
from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]
from sqlalchemy import event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from ..predictors.accuracy import AccuracyPrior
from ..search_space.config import LowFormerConfig
from ..search_space.graph import op_graph
from ..search_space.presets import PRESETS
from ..search_space.space import SearchSpace
from .evaluation import plan_proxy, train_candidate, training_budget_s
from .objective import Objective, Reliability, observations
from .result import EvaluationResult, Role
from .run import RunFolder
from .settings import SearchSettings
from .strategy import (
    Front,
    check_budget,
    children,
    evolve_front,
    fastest,
    feasible_share,
    most_varied,
    slowest,
    surely_over,
)
from .workers import Evaluate, Outcome, Pool, open_pool

STUDY_NAME = "lownas"
OVERHEAD_S = 45.0  # proposing, timing the proxy, starting workers, exporting
USED = 0.9  # without the user's data, the answer uses at least this share of the budget where a good candidate does

ROUNDS = 5  # measurements of a finalist, each in a session of its own

logger = logging.getLogger("lownas.search")

# What an evaluation's value may hold beside "details" of its own.
_KNOWN = {"status", "reason", "accuracy", "seconds", "history"}

Plan = Callable[[SearchSettings, Sequence[LowFormerConfig]], Mapping[str, Any]]


class Prediction(Protocol):
    """What the search needs of a `LatencyPrediction`."""

    @property
    def latency_ms(self) -> float: ...
    @property
    def low_ms(self) -> float: ...
    @property
    def high_ms(self) -> float: ...


class Predictor(Protocol):
    """What the search needs of a `LatencyPredictor`."""

    def predict(self, items: Sequence[LowFormerConfig], /) -> Sequence[Prediction]: ...
    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float, /) -> NDArray[np.float64]: ...


class Measurement(Protocol):
    """What the search needs of a `LatencyMeasurement`."""

    @property
    def median_ms(self) -> float: ...
    @property
    def iqr_ms(self) -> float: ...


Measure = Callable[[LowFormerConfig], Measurement]


@dataclass(frozen=True)
class Candidate:
    """A trained candidate, as known when the search ended.

    Attributes:
        trial: of its first training.
        objective: what was maximized, in percent.
        accuracy: mean proxy accuracy over its seeds, 0 to 1.
        prior_top1: ImageNet top-1 in percent that the prior expects; `extrapolated` if outside the published models.
        latency_ms, low_ms, high_ms: measured (median and range of the rounds' medians) or predicted (with the interval
            at coverage 0.9), as `latency_source` says.
        predicted_ms: predicted latency.
        quantile_ms: the predicted latency quantile that is held against the budget.
    """

    trial: int
    config: LowFormerConfig
    objective: float
    accuracy: float
    prior_top1: float
    extrapolated: bool
    latency_ms: float
    low_ms: float
    high_ms: float
    latency_source: str
    predicted_ms: float
    quantile_ms: float
    macs: int
    params: int
    seeds: int


@dataclass(frozen=True)
class SearchOutcome:
    """What a search found.

    Attributes:
        answer: the best candidate within the budget, or None (nothing was trained, or nothing fits when measured).
        candidates: all trained candidates, the best objective first.
        reliability: of the proxy, measured in this run.
        notes: what a reader must know, in plain sentences.
        counts: results by status.
        interrupted: stopped by Ctrl-C or the time budget before all trials were done.
    """

    run: Path
    settings: SearchSettings
    answer: Candidate | None
    candidates: tuple[Candidate, ...]
    reliability: Reliability
    notes: tuple[str, ...]
    counts: Mapping[str, int]
    interrupted: bool
    seconds: float


@dataclass(frozen=True)
class SearchStatus:
    """How far a search is. `phase` is one of "propose", "plan", "train", "measure", "done"."""

    phase: str
    done: int
    total: int
    running: int
    failed: int
    best: EvaluationResult | None
    elapsed_s: float
    left_s: float | None


Progress = Callable[[SearchStatus], None]


@dataclass(frozen=True)
class DryRun:
    """What a search would do: points of the space, share of random samples within the budget, fastest and slowest model
    (latency quantile in ms), trainings, and expected seconds."""

    size: int
    feasible_share: float
    fastest_ms: float
    slowest_ms: float
    trainings: int
    expected_s: float


@dataclass(frozen=True)
class _Proposal:
    config: LowFormerConfig
    role: Role
    seed: int


@dataclass
class _Running:
    trial: optuna.Trial
    proposal: _Proposal
    prediction: Prediction
    quantile_ms: float


def search(
    settings: SearchSettings,
    *,
    predictor: Predictor,
    space: SearchSpace,
    resume: bool = False,
    evaluate: Evaluate = train_candidate,
    plan: Plan = plan_proxy,
    prior: AccuracyPrior | None = None,
    measure: Measure | None = None,
    rest_s: float = 0.0,
    progress: Progress | None = None,
    about: Mapping[str, Any] | None = None,
) -> SearchOutcome:
    """Searches, leaving everything in the run folder.

    Args:
        predictor: of the target.
        space: of the candidates, `settings.resolution` already applied.
        resume: go on with the run in `settings.run`; its proxy plan is kept.
        evaluate: trains a candidate: a task (see `_task`) to a mapping with "accuracy" (0 to 1), and optionally
            "history" and "seconds". Default: proxy training.
        plan: chooses the proxy training once per run, given a few candidates from small to large: JSON values, kept in
            run.json and handed to every task. Default: the proxy's own.
        measure: measures the latency of a finalist, where the target is at hand.
        rest_s: seconds between two measurements of a finalist; a machine's speed drifts over some seconds.
        about: further facts for run.json, as JSON values (the predictor's provenance, say).

    Raises:
        ValueError: the request is wrong: a budget below the fastest model, a run that exists or has another driver.
        OSError: the run folder cannot be written.
        RuntimeError: every candidate failed.
    """
    started = time.monotonic()
    with RunFolder.open(settings.run, resume=resume) as run:
        if resume:
            settings.check_resumable_from(run.settings)
        report = _Reporter(progress, settings.trials + settings.repeats, started)
        report("propose")
        began = "resumed" if resume else "started"
        logger.info("%s: %s within %g ms", began, settings.target, settings.latency_budget_ms)
        _check_storage(settings.storage)
        check_budget(
            space, predictor, settings.latency_budget_ms, _rng(settings, "fastest"), confidence=settings.confidence
        )
        prior = prior or AccuracyPrior()
        front = evolve_front(
            space,
            predictor,
            prior.imagenet_top1,
            settings.latency_budget_ms,
            _rng(settings, "front"),
            confidence=settings.confidence,
            evaluations=settings.evaluations,
            seeds=[preset for preset in PRESETS.values() if preset in space],
            excluded=prior.beyond,
        )
        logger.info("scored %d configurations, %d of them feasible and distinct", front.scored, len(front.configs))
        if resume:
            proxy = run.about.get("proxy", {})
        else:
            report("plan")
            proxy = dict(plan(settings, _typical(front, settings.trials)))
            run.write_about(settings, proxy=proxy, scored=front.scored, **(about or {}))
        driver = _Driver(settings, run, space, predictor, prior, front, report, started)
        driver.reconcile()
        interrupted = driver.train(evaluate, proxy)
        outcome = driver.conclude(measure, rest_s=rest_s, interrupted=interrupted)
        report("done", driver.results.values())
        return outcome


def _check_storage(url: str | None) -> None:
    """Raises ValueError for a URL that no database driver here understands, without the password that it may hold."""
    if url is None:
        return
    try:
        make_url(url).get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        reason = str(error).splitlines()[0]
        scheme = url.partition("://")[0]
        raise ValueError(
            f"storage {scheme + '://...'!r}: not a database URL that can be opened here: {reason}"
        ) from None


def dry_run(settings: SearchSettings, *, predictor: Predictor, space: SearchSpace) -> DryRun:
    """What `search` would do, without training or writing anything. Raises ValueError if not even one model fits."""
    rng = _rng(settings, "dry run")
    check_budget(space, predictor, settings.latency_budget_ms, rng, confidence=settings.confidence)
    trainings = settings.trials + settings.repeats
    return DryRun(
        size=space.size,
        feasible_share=feasible_share(
            space, predictor, settings.latency_budget_ms, rng, confidence=settings.confidence
        ),
        fastest_ms=fastest(space, predictor, rng, confidence=settings.confidence)[1],
        slowest_ms=slowest(space, predictor, rng, confidence=settings.confidence)[1],
        trainings=trainings,
        expected_s=OVERHEAD_S + training_budget_s(settings),
    )


_STREAMS = ("front", "fastest", "slowest", "children", "training", "dry run")


def _rng(settings: SearchSettings, stream: str, trial: int = 0) -> np.random.Generator:
    """Randomness comes from (seed, what for, trial number), never from stored state."""
    return np.random.default_rng([settings.seed, _STREAMS.index(stream), trial])


def _typical(front: Front, trials: int) -> list[LowFormerConfig]:
    """The sizes that a run will train, in their proportions, for planning the proxy training."""
    explore = division(trials)[0]
    explored = [front.nearest_in_size(front.size_target(position, explore), ()) for position in range(explore)]
    best = front.configs[front.best_index()]
    return [config for config in explored if config is not None] + [best] * (trials - explore)


def division(trials: int) -> tuple[int, int, int]:
    """How many of `trials` distinct candidates explore the sizes, exploit the budget, and are children of the best."""
    explore = trials * 3 // 8
    exploit = (trials - explore + 1) // 2
    return explore, exploit, trials - explore - exploit


class _Reporter:
    def __init__(self, progress: Progress | None, total: int, started: float) -> None:
        self._progress = progress
        self._total = total
        self._started = started

    def __call__(
        self, phase: str, results: Any = (), running: int = 0, size: int = 1, left_s: float | None = None
    ) -> None:
        if self._progress is None:
            return
        results = list(results)
        complete = [result for result in results if result.status == "complete" and result.objective is not None]
        self._progress(
            SearchStatus(
                phase=phase,
                done=len(complete),
                total=max(self._total, len(complete)),
                running=running,
                failed=sum(result.status == "failed" for result in results),
                best=max(complete, key=lambda result: result.objective, default=None),
                elapsed_s=time.monotonic() - self._started,
                left_s=left_s,
            )
        )


def _relax_sqlite(connection: Any, record: Any) -> None:
    """Readers do not block the driver, and no fsync per parameter: results.jsonl is the truth, and it is synced.

    A trial took 0.86 s with SQLite's defaults and 0.20 s so (40 parameters, 2 cores, SSD).
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


@dataclass
class _Driver:
    settings: SearchSettings
    run: RunFolder
    space: SearchSpace
    predictor: Predictor
    prior: AccuracyPrior
    front: Front
    report: _Reporter
    started: float
    results: dict[int, EvaluationResult] = field(default_factory=dict)
    running: dict[int, _Running] = field(default_factory=dict)

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        url = self.settings.storage or f"sqlite:///{(self.run.path / 'study.db').resolve()}"
        self.storage = optuna.storages.RDBStorage(url)
        if self.storage.engine.dialect.name == "sqlite":
            event.listen(self.storage.engine, "connect", _relax_sqlite)
            self.storage.engine.dispose()  # so that every connection is made anew
        # One folder, one study: with a shared storage, the folder's name tells the studies apart.
        name = STUDY_NAME if self.settings.storage is None else f"{STUDY_NAME}-{self.run.path.resolve().name}"
        self.study = optuna.create_study(
            study_name=name,
            storage=self.storage,
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(seed=self.settings.seed),
            load_if_exists=True,
        )
        self.study_id = self.storage.get_study_id_from_name(name)

    # --- the study and the truth

    def reconcile(self) -> None:
        """Makes the study agree with results.jsonl, which is the truth. No trial is left RUNNING.

        A trial whose result was written but not told is told; one that was cut off waits to be asked again, under the
        same number; one that the study knows and the file has lost is written again from the study's copy.
        """
        self.results = {result.trial: result for result in self.run.load_results()}
        trials = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
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
                self._set_waiting(number)
        for number in range(len(trials), max(self.results, default=-1) + 1):
            self._restore(number)
        self.results = dict(sorted(self.results.items()))

    def _restore(self, number: int) -> None:
        """Adds a trial that the study has lost, so that numbers agree."""
        result = self.results.get(number)
        if result is None:
            self.study.add_trial(
                optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"status": "failed", "reason": "lost"})
            )
            return
        params = self.space.to_params(result.config)
        self.study.enqueue_trial(params, user_attrs={"role": result.role, "seed": result.seed})
        self.space.suggest(self.study.ask())
        self._tell(number, result)

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def _set_waiting(self, number: int) -> None:
        self.storage.set_trial_state_values(self._trial_id(number), TrialState.WAITING)

    def _ask(self) -> _Running | None:
        """The next trial: one that waits, else a new one; None if there is nothing to propose now."""
        if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            number = len(self.study.get_trials(deepcopy=False))
            proposal = self._propose(number)
            if proposal is None:
                return None
            self.study.enqueue_trial(
                self.space.to_params(proposal.config), user_attrs={"role": proposal.role, "seed": proposal.seed}
            )
        trial = self.study.ask()
        config = self.space.suggest(trial)
        attrs = trial.user_attrs
        seed = attrs.get("seed", self._training_seed(trial.number))
        proposal = _Proposal(config, attrs.get("role", "enqueued"), seed)
        quantile = float(self.predictor.quantile_ms([config], self.settings.confidence)[0])
        return _Running(trial, proposal, self.predictor.predict([config])[0], quantile)

    def _tell(self, number: int, result: EvaluationResult) -> None:
        known = self.storage.get_trial(self._trial_id(number))
        trial = optuna.Trial(self.study, self._trial_id(number))
        trial.set_user_attr("status", result.status)
        if result.reason:
            trial.set_user_attr("reason", result.reason)
        trial.set_user_attr("config_id", result.config_id)
        trial.set_user_attr("result", result.to_dict())
        budget = self.settings.latency_budget_ms
        if "latency" not in known.constraints:
            trial.set_constraint("latency", (result.quantile_ms - budget) / budget)
        if known.state == TrialState.WAITING:
            self.storage.set_trial_state_values(self._trial_id(number), TrialState.RUNNING)
        if result.status == "complete":
            assert result.objective is not None
            self.study.tell(number, result.objective)
        elif result.status == "failed":
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, state=TrialState.PRUNED)

    def _record(self, running: _Running, outcome: Outcome) -> None:
        number, config = running.trial.number, running.proposal.config
        value = outcome.value or {}
        error = outcome.error
        accuracy = None
        if not error:
            accuracy = value.get("accuracy")
            if accuracy is None or not np.isfinite(accuracy):
                error = str(value.get("reason") or "") or f"the accuracy is {accuracy}"
        self._finish(
            running,
            EvaluationResult(
                status="failed" if error else "complete",
                reason=error,
                accuracy=None if error or accuracy is None else float(accuracy),
                seconds=float(value.get("seconds", 0.0)),
                history=tuple(dict(entry) for entry in value.get("history", ())),
                details={name: value[name] for name in sorted(set(value) - _KNOWN)},
                **self._facts(running, number, config),
            ),
        )

    def _facts(self, running: _Running, number: int, config: LowFormerConfig) -> dict[str, Any]:
        graph = op_graph(config)
        return {
            "trial": number,
            "role": running.proposal.role,
            "config": config,
            "config_id": config.id,
            "seed": running.proposal.seed,
            "prior_top1": float(self.prior.imagenet_top1([config])[0]),
            "latency_ms": float(running.prediction.latency_ms),
            "low_ms": float(running.prediction.low_ms),
            "high_ms": float(running.prediction.high_ms),
            "quantile_ms": running.quantile_ms,
            "macs": graph.macs,
            "params": graph.params,
        }

    def _finish(self, running: _Running, result: EvaluationResult) -> None:
        """Writes the result, then tells the study; in this order, so that nothing told can be lost."""
        number = result.trial
        if result.status == "complete":
            so_far = {**self.results, number: result}
            objective = self._objective(so_far).value(result.config_id)
            result = result.model_copy(update={"objective": objective})
        self.run.append_result(result)
        self.results[number] = result
        self.results = dict(sorted(self.results.items()))
        self.running.pop(number, None)
        self._tell(number, result)
        logger.info(
            "trial %d %s %s %s: accuracy %s, objective %s, %.3f ms (quantile %.3f), %.0f M MACs, %.1f s %s",
            number,
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

    def _objective(self, results: Mapping[int, EvaluationResult]) -> Objective:
        return Objective(
            observations(results[number] for number in sorted(results)),
            on_user_data=self.settings.data is not None,
            prior_error=self.prior.leave_one_out_error,
        )

    # --- proposals

    def _training_seed(self, number: int) -> int:
        return int(_rng(self.settings, "training", number).integers(2**31))

    def _complete(self) -> list[EvaluationResult]:
        return [result for result in self.results.values() if result.status == "complete"]

    def _propose(self, number: int) -> _Proposal | None:
        """What to train next, given the results so far and what is running."""
        complete = self._complete()
        failures = sum(result.status == "failed" for result in self.results.values())
        if failures > 2 + (self.settings.trials + self.settings.repeats) // 4:
            return None
        count = Counter(result.role for result in complete)
        count.update(running.proposal.role for running in self.running.values())
        explore, exploit, child = division(self.settings.trials)
        # Candidates from outside take the places of children.
        child -= count["enqueued"]
        seed = self._training_seed(number)
        if count["explore"] < explore:
            target = self.front.size_target(count["explore"], explore)
            config = self.front.nearest_in_size(target, self._tried())
            if config is not None:
                return _Proposal(config, "explore", seed)
            return None
        if count["exploit"] < exploit:
            config = self._exploiting()
            return None if config is None else _Proposal(config, "exploit", seed)
        if count["repeat"] < self.settings.repeats:
            config = self._to_repeat(complete)
            if config is not None:
                return _Proposal(config, "repeat", seed)
            if self.running:
                return None
        if count["child"] < child:
            config = self._child(number) or self._exploiting()
            return None if config is None else _Proposal(config, "child", seed)
        return None

    def _tried(self) -> set[str]:
        return {result.config_id for result in self.results.values()} | {
            running.proposal.config.id for running in self.running.values()
        }

    def _aimed(self) -> list[LowFormerConfig]:
        """The candidates for the budget so far, finished or running."""
        roles = ("exploit", "child")
        done = [result.config for result in self.results.values() if result.role in roles]
        return done + [running.proposal.config for running in self.running.values() if running.proposal.role in roles]

    def _exploiting(self) -> LowFormerConfig | None:
        """Of the best that evolution found for the budget, the best, then the most different ones."""
        tried = self._tried()
        band = self.front.band()
        order = band[np.argsort(-self.front.score[band], kind="stable")]
        candidates = [self.front.configs[i] for i in order[:512] if self.front.configs[i].id not in tried]
        if candidates:
            return most_varied(self.space, candidates, self._aimed())
        for i in np.argsort(-self.front.score, kind="stable"):
            if self.front.configs[i].id not in tried:
                return self.front.configs[i]
        return None

    def _to_repeat(self, complete: Sequence[EvaluationResult]) -> LowFormerConfig | None:
        """The next candidate to train with a second seed.

        With the user's data the best ones, so that the answer is not the luckiest one; without, some that lie evenly
        in size, since the proxy's reliability is measured with them.
        """
        times = Counter(result.config_id for result in complete)
        times.update(running.proposal.config.id for running in self.running.values())
        once = {result.config_id: result for result in complete if times[result.config_id] == 1}
        if not once:
            return None
        if self.settings.data is not None:
            return max(once.values(), key=lambda result: (result.accuracy or 0.0, -result.trial)).config
        distinct = list({result.config_id: result for result in complete}.values())
        distinct.sort(key=lambda result: (result.macs, result.trial))
        repeated = sum(result.role == "repeat" for result in complete)
        repeated += sum(running.proposal.role == "repeat" for running in self.running.values())
        place = (len(distinct) - 1) * repeated / max(self.settings.repeats - 1, 1)
        ranked = sorted(range(len(distinct)), key=lambda i: (abs(i - place), i))
        return next(distinct[i].config for i in ranked if distinct[i].config_id in once)

    def _child(self, number: int) -> LowFormerConfig | None:
        """A promising, different mutant of the best so far."""
        objective = self._objective(self.results)
        parents = [result.config for result in self._ranked(objective)[:3]]
        if not parents:
            return None
        rng = _rng(self.settings, "children", number)
        budget = self.settings.latency_budget_ms
        configs, origin = children(
            self.space,
            self.predictor,
            parents,
            budget,
            rng,
            confidence=self.settings.confidence,
            excluded=self.prior.beyond,
        )
        tried = self._tried()
        fresh = [i for i, config in enumerate(configs) if config.id not in tried]
        if not fresh:
            return None
        configs, origin = [configs[i] for i in fresh], origin[fresh]
        prior_top1 = self.prior.imagenet_top1(configs)
        expected = np.empty(len(configs))
        for index, parent in enumerate(parents):
            expected[origin == index] = objective.estimate(parent.id, prior_top1[origin == index])
        order = np.argsort(-expected, kind="stable")[: max(5, len(configs) // 20)]
        return most_varied(self.space, [configs[i] for i in order], self._aimed())

    def _ranked(self, objective: Objective) -> list[EvaluationResult]:
        """First trial of each trained candidate that may be the answer, the best objective first.

        Without the user's data, accuracy within the family is bought with compute, and the correction is about a point;
        so candidates rank behind that leave more than a tenth of the budget unused or that random search would beat by
        the prior, as long as there are others.
        """
        first: dict[str, EvaluationResult] = {}
        for result in self._complete():
            first.setdefault(result.config_id, result)
        candidates = list(first.values())
        if self.settings.data is None:
            enough_ms = USED * self.settings.latency_budget_ms
            using = {
                result.config_id
                for result in candidates
                if result.quantile_ms >= enough_ms and (result.prior_top1 or 0.0) > self.front.random_best
            }
        else:
            using = set(first)
        return sorted(
            candidates,
            key=lambda result: (result.config_id not in using, -objective.value(result.config_id), result.trial),
        )

    # --- training

    def train(self, evaluate: Evaluate, proxy: Mapping[str, Any]) -> bool:
        """Runs trials until the plan is fulfilled; whether it was interrupted (Ctrl-C or the time budget)."""
        self._report("train", 1)
        asked: _Running | None = None
        if self._nothing_left():
            return False
        pool = open_pool(evaluate, self.settings.workers)
        interrupted = False
        try:
            while True:
                while pool.pending < pool.size:
                    if self._out_of_time():
                        interrupted = interrupted or not self._nothing_left()
                        break
                    asked = self._ask()
                    if asked is None:
                        break
                    self._start(asked, pool, proxy)
                if not pool.pending:
                    break
                self._report("train", pool.size)
                outcomes = pool.wait(self._seconds_left())
                for outcome in outcomes:
                    self._record(self.running[outcome.trial], outcome)
                self._report("train", pool.size)
                if not outcomes and self._out_of_time():
                    interrupted = True
                    break
        except KeyboardInterrupt:
            interrupted = True
            logger.warning("interrupted")
        finally:
            with suppress(KeyboardInterrupt):
                pool.close()
            self._settle()
        return interrupted

    def _settle(self) -> None:
        """Nothing stays RUNNING: what has a result is told it, what was cut off waits for a resumed run."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number in self.results:
                self._tell(trial.number, self.results[trial.number])
            else:
                self._set_waiting(trial.number)
        self.running.clear()

    def _start(self, asked: _Running, pool: Pool, proxy: Mapping[str, Any]) -> None:
        number, config = asked.trial.number, asked.proposal.config
        over = surely_over(np.array([asked.quantile_ms]), self.settings.latency_budget_ms)[0]
        known = next((result for result in self._complete() if result.config_id == config.id), None)
        if over:
            facts = self._facts(asked, number, config)
            reason = f"latency {asked.quantile_ms:.4g} ms at confidence {self.settings.confidence:g} is over the budget"
            self._finish(asked, EvaluationResult(status="infeasible", reason=reason, **facts))
        elif known is not None and asked.proposal.role != "repeat":
            facts = {**self._facts(asked, number, config), "seed": known.seed}
            reason = f"the same as trial {known.trial}"
            self._finish(asked, EvaluationResult(status="complete", reason=reason, accuracy=known.accuracy, **facts))
        else:
            self.running[number] = asked
            pool.submit(self._task(asked, proxy))

    def _task(self, asked: _Running, proxy: Mapping[str, Any]) -> dict[str, Any]:
        """What a worker gets: plain values only."""
        return {
            "trial": asked.trial.number,
            "config": asked.proposal.config.to_dict(),
            "seed": asked.proposal.seed,
            "data": self.settings.data or "formula",
            "proxy": dict(proxy),
        }

    def _nothing_left(self) -> bool:
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return not waiting and self._propose(len(self.study.get_trials(deepcopy=False))) is None

    def _seconds_left(self) -> float | None:
        if self.settings.time_budget_s is None:
            return None
        return max(0.0, self.settings.time_budget_s - (time.monotonic() - self.started))

    def _out_of_time(self) -> bool:
        left = self._seconds_left()
        return left is not None and left <= self._typical_s()

    def _typical_s(self) -> float:
        seconds = [result.seconds for result in self._complete()]
        return float(np.median(seconds)) if seconds else 0.0

    def _report(self, phase: str, size: int) -> None:
        left = self.settings.trials + self.settings.repeats - len(self._complete())
        typical = self._typical_s()
        left_s = typical * max(left, 0) / max(size, 1) if typical else None
        self.report(phase, self.results.values(), len(self.running), size, left_s)

    # --- the answer

    def conclude(self, measure: Measure | None, *, rest_s: float, interrupted: bool) -> SearchOutcome:
        """Ranks what was trained, measures finalists where possible, and chooses the answer."""
        objective = self._objective(self.results)
        ranked = self._ranked(objective)
        counts = Counter(result.status for result in self.results.values())
        if not ranked and counts["failed"] and not interrupted:
            failed = [result for result in self.results.values() if result.status == "failed"]
            raise RuntimeError(f"all {len(failed)} candidates failed; the first: {failed[0].reason}")
        seeds = Counter(result.config_id for result in self._complete() if not result.reason)
        extrapolated = self.prior.extrapolates([result.config for result in ranked])
        candidates = [
            Candidate(
                trial=result.trial,
                config=result.config,
                objective=objective.value(result.config_id),
                accuracy=objective.observed[result.config_id].accuracy,
                prior_top1=float(result.prior_top1 or 0.0),
                extrapolated=bool(outside),
                latency_ms=result.latency_ms,
                low_ms=result.low_ms,
                high_ms=result.high_ms,
                latency_source="predicted",
                predicted_ms=result.latency_ms,
                quantile_ms=result.quantile_ms,
                macs=result.macs,
                params=result.params,
                seeds=seeds[result.config_id],
            )
            for result, outside in zip(ranked, extrapolated, strict=True)
        ]
        notes = self._notes(objective)
        answer = candidates[0] if candidates else None
        if measure is not None and candidates:
            self.report("measure", self.results.values())
            try:
                candidates, answer, remark = self._measured(candidates, measure, rest_s)
                notes.append(remark)
            except KeyboardInterrupt:
                interrupted = True
                notes.append("Measuring the finalists was interrupted: the answer's latency is predicted.")
        elif answer is not None:
            notes.append(
                f"The answer's latency is predicted, not measured: {answer.latency_ms:.3g} ms "
                f"({answer.low_ms:.3g} to {answer.high_ms:.3g})."
            )
        if answer is not None:
            share = answer.quantile_ms / self.settings.latency_budget_ms
            notes.append(
                f"The answer uses {100 * share:.0f} % of the budget, by the latency quantile held against it "
                f"(confidence {self.settings.confidence:g})."
            )
            if share < USED:
                _, largest = slowest(
                    self.space, self.predictor, _rng(self.settings, "slowest"), confidence=self.settings.confidence
                )
                if largest <= self.settings.latency_budget_ms:
                    notes.append(
                        f"Nothing in the space {self.space.name!r} exceeds the budget: its slowest model takes "
                        f"{largest:.3g} ms."
                    )
            if answer.extrapolated and self.settings.data is None:
                notes.append(
                    "The answer lies outside the published models in size or resolution: its prior is extrapolated."
                )
        if interrupted:
            notes.append("The search was stopped before all its trials were done; --resume goes on.")
        return SearchOutcome(
            run=self.run.path,
            settings=self.settings,
            answer=answer,
            candidates=tuple(sorted(candidates, key=lambda candidate: (-candidate.objective, candidate.trial))),
            reliability=objective.reliability,
            notes=tuple(notes),
            counts={str(status): count for status, count in counts.items()},
            interrupted=interrupted,
            seconds=time.monotonic() - self.started,
        )

    def _notes(self, objective: Objective) -> list[str]:
        if self.settings.data is not None:
            notes = ["Accuracies are of short proxy trainings on the data given."]
        else:
            notes = ["Nothing was trained on your data (--data): accuracy is estimated for ImageNet."]
            notes.append(objective.reliability.sentence())
        failed = [result for result in self.results.values() if result.status == "failed"]
        if failed:
            reasons = Counter(result.reason for result in failed).most_common(1)[0]
            notes.append(f"{len(failed)} trials failed; most often: {reasons[0]}")
        return notes

    def _measured(
        self, candidates: list[Candidate], measure: Measure, rest_s: float
    ) -> tuple[list[Candidate], Candidate | None, str]:
        """The candidates with the finalists' latencies measured, and the best one measured within the budget.

        Measures the best ones; where they turn out slower than predicted, the next are chosen by the ratio seen so far.
        A finalist is within the budget if a further round would be, with probability `settings.confidence`
        by the scatter of its rounds (Student's t): being chosen for a good measurement must not be luck.
        The worst round is left out, since it may be a disturbance.
        """
        budget = self.settings.latency_budget_ms
        rounds: dict[str, list[Mapping[str, Any]]] = {}
        for entry in self.run.load_measured():
            rounds.setdefault(entry["config_id"], []).append(entry)

        def time_rounds(candidate: Candidate) -> bool:
            """Measures until there are `ROUNDS`; whether that worked."""
            entries = rounds.setdefault(candidate.config.id, [])
            while len(entries) < ROUNDS:
                if entries:
                    time.sleep(rest_s)
                try:
                    measurement = measure(candidate.config)
                except (RuntimeError, OSError, ValueError) as error:  # what was trained must not be lost to it
                    logger.warning("measuring %s failed: %s", candidate.config.id, error)
                    return False
                entry = {
                    "trial": candidate.trial,
                    "config_id": candidate.config.id,
                    "target": self.settings.target,
                    "round": len(entries),
                    "median_ms": float(measurement.median_ms),
                    "iqr_ms": float(measurement.iqr_ms),
                }
                self.run.append_measured(entry)
                entries.append(entry)
                said = f"{entry['median_ms']:.3f} ms, predicted {candidate.predicted_ms:.3f}"
                logger.info("measured %s, round %d: %s", candidate.config.id, entry["round"], said)
            return True

        def dependable_ms(candidate: Candidate) -> float:
            kept = np.sort([float(entry["median_ms"]) for entry in rounds[candidate.config.id]])[:-1]
            spread = np.std(kept, ddof=1) * np.sqrt(1 + 1 / len(kept))
            return float(np.mean(kept) + stdtrit(len(kept) - 1, self.settings.confidence) * spread)

        done: list[Candidate] = []
        rejected: set[str] = set()
        most = max(8, 2 * self.settings.finalists)
        while len(done) + len(rejected) < min(most, len(candidates)):
            within = [candidate for candidate in done if dependable_ms(candidate) <= budget]
            if within and len(done) >= self.settings.finalists:
                break
            left = [c for c in candidates if c not in done and c.config.id not in rejected]
            ratio = float(np.median([dependable_ms(c) / c.predicted_ms for c in done])) if done else 1.0
            fitting = [c for c in left if c.predicted_ms * ratio <= budget]
            candidate = fitting[0] if fitting else min(left, key=lambda c: c.predicted_ms)
            if not fitting and within:
                break
            if time_rounds(candidate):
                done.append(candidate)
            else:
                rejected.add(candidate.config.id)
        if not done:
            return candidates, candidates[0], "No finalist could be measured: the answer's latency is predicted."
        answer = next((c.config.id for c in sorted(done, key=candidates.index) if dependable_ms(c) <= budget), None)
        measured = {c.config.id: _with_rounds(c, rounds[c.config.id]) for c in done}
        candidates = [measured.get(candidate.config.id, candidate) for candidate in candidates]
        if answer is not None:
            remark = (
                f"{len(done)} finalists were measured, {ROUNDS} times each; the answer is the best one within the "
                f"budget at confidence {self.settings.confidence:g}, the worst round left out."
            )
            return candidates, measured[answer], remark
        quickest = min(dependable_ms(candidate) for candidate in done)
        return (
            candidates,
            None,
            (
                f"None of the {len(done)} finalists measured is within the budget at confidence "
                f"{self.settings.confidence:g}: the fastest takes {quickest:.3g} ms at that. "
                "The predictor is off on this machine, or it is not at rest: "
                "calibrate it again."
            ),
        )


def _with_rounds(candidate: Candidate, entries: Sequence[Mapping[str, Any]]) -> Candidate:
    """The candidate with its latency measured: median of the rounds' medians; the interval is their range."""
    medians = [float(entry["median_ms"]) for entry in entries]
    return replace(
        candidate,
        latency_ms=float(np.median(medians)),
        low_ms=min(medians),
        high_ms=max(medians),
        latency_source="measured",
    )


__all__ = [
    "Candidate",
    "DryRun",
    "SearchOutcome",
    "SearchSettings",
    "SearchStatus",
    "division",
    "dry_run",
    "search",
]
