"""The latencies that a run measures itself, on the device, each in a session of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ...search_space.config import LowFormerConfig
from ..trials.records import MeasuredRound, MeasurementRole
from ..trials.run_folder import RunFolder

UNKNOWN_S = 4.0  # what a measurement is taken to last before there was one


class Measurement(Protocol):
    """What a search needs of a latency measurement; `evaluators.device` has it."""

    @property
    def median_ms(self) -> float: ...
    @property
    def iqr_ms(self) -> float: ...


Measure = Callable[[LowFormerConfig], Measurement]


class Measurements:
    """The measurements so far, from measured.jsonl, and more of them.

    A network is measured in rounds, with other networks in between, as a machine's speed drifts over some seconds.
    """

    def __init__(self, run: RunFolder, target: str, measure: Measure | None, rest_s: float) -> None:
        """`rest_s` seconds lie at least between two measurements of a network."""
        self.rest_s = rest_s
        self._run, self._target, self._measure = run, target, measure
        self._seconds: list[float] = []
        self._rounds: dict[str, list[MeasuredRound]] = {}
        for measured in run.load_measured():
            self._rounds.setdefault(measured.config_id, []).append(measured)

    @property
    def possible(self) -> bool:
        """Whether the device is at hand."""
        return self._measure is not None

    def medians_ms(self, config: LowFormerConfig) -> list[float]:
        """The median of each of a network's rounds."""
        return [measured.median_ms for measured in self._rounds.get(config.id, ())]

    def expected_s(self, networks: int, rounds: int) -> float:
        """What measuring so many networks so often takes, by the measurements before."""
        if not self.possible:
            return 0.0
        each = float(np.mean(self._seconds)) if self._seconds else UNKNOWN_S
        return rounds * networks * each + (rounds - 1) * self.rest_s

    def known(self) -> list[tuple[LowFormerConfig, float]]:
        """The networks measured, each with the median of its rounds in ms."""
        return [
            (rounds[0].config, float(np.median([measured.median_ms for measured in rounds])))
            for rounds in self._rounds.values()
            if rounds and rounds[0].config is not None
        ]

    def has_role(self, role: MeasurementRole) -> bool:
        """Whether anything was measured in that role."""
        return any(measured.role == role for rounds in self._rounds.values() for measured in rounds)

    def measure(self, configs: Sequence[LowFormerConfig], rounds: int, role: MeasurementRole) -> list[LowFormerConfig]:
        """Measures networks in turn until each has so many rounds; gives those where that worked.

        What cannot be measured is logged and left out: what was trained must not be lost to it.
        """
        assert self._measure is not None
        working = list(configs)
        for number in range(rounds):
            rested = number == 0
            for config in list(working):
                known = self._rounds.setdefault(config.id, [])
                if len(known) > number:
                    continue
                if not rested:
                    time.sleep(self.rest_s)
                    rested = True
                began = time.monotonic()
                try:
                    measurement = self._measure(config)
                except (RuntimeError, OSError, ValueError) as error:
                    self._run.log.warning("measuring %s failed: %s", config.id, error)
                    working.remove(config)
                    continue
                self._seconds.append(time.monotonic() - began)
                measured = MeasuredRound(
                    config_id=config.id,
                    role=role,
                    target=self._target,
                    round=number,
                    median_ms=float(measurement.median_ms),
                    iqr_ms=float(measurement.iqr_ms),
                    config=config,
                )
                self._run.append_measured(measured)
                known.append(measured)
                self._run.log.info("measured %s, round %d: %.3f ms", config.id, number, measured.median_ms)
        return working
