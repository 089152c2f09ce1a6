"""What latency refers to: a device and a setting, and where the profile of each is kept."""

from __future__ import annotations

import difflib
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Self

from .fusion import RUNTIMES

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "cpu": "cpu/onnxruntime/fp32/b1/t1",
        "cpu:torch": "cpu/torch/fp32/b1/t1",
        "cuda": "cuda/torch-graph/fp16/b1/t1",
        "cuda:onnxruntime": "cuda/onnxruntime-cuda/fp32/b1/t1",
        "cuda:tensorrt": "cuda/onnxruntime-tensorrt/fp16/b1/t1",
        "rtx3090": "rtx3090/tensorrt/fp16/b1/t1",
        "rtx3090:throughput": "rtx3090/torch/amp/bmax/t1",
    }
)
"""Short names. "bmax" is the largest batch that fits: ms per image."""

TARGET_RUNTIMES: tuple[str, ...] = (*RUNTIMES, "onnxruntime-cuda", "onnxruntime-tensorrt")
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "amp", "int8")
LOCAL_DEVICES: tuple[str, ...] = ("cpu", "cuda")

_FORM = "device/runtime/precision/bBATCH/tTHREADS (cpu/onnxruntime/fp32/b1/t1)"
_DEVICE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_BATCH = re.compile(r"b([1-9]\d{0,5}|max)")
_THREADS = re.compile(r"t([1-9]\d{0,3})")


@dataclass(frozen=True, order=True)
class Target:
    """A device and a setting; `str(target)` is its full name.

    Attributes:
        device: "cpu" and "cuda" are this machine's; anything else names one that profiles know.
        runtime: one of `TARGET_RUNTIMES`.
        precision: one of `PRECISIONS`.
        batch: images at a time; None is "max", the largest batch that fits, and means ms per image.
        threads: computation threads.
    """

    device: str
    runtime: str
    precision: str
    batch: int | None
    threads: int

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(f"target device: lower-case letters, digits, '.', '_' and '-', given {self.device!r}")
        if self.runtime not in TARGET_RUNTIMES:
            raise ValueError(f"target runtime: known are {', '.join(TARGET_RUNTIMES)}, given {self.runtime!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"target precision: known are {', '.join(PRECISIONS)}, given {self.precision!r}")
        if (self.batch is not None and self.batch < 1) or self.threads < 1:
            raise ValueError(f"target batch and threads are at least 1, given {self.batch} and {self.threads}")

    @classmethod
    def parse(cls, name: str | Target) -> Self:
        """A target from a short name (`ALIASES`) or a full one. Raises ValueError with the nearest known names."""
        if isinstance(name, cls):
            return name
        text = str(name).strip().lower()
        parts = ALIASES.get(text, text).split("/")
        if len(parts) != 5:
            near = difflib.get_close_matches(text, ALIASES, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(ALIASES)}"
            raise ValueError(f"unknown target {str(name)!r:.80}: {hint} (or {_FORM})")
        batch, threads = _BATCH.fullmatch(parts[3]), _THREADS.fullmatch(parts[4])
        if not batch or not threads:
            raise ValueError(
                f"bad target {str(name)!r:.80}: a full name is {_FORM}; bmax is the largest batch that fits"
            )
        return cls(parts[0], parts[1], parts[2], None if batch[1] == "max" else int(batch[1]), int(threads[1]))

    def __str__(self) -> str:
        batch = "max" if self.batch is None else self.batch
        return f"{self.device}/{self.runtime}/{self.precision}/b{batch}/t{self.threads}"

    @property
    def alias(self) -> str | None:
        """Its short name, if it has one."""
        return next((alias for alias, name in ALIASES.items() if name == str(self)), None)

    @property
    def is_local(self) -> bool:
        """Whether it is a device of this machine; its profiles belong to that device model and runtime version."""
        return self.device in LOCAL_DEVICES

    @property
    def file_name(self) -> str:
        return str(self).replace("/", "__") + ".json"

    def fingerprint(self) -> dict[str, str]:
        """What a profile of a local device belongs to: device model and runtime version; empty for other devices."""
        if not self.is_local:
            return {}
        device = {"cpu": cpu_name()} if self.device == "cpu" else {"gpu": gpu_name()}
        library = "torch" if self.runtime.startswith("torch") else "onnxruntime"
        return {**device, library: library_version(library)}


@cache
def cpu_name() -> str:
    """Model of this machine's CPU, its vector extension included, which a virtual machine may hide in one of many."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine() or "unknown"
    name = fields.get("model name") or platform.processor() or platform.machine() or "unknown"
    if "model" in fields:
        name += f" (family {fields.get('cpu family', '?')} model {fields['model']})"
    flags = fields.get("flags", "").split()
    vectors = next((flag for flag in ("avx512f", "avx2", "avx") if flag in flags), "")
    return f"{name} {vectors}".strip()


@cache
def gpu_name() -> str:
    """Model of this machine's first NVIDIA GPU, "none" without one."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return "none"


@cache
def library_version(name: str) -> str:
    """Installed version of a runtime library, without importing it."""
    for distribution in (name, f"{name}-gpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "none"


def user_profiles() -> Path:
    """Where the user's own profiles are kept."""
    import platformdirs

    return platformdirs.user_data_path("lownas", appauthor=False) / "profiles"


def shipped_profiles() -> Path:
    return Path(__file__).parent / "profiles"


def profile_folders(profiles: str | Path | None = None) -> list[Path]:
    """Folders searched for profiles, in order: `profiles` (or else the user's own), then the shipped ones."""
    return [Path(profiles) if profiles is not None else user_profiles(), shipped_profiles()]
