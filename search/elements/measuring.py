"""Measures elements in passes over all of them: every look at one is minutes away from the next look at it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...predictors import Target
from ...predictors.latency.runtimes import runtime
from ...search_space import OpGraph
from ..devices import Meter, open_meter
from .catalog import Element, elements, frames
from .looks_file import FAILED_COUNTS, ElementLook, LooksFile

FEWEST_LOOKS, MOST_LOOKS = 3, 9
"""Looks at each chain: no fewer, however short the time is; and no more, however long."""
MOST_IN_A_ROW = 3
"""Measurements that may fail one after another without a reason that would stay."""
TOGETHER = 4
"""Chains that are looked at between two looks at the sentinel."""
LOOK_S, LOOK_RUNS = 0.12, 5
"""Time limit of a look in seconds, and the timed runs that it has anyway."""
BATCHES = (8, 32)
INT8_SHARE, BATCH_SHARE = 0.75, 0.5
"""Time for int8, and for a larger batch, over that for the target itself."""
Chain = OpGraph | Path


@dataclass(frozen=True)
class Setting:
    """What is measured in one setting of a device.

    Attributes:
        target: the device and the setting.
        elements: which.
        share: of the time.
    """

    target: Target
    elements: Sequence[Element]
    share: float


@dataclass(frozen=True)
class ElementsProgress:
    """How far the measuring is: `done` of `total` looks, in `setting`; `left_s` seconds are left at most."""

    setting: str
    done: int
    total: int
    left_s: float


def settings(target: Target, *, quick: bool) -> list[Setting]:
    """The settings that are measured of a device: the target itself, int8, and larger batches.

    The target alone is measured if it is not of fp32 and batch 1, and in a quick run.
    """
    found = [(target, elements(quick=quick), 1.0)]
    if target.batch == 1 and target.precision == "fp32":
        if not quick and "int8" in runtime(target.runtime).precisions and target.runtime == "onnxruntime":
            found.append((replace(target, precision="int8"), elements(quick=quick), INT8_SHARE))
        if not quick:
            large = elements(large_batch=True)
            found += [(replace(target, batch=batch), large, BATCH_SHARE) for batch in BATCHES]
    total = sum(share for *_, share in found)
    return [Setting(each, chosen, share / total) for each, chosen, share in found]


def measure_elements(
    planned: Sequence[Setting],
    file: LooksFile,
    *,
    time_limit_s: float,
    networks: Mapping[str, Any],
    profiles: str | Path | None,
    progress: Callable[[ElementsProgress], object],
    say: Callable[[str], object],
) -> dict[str, float | None]:
    """Takes the looks that are missing; gives the sentinel's undisturbed latency by setting, as it was known before.

    Args:
        planned: what to measure.
        file: where looks are kept.
        time_limit_s: for all of it; every chain is looked at `FEWEST_LOOKS` times anyway.
        networks: whole networks to measure in the first setting, by name.
        profiles: folder of the user's own target profiles.
        progress: is told how far it is.
        say: is told of what does not run.

    Raises OSError if the device is lost; what was measured is kept.
    """
    known_ms: dict[str, float | None] = {}
    for number, setting in enumerate(planned):
        name = str(setting.target)
        chains: dict[str, tuple[Any, int]] = dict(_chains(setting, file.path.parent / "models"))
        if number == 0:
            chains |= {f"network/{key}": (network, 0) for key, network in networks.items()}
        with open_meter(setting.target) as meter, meter.measuring(profiles) as measuring:
            known_ms[name] = measuring.known_ms
            watch = measuring.watch()
            look = _Looks(meter, watch.around if watch is not None else None, file, say)
            _passes(look, chains, file, time_limit_s * setting.share, name, progress)
    return known_ms


def _chains(setting: Setting, folder: Path) -> Iterator[tuple[str, tuple[Chain, int]]]:
    """The chains of a setting by their keys, with their copies."""
    batch = setting.target.batch or 1
    for frame in frames(setting.elements):
        yield frame.key, (frame.chain(), 0)
    for element in setting.elements:
        yield element.key, (element.chain(batch, folder), element.copies(batch))


@dataclass(frozen=True)
class _Looks:
    """Takes looks at some chains, one after the other, and keeps them; gives for how many looks each counts."""

    meter: Meter
    around: Callable[[Callable[[], Any]], tuple[Any, float]] | None
    file: LooksFile
    say: Callable[[str], object]
    in_a_row: list[str] = field(default_factory=list)  # reasons that may pass, of the last looks, while they fail

    def __call__(self, chains: Mapping[str, tuple[Chain, int]]) -> dict[str, int]:
        def looks() -> list[Any]:
            found: list[Any] = []
            for key, chain in chains.items():
                if len(self.in_a_row) < MOST_IN_A_ROW:
                    found.append(self._look(key, *chain))
            return found

        found, sentinel_ms = (looks(), None) if self.around is None else self.around(looks)
        for (key, (_, copies)), measured in zip(chains.items(), found, strict=False):
            if measured is not None:
                latency_ms = float(measured.undisturbed_ms)
                disturbance = max(0.0, float(measured.median_ms) / latency_ms - 1)
                self.file.add(ElementLook(str(self.meter.target), key, copies, latency_ms, disturbance, sentinel_ms))
        if len(self.in_a_row) >= MOST_IN_A_ROW:
            raise OSError(f"{self.meter.target}: {MOST_IN_A_ROW} measurements in a row failed: {self.in_a_row[0]:.200}")
        return {key: FAILED_COUNTS if each is None else 1 for key, each in zip(chains, found, strict=True)}

    def _look(self, key: str, chain: Chain, copies: int) -> Any:
        """One look; None if it failed, which is said."""
        target = self.meter.target
        try:
            measured = self.meter.measure(chain, target, time_limit_s=LOOK_S, min_runs=LOOK_RUNS)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            self.say(f"{key} does not run on {target}: {reason:.150}")
            # What refuses it will refuse it again; a full disk, or another measurement under way, may pass.
            passing = isinstance(error, RuntimeError)
            self.file.add(ElementLook(str(target), key, copies, failed=reason[:300]), keep=not passing)
            self.in_a_row.extend([reason] * passing)
            return None
        self.in_a_row.clear()
        return measured


def _passes(
    look: _Looks,
    chains: Mapping[str, tuple[Chain, int]],
    file: LooksFile,
    limit_s: float,
    setting: str,
    progress: Callable[[ElementsProgress], object],
) -> None:
    """Looks at every chain once a pass, in an order of its own in each, until the time is over."""
    begin, counts = time.monotonic(), file.counts(setting)
    while True:
        least = min(counts.get(key, 0) for key in chains)
        left_s = limit_s - (time.monotonic() - begin)
        if least >= MOST_LOOKS or (least >= FEWEST_LOOKS and left_s <= 0):
            return
        due = [key for key in chains if counts.get(key, 0) == least]
        order = [due[place] for place in np.random.default_rng(least).permutation(len(due))]
        for first in range(0, len(order), TOGETHER):
            if least >= FEWEST_LOOKS and time.monotonic() - begin > limit_s:
                return
            for key, count in look({key: chains[key] for key in order[first : first + TOGETHER]}).items():
                counts[key] = counts.get(key, 0) + count
            done = sum(min(counts.get(each, 0), FEWEST_LOOKS) for each in chains)
            left_s = max(0.0, limit_s - (time.monotonic() - begin))
            progress(ElementsProgress(setting, done, FEWEST_LOOKS * len(chains), left_s))
