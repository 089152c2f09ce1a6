"""What a search concludes from its trials: the ranking, the answer, and what a reader must know of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from ...search_space.space import SearchSpace
from ..feasible_pool import slowest
from ..latency.finalists import Conclusion
from ..latency.tracker import LatencyTracker
from ..objectives.estimates import Estimates
from ..objectives.imagenet_prior import MIN_BUDGET_USE
from ..objectives.pareto import pareto_front
from ..randomness import stream
from ..settings import SearchSettings
from ..strategies.base import SearchState
from ..trials.candidate import Candidate
from ..trials.run_folder import RunFolder
from ..trials.status import Reporter
from .search_result import SearchResult


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
    """Ranks what was trained, measures finalists where that is possible and wanted, and chooses the answer.

    Raises RuntimeError if all candidates failed.
    """
    history, objective = state.history, state.objective
    estimates = objective.estimates(history, state.surrogate)
    candidates = _candidates(state, estimates)
    failed = history.of_status("failed")
    if not candidates and failed and not interrupted:
        raise RuntimeError(f"all {len(failed)} candidates failed; the first: {failed[0].reason}")
    notes = objective.notes(history, estimates)
    if failed:
        reason = Counter(result.reason for result in failed).most_common(1)[0][0]
        notes.append(f"{len(failed)} trials failed; most often: {reason}")
    notes += _notes_on_measurements(state, latency)
    conclusion = None
    if candidates:
        if measure and latency.measurements.possible:
            report("measure", history.results.values())
        try:
            conclusion = latency.conclude(candidates, objective.goal, measure=measure)
        except KeyboardInterrupt:
            interrupted = True
            notes.append("Measuring the finalists was interrupted.")
            conclusion = latency.conclude(candidates, objective.goal, measure=False)
        notes += _notes_on_answer(conclusion, settings, state, latency)
    if interrupted:
        notes.append("The search was stopped before all its trials were done; --resume goes on.")
    concluded = () if conclusion is None else conclusion.candidates
    return SearchResult(
        run=run.path,
        settings=settings,
        objective=objective,
        answer=None if conclusion is None else conclusion.answer,
        candidates=tuple(sorted(concluded, key=lambda candidate: (-candidate.objective, candidate.trial))),
        agreement=estimates.agreement,
        notes=tuple(notes),
        counts={str(status): count for status, count in history.statuses.items() if count},
        interrupted=interrupted,
        seconds=time.monotonic() - started,
        predictor=latency.given,
    )


def _candidates(state: SearchState, estimates: Estimates) -> list[Candidate]:
    """The trained candidates with their latencies as known when they were tried, the best first."""
    ranked = state.objective.ranked(state.history, estimates, state.pool)
    seeds = Counter(result.config_id for result in state.history.complete() if not result.reason)
    extrapolated = state.objective.prior.extrapolates([result.config for result in ranked])
    return [
        Candidate(
            trial=result.trial,
            config=result.config,
            objective=estimates.value(result.config_id),
            accuracy=estimates.trained[result.config_id].accuracy,
            prior_top1=float(result.prior_top1 or 0.0),
            extrapolated=bool(outside),
            latency_ms=result.latency_ms,
            low_ms=result.low_ms,
            high_ms=result.high_ms,
            latency_source=result.latency_source,
            predicted_ms=result.latency_ms if result.predicted_ms is None else result.predicted_ms,
            quantile_ms=result.quantile_ms,
            macs=result.macs,
            params=result.params,
            seeds=seeds[result.config_id],
        )
        for result, outside in zip(ranked, extrapolated, strict=True)
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
    if goal.front and (front := pareto_front(conclusion.candidates, budget_ms)):
        notes.append(
            f"The front has {len(front)} networks, from {front[0].latency_ms:.3g} to {front[-1].latency_ms:.3g} ms"
            + ("; the answer is the most accurate one." if answer == front[-1] else ".")
        )
    if answer is None:
        return notes
    share = answer.quantile_ms / budget_ms
    notes.append(
        f"The answer uses {100 * share:.0f} % of the budget, by the latency quantile held against it "
        f"(confidence {settings.confidence:g})."
    )
    for limit in latency.limits.limits:
        cost = float(limit.cost([answer.config])[0])
        notes.append(f"Its {limit.name}: {limit.shown(cost)}, at most {limit.shown(limit.most)} allowed.")
    if share < MIN_BUDGET_USE and not latency.limits and not goal.front:
        notes += _note_on_slowest(state.pool.space, settings, latency)
    return notes + state.objective.notes_on_answer(answer)


def _note_on_slowest(space: SearchSpace, settings: SearchSettings, latency: LatencyTracker) -> Sequence[str]:
    """Says so where the budget leaves out nothing."""
    rng = stream(settings.seed, "slowest")
    _, slowest_ms = slowest(space, latency.predictor, rng, confidence=settings.confidence)
    if slowest_ms > settings.latency_budget_ms:
        return ()
    return (f"Nothing in the space {space.name!r} exceeds the budget: its slowest model takes {slowest_ms:.3g} ms.",)
