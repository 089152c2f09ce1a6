"""What a search concludes from its trials or predictions: the ranking, the answer, and what must be known of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ...search_space.space import SearchSpace
from ..feasible_pool import slowest
from ..latency.finalists import Conclusion
from ..latency.looks import LATENCY_NAMES
from ..latency.tracker import LatencyTracker
from ..objectives.estimates import Estimates, SeedAgreement
from ..objectives.pareto import pareto_front
from ..randomness import stream
from ..settings import SearchSettings
from ..strategies.base import SearchState
from ..trials.candidate import Candidate
from ..trials.records import EvaluationResult
from ..trials.run_folder import RunFolder
from ..trials.status import Reporter
from .estimate_notes import notes_on_estimate, notes_on_longer_run, notes_on_ranking
from .published import published_rows
from .search_result import SearchResult

COVERAGE = 0.9  # of the intervals of what is expected
# An answer that uses less of the budget may be of a space in which nothing exceeds it.
LITTLE_USE = 0.9


def conclude(
    settings: SearchSettings,
    run: RunFolder,
    state: SearchState,
    latency: LatencyTracker,
    report: Reporter,
    started: float,
    *,
    interrupted: bool,
    measure: bool,
) -> SearchResult:
    """Ranks what was trained or predicted, measures finalists where that is possible and wanted, chooses the answer.

    Raises RuntimeError if all candidates failed.
    """
    history, objective = state.history, state.objective
    if predicted := history.of_status("predicted"):
        candidates, agreement = _predicted(state, predicted), SeedAgreement.of(())
        notes = notes_on_ranking(objective)
    else:
        estimates = objective.estimates(history, state.surrogate)
        candidates, agreement = _trained(state, estimates), estimates.agreement
        notes = objective.notes(history, estimates)
    failed = history.of_status("failed")
    if not candidates and failed and not interrupted:
        raise RuntimeError(f"all {len(failed)} candidates failed; the first: {failed[0].reason}")
    if failed:
        reason = Counter(result.reason for result in failed).most_common(1)[0][0]
        notes.append(f"{len(failed)} trials failed; most often: {reason}")
    notes += _notes_on_measurements(state, latency)
    conclusion, cut_short = None, not measure
    if candidates:
        if measure and latency.measurements.possible:
            report("measure", history.with_controls())
        try:
            conclusion = latency.conclude(candidates, objective.goal, measure=measure)
        except KeyboardInterrupt:
            interrupted = cut_short = True
            notes.append("Measuring the finalists was interrupted.")
            conclusion = latency.conclude(candidates, objective.goal, measure=False)
        notes += _notes_on_answer(conclusion, settings, state, latency)
        notes += [latency.measurements.restlessness] if latency.measurements.restlessness else []
    if predicted:
        notes += notes_on_longer_run(run.path)
    if interrupted:
        notes.append("The search was stopped before all its trials were done; --resume goes on.")
    concluded = () if conclusion is None else conclusion.candidates
    return SearchResult(
        run=run.path,
        settings=settings,
        objective=objective,
        answer=None if conclusion is None else conclusion.answer,
        candidates=tuple(sorted(concluded, key=lambda candidate: (-candidate.objective, candidate.trial))),
        agreement=agreement,
        notes=tuple(notes),
        counts={str(status): count for status, count in history.statuses.items() if count},
        interrupted=interrupted,
        seconds=time.monotonic() - started,
        predictor=latency.given,
        published=tuple(published_rows(settings, latency, objective.prior)),
        cut_short=cut_short,
    )


def _trained(state: SearchState, estimates: Estimates) -> list[Candidate]:
    """The trained candidates, the best first."""
    ranked = state.objective.ranked(state.history, estimates, state.pool)
    seeds = Counter(result.config_id for result in state.history.complete() if not result.reason)
    found = []
    for result, candidate in zip(ranked, _described(state, ranked), strict=True):
        name = result.config_id
        accuracy = estimates.trained[name].accuracy
        known = replace(candidate, objective=estimates.value(name), accuracy=accuracy, seeds=seeds[name])
        if (top1 := estimates.top1(name)) is not None:
            known = replace(known, prior_top1=top1.top1, low_top1=top1.low_top1, high_top1=top1.high_top1)
        found.append(known)
    return found


def _predicted(state: SearchState, results: Sequence[EvaluationResult]) -> list[Candidate]:
    """The networks that were predicted only, by the prior as it is now, the best first."""
    values = state.objective.before_training([result.config for result in results]).tolist()
    found = [
        replace(candidate, objective=value) for candidate, value in zip(_described(state, results), values, strict=True)
    ]
    return sorted(found, key=lambda candidate: (-candidate.objective, candidate.trial))


def _described(state: SearchState, results: Sequence[EvaluationResult]) -> list[Candidate]:
    """Candidates as the prior sees them, with their latencies as known when they were tried; no objective yet."""
    if not results:
        return []
    prior, configs = state.objective.prior, [result.config for result in results]
    expected, outside = prior.predict(configs, coverage=COVERAGE), prior.extrapolates(configs)
    return [
        Candidate(
            trial=result.trial,
            config=result.config,
            objective=0.0,
            accuracy=None,
            prior_top1=one.top1,
            low_top1=one.low_top1,
            high_top1=one.high_top1,
            nearest=one.nearest,
            extrapolated=bool(beyond),
            latency_ms=result.latency_ms,
            low_ms=result.low_ms,
            high_ms=result.high_ms,
            latency_source=result.latency_source,
            predicted_ms=result.latency_ms if result.predicted_ms is None else result.predicted_ms,
            quantile_ms=result.quantile_ms,
            macs=result.macs,
            params=result.params,
            seeds=0,
        )
        for result, one, beyond in zip(results, expected, outside, strict=True)
    ]


def _notes_on_measurements(state: SearchState, latency: LatencyTracker) -> list[str]:
    notes = []
    if latency.predictor.measured:
        notes.append(
            f"{latency.predictor.measured} networks measured during the run corrected the latency predictor: its "
            f"predictions are now multiplied by {latency.predictor.factor:.3g}."
        )
    if state.pool.nothing_fits:
        notes.append("Measurements showed that nothing in the space fits the budget: nothing more was proposed.")
    return notes


def _notes_on_answer(
    conclusion: Conclusion, settings: SearchSettings, state: SearchState, latency: LatencyTracker
) -> list[str]:
    notes, answer = [conclusion.note], conclusion.answer
    goal, budget_ms = state.objective.goal, settings.latency_budget_ms
    share = 0.0 if answer is None else answer.quantile_ms / budget_ms
    if answer is not None and not goal.front:
        notes[0] += (
            f" With {100 * settings.confidence:g} % confidence its {LATENCY_NAMES[settings.budget_on]} stays below "
            f"{answer.quantile_ms:.3g} ms, {100 * share:.0f} % of the budget."
        )
    if goal.front and (front := pareto_front(conclusion.candidates, budget_ms)):
        notes.append(
            f"The front has {len(front)} networks, from {front[0].latency_ms:.3g} to {front[-1].latency_ms:.3g} ms"
            + ("; the answer is the most accurate one." if answer == front[-1] else ".")
        )
    if answer is None:
        return notes
    if state.objective.is_imagenet_top1:
        notes = notes_on_estimate(answer, conclusion.candidates, settings, state, latency) + notes
    else:
        notes = state.objective.notes_on_answer(answer) + notes
    for limit in latency.limits.limits:
        cost = float(limit.cost([answer.config])[0])
        notes.append(f"Its {limit.name}: {limit.shown(cost)}, at most {limit.shown(limit.most)} allowed.")
    if share < LITTLE_USE and not latency.limits and not goal.front:
        notes += _note_on_slowest(state.pool.space, settings, latency)
    return notes


def _note_on_slowest(space: SearchSpace, settings: SearchSettings, latency: LatencyTracker) -> Sequence[str]:
    """Says so where the budget leaves out nothing."""
    rng = stream(settings.seed, "slowest")
    _, slowest_ms = slowest(space, latency.predictor, rng, confidence=settings.confidence)
    if slowest_ms > settings.latency_budget_ms:
        return ()
    return (f"Nothing in the space {space.name!r} exceeds the budget: its slowest model takes {slowest_ms:.3g} ms.",)
