"""The record of one look at a network's latency, and what makes its times doubtful.

Several looks, spread over time, tell more than one: `predictors.latency.undisturbed` puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np

from .agent.models import Node
from .agent.timing import Timed
from .kernel_times import kernel_times_ms

NOISY_SPREAD = 0.10
"""IQR over median above which a measurement is called noisy."""
DRIFT = 0.05
"""Change of the median from the first to the last third above which drift is reported."""
FEWEST_FOR_DRIFT = 12
"""Runs that there must be to speak of drift: four in each third."""
BUSY = 0.5
"""Cores kept busy by other processes above which the machine is called busy."""
UNDISTURBED_QUANTILE = 0.1
"""Quantile of the times that stands for runs which nothing interrupted."""


class Setting(Protocol):
    """What measuring needs of a target (`predictors.Target` has it): a device, a runtime, and how it is used."""

    @property
    def device(self) -> str: ...
    @property
    def runtime(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def batch(self) -> int | None: ...
    @property
    def threads(self) -> int: ...
    def fingerprint(self) -> dict[str, str]:
        """Device model and runtime version, which measurements belong to."""
        ...


@dataclass(frozen=True)
class LatencyMeasurement:
    """Raw times of one network in one setting: one look, in a session of its own.

    Attributes:
        target: full name of the setting.
        what: what was timed (a config's id, a file's name).
        times_ms: every timed run after warm-up, in order, ms per run (one batch).
        cpu_times_ms: beside each wall time the CPU time of the one thread that did the work; empty where several did,
            or another device. What it falls short of the wall time, the operating system gave to other processes.
        host: device model and runtime version.
        versions: of the libraries involved.
        warmup_runs: runs before the first kept one.
        busy_cores: cores that other processes kept busy meanwhile.
        notes: what makes the times doubtful, one line each.
        kernel_ms: where the runtime tells, ms per kernel, named "ROW:op", "ROW:reorder_in" or "ROW:reorder_out" after
            the rows of the operator graph (`predictors.latency.kernels.Kernels.keys`).
        began: Unix time in seconds.
        settings, readings, throttled: state of the machine right after it; see `agent.machine_state`.
    """

    target: str
    what: str
    times_ms: tuple[float, ...]
    cpu_times_ms: tuple[float, ...] = ()
    host: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    warmup_runs: int = 0
    busy_cores: float = 0.0
    notes: tuple[str, ...] = ()
    kernel_ms: Mapping[str, float] | None = None
    began: float = 0.0
    settings: Mapping[str, str] = field(default_factory=dict)
    readings: Mapping[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.times_ms or not all(math.isfinite(t) and t > 0 for t in self.times_ms):
            raise ValueError(f"a measurement needs positive, finite times, given {self.times_ms[:5]}")

    @cached_property
    def _sorted(self) -> np.ndarray:
        return np.sort(np.asarray(self.times_ms))

    def quantile_ms(self, q: float) -> float:
        return float(np.quantile(self._sorted, q))

    @property
    def median_ms(self) -> float:
        return self.quantile_ms(0.5)

    @property
    def iqr_ms(self) -> float:
        return self.quantile_ms(0.75) - self.quantile_ms(0.25)

    @property
    def p90_ms(self) -> float:
        return self.quantile_ms(0.9)

    @property
    def p99_ms(self) -> float:
        return self.quantile_ms(0.99)

    @property
    def undisturbed_ms(self) -> float:
        """What the network takes while nothing else interrupts it, as far as one look tells.

        The lower decile of the times, without what other processes were given in between where that is known. On a
        quiet machine it is within a percent or two of the median.
        """
        times = np.minimum(self.times_ms, self.cpu_times_ms) if self.cpu_times_ms else np.asarray(self.times_ms)
        return float(np.quantile(times, UNDISTURBED_QUANTILE))

    @property
    def runs(self) -> int:
        return len(self.times_ms)

    @property
    def noisy(self) -> bool:
        return bool(self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON Lines."""
        return {
            "target": self.target,
            "what": self.what,
            "times_ms": [round(t, 5) for t in self.times_ms],
            "cpu_times_ms": [round(t, 5) for t in self.cpu_times_ms],
            "host": dict(self.host),
            "versions": dict(self.versions),
            "warmup_runs": self.warmup_runs,
            "busy_cores": round(self.busy_cores, 3),
            "notes": list(self.notes),
            "began": round(self.began, 2),
            "settings": dict(self.settings),
            "readings": dict(self.readings),
            "throttled": list(self.throttled),
            "kernel_ms": None if self.kernel_ms is None else {k: round(v, 6) for k, v in self.kernel_ms.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        lists = {name: tuple(data.get(name, ())) for name in ("times_ms", "cpu_times_ms", "notes", "throttled")}
        return cls(**{**data, **lists})


def latency_measurement(
    target: Setting,
    what: str,
    timed: Timed,
    nodes: Sequence[Node] | None,
    host: Mapping[str, str],
    versions: Mapping[str, str],
) -> LatencyMeasurement:
    """The record of what was timed."""
    return LatencyMeasurement(
        target=str(target),
        what=what,
        times_ms=tuple(timed.times_ms),
        cpu_times_ms=tuple(timed.cpu_times_ms),
        host=host,
        versions=versions,
        warmup_runs=timed.warmup_runs,
        busy_cores=timed.busy_cores,
        notes=_doubts(timed),
        began=timed.began,
        settings=timed.settings,
        readings=timed.readings,
        throttled=tuple(timed.throttled),
        kernel_ms=None if nodes is None else kernel_times_ms(nodes),
    )


def _doubts(timed: Timed) -> tuple[str, ...]:
    """What makes the times doubtful, a line each."""
    times, busy = timed.times_ms, timed.busy_cores
    median = float(np.median(times))
    notes = []
    spread = float(np.subtract(*np.percentile(times, [75, 25]))) / median
    if spread > NOISY_SPREAD:
        notes.append(f"noisy: the middle half of the times spreads over {spread:.0%} of the median")
    if len(times) >= FEWEST_FOR_DRIFT:
        third = len(times) // 3
        drift = float(np.median(times[-third:]) / np.median(times[:third])) - 1
        if abs(drift) > DRIFT:
            notes.append(f"drift: the last third of the runs took {drift:+.0%} against the first")
    if busy > BUSY:
        notes.append(f"busy machine: other processes kept {busy:.1f} cores busy")
    if timed.throttled:
        notes.append(f"throttled: {', '.join(timed.throttled)}")
    return tuple(notes)
