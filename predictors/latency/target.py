"""What latency refers to: a device and a setting, and where the profile of each is kept."""

from __future__ import annotations

import difflib
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ...search_space.config import one_line
from .fusion import RUNTIMES

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "cpu": "cpu/onnxruntime/fp32/b1/t1",
        "cpu:int8": "cpu/onnxruntime/int8/b1/t1",
        "cpu:torch": "cpu/torch/fp32/b1/t1",
        "cuda": "cuda/torch-graph/fp16/b1/t1",
        "cuda:onnxruntime": "cuda/onnxruntime-cuda/fp32/b1/t1",
        "cuda:tensorrt": "cuda/onnxruntime-tensorrt/fp16/b1/t1",
        "rtx3090": "rtx3090/tensorrt/fp16/b1/t1",
        "rtx3090:throughput": "rtx3090/torch/amp/bmax/t1",
        "rtx4090:throughput": "rtx4090/torch/amp/bmax/t1",
        "rtx5090:throughput": "rtx5090/torch/amp/bmax/t1",
        "i7-12700h": "i7-12700h/torch-compile/fp32/b1/t14",
        "i9-10940x": "i9-10940x/torch-compile/fp32/b1/t14",
    }
)
"""Short names. "bmax" is the largest batch that fits: ms per image."""

_BY_PRECISION = {("onnxruntime", "int8"): "onnxruntime-int8", ("torch", "amp"): "torch-amp"}
TARGET_RUNTIMES: tuple[str, ...] = tuple(name for name in RUNTIMES if name not in _BY_PRECISION.values())
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "amp", "int8")
LOCAL_DEVICES: tuple[str, ...] = ("cpu", "cuda")

_FORM = "device/runtime/precision/bBATCH/tTHREADS (cpu/onnxruntime/fp32/b1/t1)"
_DEVICE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_BATCH = re.compile(r"b([1-9]\d{0,5}|max)")
_THREADS = re.compile(r"t([1-9]\d{0,3})")
_HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.+-]*@)?[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")
_MAX_FILE_BYTES = 10_000


@dataclass(frozen=True)
class Box:
    """The machine that a target is measured on over SSH.

    Attributes:
        host: "user@box", or a name from the user's SSH configuration.
        python: interpreter there, with numpy and onnxruntime; a relative path begins in the home folder there.
        file: the YAML file that names it.
        fingerprint: what a profile of it belongs to, once the box was asked.
    """

    host: str
    python: str = "python3"
    file: Path | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise ValueError(f"host: user@box or a name from your SSH configuration, given {self.host!r:.80}")
        if not self.python or self.python.startswith("-") or not self.python.isprintable():
            raise ValueError(f"python: an interpreter on the box, python3 or a path, given {self.python!r:.80}")


@dataclass(frozen=True, order=True)
class Target:
    """A device and a setting; `str(target)` is its full name.

    Attributes:
        device: "cpu" and "cuda" are this machine's; anything else names one that profiles know.
        runtime: one of `TARGET_RUNTIMES`.
        precision: one of `PRECISIONS`.
        batch: images at a time; None is "max", the largest batch that fits, and means ms per image.
        threads: computation threads.
        box: where it is measured, if that is over SSH; no part of the name.
    """

    device: str
    runtime: str
    precision: str
    batch: int | None
    threads: int
    box: Box | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise ValueError(f"target device: lower-case letters, digits, '.', '_' and '-', given {self.device!r}")
        if self.runtime not in TARGET_RUNTIMES:
            raise ValueError(f"target runtime: known are {', '.join(TARGET_RUNTIMES)}, given {self.runtime!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"target precision: known are {', '.join(PRECISIONS)}, given {self.precision!r}")
        if (self.batch is not None and self.batch < 1) or self.threads < 1:
            raise ValueError(f"target batch and threads are at least 1, given {self.batch} and {self.threads}")
        if self.box is not None and self.is_local:
            raise ValueError(
                f"device: {self.device!r} is this machine's; give the device on {self.box.host} another name"
            )

    @classmethod
    def load(cls, name: str | Path | Target) -> Self:
        """A target by name, as `parse` takes it, or from the user's own YAML file (`read`)."""
        if isinstance(name, Path) or (isinstance(name, str) and name.endswith((".yaml", ".yml"))):
            return cls.read(name)
        return cls.parse(name)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """A target from a YAML file with the keys of `TargetFile`.

        Raises ValueError, in one line: a file that cannot be read, an unknown key or an impossible value.
        """
        import yaml

        path = Path(path)
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise ValueError(f"target {path}: more than {_MAX_FILE_BYTES} bytes")
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"target {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"target {path}: broken YAML: {' '.join(str(error).split()):.200}") from None
        if not isinstance(data, dict):
            raise ValueError(f"target {path}: a target is a mapping with keys {', '.join(TargetFile.model_fields)}")
        try:
            given = TargetFile.model_validate(data)
            box = None if given.host is None else Box(given.host, given.python, path)
            batch = None if given.batch == "max" else given.batch
            return cls(given.device.lower(), given.runtime, given.precision, batch, given.threads, box)
        except ValidationError as error:
            hint = f" (keys are {', '.join(TargetFile.model_fields)})" if "unknown key" in one_line(error) else ""
            raise ValueError(f"target {path}: {one_line(error)}{hint}") from None
        except ValueError as error:
            raise ValueError(f"target {path}: {error}") from None

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
    def kernels(self) -> str:
        """As whose kernels a network runs there, one of `fusion.RUNTIMES`."""
        return _BY_PRECISION.get((self.runtime, self.precision), self.runtime)

    @property
    def is_local(self) -> bool:
        """Whether it is a device of this machine; its profiles belong to that device model and runtime version."""
        return self.device in LOCAL_DEVICES

    @property
    def can_be_measured(self) -> bool:
        """Whether it is at hand: a device of this machine, or one on a box that is reached over SSH."""
        return self.is_local or self.box is not None

    @property
    def file_name(self) -> str:
        return str(self).replace("/", "__") + ".json"

    def fingerprint(self) -> dict[str, str]:
        """What a profile of a device at hand belongs to: device model and runtime version; empty for other devices."""
        if not self.is_local:
            return {} if self.box is None else dict(self.box.fingerprint)
        device = {"cpu": cpu_name()} if self.device == "cpu" else {"gpu": gpu_name()}
        library = "torch" if self.runtime.startswith("torch") else "onnxruntime"
        return {**device, library: library_version(library)}


class TargetFile(BaseModel):
    """What the YAML file of a target holds; see `Target` and `Box`. Only "device" must be there."""

    model_config = ConfigDict(extra="forbid", strict=True)

    device: str
    runtime: str = "onnxruntime"
    precision: str = "fp32"
    batch: int | Literal["max"] = 1
    threads: int = 1
    host: str | None = None
    python: str = "python3"


@cache
def cpu_name() -> str:
    """Model of this machine's CPU, its vector extension included, which a virtual machine may hide in one of many."""
    said = {name: "" for name in ("/proc/cpuinfo", "/proc/device-tree/model")}
    for name in said:
        with suppress(OSError):
            said[name] = Path(name).read_text(errors="replace")
    return describe_cpu(*said.values())


def describe_cpu(cpuinfo: str, board: str) -> str:
    """The CPU's name, from what Linux says of it and, on ARM, of the board that it is on."""
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
