"""What a machine's speed depends on, as far as it can be read without privileges.

Settings stay as they are until somebody changes them, and a measurement belongs to them: governor, turbo, power mode,
power supply, the cores and the share of them that a container may use. Readings explain a measurement: clock,
temperature, throttling. What cannot be read is left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

COMMAND_S = 5.0  # for tools of the system's makers, which may hang without their driver
_ROOT = Path("/")
_PI_THROTTLING = ("undervoltage", "clock capped", "throttled", "temperature limit")  # bits 0 to 3 of get_throttled
_GPU_QUERY = ("clocks.sm", "temperature.gpu", "power.limit")
_GPU_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # as newer and older drivers call them
_GPU_THROTTLING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature",
    0x40: "hardware temperature",
    0x80: "power brake",
}


class MachineState(NamedTuple):
    """The state of a machine; see the module.

    Attributes:
        settings: by name, as text: {"governor": "powersave", "turbo": "on"}.
        readings: "clock_mhz", "temperature_c", and "throttle_events", which counts since the machine started.
        throttled: what slows it down right now, in words.
    """

    settings: dict[str, str]
    readings: dict[str, float]
    throttled: list[str]


def machine_state(gpu: bool = False, root: Path = _ROOT) -> MachineState:
    """The state of this machine now; with `gpu` that of its first NVIDIA GPU too.

    `root` holds the system's `sys` and `proc`; elsewhere than at "/" no command is run.
    """
    settings = {name: value for name, value in _settings(root) if value}
    readings = {name: value for name, value in _readings(root) if value is not None}
    throttled: list[str] = []
    if root == _ROOT:
        if mode := re.search(r"NV Power Mode:\s*(\S+)", _said("nvpmodel", "-q")):
            settings["power mode"] = mode.group(1)
        throttled += pi_throttling(_said("vcgencmd", "get_throttled"))
        if gpu:
            own, values = gpu_state(_gpu_said(*_GPU_QUERY))
            settings.update(own)
            readings.update(values)
            throttled += gpu_throttling(next(filter(None, map(_gpu_said, _GPU_REASONS)), ""))
    return MachineState(settings, readings, throttled)


# --- the system's files ----------------------------------------------------------------------------------------------


def _settings(root: Path) -> Iterator[tuple[str, str]]:
    cpus = root / "sys/devices/system/cpu"
    yield "governor", _common(cpus, "cpufreq/scaling_governor")
    yield "energy preference", _common(cpus, "cpufreq/energy_performance_preference")
    no_turbo, boost = _text(cpus / "intel_pstate/no_turbo"), _text(cpus / "cpufreq/boost")
    yield "turbo", {"0": "on", "1": "off"}.get(no_turbo) or {"0": "off", "1": "on"}.get(boost) or ""
    yield "power profile", _text(root / "sys/firmware/acpi/platform_profile")
    yield "power supply", _power_supply(root / "sys/class/power_supply")
    quota = cpu_quota(root)
    yield "cpu quota", "" if quota is None else f"{quota:g} cores"
    allowed, there = _allowed_cpus(), os.cpu_count() or 1
    yield "cores allowed", f"{allowed} of {there}" if allowed < there else ""


def _readings(root: Path) -> Iterator[tuple[str, float | None]]:
    cpus = root / "sys/devices/system/cpu"
    clocks = [float(text) / 1e3 for text in _texts(cpus, "cpufreq/scaling_cur_freq") if text.isdigit()]
    if not clocks:
        found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(root / "proc/cpuinfo"), re.MULTILINE)
        clocks = [float(text) for text in found]
    yield "clock_mhz", round(sorted(clocks)[len(clocks) // 2], 1) if clocks else None
    yield "temperature_c", _temperature(root)
    events = [int(text) for text in _texts(cpus, "thermal_throttle/core_throttle_count") if text.isdigit()]
    yield "throttle_events", float(sum(events)) if events else None


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Cores that this process' control group may use (cgroup v2 or v1); None where nothing limits it."""
    own = re.findall(r"^0::(/.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    base = root / "sys/fs/cgroup"
    found = []
    folders = [base / own[0].lstrip("/")] if own else []
    while folders and folders[-1] != base and base in folders[-1].parents:
        folders.append(folders[-1].parent)
    for folder in [*folders, base]:  # every level above limits too
        most, _, period = _text(folder / "cpu.max").partition(" ")
        if most.isdigit() and period.isdigit() and int(period):
            found.append(int(most) / int(period))
    most, period = (_text(base / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if most.isdigit() and period.isdigit() and int(period):  # no limit is -1 there
        found.append(int(most) / int(period))
    return round(min(found), 3) if found else None


def _power_supply(folder: Path) -> str:
    """Mains or battery; empty where the machine has no battery."""
    kinds = {path.parent.name: _text(path) for path in sorted(folder.glob("*/type"))}
    if "Battery" not in kinds.values():
        return ""
    online = [_text(folder / name / "online") for name, kind in kinds.items() if kind in ("Mains", "USB")]
    return "mains" if "1" in online else "battery"


def _temperature(root: Path) -> float | None:
    """Of the hottest CPU sensor, in degrees Celsius."""
    found = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind = _text(zone / "type").lower()
        if any(word in kind for word in ("cpu", "pkg", "soc", "core")):
            found.append(_text(zone / "temp"))
    for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _text(sensor / "name") in ("coretemp", "k10temp", "zenpower", "cpu_thermal"):
            found += [_text(path) for path in sorted(sensor.glob("temp*_input"))]
    degrees = [int(text) / 1e3 for text in found if text.lstrip("-").isdigit()]
    return max(degrees) if degrees else None


def _allowed_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def _common(cpus: Path, file: str) -> str:
    """What this file of every CPU says, each different text once."""
    return ", ".join(sorted(set(_texts(cpus, file))))


def _texts(cpus: Path, file: str) -> list[str]:
    found = (_text(path) for path in sorted(cpus.glob(f"cpu[0-9]*/{file}")))
    return [text for text in found if text]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


# --- the makers' tools -----------------------------------------------------------------------------------------------


def pi_throttling(said: str) -> list[str]:
    """What a Raspberry Pi's `vcgencmd get_throttled` says slows it down now."""
    found = re.search(r"throttled=0x([0-9a-fA-F]+)", said)
    bits = int(found.group(1), 16) if found else 0
    return [reason for bit, reason in enumerate(_PI_THROTTLING) if bits >> bit & 1]


def gpu_state(said: str) -> tuple[Mapping[str, str], Mapping[str, float]]:
    """Settings and readings of a GPU, from one line of `nvidia-smi` (`_GPU_QUERY`)."""
    fields = [field.strip() for field in said.strip().split("\n")[0].split(",")]
    if len(fields) != len(_GPU_QUERY):
        return {}, {}
    values = dict(zip(_GPU_QUERY, fields))  # noqa: B905  (Python 3.8 has no `strict`)
    readings = {}
    for name, query in (("gpu_clock_mhz", "clocks.sm"), ("gpu_temperature_c", "temperature.gpu")):
        if re.fullmatch(r"[\d.]+", values[query]):
            readings[name] = float(values[query])
    limit = values["power.limit"]
    return ({"gpu power limit": f"{float(limit):g} W"} if re.fullmatch(r"[\d.]+", limit) else {}), readings


def gpu_throttling(said: str) -> list[str]:
    """What slows a GPU down, from what `nvidia-smi` says of the reasons."""
    found = re.match(r"\s*(0x[0-9a-fA-F]+)", said)
    bits = int(found.group(1), 16) if found else 0
    return [f"gpu {reason}" for bit, reason in _GPU_THROTTLING.items() if bits & bit]


def nvidia_gpu() -> str:
    """The model of the first NVIDIA GPU; empty without one."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in _text(file).splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return _gpu_said("name").strip()  # a container may hide the driver's files


def _gpu_said(*fields: str) -> str:
    query = f"--query-gpu={','.join(fields)}"
    return _said("nvidia-smi", "-i", "0", query, "--format=csv,noheader,nounits")


def _said(*command: str) -> str:
    """What a command prints; empty where there is none or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_S, check=False, text=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
