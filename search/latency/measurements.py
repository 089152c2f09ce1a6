"""Latencies that a run measures itself, on the device, each in a session of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from ...search_space.config import LowFormerConfig
from ..trials.run_folder import RunFolder

UNKNOWN_S = 4.0  # a measurement, before there was one

logger = logging.getLogger("lownas.search")


class Measurement(Protocol):
    """What the search needs of a `LatencyMeasurement`."""

    @property
    def median_ms(self) -> float: ...
    @property
    def iqr_ms(self) -> float: ...


Measure = Callable[[LowFormerConfig], Measurement]
Role = Literal["anchor", "leader", "finalist"]  # before the first training, half-way, at the end


class Rounds:
    """The measurements so far, from measured.jsonl, and more of them.

    Attributes:
        rest_s: seconds between two measurements of a network; a machine's speed drifts over some seconds.
    """

    def __init__(self, run: RunFolder, target: str, measure: Measure | None, rest_s: float) -> None:
        self.rest_s = rest_s
        self._run, self._target, self._measure = run, target, measure
        self._seconds: list[float] = []
        self._entries: dict[str, list[Mapping[str, Any]]] = {}
        for entry in run.load_measured():
            self._entries.setdefault(entry["config_id"], []).append(entry)

    @property
    def possible(self) -> bool:
        """Whether the device is at hand."""
        return self._measure is not None

    def medians_ms(self, config: LowFormerConfig) -> list[float]:
        """The median of each of a network's rounds."""
        return [float(entry["median_ms"]) for entry in self._entries.get(config.id, ())]

    def expected_s(self, networks: int, count: int) -> float:
        """What measuring so many networks so often takes, by the measurements before."""
        if not self.possible:
            return 0.0
        each = float(np.mean(self._seconds)) if self._seconds else UNKNOWN_S
        return count * networks * each + (count - 1) * self.rest_s

    def known(self) -> list[tuple[LowFormerConfig, float]]:
        """The networks measured, each with the median of its rounds in ms."""
        return [
            (LowFormerConfig.from_dict(entries[0]["config"]), float(np.median([e["median_ms"] for e in entries])))
            for entries in self._entries.values()
            if entries and "config" in entries[0]
        ]

    def taken(self, role: Role) -> bool:
        """Whether anything was measured in that role."""
        return any(entry.get("role") == role for entries in self._entries.values() for entry in entries)

    def take(self, configs: Sequence[LowFormerConfig], count: int, role: Role) -> list[LowFormerConfig]:
        """Measures until each has `count` rounds, in turn; gives those where that worked.

        What cannot be measured is logged and left out: what was trained must not be lost to it.
        """
        assert self._measure is not None
        working = list(configs)
        for number in range(count):
            rested = number == 0
            for config in list(working):
                entries = self._entries.setdefault(config.id, [])
                if len(entries) > number:
                    continue
                if not rested:
                    time.sleep(self.rest_s)
                    rested = True
                began = time.monotonic()
                try:
                    measurement = self._measure(config)
                except (RuntimeError, OSError, ValueError) as error:
                    logger.warning("measuring %s failed: %s", config.id, error)
                    working.remove(config)
                    continue
                self._seconds.append(time.monotonic() - began)
                entry = {
                    "config_id": config.id,
                    "role": role,
                    "target": self._target,
                    "round": number,
                    "median_ms": float(measurement.median_ms),
                    "iqr_ms": float(measurement.iqr_ms),
                    "config": config.to_dict(),
                }
                self._run.append_measured(entry)
                entries.append(entry)
                logger.info("measured %s, round %d: %.3f ms", config.id, number, entry["median_ms"])
        return working
