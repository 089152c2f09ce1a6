"""Runtimes by name: what each of them executes for an operator graph. `base.Runtime` says how to write another one."""

from __future__ import annotations

import re

from .base import STANDARD_PRECISIONS, Runtime
from .onnxruntime import OnnxRuntime, OnnxRuntimeCuda, OnnxRuntimeTensorRt
from .tensorrt import TensorRt
from .torch_compile import TorchCompile
from .torch_eager import TorchEager, TorchGraph

__all__ = [
    "RUNTIMES",
    "STANDARD_PRECISIONS",
    "Runtime",
    "fusion_names",
    "register_runtime",
    "runtime",
    "runtime_of_fusion",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHIPPED: tuple[Runtime, ...] = (
    OnnxRuntime(),
    OnnxRuntimeCuda(),
    OnnxRuntimeTensorRt(),
    TensorRt(),
    TorchEager(),
    TorchGraph(),
    TorchCompile(),
)
RUNTIMES: dict[str, Runtime] = {shipped.name: shipped for shipped in _SHIPPED}


def register_runtime(runtime: Runtime) -> None:
    """Makes a runtime available to targets under its name.

    Raises ValueError if another one has that name, or if the name cannot be part of a target's.
    """
    if RUNTIMES.get(runtime.name) is runtime:
        return
    if not runtime.precisions:
        raise ValueError(f"runtime {runtime.name!r:.80} has no precision")
    for name in runtime.fusions:
        if not _NAME.fullmatch(name):
            raise ValueError(f"runtime name: lower-case letters, digits, '.', '_' and '-', given {name!r:.80}")
        if name in fusion_names():
            raise ValueError(f"a runtime named {name!r} is registered already")
    RUNTIMES[runtime.name] = runtime


def runtime(name: str) -> Runtime:
    """Gives the runtime of that name. Raises ValueError, naming the known ones, if there is none."""
    if name not in RUNTIMES:
        raise ValueError(f"target runtime: known are {', '.join(RUNTIMES)}, given {name!r}")
    return RUNTIMES[name]


def fusion_names() -> tuple[str, ...]:
    """The names of the fusion rules of all runtimes; most runtimes have one set of rules, of their own name."""
    return tuple(name for known in RUNTIMES.values() for name in known.fusions)


def runtime_of_fusion(fusion: str) -> Runtime:
    """Gives the runtime with fusion rules of that name. Raises ValueError, naming the known ones, if there is none."""
    if fusion in RUNTIMES:
        return RUNTIMES[fusion]
    for known in RUNTIMES.values():
        if fusion in known.fusions:
            return known
    raise ValueError(f"unknown runtime {fusion!r}; known are {', '.join(fusion_names())}")
