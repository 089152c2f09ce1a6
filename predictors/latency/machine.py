"""This machine's CPU, GPU and installed runtime versions, by which a profile recognizes the machine it was made on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path


@cache
def cpu_name() -> str:
    """The model of this machine's CPU and its vector extension, which a virtual machine may hide."""
    contents = {name: "" for name in ("/proc/cpuinfo", "/proc/device-tree/model")}
    for name in contents:
        with suppress(OSError):
            contents[name] = Path(name).read_text(errors="replace")
    return describe_cpu(*contents.values())


def describe_cpu(cpuinfo: str, board: str) -> str:
    """The CPU's name, from Linux's `cpuinfo` and, on ARM, the name of the board."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or board.strip("\0 \n") or platform.processor() or platform.machine() or "unknown"
    if "CPU part" in fields:
        name += f" (implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']})"
    if "model" in fields:
        name += f" (family {fields.get('cpu family', '?')} model {fields['model']})"
    flags = fields.get("flags", "").split()
    vectors = next((flag for flag in ("avx512f", "avx2", "avx") if flag in flags), "")
    return f"{name} {vectors}".strip()


@cache
def physical_cores() -> int:
    """Physical cores of this machine, of those that this process may use; threads of one core count once."""
    try:
        allowed = sorted(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # other systems than Linux
        return os.cpu_count() or 1
    cores = set()
    for number in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{number}/topology")
        try:
            cores.add(tuple((topology / name).read_text() for name in ("physical_package_id", "core_id")))
        except OSError:
            cores.add((str(number),))
    return max(1, len(cores))


@cache
def gpu_name() -> str:
    """The model of this machine's first NVIDIA GPU; "none" without one."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    if shutil.which("nvidia-smi") is None:
        return "none"
    command = ["nvidia-smi", "-i", "0", "--query-gpu=name", "--format=csv,noheader"]  # containers may hide the files
    try:
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False, text=True
        )
    except (OSError, subprocess.SubprocessError):
        return "none"
    return said.stdout.strip() if said.returncode == 0 and said.stdout.strip() else "none"


@cache
def library_version(name: str) -> str:
    """The installed version of a runtime library, found without importing it; "none" if it is not installed."""
    for distribution in (name, f"{name}-gpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "none"
