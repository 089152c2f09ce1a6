"""The best candidates measured on the device, and which of them is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

from ..objectives.pareto import pareto_front
from ..results.outcome import Candidate
from ..settings import SearchSettings
from .correction import Corrected
from .measurements import Rounds

MOST_OF_FRONT = 8  # networks on the front that are measured
ROUNDS = 5  # measurements of a finalist, each in a session of its own


def measured_finalists(
    candidates: Sequence[Candidate], rounds: Rounds, predictor: Corrected, settings: SearchSettings
) -> tuple[list[Candidate], Candidate | None, str]:
    """The candidates with the finalists' latencies measured, and the best one measured within the budget.

    Measures the best ones that should fit, by the predictor as corrected by those before.
    A finalist is within the budget if a further round would be, with probability `settings.confidence`
    by the scatter of its rounds (Student's t): being chosen for a good measurement must not be luck.
    The worst round is left out, since it may be a disturbance.
    """
    budget, confidence = settings.latency_budget_ms, settings.confidence
    if settings.pareto:
        return _measured_front(candidates, rounds, predictor, settings)

    def dependable_ms(candidate: Candidate) -> float:
        return _dependable_ms(rounds.medians_ms(candidate.config), confidence)

    done: list[Candidate] = []
    left = list(candidates)
    most = max(8, 2 * settings.finalists)
    while left and len(candidates) - len(left) < most:
        within = [candidate for candidate in done if dependable_ms(candidate) <= budget]
        if within and len(done) >= settings.finalists:
            break
        quantile = predictor.quantile_ms([candidate.config for candidate in left], confidence)
        fitting = np.flatnonzero(quantile <= budget)
        if within and not len(fitting):
            break
        # The first ones in turn, so that all see the machine in the same moods; further ones by what these showed.
        places = fitting[: max(settings.finalists - len(done), 1)] if len(fitting) else [np.argmin(quantile)]
        chosen = [left[int(place)] for place in places]
        left = [candidate for candidate in left if candidate not in chosen]
        working = rounds.take([candidate.config for candidate in chosen], ROUNDS, "finalist")
        for candidate in (candidate for candidate in chosen if candidate.config in working):
            predictor.learn(candidate.config, float(np.median(rounds.medians_ms(candidate.config))))
            done.append(candidate)
    if not done:
        candidates, answer, remark = predicted_answer(candidates, rounds, predictor, settings)
        return candidates, answer, f"No finalist could be measured. {remark}"
    best = next((c.config.id for c in sorted(done, key=candidates.index) if dependable_ms(c) <= budget), None)
    measured = {c.config.id: _with_rounds(c, rounds.medians_ms(c.config), confidence) for c in done}
    corrected = [measured.get(c.config.id) or _as_corrected(c, predictor, confidence) for c in candidates]
    if best is not None:
        remark = (
            f"{len(done)} finalists were measured, {ROUNDS} times each; the answer is the best one within the "
            f"budget at confidence {confidence:g}, the worst round left out."
        )
        return corrected, measured[best], remark
    quickest = min(dependable_ms(candidate) for candidate in done)
    return (
        corrected,
        None,
        (
            f"None of the {len(done)} finalists measured is within the budget at confidence "
            f"{confidence:g}: the fastest takes {quickest:.3g} ms at that. "
            "The predictor is off on this machine, or it is not at rest: "
            "calibrate it again."
        ),
    )


def predicted_answer(
    candidates: Sequence[Candidate], rounds: Rounds, predictor: Corrected, settings: SearchSettings
) -> tuple[list[Candidate], Candidate | None, str]:
    """The candidates without the finalists' measurements, and the best one that is within the budget as far as is known
    now: also by what was measured on the way, after some of them were trained."""
    measured_ms: dict[str, float] = {}
    for config, latency_ms in rounds.known():
        measured_ms[config.id] = latency_ms
        predictor.learn(config, latency_ms)
    if predictor.measured:
        candidates = [_as_corrected(candidate, predictor, settings.confidence) for candidate in candidates]
    budget = settings.latency_budget_ms
    for candidate in candidates:
        if candidate.quantile_ms <= budget and measured_ms.get(candidate.config.id, 0.0) <= budget:
            remark = (
                f"The answer's latency is predicted, not measured: {candidate.latency_ms:.3g} ms "
                f"({candidate.low_ms:.3g} to {candidate.high_ms:.3g})."
            )
            return list(candidates), candidate, remark
    return list(candidates), None, "After what was measured during the run no candidate trained is within the budget."


def _measured_front(
    candidates: Sequence[Candidate], rounds: Rounds, predictor: Corrected, settings: SearchSettings
) -> tuple[list[Candidate], Candidate | None, str]:
    """The candidates with those on the front measured (`MOST_OF_FRONT` of them, spread over it), and the most accurate
    one measured within the budget."""
    front = pareto_front(candidates)
    places = np.unique(np.linspace(0, len(front) - 1, min(MOST_OF_FRONT, len(front))).round().astype(int))
    measured = rounds.take([front[i].config for i in places], ROUNDS, "finalist")
    if not measured:
        candidates, answer, remark = predicted_answer(candidates, rounds, predictor, settings)
        return candidates, answer, f"Nothing on the front could be measured. {remark}"
    for config in measured:
        predictor.learn(config, float(np.median(rounds.medians_ms(config))))
    names = {config.id for config in measured}
    result = [
        _with_rounds(c, rounds.medians_ms(c.config), settings.confidence)
        if c.config.id in names
        else _as_corrected(c, predictor, settings.confidence)
        for c in candidates
    ]
    within = [
        candidate
        for candidate in result
        if candidate.config.id in names and candidate.quantile_ms <= settings.latency_budget_ms
    ]
    remark = (
        f"{len(measured)} networks on the front were measured, {ROUNDS} times each; the others' latency is predicted."
    )
    return result, max(within, key=lambda candidate: candidate.objective, default=None), remark


def _dependable_ms(medians: Sequence[float], confidence: float) -> float:
    """What a further round stays below with probability `confidence`, the worst one left out."""
    kept = np.sort(medians)[:-1]
    spread = np.std(kept, ddof=1) * np.sqrt(1 + 1 / len(kept))
    return float(np.mean(kept) + stdtrit(len(kept) - 1, confidence) * spread)


def _with_rounds(candidate: Candidate, medians: Sequence[float], confidence: float) -> Candidate:
    """The candidate with its latency measured: median of the rounds' medians; the interval is their range."""
    return replace(
        candidate,
        latency_ms=float(np.median(medians)),
        low_ms=min(medians),
        high_ms=max(medians),
        latency_source="measured",
        quantile_ms=_dependable_ms(medians, confidence),
    )


def _as_corrected(candidate: Candidate, predictor: Corrected, confidence: float) -> Candidate:
    """The candidate with its latency as predicted now."""
    (predicted,) = predictor.predict([candidate.config])
    return replace(
        candidate,
        latency_ms=predicted.latency_ms,
        low_ms=predicted.low_ms,
        high_ms=predicted.high_ms,
        predicted_ms=predicted.latency_ms,
        quantile_ms=float(predictor.quantile_ms([candidate.config], confidence)[0]),
    )
