"""The best candidates measured on the device, and which of them is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..objectives.pareto import pareto_front
from ..settings import SearchSettings
from ..trials.candidate import Candidate
from .correction import CorrectedPredictor
from .looks import LATENCY_NAMES, MeasuredLatency
from .measurements import Measurements

MOST_OF_FRONT = 8  # networks on the front that are measured
FINALIST_ROUNDS = 5  # looks at a finalist, each in a session of its own
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
    likely: float,
) -> Conclusion:
    """Measures the best ones that should fit, and chooses the best one measured within the budget.

    Which should fit says the predictor as corrected by those measured before, with the probability `likely`. A finalist
    is within the budget if a further measurement would be, with probability `settings.confidence`: being chosen for a
    good measurement must not be luck.
    """
    budget, confidence = settings.latency_budget_ms, settings.confidence
    known = _measure_in_turn(candidates, measurements, predictor, settings, likely)
    done = [candidate for candidate in candidates if candidate.config.id in known]
    if not done:
        conclusion = predicted_answer(candidates, measurements, predictor, settings, likely)
        return replace(conclusion, note=f"No finalist could be measured. {conclusion.note}")
    best = next((c.config.id for c in done if known[c.config.id].budget_ms <= budget), None)
    corrected = tuple(_as_known(candidate, measurements, predictor, confidence) for candidate in candidates)
    if best is not None:
        note = (
            f"{len(done)} finalists were measured, {FINALIST_ROUNDS} looks at each; the answer is the best one whose "
            f"{LATENCY_NAMES[measurements.on]} is within the budget at confidence {confidence:g}."
        )
        return Conclusion(corrected, next(c for c in corrected if c.config.id == best), note)
    quickest = min(latency.budget_ms for latency in known.values())
    note = (
        f"None of the {len(done)} finalists measured is within the budget at confidence {confidence:g}: the fastest "
        f"takes {quickest:.3g} ms at that ({LATENCY_NAMES[measurements.on]}). The predictor is off on this machine, "
        "or the machine is slower than it was: calibrate it again."
    )
    return Conclusion(corrected, None, note)


def _measure_in_turn(
    candidates: Sequence[Candidate],
    measurements: Measurements,
    predictor: CorrectedPredictor,
    settings: SearchSettings,
    likely: float,
) -> dict[str, MeasuredLatency]:
    """Measures finalists until enough are measured and one of them is within the budget; gives those by their id."""
    budget, confidence = settings.latency_budget_ms, settings.confidence
    done: dict[str, MeasuredLatency] = {}
    left = list(candidates)
    most = max(MOST_FINALISTS, 2 * settings.finalists)
    while left and len(candidates) - len(left) < most:
        within = any(latency.budget_ms <= budget for latency in done.values())
        if within and len(done) >= settings.finalists:
            break
        quantile = _budget_ms(left, measurements, predictor, confidence, likely)
        fitting = np.flatnonzero((quantile <= budget) | _were_finalists(left, measurements))
        if within and not len(fitting):
            break
        # The first ones in turn, so that all see the machine in the same moods; further ones by what these showed.
        places = fitting[: max(settings.finalists - len(done), 1)] if len(fitting) else [np.argmin(quantile)]
        chosen = [left[int(place)] for place in places]
        left = [candidate for candidate in left if candidate not in chosen]
        working = measurements.measure([candidate.config for candidate in chosen], FINALIST_ROUNDS, "finalist")
        for config in working:
            if latency := measurements.latency(config, confidence):
                done[config.id] = latency
                predictor.learn(config, latency.undisturbed_ms, latency.repeatability)
        predictor.load_factor = measurements.load_factor
        for name in done:  # what the machine can do may have shown meanwhile
            config = next(candidate.config for candidate in candidates if candidate.config.id == name)
            done[name] = measurements.latency(config, confidence) or done[name]
    return done


def _were_finalists(candidates: Sequence[Candidate], measurements: Measurements) -> NDArray[np.bool_]:
    """(n,) which candidates have all their looks, by an earlier process of the run: they count as measured."""
    known = (measurements.latency(candidate.config, 0.5) for candidate in candidates)
    return np.array([latency is not None and len(latency.rounds) >= FINALIST_ROUNDS for latency in known], bool)


def predicted_answer(
    candidates: Sequence[Candidate],
    measurements: Measurements,
    predictor: CorrectedPredictor,
    settings: SearchSettings,
    likely: float,
) -> Conclusion:
    """Chooses the best one that is within the budget as far as is known, without measuring finalists.

    What was measured on the way counts, also where it was measured after some candidates were trained. Where none is at
    `settings.confidence`, the best one is chosen that is with the probability `likely`.
    """
    for config, latency in measurements.known():
        predictor.learn(config, latency.undisturbed_ms, latency.repeatability)
    predictor.load_factor = measurements.load_factor
    if predictor.measured:
        candidates = [_as_known(each, measurements, predictor, settings.confidence) for each in candidates]
    budget = settings.latency_budget_ms
    for confidence in dict.fromkeys((settings.confidence, likely)):
        for candidate in candidates:
            if _budget_ms([candidate], measurements, predictor, settings.confidence, confidence)[0] > budget:
                continue
            how = "was measured on the way" if candidate.latency_source == "measured" else "is predicted, not measured"
            note = (
                f"The answer's undisturbed latency {how}: {candidate.latency_ms:.3g} ms "
                f"(90 % interval {candidate.low_ms:.3g} to {candidate.high_ms:.3g})."
            )
            if confidence < settings.confidence:
                note += f" It is within the budget with a probability of {confidence:g} only: measure it."
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
        conclusion = predicted_answer(candidates, measurements, predictor, settings, settings.confidence)
        return replace(conclusion, note=f"Nothing on the front could be measured. {conclusion.note}")
    for config, latency in measurements.known():
        predictor.learn(config, latency.undisturbed_ms, latency.repeatability)
    predictor.load_factor = measurements.load_factor
    result = tuple(_as_known(each, measurements, predictor, settings.confidence) for each in candidates)
    within = [c for c in result if c.latency_source == "measured" and c.quantile_ms <= settings.latency_budget_ms]
    note = (
        f"{len(measured)} networks on the front were measured, {FINALIST_ROUNDS} looks at each; the others' latency is "
        "predicted."
    )
    return Conclusion(result, max(within, key=lambda candidate: candidate.objective, default=None), note)


def _as_measured(candidate: Candidate, latency: MeasuredLatency) -> Candidate:
    """The candidate with its undisturbed latency measured."""
    return replace(
        candidate,
        latency_ms=latency.undisturbed_ms,
        low_ms=latency.low_ms,
        high_ms=latency.high_ms,
        latency_source="measured",
        quantile_ms=latency.budget_ms,
        under_load=dict(latency.under_load),
    )


def _budget_ms(
    candidates: Sequence[Candidate],
    measurements: Measurements,
    predictor: CorrectedPredictor,
    confidence: float,
    likely: float,
) -> NDArray[np.float64]:
    """(n,) what is held against the budget: as measured at `confidence`, or else as predicted now at `likely`."""
    found = np.array(predictor.quantile_ms([candidate.config for candidate in candidates], likely), float)
    for place, candidate in enumerate(candidates):
        if latency := measurements.latency(candidate.config, confidence):
            found[place] = latency.budget_ms
    return found


def _as_known(
    candidate: Candidate, measurements: Measurements, predictor: CorrectedPredictor, confidence: float
) -> Candidate:
    """The candidate with its latency as measured, where it was looked at, or as predicted now."""
    if latency := measurements.latency(candidate.config, confidence):
        return _as_measured(candidate, latency)
    (predicted,) = predictor.predict([candidate.config])
    return replace(
        candidate,
        latency_ms=predicted.latency_ms,
        latency_source="predicted",
        low_ms=predicted.low_ms,
        high_ms=predicted.high_ms,
        predicted_ms=predicted.latency_ms,
        quantile_ms=float(predictor.quantile_ms([candidate.config], confidence)[0]),
    )
