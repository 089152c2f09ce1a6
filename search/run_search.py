"""The search itself: one driver that talks to the Optuna study, and a pool that evaluates what it proposes.

Which candidate comes next depends on the settings, the trial's number and the results so far, and on nothing else; so a
run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..predictors.accuracy.prior import AccuracyPrior
from ..search_space.config import LowFormerConfig
from ..search_space.presets import PRESETS
from ..search_space.space import SearchSpace
from .latency.correction import Corrected
from .latency.limits import Burden, Limits
from .latency.measurements import Measure, Rounds
from .loop import Driver, Progress, Reporter
from .results.answer import conclude
from .results.outcome import Predictor, SearchOutcome
from .settings import SearchSettings
from .strategies.base import evenly, stream, typical
from .strategies.feasible import (
    BAND,
    Excluded,
    Front,
    Score,
    check_budget,
    evolve_front,
    fastest,
    feasible_share,
    most_varied,
    slowest,
)
from .training.pools import Evaluate
from .training.proxy_task import plan_proxy, second_seeds, train_candidate, training_budget_s, trainings
from .trials.database import check_storage
from .trials.history import study_name
from .trials.run_folder import RunFolder, write_text

ANCHORS, ANCHOR_ROUNDS = 3, 3  # what is measured before anything trains, where the device is at hand, and how often
SLACK = 1.25  # so much slower than predicted a device may be before a front without a budget loses its slow end
OVERHEAD_S = 45.0  # proposing, timing the proxy, starting workers, exporting

logger = logging.getLogger("lownas.search")

Plan = Callable[[SearchSettings, Sequence[LowFormerConfig]], Mapping[str, Any]]


@dataclass(frozen=True)
class DryRun:
    """What a search would do: points of the space, share of random samples within the budget, fastest and slowest model
    (latency quantile in ms), trainings, and expected seconds."""

    size: int
    feasible_share: float
    fastest_ms: float
    slowest_ms: float
    trainings: float
    expected_s: float


def search(
    settings: SearchSettings,
    *,
    predictor: Predictor,
    space: SearchSpace,
    resume: bool = False,
    evaluate: Evaluate = train_candidate,
    plan: Plan = plan_proxy,
    prior: AccuracyPrior | None = None,
    also: Mapping[str, Predictor] | None = None,
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
        evaluate: trains a candidate: a task (see `Driver`) to a mapping with "accuracy" (0 to 1), and optionally
            "loss" (on the same images, nats), "history" and "seconds". Default: proxy training.
        plan: chooses the proxy training once per run, given a few candidates from small to large: JSON values, kept in
            run.json and handed to every task; a "data_card" among them goes to data_card.json. Default: the proxy's.
        also: predictors of the further targets, by full name.
        measure: measures the latency of a network, where the target is at hand: before, during and after the trainings.
        rest_s: seconds between two measurements of a network; a machine's speed drifts over some seconds.
        about: further facts for run.json, as JSON values (the predictor's provenance, say). "init_from" identifies the
            weights that are inherited; a resumed run must have the same.

    Raises:
        ValueError: the request is wrong: a budget below the fastest model, a run that exists or has another driver.
        OSError: the run folder cannot be written.
        RuntimeError: every candidate failed.
    """
    started = time.monotonic()
    check_storage(settings.storage)
    with RunFolder.open(settings.run, resume=resume) as run:
        if resume:
            settings.check_resumable_from(run.settings)
            check_space(space, run.about)
            inherited = (about or {}).get("init_from")
            if inherited != run.about.get("init_from", inherited):
                raise ValueError(f"cannot resume: {settings.init_from} is not the checkpoint that the run started with")
        report = Reporter(progress, settings.trials + second_seeds(settings), started)
        report("propose")
        began = "resumed" if resume else "started"
        logger.info("%s: %s within %g ms", began, settings.target, settings.latency_budget_ms)
        limits = Limits(settings, also)
        burden = limits.with_latency(predictor)
        check_budget(
            space,
            burden,
            settings.latency_budget_ms,
            stream(settings, "fastest"),
            confidence=settings.confidence,
            limits=str(limits),
        )
        prior = prior or AccuracyPrior()
        corrected = Corrected(predictor)
        burden = limits.with_latency(corrected)
        evolve = partial(_evolve, settings, space, burden, prior.imagenet_top1, prior.beyond)
        rounds = Rounds(run, settings.target, measure, rest_s)
        for config, latency_ms in rounds.known():
            corrected.learn(config, latency_ms)
        fits = True
        try:
            front = evolve()
        except ValueError:
            if not (resume and corrected.measured):
                raise
            # What was measured says so; what was trained is concluded all the same.
            fits, front = False, _evolve(settings, space, limits.with_latency(predictor), prior.imagenet_top1)
        if not resume and rounds.possible:
            report("measure")
            front = _anchored(settings, space, front, rounds, corrected, evolve)
        logger.info("scored %d configurations, %d of them feasible and distinct", front.scored, len(front.configs))
        if resume:
            proxy = run.about.get("proxy", {})
        else:
            report("plan")
            proxy = dict(plan(settings, typical(front, settings.trials, front_wanted=settings.pareto)))
            if (card := proxy.pop("data_card", None)) is not None:
                write_text(run.path / "data_card.json", json.dumps(card, indent=1, allow_nan=False) + "\n")
            run.write_about(
                settings,
                proxy=proxy,
                scored=front.scored,
                study=study_name(settings, run),
                space=_content(space),
                **(about or {}),
            )
        driver = Driver(settings, run, space, corrected, limits, prior, evolve, front, rounds, report, started)
        driver.proposer.nothing_fits = not fits
        driver.journal.reconcile()
        interrupted = driver.train(evaluate, proxy)
        outcome = conclude(driver, interrupted=interrupted)
        report("done", driver.journal.results.values())
        return outcome


