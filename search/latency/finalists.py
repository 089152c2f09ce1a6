"""The best candidates measured on the device, and which of them is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

from ..objectives.pareto import pareto_front
from ..settings import SearchSettings
from ..trials.candidate import Candidate
from .correction import CorrectedPredictor
from .measurements import Measurements

MOST_OF_FRONT = 8  # networks on the front that are measured
FINALIST_ROUNDS = 5  # measurements of a finalist, each in a session of its own
MOST_FINALISTS = 8  # that are measured until one is within the budget; twice `settings.finalists` if that is more


@dataclass(frozen=True)
class Conclusion:
    """The candidates with their latencies as known at the end, the answer among them or None, and why in a sentence."""

    candidates: tuple[Candidate, ...]
    answer: Candidate | None
    note: str


def measured_finalists(
    candidates: Sequence[Candidate],
    measurements: Measurements,
    predictor: CorrectedPredictor,
    settings: SearchSettings,
) -> Conclusion:
    """Measures the best ones that should fit, and chooses the best one measured within the budget.

    Which should fit says the predictor as corrected by those measured before. A finalist is within the budget if a
    further round would be, with probability `settings.confidence` by the scatter of its rounds (Student's t): being
    chosen for a good measurement must not be luck. The worst round is left out, since it may be a disturbance.
    """
    budget, confidence = settings.latency_budget_ms, settings.confidence

    def dependable(candidate: Candidate) -> float:
        return dependable_ms(measurements.medians_ms(candidate.config), confidence)

    done = _measure_in_turn(candidates, measurements, predictor, settings)
    if not done:
        conclusion = predicted_answer(candidates, measurements, predictor, settings)
        return replace(conclusion, note=f"No finalist could be measured. {conclusion.note}")
    best = next((c.config.id for c in sorted(done, key=candidates.index) if dependable(c) <= budget), None)
    measured = {c.config.id: _with_rounds(c, measurements.medians_ms(c.config), confidence) for c in done}
    corrected = tuple(measured.get(c.config.id) or _as_corrected(c, predictor, confidence) for c in candidates)
    if best is not None:
        note = (
            f"{len(done)} finalists were measured, {FINALIST_ROUNDS} times each; the answer is the best one within the "
            f"budget at confidence {confidence:g}, the worst round left out."
        )
        return Conclusion(corrected, measured[best], note)
    quickest = min(dependable(candidate) for candidate in done)
    note = (
        f"None of the {len(done)} finalists measured is within the budget at confidence {confidence:g}: the fastest "
        f"takes {quickest:.3g} ms at that. The predictor is off on this machine, or it is not at rest: "
        "calibrate it again."
    )
    return Conclusion(corrected, None, note)


def _measure_in_turn(
    candidates: Sequence[Candidate],
    measurements: Measurements,
    predictor: CorrectedPredictor,
    settings: SearchSettings,
) -> list[Candidate]:
    """Measures finalists until enough are measured and one of them is within the budget; gives those measured."""
    budget, confidence = settings.latency_budget_ms, settings.confidence
    done: list[Candidate] = []
    left = list(candidates)
    most = max(MOST_FINALISTS, 2 * settings.finalists)
    while left and len(candidates) - len(left) < most:
        within = [c for c in done if dependable_ms(measurements.medians_ms(c.config), confidence) <= budget]
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
        working = measurements.measure([candidate.config for candidate in chosen], FINALIST_ROUNDS, "finalist")
        for candidate in (candidate for candidate in chosen if candidate.config in working):
            predictor.learn(candidate.config, float(np.median(measurements.medians_ms(candidate.config))))
            done.append(candidate)
    return done


def predicted_answer(
    candidates: Sequence[Candidate],
    measurements: Measurements,
    predictor: CorrectedPredictor,
    settings: SearchSettings,
) -> Conclusion:
    """Chooses the best one that is within the budget as far as is known, without measuring finalists.

    What was measured on the way counts, also where it was measured after some candidates were trained.
    """
    measured_ms: dict[str, float] = {}
    for config, latency_ms in measurements.known():
        measured_ms[config.id] = latency_ms
        predictor.learn(config, latency_ms)
    if predictor.measured:
        candidates = [_as_corrected(candidate, predictor, settings.confidence) for candidate in candidates]
    budget = settings.latency_budget_ms
    for candidate in candidates:
        if candidate.quantile_ms <= budget and measured_ms.get(candidate.config.id, 0.0) <= budget:
            note = (
                f"The answer's latency is predicted, not measured: {candidate.latency_ms:.3g} ms "
                f"(90 % interval {candidate.low_ms:.3g} to {candidate.high_ms:.3g})."
            )
            return Conclusion(tuple(candidates), candidate, note)
    note = "After what was measured during the run no candidate trained is within the budget."
    return Conclusion(tuple(candidates), None, note)


def measured_front(
    candidates: Sequence[Candidate],
    measurements: Measurements,
    predictor: CorrectedPredictor,
    settings: SearchSettings,
) -> Conclusion:
    """Measures networks on the front (`MOST_OF_FRONT`, spread over it); chooses the most accurate within the budget."""
    front = pareto_front(candidates)
    places = np.unique(np.linspace(0, len(front) - 1, min(MOST_OF_FRONT, len(front))).round().astype(int))
    measured = measurements.measure([front[i].config for i in places], FINALIST_ROUNDS, "finalist")
    if not measured:
        conclusion = predicted_answer(candidates, measurements, predictor, settings)
        return replace(conclusion, note=f"Nothing on the front could be measured. {conclusion.note}")
    for config in measured:
        predictor.learn(config, float(np.median(measurements.medians_ms(config))))
    names = {config.id for config in measured}
    result = tuple(
        _with_rounds(c, measurements.medians_ms(c.config), settings.confidence)
        if c.config.id in names
        else _as_corrected(c, predictor, settings.confidence)
        for c in candidates
    )
    within = [c for c in result if c.config.id in names and c.quantile_ms <= settings.latency_budget_ms]
    note = (
        f"{len(measured)} networks on the front were measured, {FINALIST_ROUNDS} times each; the others' latency is "
        "predicted."
    )
    return Conclusion(result, max(within, key=lambda candidate: candidate.objective, default=None), note)


def dependable_ms(medians: Sequence[float], confidence: float) -> float:
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
        quantile_ms=dependable_ms(medians, confidence),
    )


def _as_corrected(candidate: Candidate, predictor: CorrectedPredictor, confidence: float) -> Candidate:
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
