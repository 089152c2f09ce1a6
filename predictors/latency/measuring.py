"""Which looks a calibration makes: two at every configuration, then more where they help most, until that is enough."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from ...search_space import LowFormerConfig, OpGraph
from .fitting.cross_validation import fit_errors, held_out_bound
from .fitting.samples import ConfigLook
from .measurement_log import MeasurementLog
from .target import Target
from .undisturbed import Look, SentinelWatch

DEFAULT_SAMPLES, MOST_DEFAULT_SAMPLES = 40, 100
"""Configurations, unless so many are asked for; and up to so many where networks are quick to measure."""
MORE_AT_ONCE, MORE_SHARE = 10, 0.75
"""Further configurations that are begun together, up to this share of the time limit."""
DEFAULT_TIME_LIMIT_S = 195.0
"""With fitting and saving, a default calibration takes less than four minutes."""
MIN_SAMPLES = 8
MAX_SAMPLES = 200
"""Configurations at most where an error is to be reached."""
UNTIL_TIME_LIMIT_S = 1800.0
"""Time limit where an error is to be reached."""
MIN_SAMPLES_TO_CHECK = 12
"""Configurations below which the held-out error is not checked against the one to be reached."""
CONFIGS_PER_CHECK = 6
PROBES_TIME_SHARE = 4
"""One part in so many of the time limit, after which no more probes are measured."""
LOOKS = 2
"""Looks at every configuration; further ones where they help."""
MOST_LOOKS = 6
NOISE_SHARE = 0.15
"""Share of the held-out error's mean square that is noise, up to which more looks would not help."""
LEAST_NOISE = 0.01
"""Relative noise, in root mean square, below which more looks are not worth their time anyway."""
AGAIN_SHARE = 4
"""One configuration in so many is looked at again before it is asked anew whether that helps."""
OTHER_SETTINGS = 5
"""Looks in a row under other settings of the machine, after which a calibration is given up."""


class Measured(Protocol):
    """What calibration needs of a look at a network; `LatencyMeasurement` in evaluators has it."""

    @property
    def median_ms(self) -> float: ...
    @property
    def undisturbed_ms(self) -> float: ...
    @property
    def kernel_ms(self) -> Mapping[str, float] | None: ...
    @property
    def host(self) -> Mapping[str, str]: ...
    @property
    def versions(self) -> Mapping[str, str]: ...
    @property
    def settings(self) -> Mapping[str, str]: ...


Measure = Callable[[LowFormerConfig | OpGraph, Target], Measured]


@dataclass(frozen=True)
class Progress:
    """Where a calibration stands.

    Attributes:
        done: configurations measured so far.
        samples: configurations to measure at most.
        elapsed_s: since the beginning.
        message: what was done last.
    """

    done: int
    samples: int
    elapsed_s: float
    message: str


@dataclass(frozen=True)
class Effort:
    """How much a calibration measures; `calibrate` explains the attributes.

    Attributes:
        more: configurations that are measured beyond `samples` while there is time.
    """

    samples: int
    more: int
    until: float | None
    time_limit_s: float

    @classmethod
    def of(cls, samples: int | None, until: float | None, time_limit_s: float | None) -> Self:
        """The effort asked for, with defaults. Raises ValueError for an impossible one."""
        more = MOST_DEFAULT_SAMPLES - DEFAULT_SAMPLES if samples is None and until is None else 0
        if samples is None:
            samples = DEFAULT_SAMPLES if until is None else MAX_SAMPLES
        if time_limit_s is None:
            time_limit_s = DEFAULT_TIME_LIMIT_S if until is None else UNTIL_TIME_LIMIT_S
        if samples < MIN_SAMPLES:
            raise ValueError(f"a calibration needs at least {MIN_SAMPLES} samples, given {samples}")
        if until is not None and not 0 < until < 1:
            raise ValueError(f"the held-out error to reach is between 0 and 100 %, given {until:.0%}")
        return cls(samples, more, until, time_limit_s)


