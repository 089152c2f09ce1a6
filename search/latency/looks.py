"""Looks at networks, and what they say of each: its undisturbed latency, and its latency beside whatever else ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

from ...predictors.latency.undisturbed import (
    DRIFT_ERROR,
    EXPECTED_LOOKS,
    Look,
    SentinelWatch,
    sentinel_reference,
    slownesses,
    undisturbed,
)
from ..trials.records import MeasuredRound

BudgetOn = Literal["undisturbed", "p50", "p90", "p99"]
"""The latency that is held against a budget."""
LATENCY_NAMES: Mapping[str, str] = {
    "undisturbed": "undisturbed latency",
    "p50": "median latency under load",
    "p90": "p90 latency under load",
    "p99": "p99 latency under load",
}
FEWEST_LOOKS, LOOKS = 3, 8  # at a network, in `Looks.take`
REPEATABLE, LONGEST = 0.02, 6  # repeatability that is enough, and how many times as long it is waited for
LOOK_RUNS = 5  # timed runs of a look, where its time allows them
QUIET = (0.02, 0.05)  # slowness of a machine at rest: on average, and at most
_QUANTILES = {"p50": "median_ms", "p90": "p90_ms", "p99": "p99_ms"}
_INTERVAL = 0.95  # level of an interval's upper end


class Measurement(Protocol):
    """What a search needs of a look at a network; `evaluators.device` has it."""

    @property
    def median_ms(self) -> float: ...
    @property
    def undisturbed_ms(self) -> float: ...
    @property
    def iqr_ms(self) -> float: ...
    @property
    def p90_ms(self) -> float: ...
    @property
    def p99_ms(self) -> float: ...
    def to_dict(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Measuring:
    """How networks are measured, where the device is at hand.

    Attributes:
        look: one look at a network; takes limits by name (`measure_latency` has them).
        look_at_sentinel: the sentinel's latency in ms, from a short look; None if there is no sentinel.
        known_ms: what the sentinel takes undisturbed, by earlier measurements.
        rest_s: seconds between two looks at a network; a machine's speed drifts over some seconds.
    """

    look: Callable[..., Measurement]
    look_at_sentinel: Callable[[], float] | None = None
    known_ms: float | None = None
    rest_s: float = 0.0

    def watch(self) -> SentinelWatch | None:
        """What looks at the sentinel around each look; None if there is no sentinel."""
        return None if self.look_at_sentinel is None else SentinelWatch(self.look_at_sentinel)


@dataclass(frozen=True)
class MeasuredLatency:
    """What the looks at a network say.

    Attributes:
        undisturbed_ms: the latency while nothing slows the machine down.
        repeatability: its relative standard error, over looks and from one quarter of an hour to the next.
        low_ms, high_ms: its 90 % interval by that (Student's t).
        under_load: median, p90 and p99 in ms beside whatever else ran, by "p50", "p90" and "p99": medians over looks.
        budget_ms: the latency that is held against a budget, at the confidence asked for.
        slowness: how much slower than undisturbed the machine was, relative; its mean over looks.
        rounds: the looks.
    """

    undisturbed_ms: float
    repeatability: float
    low_ms: float
    high_ms: float
    under_load: Mapping[str, float]
    budget_ms: float
    slowness: float
    rounds: Sequence[MeasuredRound]

    @property
    def median_ms(self) -> float:
        """The median under load."""
        return self.under_load["p50"]

    @property
    def runs(self) -> int:
        """Timed runs in all looks."""
        return sum(len((measured.look or {}).get("times_ms", ())) for measured in self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, with all looks."""
        return {
            "undisturbed_ms": self.undisturbed_ms,
            "repeatability": self.repeatability,
            "low_ms": self.low_ms,
            "high_ms": self.high_ms,
            "median_ms": self.median_ms,
            "p90_ms": self.under_load["p90"],
            "p99_ms": self.under_load["p99"],
            "slowness": self.slowness,
            "runs": self.runs,
            "looks": [measured.model_dump(mode="json", exclude={"config"}) for measured in self.rounds],
        }


def take_look(
    look: Callable[[], Measurement], watch: SentinelWatch | None, config_id: str, **about: Any
) -> MeasuredRound:
    """Looks once, with the sentinel around it. `about` are further fields of the record."""
    measurement, sentinel_ms = (look(), None) if watch is None else watch.around(look)
    return MeasuredRound(
        config_id=config_id,
        median_ms=float(measurement.median_ms),
        iqr_ms=float(measurement.iqr_ms),
        p90_ms=float(measurement.p90_ms),
        p99_ms=float(measurement.p99_ms),
        undisturbed_ms=float(measurement.undisturbed_ms),
        sentinel_ms=sentinel_ms,
        look=dict(measurement.to_dict()),
        **about,
    )


def measured_latency(
    rounds: Sequence[MeasuredRound], reference_ms: float | None, on: BudgetOn = "undisturbed", confidence: float = 0.9
) -> MeasuredLatency:
    """What looks at one network say, of which there is at least one.

    A further careful measurement stays below `budget_ms` with probability `confidence`, by the repeatability of the
    undisturbed latency, or by the scatter of the looks' quantiles.

    Args:
        rounds: the looks.
        reference_ms: what the sentinel takes undisturbed, if that is known.
        on: the latency that is held against the budget.
        confidence: at which.
    """
    found = undisturbed([_look(measured) for measured in rounds], reference_ms)
    freedom = EXPECTED_LOOKS + found.looks - 1
    repeatability = float(np.hypot(found.repeatability, DRIFT_ERROR))
    wide = float(np.exp(stdtrit(freedom, _INTERVAL) * repeatability))
    under_load = {name: [getattr(m, field) or m.median_ms for m in rounds] for name, field in _QUANTILES.items()}
    sure = float(np.exp(stdtrit(freedom, confidence) * repeatability))
    return MeasuredLatency(
        undisturbed_ms=found.latency_ms,
        repeatability=repeatability,
        low_ms=found.latency_ms / wide,
        high_ms=found.latency_ms * wide,
        under_load={name: float(np.median(values)) for name, values in under_load.items()},
        budget_ms=found.latency_ms * sure if on == "undisturbed" else dependable_ms(under_load[on], confidence),
        slowness=found.slowness,
        rounds=tuple(rounds),
    )


def dependable_ms(values_ms: Sequence[float], confidence: float) -> float:
    """What a further one stays below with probability `confidence`, the worst left out (Student's t)."""
    kept = np.sort(values_ms)[:-1] if len(values_ms) > 2 else np.asarray(values_ms)
    if len(kept) < 2:
        return float(np.max(kept))
    spread = np.std(kept, ddof=1) * np.sqrt(1 + 1 / len(kept))
    return float(np.mean(kept) + stdtrit(len(kept) - 1, confidence) * spread)


def noted_sentinels(rounds: Sequence[MeasuredRound]) -> list[float]:
    """What the sentinel took around each look, where it was looked at."""
    return [measured.sentinel_ms for measured in rounds if measured.sentinel_ms is not None]


def restlessness(rounds: Sequence[MeasuredRound], reference_ms: float | None) -> str:
    """In a sentence, how restless the machine was during looks; empty where nothing tells."""
    looks = [_look(measured) for measured in rounds if measured.sentinel_ms is not None]
    if not looks or reference_ms is None:
        return ""
    slow = np.expm1(slownesses(looks, reference_ms))
    busy = float(np.mean([(measured.look or {}).get("busy_cores", 0.0) for measured in rounds]))
    mean, most = float(slow.mean()), float(slow.max())
    others = f", and other processes kept {busy:.1f} cores busy" if busy >= 0.1 else ""
    if mean <= QUIET[0] and most <= QUIET[1]:
        return f"The machine was at rest: at most {100 * most:.0f} % slower than undisturbed{others}."
    return (
        f"The machine was restless: {100 * mean:.0f} % slower than undisturbed on average, {100 * most:.0f} % at most"
        f"{others}. Undisturbed latencies are freed of that, those under load are not."
    )


class Looks:
    """Looks at several networks in turn, for a given time.

    Attributes:
        rounds: the looks at each so far, by its name.
    """

    def __init__(self, measuring: Measuring, target: str) -> None:
        self.rounds: dict[str, list[MeasuredRound]] = {}
        self._measuring, self._target, self._watch = measuring, target, measuring.watch()

    @property
    def sentinels_ms(self) -> list[float]:
        """What the sentinel took, in order."""
        return [] if self._watch is None else list(self._watch.sentinels_ms)

    @property
    def reference_ms(self) -> float | None:
        """What the sentinel takes undisturbed, as far as it is known by now."""
        return sentinel_reference(self.sentinels_ms, self._measuring.known_ms)

    def take(
        self, networks: Mapping[str, Any], time_limit_s: float, say: Callable[[str], object] = lambda line: None
    ) -> None:
        """Looks at networks, `time_limit_s` for each, at least `FEWEST_LOOKS` times.

        On a restless machine it goes on, up to `LONGEST` times as long in all, with those whose repeatability is not
        `REPEATABLE` yet: there will be calmer moments. `say` is told so.

        Raises what a look raises; the looks before are kept.
        """
        begin, passes, waiting = time.monotonic(), 0, False
        planned_s = time_limit_s * len(networks) * (1 - 0.5 / LOOKS)
        left = dict(networks)
        while left:
            for name, network in left.items():
                limits = {"time_limit_s": time_limit_s / LOOKS / 1.5, "min_runs": LOOK_RUNS}

                def look(network: Any = network, limits: Mapping[str, Any] = limits) -> Measurement:
                    return self._measuring.look(network, **limits)

                taken = take_look(look, self._watch, name, round=passes, target=self._target)
                self.rounds.setdefault(name, []).append(taken)
            passes, elapsed_s = passes + 1, time.monotonic() - begin
            if passes < FEWEST_LOOKS or elapsed_s < planned_s:
                continue
            if elapsed_s >= LONGEST * planned_s:
                break
            found = self.latencies()
            left = {name: network for name, network in left.items() if found[name].repeatability > REPEATABLE}
            if left and not waiting:
                waiting = True
                say(f"the machine is restless: looking on, for {LONGEST * planned_s - elapsed_s:.0f} s at most")

    def latencies(self) -> dict[str, MeasuredLatency]:
        """What the looks so far say of each network."""
        return {name: measured_latency(rounds, self.reference_ms) for name, rounds in self.rounds.items()}

    @property
    def restlessness(self) -> str:
        """How restless the machine was, in a sentence."""
        return restlessness([each for rounds in self.rounds.values() for each in rounds], self.reference_ms)


def _look(measured: MeasuredRound) -> Look:
    latency_ms = measured.undisturbed_ms or measured.median_ms
    return Look(latency_ms, max(0.0, measured.median_ms / latency_ms - 1), measured.sentinel_ms)
