"""One search from top to bottom, given its settings and parts. `api` finds the parts by their names.

Candidates within the budget are found by evolution; where the device is at hand a few are measured first. Then
trainings are planned and trials run, or, where nothing trains, the best predicted networks are kept. The best are
measured, and the answer is chosen. Everything is left in the run folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from ..evaluators.data.sources import Data
from ..evaluators.tasks import Task
from ..predictors.accuracy.prior import AccuracyPrior
from ..search_space.config import LowFormerConfig
from ..search_space.scaling import published_scaled
from ..search_space.space import SearchSpace
from .feasible_pool import (
    FeasiblePool,
    FeasibleSet,
    NothingFits,
    check_budget,
    evolve,
    fastest,
    feasible_share,
    slowest,
)
from .latency.correction import Predictor
from .latency.limits import BudgetUse, Limits
from .latency.looks import Measuring
from .latency.tracker import ANCHORS, LatencyTracker
from .loop import Callback, TrainingSetup, TrialLoop
from .objectives import Objective, make_objective
from .objectives.run_surrogate import RunSurrogate
from .predicted import PredictedNetworks
from .randomness import stream
from .results.answer import conclude
from .results.search_result import SearchResult
from .settings import SearchSettings
from .strategies import SearchState, Strategy, make_strategy
from .strategies.rungs import Rungs
from .strategies.schedule import Schedule, second_seeds, typical_candidates, whole_trainings
from .training.opening import open_caller
from .training.proxy import (
    Plan,
    PlanRequest,
    affords_telling_proxy,
    candidate_data,
    check_data,
    plan_proxy,
    train_candidate,
    training_budget_s,
)
from .training.task import Evaluate
from .trials.database import check_storage
from .trials.history import History
from .trials.optuna_study import OptunaStudy, study_name
from .trials.recorder import TrialRecorder
from .trials.run_folder import RunFolder, write_text
from .trials.status import Progress, Reporter

IMAGENET_CLASSES = 1000
PREDICTING_S = 15.0  # finding and exporting, where nothing trains
OVERHEAD_S = 45.0  # proposing, timing the proxy, starting workers, exporting
# The budget of a front without one is by so much above the slowest candidate: by what rounding may take away, or where
# measurements may show that the device is slower than predicted, by what that may be.
ROUNDING = 1.005
SLOWER_DEVICE = 1.25


@dataclass(frozen=True)
class Parts:
    """What a search works with, beside its settings.

    Attributes:
        predictor: of the target's latency.
        space: of the candidates, `settings.resolution` already applied.
        also: predictors of the further targets, by full name.
        strategy: who proposes candidates; by the settings if None.
        objective: what is maximized; by the settings if None.
        data: what is trained on; by the settings if None.
        task: what the network is to do; by the settings if None.
        prior: of ImageNet top-1.
        evaluate: judges a candidate, see `training.task`; proxy training by default.
        plan: chooses the proxy training once per run.
        measuring: how networks are measured, where the target is at hand: before, during and after the trainings.
        callback: sees each trial when it ends, and can end the search by giving True.
        progress: is told how far the search is.
        about: further facts for run.json, as JSON values (the predictor's provenance, say). "init_from" identifies the
            weights that are inherited; a resumed run must have the same.
    """

    predictor: Predictor
    space: SearchSpace
    also: Mapping[str, Predictor] | None = None
    strategy: Strategy | None = None
    objective: type[Objective] | None = None
    data: Data | None = None
    task: str | Task | None = None
    prior: AccuracyPrior | None = None
    evaluate: Evaluate = train_candidate
    plan: Plan = plan_proxy
    measuring: Measuring | None = None
    callback: Callback | None = None
    progress: Progress | None = None
    about: Mapping[str, Any] | None = None


def run_search(settings: SearchSettings, parts: Parts, *, resume: bool = False) -> SearchResult:
    """Searches, leaving everything in the run folder.

    With `resume` it goes on with the run in `settings.run`; whether that trains, and as planned how, stays.

    Raises:
        ValueError: the request is wrong: a budget below the fastest model (NothingFits), a run that exists or that
            another process works on, an `evaluate` for a run that was started without trainings.
        OSError: the run folder cannot be written.
        RuntimeError: every candidate failed.
    """
    started = time.monotonic()
    check_storage(settings.storage)
    objective, strategy, rungs = resolve_choices(settings, parts.strategy, parts.objective, parts.task, parts.prior)
    with RunFolder.open(settings.run, resume=resume) as run:
        if resume:
            _check_resumable(settings, parts, run)
        training = _trains(settings, parts, objective, run.about)
        again = second_seeds(rungs, settings.trials, settings.repeats) if training else 0
        controls = _controls(settings, parts, objective) if training else ()
        report = Reporter(parts.progress, settings.trials + again + len(controls), started)
        report("propose")
        run.log.info(
            "%s: %s within %g ms", "resumed" if resume else "started", settings.target, settings.latency_budget_ms
        )
        if training and not resume:
            with open_caller(settings, run.log):  # whether candidates can train there is better known at once
                pass
        limits = Limits(settings, parts.also)
        latency = LatencyTracker(settings, run, parts.predictor, limits, parts.measuring)
        if training and not objective.goal.front:
            latency.admit_likely()
        latency.check_budget(parts.space)
        latency.learn_known()
        pool = _pool(settings, parts.space, objective, latency, resume=resume)
        if not resume and latency.measurements.possible:
            report("measure")
            _measure_anchors(settings, objective, pool, latency)
        found = pool.found
        run.log.info("scored %d configurations, %d of them feasible and distinct", found.scored, len(found.configs))
        if not resume:
            _plan(settings, parts, objective, rungs, found, run, report, trains=training)
        history = History()
        surrogate = RunSurrogate(pool.space, history, rungs.count)
        state = SearchState(history, pool, objective, surrogate, rungs.count, settings.trials, settings.seed)
        cut_short, recorder = False, None
        if training:
            recorder = _recorder(settings, run, state)
            schedule = Schedule(strategy, state, settings.repeats, controls)
            loop = TrialLoop(settings, run, recorder, schedule, rungs, latency, report, started, parts.callback)
            recorder.reconcile()
            stopped = loop.train(_setup(settings, parts, objective, run))
            cut_short = loop.cut_short
        else:
            stopped = PredictedNetworks(settings, run, state, latency, report, parts.callback).keep()
        result = conclude(settings, run, state, latency, report, started, interrupted=stopped, measure=not cut_short)
        if recorder is not None:
            recorder.settle({c.config.id: c.quantile_ms <= settings.latency_budget_ms for c in result.candidates})
        report("done", history.with_controls())
        return result


def _trains(settings: SearchSettings, parts: Parts, objective: Objective, about: Mapping[str, Any]) -> bool:
    """Whether candidates are trained; a run that goes on keeps to what `about`, its run.json, says."""
    own = parts.evaluate is not train_candidate
    if not about:
        if settings.trains or objective.needs_training or own:
            return True
        published = _controls(settings, parts, objective)
        count = whole_trainings(Rungs(objective.default_rungs), settings.trials, settings.repeats, len(published))
        return bool(published) and affords_telling_proxy(settings, published, count)
    stored = bool(about.get("trains", True))
    if own and not stored:
        raise ValueError("evaluate: the run was started without trainings; search anew to have some")
    return stored


def resolve_choices(
    settings: SearchSettings,
    strategy: Strategy | None = None,
    objective: type[Objective] | None = None,
    task: str | Task | None = None,
    prior: AccuracyPrior | None = None,
) -> tuple[Objective, Strategy, Rungs]:
    """What is maximized, who proposes and how often candidates are compared: as given, or by the settings.

    Raises ValueError for unknown names, or a strategy that cannot work towards the objective.
    """
    made = make_objective(
        objective or settings.objective,
        on_data=settings.data is not None,
        front=settings.pareto,
        prior=prior or AccuracyPrior.load(),
        task=settings.task if task is None else task,
    )
    proposes = make_strategy(strategy or settings.strategy or made.default_strategy)
    proposes.check(made)
    return made, proposes, Rungs(settings.rungs or made.default_rungs, least=settings.finalists)


def _data(settings: SearchSettings, parts: Parts, objective: Objective) -> Data:
    return parts.data if parts.data is not None else settings.data or objective.stand_in_data


def _controls(settings: SearchSettings, parts: Parts, objective: Objective) -> Sequence[LowFormerConfig]:
    """What trains beside the candidates.

    Nothing on the user's data, which says nothing of what was published; nor where candidates inherit weights, of which
    the network that these are from would have the most.
    """
    incomparable = settings.data is not None or parts.data is not None or settings.init_from is not None
    return () if incomparable else objective.controls(max(parts.space.choices.resolution))


def _task(settings: SearchSettings, parts: Parts) -> str | Task:
    return parts.task if parts.task is not None else settings.task


def _check_resumable(settings: SearchSettings, parts: Parts, run: RunFolder) -> None:
    settings.check_resumable_from(run.settings)
    check_space(parts.space, run.about)
    inherited = (parts.about or {}).get("init_from")
    if inherited != run.about.get("init_from", inherited):
        raise ValueError(f"cannot resume: {settings.init_from} is not the checkpoint that the run started with")
    if (data := parts.data or settings.data) is not None:
        check_data(run.path, run.about.get("proxy") or {}, data, _task(settings, parts))


def check_space(space: SearchSpace, about: Mapping[str, Any]) -> None:
    """Raises ValueError if it is not the space of the run that `about` describes: a file may have changed."""
    if about.get("space", content := _content(space)) != content:
        raise ValueError(f"the space {space.name!r} is not as it was when the run started")


def check_classes(space: SearchSpace, *, shipped: bool) -> None:
    """Raises ValueError if the networks of a space are not for ImageNet's classes, so that nobody knows their top-1.

    `shipped` says that the space is of this package, so that the user cannot change it.
    """
    if space.choices.classes != IMAGENET_CLASSES:
        instead = "search --space default" if shipped else "leave `classes` out of the space"
        raise ValueError(
            f"the space {space.name!r} has {space.choices.classes} classes, ImageNet has {IMAGENET_CLASSES:,}: train "
            f"on your own data with --data, or {instead}"
        )


def _content(space: SearchSpace) -> dict[str, Any]:
    return space.choices.model_dump(mode="json")


def _pool(
    settings: SearchSettings, space: SearchSpace, objective: Objective, latency: LatencyTracker, *, resume: bool
) -> FeasiblePool:
    """Finds the candidates within the budget.

    Where measurements of a resumed run say that nothing fits any more, what was trained is concluded all the same.
    """

    published = published_scaled(space)

    def find(use: BudgetUse) -> FeasibleSet:
        return evolve(
            space,
            use,
            objective.before_training,
            settings.latency_budget_ms,
            stream(settings.seed, "front"),
            confidence=latency.confidence,
            evaluations=settings.evaluations,
            seeds=chain(*published.values()),
            latency=use.latency,
        )

    again = partial(find, latency.budget_use)
    fits = True
    try:
        found = again()
    except NothingFits:
        if not (resume and latency.predictor.measured):
            raise
        fits, found = False, find(latency.uncorrected_use)
    budget_ms, likely = settings.latency_budget_ms, latency.confidence
    pool = FeasiblePool(space, latency.predictor, latency.budget_use, budget_ms, likely, again, found, published)
    pool.nothing_fits = not fits
    return pool


def _measure_anchors(
    settings: SearchSettings, objective: Objective, pool: FeasiblePool, latency: LatencyTracker
) -> None:
    """Measures a few of the best before anything is trained, and finds the candidates again by what that tells."""
    if not latency.measure_anchors(objective.goal.anchors(pool.found, pool, ANCHORS)):
        return
    pool.renew()
    if pool.nothing_fits:
        raise NothingFits(
            f"nothing fits {settings.latency_budget_ms:g} ms: networks measured now took "
            f"{latency.predictor.factor:.3g} times as long as the predictor says; calibrate it again, or see that the "
            "device is at rest"
        )


def _plan(
    settings: SearchSettings,
    parts: Parts,
    objective: Objective,
    rungs: Rungs,
    found: FeasibleSet,
    run: RunFolder,
    report: Reporter,
    *,
    trains: bool,
) -> None:
    """Plans the trainings, if there are to be any, and writes run.json."""
    about = {"trains": trains, "scored": found.scored, "space": _content(parts.space), **(parts.about or {})}
    if not trains:
        run.write_about(settings, proxy={}, **about)
        return
    report("plan")
    controls = _controls(settings, parts, objective)
    with open_caller(settings, run.log) as call:
        request = PlanRequest(
            settings,
            typical_candidates(found, settings.trials, objective.goal, controls),
            whole_trainings(rungs, settings.trials, settings.repeats, len(controls)),
            _data(settings, parts, objective),
            _task(settings, parts),
            call,
        )
        proxy = dict(parts.plan(request))
    if (card := proxy.pop("data_card", None)) is not None:
        write_text(run.path / "data_card.json", json.dumps(card, indent=1, allow_nan=False) + "\n")
    run.write_about(settings, proxy=proxy, study=study_name(settings.storage, run.path), **about)


def _recorder(settings: SearchSettings, run: RunFolder, state: SearchState) -> TrialRecorder:
    """Who fills the state's history, and keeps the Optuna study."""
    url = settings.storage or f"sqlite:///{(run.path / 'study.db').resolve()}"
    name, goal = str(run.about.get("study", "lownas")), state.objective.goal
    study = OptunaStudy(url, name, state.pool.space, goal.directions, settings.seed, run.log)
    return TrialRecorder(run, study, state.history, settings.latency_budget_ms, goal.told)


def _setup(settings: SearchSettings, parts: Parts, objective: Objective, run: RunFolder) -> TrainingSetup:
    """How candidates train, as run.json has it."""
    data, task = _data(settings, parts, objective), _task(settings, parts)
    share = candidate_data if parts.evaluate is train_candidate else None
    return TrainingSetup(parts.evaluate, run.about.get("proxy", {}), data, task, share)


# --- without searching


@dataclass(frozen=True)
class DryRun:
    """What a search would do.

    Attributes:
        size: points of the space.
        feasible_share: share of random samples within the budget.
        fastest_ms, slowest_ms: latency quantiles of the fastest and the slowest model.
        trainings: what it costs, in whole trainings; 0 where nothing trains.
        expected_s: how long it takes, without measuring on the device.
    """

    size: int
    feasible_share: float
    fastest_ms: float
    slowest_ms: float
    trainings: float
    expected_s: float


def describe_search(settings: SearchSettings, parts: Parts) -> DryRun:
    """Says what a search would do, without training or writing anything.

    Raises NothingFits if not even one model is within the budget.
    """
    rng = stream(settings.seed, "dry run")
    space, predictor, confidence = parts.space, parts.predictor, settings.confidence
    limits = Limits(settings, parts.also)
    use = BudgetUse(predictor, limits, settings.latency_budget_ms)
    check_budget(space, use, settings.latency_budget_ms, rng, confidence=confidence, limits=str(limits))
    objective, _, rungs = resolve_choices(settings, parts.strategy, parts.objective, parts.task, parts.prior)
    trains, controls = _trains(settings, parts, objective, {}), len(_controls(settings, parts, objective))
    return DryRun(
        size=space.size,
        feasible_share=feasible_share(space, use, settings.latency_budget_ms, rng, confidence=confidence),
        fastest_ms=fastest(space, predictor, rng, confidence=confidence)[1],
        slowest_ms=slowest(space, predictor, rng, confidence=confidence)[1],
        trainings=whole_trainings(rungs, settings.trials, settings.repeats, controls) if trains else 0.0,
        expected_s=OVERHEAD_S + training_budget_s(settings) if trains else PREDICTING_S,
    )


def whole_range_ms(
    settings: SearchSettings, predictor: Predictor, space: SearchSpace, *, measurable: bool = False
) -> float:
    """The latency budget that leaves out nothing in the space: for a front without one.

    `measurable` says that the device is at hand, where measurements may show that it is slower than predicted.
    """
    rng = stream(settings.seed, "slowest")
    _, slowest_ms = slowest(space, predictor, rng, confidence=settings.confidence)
    return float(f"{(SLOWER_DEVICE if measurable else ROUNDING) * slowest_ms:.3g}")
