"""Targets: the device and the setting that a latency refers to, and where the profile of each is kept."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ...search_space.config import one_line
from .machine import cpu_name, gpu_name, library_version, physical_cores
from .runtimes import runtime

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "cpu": "cpu/onnxruntime/fp32/b1/t1",
        "cpu:all-cores": "cpu/onnxruntime/fp32/b1/tall",
        "cpu:int8": "cpu/onnxruntime/int8/b1/t1",
        "cpu:torch": "cpu/torch/fp32/b1/t1",
        "cuda": "cuda/torch-graph/fp16/b1/t1",
        "cuda:onnxruntime": "cuda/onnxruntime-cuda/fp32/b1/t1",
        "cuda:tensorrt": "cuda/onnxruntime-tensorrt/fp16/b1/t1",
        "rtx3090": "rtx3090/tensorrt/fp16/b1/t1",
        "rtx3090:throughput": "rtx3090/torch/amp/bmax/t1",
        "rtx4090:throughput": "rtx4090/torch/amp/bmax/t1",
        "rtx5090:throughput": "rtx5090/torch/amp/bmax/t1",
        "rtxpro6000:throughput": "rtxpro6000/torch/amp/bmax/t1",
        "rtx4090:compile": "rtx4090/torch-compile/amp/bmax/t1",
        "rtx5090:compile": "rtx5090/torch-compile/amp/bmax/t1",
        "rtxpro6000:compile": "rtxpro6000/torch-compile/amp/bmax/t1",
        "i7-12700h": "i7-12700h/torch-compile/fp32/b1/t14",
        "i9-10940x": "i9-10940x/torch-compile/fp32/b1/t14",
    }
)
"""Short names of targets, with their full names (`full_names`).

"bmax" is the largest batch that fits: ms per image. "tall" is as many threads as this machine has physical cores.
"""

LOCAL_DEVICES: tuple[str, ...] = ("cpu", "cuda")
"""Devices of this machine; every other name is that of a device elsewhere."""

_FORM = "device/runtime/precision/bBATCH/tTHREADS (cpu/onnxruntime/fp32/b1/t1)"
_DEVICE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_BATCH = re.compile(r"b([1-9]\d{0,5}|max)")
_THREADS = re.compile(r"t([1-9]\d{0,3}|all)")
_HOST = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.+-]*@)?[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")
_MAX_FILE_BYTES = 10_000


@dataclass(frozen=True)
class Box:
    """A machine that is reached over SSH, for a target that is measured there.

    Attributes:
        host: "user@box", or a name from the user's SSH configuration.
        python: interpreter there, with numpy and onnxruntime; a relative path begins in the home folder there.
        file: the YAML file that names it.
        fingerprint: device model and runtime version there, once the box was asked.
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
        runtime: one of `runtimes.RUNTIMES`.
        precision: one of that runtime's `precisions`.
        batch: images at a time; None is "max", the largest batch that fits, and latencies are ms per image.
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
        precisions = runtime(self.runtime).precisions
        if self.precision not in precisions:
            raise ValueError(f"target precision: known are {', '.join(precisions)}, given {self.precision!r}")
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
                f"bad target {str(name)!r:.80}: a full name is {_FORM}; bmax is the largest batch that fits, "
                "tall are all cores of this machine"
            )
        if threads[1] == "all" and parts[0] != "cpu":
            raise ValueError(f"bad target {str(name)!r:.80}: tall are all cores of this machine, and its device is cpu")
        count = physical_cores() if threads[1] == "all" else int(threads[1])
        return cls(parts[0], parts[1], parts[2], None if batch[1] == "max" else int(batch[1]), count)

    def __str__(self) -> str:
        batch = "max" if self.batch is None else self.batch
        return f"{self.device}/{self.runtime}/{self.precision}/b{batch}/t{self.threads}"

    @property
    def alias(self) -> str | None:
        """The short name of the target, or None."""
        return next((alias for alias, name in full_names().items() if name == str(self)), None)

    @property
    def fusion(self) -> str:
        """The name of the fusion rules by which networks run there, for `fusion.fuse`: "onnxruntime-int8"."""
        return runtime(self.runtime).fusion(self.precision)

    @property
    def is_local(self) -> bool:
        """Whether it is a device of this machine. Its profiles belong to that device model and runtime version."""
        return self.device in LOCAL_DEVICES

    @property
    def can_be_measured(self) -> bool:
        """Whether it is a device of this machine, or one on a box that is reached over SSH."""
        return self.is_local or self.box is not None

    @property
    def file_name(self) -> str:
        """The name of its profile's file."""
        return str(self).replace("/", "__") + ".json"

    def fingerprint(self) -> dict[str, str]:
        """The device model and runtime version that a profile belongs to; empty if it cannot be measured."""
        if not self.is_local:
            return {} if self.box is None else dict(self.box.fingerprint)
        device = {"cpu": cpu_name()} if self.device == "cpu" else {"gpu": gpu_name()}
        library = runtime(self.runtime).library
        return {**device, library: library_version(library)}


class TargetFile(BaseModel):
    """The keys of a target's YAML file, as in `Target` and `Box`. Only "device" must be given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    device: str
    runtime: str = "onnxruntime"
    precision: str = "fp32"
    batch: int | Literal["max"] = 1
    threads: int = 1
    host: str | None = None
    python: str = "python3"


def full_names() -> dict[str, str]:
    """Short names of targets with the full names that they stand for on this machine."""
    return {alias: name.replace("/tall", f"/t{physical_cores()}") for alias, name in ALIASES.items()}


def user_profiles() -> Path:
    """The folder of the user's own profiles."""
    import platformdirs

    return platformdirs.user_data_path("lownas", appauthor=False) / "profiles"


def shipped_profiles() -> Path:
    """The folder of the profiles that come with the package."""
    return Path(__file__).parent / "profiles"


def profile_folders(profiles: str | Path | None = None) -> list[Path]:
    """The folders searched for profiles, in order: `profiles` (or else the user's own), then the shipped ones."""
    return [Path(profiles) if profiles is not None else user_profiles(), shipped_profiles()]
