"""What this machine is, for whoever measures, searches or asks for help."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import psutil

from ..evaluators.device.advice import advice
from ..evaluators.device.agent.machine_state import machine_state
from ..evaluators.device.measure import check_measurable
from ..predictors import Target, list_profiles
from ..predictors.latency.machine import cpu_name, physical_cores
from ..predictors.latency.target import ALIASES
from ..version import __version__
from .trials.run_folder import versions


def describe_machine(profiles: str | Path | None = None) -> dict[str, Any]:
    """What this machine is and in what state, which versions are installed, what can be measured here; JSON values."""
    state = machine_state(gpu=True)
    load = round(psutil.getloadavg()[0], 2)
    return {
        "lownas": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": physical_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": load,
        "settings": state.settings,
        "readings": state.readings,
        "throttled": state.throttled,
        "versions": versions(),
        "devices": _measurable(),
        "profiles": [entry["alias"] or entry["target"] for entry in list_profiles(profiles) if entry["usable"]],
        "advice": advice(state, physical_cores(), load),
    }


def _measurable() -> dict[str, str]:
    """By short name of a target of this machine, whether it can be measured here, or why not."""
    measurable: dict[str, str] = {}
    for alias in ALIASES:
        target = Target.parse(alias)
        if target.is_local:
            try:
                check_measurable(target)
            except ValueError as error:
                measurable[alias] = str(error)
            except ImportError as error:
                measurable[alias] = f"a package is missing: {error}"
            else:
                measurable[alias] = "can be measured here"
    return measurable
