"""Sentences on an answer whose accuracy is estimated from published results: how it compares with these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...predictors.accuracy.comparison import describe_difference
from ...predictors.accuracy.prior import AccuracyPrior
from ...search_space.config import LowFormerConfig
from ...search_space.presets import PRESETS, PUBLISHED
from ..feasible_pool import over_budget
from ..latency.tracker import LatencyTracker
from ..objectives.base import LOWER_QUANTILE, Objective
from ..settings import SearchSettings, replay_command
from ..strategies.base import SearchState
from ..trials.candidate import Candidate

MOST_NAMED = 3  # features in which the answer lies beyond all published models
TOO_HIGH = 0.3  # points by which estimates of answers exceed judges on average. Source: experiments/prior/judged.json
_SURELY = 0.05  # points; less reads as 0.0
_LOWER = f"{100 - 100 * LOWER_QUANTILE:g} %"


@dataclass(frozen=True)
class PublishedPoint:
    """A published model at one resolution, and its ImageNet top-1 there, in percent: published, or else estimated."""

    name: str
    config: LowFormerConfig
    top1: float
    published: bool


def best_published(
    settings: SearchSettings, latency: LatencyTracker, prior: AccuracyPrior, resolutions: Sequence[int]
) -> PublishedPoint | None:
    """The most accurate published model within the budget and limits, or None if none is.

    At the resolutions that its accuracy was published for; where none was, at `resolutions`, by the prior.
    """
    points = []
    for name in {**PRESETS, **PUBLISHED}:
        if name in PUBLISHED:
            model = PUBLISHED[name]
            known = [(model.config.replace(resolution=pixels), top1) for pixels, top1 in model.top1.items()]
        else:
            sizes = [PRESETS[name].replace(resolution=pixels) for pixels in resolutions]
            known = list(zip(sizes, prior.imagenet_top1(sizes).tolist(), strict=True))
        points += [PublishedPoint(name, config, top1, name in PUBLISHED) for config, top1 in known]
    used = latency.budget_use.quantile_ms([point.config for point in points], settings.confidence)
    over = over_budget(np.asarray(used, float), settings.latency_budget_ms)
    within = [point for point, beyond in zip(points, over, strict=True) if not beyond]
    return max(within, key=lambda point: point.top1, default=None)


def notes_on_ranking(objective: Objective) -> list[str]:
    """What ranks where nothing was trained."""
    if not objective.is_imagenet_top1:
        return [f"Nothing was trained: networks are ranked by {objective.label} as predicted before training."]
    return [
        "Nothing was trained. ImageNet top-1 is estimated from published results, and networks are ranked by a lower "
        f"quantile of the estimate: what each exceeds with a probability of {_LOWER}. As the best of many, answers "
        f"have been estimated some {TOO_HIGH:g} points too high."
    ]


def notes_on_estimate(
    answer: Candidate,
    candidates: Sequence[Candidate],
    settings: SearchSettings,
    state: SearchState,
    latency: LatencyTracker,
) -> list[str]:
    """The answer in words, beside the published model most like it and the best one within the budget."""
    prior = state.objective.prior
    best = best_published(settings, latency, prior, state.pool.space.choices.resolution)
    return [
        _in_words(answer, latency),
        *_outside(answer, prior),
        _beside_best(answer, best, prior),
        *_as_good(answer, candidates, prior),
        *_extrapolated(answer, candidates, state),
    ]


def _in_words(answer: Candidate, latency: LatencyTracker) -> str:
    """Its estimate, the published model most like it, how it differs, and the ratio of their predicted latencies.

    The ratio is to the published model at the answer's resolution, which is the one that is named.
    """
    name = answer.published or answer.nearest
    reference = PUBLISHED[name].config
    estimate = (
        f"The answer is estimated at {answer.prior_top1:.1f} % top-1 (90 % interval {answer.low_top1:.1f} to "
        f"{answer.high_top1:.1f}). It is {describe_difference(answer.config, reference, name)}"
    )
    if answer.published:
        return f"{estimate}."
    same_size = reference.replace(resolution=answer.config.resolution)
    mine, its = (float(one.latency_ms) for one in latency.predictor.predict([answer.config, same_size]))
    return f"{estimate}; it is predicted to take {mine / its:.2f} times as long."


def _beside_best(answer: Candidate, best: PublishedPoint | None, prior: AccuracyPrior) -> str:
    """By how much the answer is better than the best published model within the budget."""
    if best is None:
        return "No published model is within the budget."
    top1 = f"{best.top1:.2f} % published" if best.published else f"{best.top1:.1f} % estimated, none published"
    which = f"{_at(best.name, best.config)} ({top1})"
    if answer.config == best.config:
        return f"It is the best published model within the budget, {which}: nothing better can be said with confidence."
    middle, low, high = _gain(answer, best.config, prior)
    better = f"{middle:.1f} points better" if middle >= 0 else f"{-middle:.1f} points worse"
    doubt = ": it may be no better" if low <= _SURELY and high > -_SURELY else ""
    return (
        f"The best published model within the budget is {which}; the answer is estimated to be {better} "
        f"(90 % interval {low:+.1f} to {high:+.1f}){doubt}."
    )


def _gain(answer: Candidate, reference: LowFormerConfig, prior: AccuracyPrior) -> tuple[float, float, float]:
    """By how many points the answer is better: the median and the ends of the interval.

    What trainings of this run have moved the answer's estimate by counts too.
    """
    moved = answer.prior_top1 - float(prior.imagenet_top1([answer.config])[0])
    middle, low, high = (float(ends[0]) + moved for ends in prior.gain([answer.config], reference))
    return middle, low, high


def _as_good(answer: Candidate, candidates: Sequence[Candidate], prior: AccuracyPrior) -> list[str]:
    """How many of the others may be as good, for all that is known."""
    others = [candidate for candidate in candidates if candidate.config.id != answer.config.id]
    if not others:
        return []
    moved = [one.prior_top1 - float(top1) for one, top1 in zip(others, _expected(others, prior), strict=True)]
    own = answer.prior_top1 - float(_expected([answer], prior)[0])
    _, _, high = prior.gain([candidate.config for candidate in others], answer.config)
    equal = int(np.sum(high + np.asarray(moved) - own > 0))
    if not equal:
        return []
    which = f"{equal} of the {len(others)} other candidates" if len(others) > 1 else "The other candidate"
    return [f"{which} may be as good, for all that is known."]


def _expected(candidates: Sequence[Candidate], prior: AccuracyPrior) -> list[float]:
    expected: list[float] = prior.imagenet_top1([candidate.config for candidate in candidates]).tolist()
    return expected


def _outside(answer: Candidate, prior: AccuracyPrior) -> list[str]:
    """In what the answer exceeds all published models, or falls short of all."""
    outside = prior.predict([answer.config])[0].outside
    if not outside:
        return []
    named = [*outside[:MOST_NAMED], *(["more"] if len(outside) > MOST_NAMED else [])]
    listed = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    return [f"It lies beyond all published LowFormers and CPUBones in {listed}."]


def _extrapolated(answer: Candidate, candidates: Sequence[Candidate], state: SearchState) -> list[str]:
    """That the answer lies far from what was published: whether everything within the budget does, or it alone."""
    prior, pool = state.objective.prior, state.pool
    if all(one.extrapolated for one in candidates) and bool(prior.extrapolates(pool.found.configs).all()):
        return [
            f"Every network of the space {pool.space.name!r} that was found within the budget lies far from what was "
            "published: the estimates are extrapolated."
        ]
    return state.objective.notes_on_answer(answer)


def notes_on_longer_run(run: Path) -> list[str]:
    """What trainings would add, and how to ask for them: in a new run, with the settings of this one."""
    return [
        f"A longer run trains. `{replay_command(run, '--proxy-budget 30m')}` trains candidates beside published models "
        "and corrects the estimates as far as these bear it out; with --data in its place, networks are ranked by the "
        "accuracy on your own data."
    ]


def _at(name: str, config: LowFormerConfig) -> str:
    return f"{name} at {config.resolution} pixels"
