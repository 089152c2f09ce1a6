"""The best candidates measured on the device, and which of them is the answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

from ..search_space.config import LowFormerConfig
from .outcome import Candidate
from .run import RunFolder
from .settings import SearchSettings

ROUNDS = 5  # measurements of a finalist, each in a session of its own

logger = logging.getLogger("lownas.search")


class Measurement(Protocol):
    """What the search needs of a `LatencyMeasurement`."""

    @property
    def median_ms(self) -> float: ...
    @property
    def iqr_ms(self) -> float: ...


Measure = Callable[[LowFormerConfig], Measurement]


def measured_finalists(
    candidates: list[Candidate], measure: Measure, run: RunFolder, settings: SearchSettings, rest_s: float
) -> tuple[list[Candidate], Candidate | None, str]:
    """The candidates with the finalists' latencies measured, and the best one measured within the budget.

    Measures the best ones; where they turn out slower than predicted, the next are chosen by the ratio seen so far.
    A finalist is within the budget if a further round would be, with probability `settings.confidence`
    by the scatter of its rounds (Student's t): being chosen for a good measurement must not be luck.
    The worst round is left out, since it may be a disturbance.
    """
    budget = settings.latency_budget_ms
    rounds: dict[str, list[Mapping[str, Any]]] = {}
    for entry in run.load_measured():
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
                "target": settings.target,
                "round": len(entries),
                "median_ms": float(measurement.median_ms),
                "iqr_ms": float(measurement.iqr_ms),
            }
            run.append_measured(entry)
            entries.append(entry)
            said = f"{entry['median_ms']:.3f} ms, predicted {candidate.predicted_ms:.3f}"
            logger.info("measured %s, round %d: %s", candidate.config.id, entry["round"], said)
        return True

    def dependable_ms(candidate: Candidate) -> float:
        kept = np.sort([float(entry["median_ms"]) for entry in rounds[candidate.config.id]])[:-1]
        spread = np.std(kept, ddof=1) * np.sqrt(1 + 1 / len(kept))
        return float(np.mean(kept) + stdtrit(len(kept) - 1, settings.confidence) * spread)

    done: list[Candidate] = []
    rejected: set[str] = set()
    most = max(8, 2 * settings.finalists)
    while len(done) + len(rejected) < min(most, len(candidates)):
        within = [candidate for candidate in done if dependable_ms(candidate) <= budget]
        if within and len(done) >= settings.finalists:
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
            f"budget at confidence {settings.confidence:g}, the worst round left out."
        )
        return candidates, measured[answer], remark
    quickest = min(dependable_ms(candidate) for candidate in done)
    return (
        candidates,
        None,
        (
            f"None of the {len(done)} finalists measured is within the budget at confidence "
            f"{settings.confidence:g}: the fastest takes {quickest:.3g} ms at that. "
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