class Measuring:
    """The looks of one calibration: what is looked at next, until that is enough or the time is over.

    Attributes:
        made: looks at configurations so far, without those that were resumed from.
        enough: whether more looks would not have helped.
    """

    def __init__(
        self,
        target: Target,
        measure: Measure,
        watch: SentinelWatch,
        log: MeasurementLog,
        effort: Effort,
        probes: Mapping[str, OpGraph],
        settings: Mapping[str, str],
        progress: Callable[[Progress], None] | None,
        begin: float,
    ) -> None:
        self.made = 0
        self.enough = False
        self._chosen: Sequence[LowFormerConfig] = ()
        self._target, self._measure, self._watch, self._log = target, measure, watch, log
        self._effort, self._probes, self._settings = effort, probes, settings
        self._progress, self._begin = progress, begin
        self._others = 0

    @property
    def elapsed_s(self) -> float:
        """Time since the calibration began."""
        return time.monotonic() - self._begin

    @property
    def done(self) -> int:
        """Configurations of this calibration that were looked at."""
        return sum(self._log.count(config) > 0 for config in self._chosen)

    def report(self, message: str) -> None:
        """Tells the caller of the calibration how it stands."""
        if self._progress:
            samples = max(self._effort.samples, len(self._chosen))
            self._progress(Progress(self.done, samples, self.elapsed_s, message))

    def look_at_probes(self) -> int:
        """Looks at the probes that the log lacks, as far as time allows. Returns how many are left."""
        left = 0
        for name, graph in self._probes.items():
            if name in self._log.probes:
                continue
            if self.elapsed_s >= self._effort.time_limit_s / PROBES_TIME_SHARE:
                left += 1
                continue
            measured, sentinel_ms = self._look(graph)
            self._log.add_probe(name, measured.kernel_ms or {}, sentinel_ms)
            self.report(f"probe {name}")
        return left

    def look_at_configs(self, configs: Sequence[LowFormerConfig]) -> float:
        """Looks at each configuration twice, and at some of them again, as far as time allows.

        A machine's speed swings within seconds: between two looks at a configuration lie those at others.

        Returns:
            The bound of the held-out error; infinite if none was asked for, or too few were measured to tell.
        """
        until, bound = self._effort.until, np.inf
        sure = self._effort.samples if until is None else CONFIGS_PER_CHECK
        starts = [0, *range(sure, len(configs), MORE_AT_ONCE if until is None else CONFIGS_PER_CHECK)]
        for start, end in itertools.pairwise([*starts, len(configs)]):
            more = start >= self._effort.samples
            if more and self.elapsed_s >= MORE_SHARE * self._effort.time_limit_s:
                break
            self._chosen, part = configs[:end], configs[start:end]
            for times in range(1, LOOKS + 1):
                self._look_up_to(part if times % 2 else part[::-1], times)
            if until is not None and self.done >= MIN_SAMPLES_TO_CHECK:
                bound = held_out_bound(*self._log.to_fit(self._target, self._probes))
                self.report(f"held-out error below {bound:.1%}")
                if bound <= until:
                    break
        self._look_where_it_helps()
        return bound

    def _look_where_it_helps(self) -> None:
        """Looks again at configurations whose looks agree least, until noise is a small part of the held-out error."""
        while self.elapsed_s < self._effort.time_limit_s and len(self._log.looks) >= MIN_SAMPLES:
            samples, fusion, block, probes = self._log.to_fit(self._target, self._probes)
            noise = np.array([sample.repeatability for sample in samples])
            total = float(np.mean(fit_errors(samples, fusion, block, probes) ** 2))
            if float(np.mean(noise**2)) <= max(NOISE_SHARE * total, LEAST_NOISE**2):
                self.enough = True
                return
            # One more look takes away about this much of the mean square.
            counts = np.array([self._log.count(sample.config) for sample in samples])
            gain = np.where(counts < MOST_LOOKS, noise**2 / (counts + 1), 0.0)
            again = np.argsort(-gain)[: max(1, len(samples) // AGAIN_SHARE)]
            chosen = [samples[index].config for index in again if gain[index] > 0]
            if not chosen:
                return
            for config in chosen:
                if self.elapsed_s < self._effort.time_limit_s:
                    self._look_at_config(config)

    def _look_up_to(self, configs: Sequence[LowFormerConfig], times: int) -> None:
        """Looks once at each configuration that was looked at fewer than `times` times, as far as time allows."""
        for config in configs:
            enough = self.done >= MIN_SAMPLES
            if self._log.count(config) < times and not (enough and self.elapsed_s >= self._effort.time_limit_s):
                self._look_at_config(config)

    def _look_at_config(self, config: LowFormerConfig) -> None:
        measured, sentinel_ms = self._look(config)
        disturbance = max(0.0, measured.median_ms / measured.undisturbed_ms - 1)
        look = Look(measured.undisturbed_ms, disturbance, sentinel_ms)
        self._log.add_look(ConfigLook(config, look, measured.kernel_ms))
        self.made += 1
        self.report(f"{config.id}: {measured.undisturbed_ms:.2f} ms")

    def _look(self, network: LowFormerConfig | OpGraph) -> tuple[Measured, float]:
        """One look, with the sentinel's latency around it; again if the machine's settings have changed meanwhile.

        Raises ValueError if they stay changed.
        """
        while True:
            before = len(self._watch.sentinels_ms)
            measured, sentinel_ms = self._watch.around(lambda: self._measure(network, self._target))
            if not (other := changed_settings(self._settings, measured.settings)):
                for each in self._watch.sentinels_ms[before:]:
                    self._log.add_sentinel(each)
                self._others = 0
                return measured, sentinel_ms
            del self._watch.sentinels_ms[before:]
            self._others += 1
            if self._others == 1:
                warnings.warn(f"in mid-calibration {other}: what was looked at then is looked at again", stacklevel=2)
            if self._others >= OTHER_SETTINGS:
                raise ValueError(f"in mid-calibration {other}, and that stayed: set it as it will be, and begin anew")


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, which of a machine's settings are others than before; empty if none is."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    shown = (f"{name} changed from {before.get(name, 'unknown')} to {now.get(name, 'unknown')}" for name in names)
    return ", ".join(shown)
