"""Keeps cores of this machine busy by a committed schedule, as other people's work does.

    python experiments/restless/load.py --seconds 1200

Work comes in bursts, half of them arithmetic on what fits into the caches, half copying what does not. The schedule
(`schedule`) is drawn once from a fixed seed: phases of a minute without work, with one core in bursts of 2 to 20
seconds, and with both cores. It begins anew when it has ended, at the same moments after the start of each run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from typing import NamedTuple

import numpy as np

PHASES = ("idle", "one core in bursts", "both cores")
PHASE_S = 60.0
BURST_S = (2.0, 20.0)
SEED = 20


class Burst(NamedTuple):
    """One core that is kept busy from `begin_s` to `end_s` after the start."""

    begin_s: float
    end_s: float
    core: int
    copies: bool


def phase(second: float) -> str:
    """What the schedule's phase is called at a moment after the start."""
    return PHASES[int(second // PHASE_S) % len(PHASES)]


def schedule(seconds: float) -> list[Burst]:
    """The bursts that begin within so many seconds."""
    rng = np.random.default_rng(SEED)
    bursts: list[Burst] = []
    for start in np.arange(0.0, seconds, PHASE_S):
        kind = phase(start)
        if kind == "both cores":
            bursts += [Burst(start, start + PHASE_S, core, bool(rng.integers(2))) for core in (0, 1)]
        elif kind == "one core in bursts":
            now = start
            while now < start + PHASE_S:
                end = min(now + rng.uniform(*BURST_S), start + PHASE_S)
                bursts.append(Burst(now, end, 0, bool(rng.integers(2))))
                now = end + rng.uniform(*BURST_S) / 2
    return [burst for burst in bursts if burst.begin_s < seconds]


def work(bursts: list[Burst], begin: float) -> None:
    """Does the work of one core."""
    rng = np.random.default_rng(0)
    small = rng.standard_normal((96, 96)).astype(np.float32)
    large = rng.standard_normal(8_000_000).astype(np.float32)
    other = np.empty_like(large)
    for burst in bursts:
        time.sleep(max(0.0, begin + burst.begin_s - time.monotonic()))
        while time.monotonic() < begin + burst.end_s:
            if burst.copies:
                np.copyto(other, large)
            else:
                for _ in range(50):
                    small = np.tanh(small @ small * np.float32(1e-2))


def start(seconds: float) -> list[multiprocessing.process.BaseProcess]:
    """Starts the work; the processes end by themselves, or with whoever started them."""
    begin = time.monotonic()
    context = multiprocessing.get_context("fork")
    bursts = schedule(seconds)
    found = []
    for core in (0, 1):
        own = [burst for burst in bursts if burst.core == core]
        process = context.Process(target=work, args=(own, begin), daemon=True)
        process.start()
        found.append(process)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1200.0)
    for process in start(parser.parse_args().seconds):
        process.join()


if __name__ == "__main__":
    main()