def check_space(space: SearchSpace, about: Mapping[str, Any]) -> None:
    """Raises ValueError if it is not the space of the run that `about` describes: a file may have changed."""
    if about.get("space", content := _content(space)) != content:
        raise ValueError(f"the space {space.name!r} is not as it was when the run started")


def _content(space: SearchSpace) -> dict[str, Any]:
    return space.choices.model_dump(mode="json")


def _evolve(
    settings: SearchSettings, space: SearchSpace, burden: Burden, score: Score, excluded: Excluded | None = None
) -> Front:
    """What evolution finds by the prior, within the budget as the predictor sees it now."""
    return evolve_front(
        space,
        burden,
        score,
        settings.latency_budget_ms,
        stream(settings, "front"),
        confidence=settings.confidence,
        evaluations=settings.evaluations,
        seeds=[preset for preset in PRESETS.values() if preset in space],
        excluded=excluded,
    )


def _anchors(settings: SearchSettings, space: SearchSpace, front: Front) -> list[LowFormerConfig]:
    """Different ones of the best near the budget, or along the front."""
    if settings.pareto:
        spread = [front.best_within(evenly(position), ()) for position in range(ANCHORS)]
        chosen = {config.id: config for config in spread if config is not None}
        return list(chosen.values())
    near = np.flatnonzero(front.quantile_ms >= BAND * settings.latency_budget_ms)
    near = near if len(near) >= ANCHORS else np.arange(len(front.configs))
    best = [front.configs[i] for i in near[np.argsort(-front.score[near], kind="stable")[:64]]]
    anchors: list[LowFormerConfig] = []
    while len(anchors) < min(ANCHORS, len(best)):
        anchors.append(most_varied(space, [config for config in best if config not in anchors], anchors))
    return anchors


def _anchored(
    settings: SearchSettings,
    space: SearchSpace,
    front: Front,
    rounds: Rounds,
    corrected: Corrected,
    evolve: Callable[[], Front],
) -> Front:
    """The front again, after a few of its best were measured before anything trains, and the predictor learnt."""
    for config in rounds.take(_anchors(settings, space, front), ANCHOR_ROUNDS, "anchor"):
        corrected.learn(config, float(np.median(rounds.medians_ms(config))))
    logger.info("%d networks measured: predictions are taken %.3f times", corrected.measured, corrected.factor)
    if not corrected.measured:
        return front
    try:
        return evolve()
    except ValueError:
        raise ValueError(
            f"nothing fits {settings.latency_budget_ms:g} ms: networks measured now took {corrected.factor:.3g} times "
            "as long as the predictor says; calibrate it again, or see that the device is at rest"
        ) from None


def whole_range_ms(
    settings: SearchSettings, *, predictor: Predictor, space: SearchSpace, measurable: bool = False
) -> float:
    """The latency budget that leaves out nothing in the space: for a front without one.

    Args:
        measurable: the device is at hand, where measurements may show that it is slower than predicted.
    """
    _, slowest_ms = slowest(space, predictor, stream(settings, "slowest"), confidence=settings.confidence)
    return float(f"{(SLACK if measurable else 1.005) * slowest_ms:.3g}")


def dry_run(
    settings: SearchSettings, *, predictor: Predictor, space: SearchSpace, also: Mapping[str, Predictor] | None = None
) -> DryRun:
    """What `search` would do, without training or writing anything. Raises ValueError if not even one model fits."""
    rng = stream(settings, "dry run")
    limits = Limits(settings, also)
    burden = limits.with_latency(predictor)
    check_budget(space, burden, settings.latency_budget_ms, rng, confidence=settings.confidence, limits=str(limits))
    return DryRun(
        size=space.size,
        feasible_share=feasible_share(space, burden, settings.latency_budget_ms, rng, confidence=settings.confidence),
        fastest_ms=fastest(space, predictor, rng, confidence=settings.confidence)[1],
        slowest_ms=slowest(space, predictor, rng, confidence=settings.confidence)[1],
        trainings=trainings(settings),
        expected_s=OVERHEAD_S + training_budget_s(settings),
    )
