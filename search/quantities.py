"""Durations, percentages and amounts as people write them: "2ms", "3%", "5M", "50MB"."""

from __future__ import annotations

import math
import re

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_DURATION = re.compile(rf"{_NUMBER}\s*(us|µs|ms|s|m|min|h)")
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


def parse_duration(text: str, what: str) -> float:
    """Reads a positive duration such as "2ms", "800us", "0.5s" or "10m"; gives seconds.

    Raises ValueError naming `what` was to be read.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{what}: a positive duration such as 800us, 2ms, 0.5s or 10m, given {text!r}")
    return seconds


def parse_percentage(text: str, what: str) -> float:
    """Reads a percentage such as "3%"; gives a fraction."""
    match = re.fullmatch(rf"{_NUMBER}\s*%", text.strip())
    share = float(match[1]) / 100 if match else math.nan
    if not 0 < share < 1:
        raise ValueError(f"{what}: between 0% and 100%, such as 3% or 2.5%, given {text!r}")
    return share


def parse_quantity(text: str, what: str, unit: str = "") -> float:
    """Reads a positive number such as "600M", "1.5G" or, with a unit, "50MB"."""
    match = re.fullmatch(rf"{_NUMBER}\s*([kKMG]?){unit}", text.strip())
    value = float(match[1]) * _FACTORS[match[2].replace("K", "k")] if match else math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{what}: a positive number such as 600k{unit}, 5M{unit} or 1.5G{unit}, given {text!r}")
    return value


def duration_text(seconds: float) -> str:
    """Seconds as a person says them: "40 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
