"""The latencies that a run measures itself, on the device: looks at each network, spread over time."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ...predictors.latency.undisturbed import sentinel_reference
from ...search_space.config import LowFormerConfig
from ..trials.records import MeasuredRound, MeasurementRole
from ..trials.run_folder import RunFolder
from .looks import (
    BudgetOn,
    MeasuredLatency,
    Measuring,
    measured_latency,
    noted_sentinels,
    restlessness,
    take_look,
)

UNKNOWN_S = 4.0  # what a look is taken to last before there was one
REPEATABLE = 0.03  # repeatability that is enough
LONGEST = 2.5  # times as many rounds as asked for are made where it is not


class Measurements:
    """The looks so far, from measured.jsonl, and more of them.

    A network is looked at in rounds, with other networks in between and the sentinel around each look.

    Attributes:
        on: the latency that the budget is held against.
    """

    def __init__(self, run: RunFolder, target: str, measuring: Measuring | None, on: BudgetOn = "undisturbed") -> None:
        self.on = on
        self._run, self._target, self._measuring = run, target, measuring
        self._watch = None if measuring is None else measuring.watch()
        self._seconds: list[float] = []
        self._restless = False  # whether more rounds than asked for were needed
        self._rounds: dict[str, list[MeasuredRound]] = {}
        for measured in run.load_measured():
            self._rounds.setdefault(measured.config_id, []).append(measured)

    @property
    def possible(self) -> bool:
        """Whether the device is at hand."""
        return self._measuring is not None

    @property
    def sentinels_ms(self) -> list[float]:
        """What the sentinel took in this process, in order."""
        return [] if self._watch is None else list(self._watch.sentinels_ms)

    @property
    def reference_ms(self) -> float | None:
        """What the sentinel takes undisturbed, as far as it is known by now."""
        known = None if self._measuring is None else self._measuring.known_ms
        return sentinel_reference([*noted_sentinels(self._all), *self.sentinels_ms], known)

    @property
    def restlessness(self) -> str:
        """How restless the machine was, in a sentence; empty where nothing tells."""
        return restlessness(self._all, self.reference_ms)

    @property
    def load_factor(self) -> float:
        """What the latency that the budget is held against is, over the undisturbed one: the median over networks."""
        if self.on == "undisturbed":
            return 1.0
        known = [measured_latency(rounds, self.reference_ms) for rounds in self._rounds.values() if rounds]
        ratios = [latency.under_load[self.on] / latency.undisturbed_ms for latency in known]
        return float(np.median(ratios)) if ratios else 1.0

    def latency(self, config: LowFormerConfig, confidence: float) -> MeasuredLatency | None:
        """What is known of a network's latency; None if it was not looked at."""
        rounds = self._rounds.get(config.id)
        return measured_latency(rounds, self.reference_ms, self.on, confidence) if rounds else None

    def expected_s(self, networks: int, rounds: int) -> float:
        """What looking at so many networks so often takes, by the looks before."""
        if self._measuring is None:
            return 0.0
        rounds = int(LONGEST * rounds) if self._restless else rounds
        each = float(np.mean(self._seconds)) if self._seconds else UNKNOWN_S
        return rounds * networks * each + (rounds - 1) * self._measuring.rest_s

    def known(self) -> list[tuple[LowFormerConfig, MeasuredLatency]]:
        """The networks measured, and what the looks at each say."""
        reference_ms = self.reference_ms
        return [
            (rounds[0].config, measured_latency(rounds, reference_ms))
            for rounds in self._rounds.values()
            if rounds and rounds[0].config is not None
        ]

    def has_role(self, role: MeasurementRole) -> bool:
        """Whether anything was measured in that role."""
        return any(measured.role == role for measured in self._all)

    def measure(self, configs: Sequence[LowFormerConfig], rounds: int, role: MeasurementRole) -> list[LowFormerConfig]:
        """Looks at networks in turn until each has so many rounds; gives those where that worked.

        On a restless machine it goes on with those whose latency is not repeatable yet: there will be calmer moments.
        What cannot be measured is logged and left out: what was trained must not be lost to it.
        """
        assert self._measuring is not None
        working = list(configs)
        for number in range(int(LONGEST * rounds)):
            rested = number == 0
            for config in list(working):
                known = self._rounds.setdefault(config.id, [])
                if len(known) > number or (number >= rounds and self._repeatable(known)):
                    continue
                self._restless |= number >= rounds
                if not rested:
                    time.sleep(self._measuring.rest_s)
                    rested = True
                began = time.monotonic()
                try:
                    measured = self._look(config, number, role)
                except (RuntimeError, OSError, ValueError) as error:
                    self._run.log.warning("measuring %s failed: %s", config.id, error)
                    working.remove(config)
                    continue
                self._seconds.append(time.monotonic() - began)
                self._run.append_measured(measured)
                known.append(measured)
                self._run.log.info("measured %s, round %d: %.3f ms", config.id, number, measured.undisturbed_ms)
        return working

    def _repeatable(self, rounds: Sequence[MeasuredRound]) -> bool:
        return measured_latency(rounds, self.reference_ms).repeatability <= REPEATABLE

    def _look(self, config: LowFormerConfig, number: int, role: MeasurementRole) -> MeasuredRound:
        assert self._measuring is not None
        look = self._measuring.look
        about = {"role": role, "round": number, "target": self._target, "config": config}
        return take_look(lambda: look(config), self._watch, config.id, **about)

    @property
    def _all(self) -> list[MeasuredRound]:
        return [measured for rounds in self._rounds.values() for measured in rounds]
