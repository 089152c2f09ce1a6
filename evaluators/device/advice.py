"""What a machine's state means for its latencies, in sentences for whoever measures there."""

from __future__ import annotations

from .agent.machine_state import MachineState

HOT_C = 85.0
"""Temperature in degrees Celsius from which on many CPUs slow down, or soon will."""
BUSY_SHARE = 0.25
"""Load over cores from which on a machine counts as busy."""


def advice(state: MachineState, cores: int, load: float) -> list[str]:
    """What makes latencies on this machine uneven or slow, and what helps; empty where nothing is wrong.

    Args:
        state: of the machine now.
        cores: physical ones that this process may use.
        load: processes that run or wait, on average over the last minute.
    """
    return [*_settings_advice(state), *_readings_advice(state, cores, load), cores_advice(cores)]


def cores_advice(cores: int) -> str:
    """Which of the CPU's two targets matters for batch 1."""
    if cores == 1:
        return "with one core, `cpu` is the only setting"
    return (
        f"at batch 1, `cpu` (1 thread) is what a request takes where {cores} are answered at once, one a core; "
        f"`cpu:all-cores` ({cores} threads) is what it takes where it has the machine to itself"
    )


def _settings_advice(state: MachineState) -> list[str]:
    settings, found = state.settings, []
    if settings.get("governor") == "powersave" and settings.get("energy preference") != "performance":
        found.append(
            "the governor is powersave: clocks follow the load, short measurements see low ones "
            "(`sudo cpupower frequency-set -g performance`)"
        )
    if settings.get("power supply") == "battery":
        found.append("it runs on its battery: most laptops are slower then; plug it in before you calibrate")
    if settings.get("power profile") in ("low-power", "quiet", "cool"):
        found.append(
            f"the power profile is {settings['power profile']}: choose the one of real use (`powerprofilesctl set`)"
        )
    if "cpu quota" in settings:
        found.append(
            f"this container may use {settings['cpu quota']}: once that is used up, everything stands still for a "
            "while, so that latency under load is far above the undisturbed one"
        )
    if settings.get("turbo") == "on":
        found.append("turbo is on: clocks depend on temperature and on how many cores work; that is what users have")
    return found


def _readings_advice(state: MachineState, cores: int, load: float) -> list[str]:
    found = []
    if state.throttled:
        found.append(f"it is slowed down right now: {', '.join(state.throttled)}")
    if (hottest := state.readings.get("temperature_c", 0.0)) >= HOT_C:
        found.append(f"it is hot ({hottest:.0f} degrees): let it cool down, or measure it as warm as it is in use")
    if load > BUSY_SHARE * cores:
        found.append(f"it is busy (load {load:.1f} on {cores} cores): measurements take longer to settle")
    if "clock_mhz" not in state.readings:
        found.append("its clock cannot be read here: a sentinel network shows how fast it is")
    return found
