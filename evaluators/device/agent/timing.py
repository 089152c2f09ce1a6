"""Times a function again and again: warm-up, limits, and what else kept the machine busy."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .machine_state import machine_state


class Timed(NamedTuple):
    """One look at a network; see `latency_record.Look`. Times in ms, in order."""

    times_ms: list[float]
    cpu_times_ms: list[float]
    warmup_runs: int
    busy_cores: float
    began: float
    settings: dict[str, str]
    readings: dict[str, float]
    throttled: list[str]


def _wall_clock(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def time_runs(
    run: Callable[[], object],
    time_limit_s: float,
    min_runs: int,
    clock: Callable[[Callable[[], object]], float] = _wall_clock,
    one_thread: bool = False,
    gpu: bool = False,
) -> Timed:
    """Warms up, then times.

    With `one_thread` the calling thread does all the work, and its CPU time is noted too; with `gpu` the state of the
    first GPU is noted.
    """
    began = time.time()
    deadline = time.perf_counter() + time_limit_s
    warmup = _warm_up(run, clock, time_limit_s / 4)
    busy, own = _busy_s(), sum(os.times()[:2])
    begin = time.perf_counter()
    # Enough runs for a stable median; short ones are repeated for at least a twentieth of the limit.
    least = begin + time_limit_s / 20
    times: list[float] = []
    cpu_times: list[float] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        while not times or (time.perf_counter() < deadline and (len(times) < min_runs or time.perf_counter() < least)):
            cpu_begin = time.thread_time()
            times.append(clock(run))
            cpu_times.append((time.thread_time() - cpu_begin) * 1e3)
    finally:
        if collecting:
            gc.enable()
    elapsed = time.perf_counter() - begin
    others = _busy_s() - busy - (sum(os.times()[:2]) - own)
    busy_cores = max(0.0, others / elapsed) if elapsed > 0.2 else 0.0  # the kernel counts in steps of 10 ms
    return Timed(times, cpu_times if one_thread else [], warmup, busy_cores, began, *machine_state(gpu))


def _warm_up(run: Callable[[], object], clock: Callable[[Callable[[], object]], float], limit_s: float) -> int:
    """Runs until the medians of two successive windows of five agree within 3 %, for at most `limit_s`."""
    window = 5
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < limit_s:
        times.append(clock(run))
        if len(times) >= 2 * window and len(times) % window == 0:
            before, after = np.median(times[-2 * window : -window]), np.median(times[-window:])
            if abs(after / before - 1) < 0.03:
                break
    return len(times)


def _busy_s() -> float:
    """Seconds that all cores of this machine have worked, since it started; 0 where the system does not tell."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
