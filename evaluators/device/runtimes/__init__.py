"""Runtimes by name: how each of them times a network. `base.Runtime` says how to write another one."""

from __future__ import annotations

from .base import Network, Runtime, check_setting
from .onnxruntime import ONNX_RUNTIMES
from .torch_compile import TorchCompile
from .torch_eager import TorchEager, TorchGraph

__all__ = ["Network", "Runtime", "check_setting", "register_runtime", "runtime", "runtime_names"]

_SHIPPED: tuple[Runtime, ...] = (*ONNX_RUNTIMES.values(), TorchEager(), TorchCompile(), TorchGraph())
_RUNTIMES: dict[str, Runtime] = {shipped.name: shipped for shipped in _SHIPPED}


def register_runtime(added: Runtime) -> None:
    """Makes a runtime available under its name. Raises ValueError if another one has that name."""
    if _RUNTIMES.get(added.name, added) is not added:
        raise ValueError(f"a runtime named {added.name!r} is registered already")
    _RUNTIMES[added.name] = added


def runtime(name: str) -> Runtime:
    """The runtime of a name. Raises ValueError, naming the known ones, if there is none."""
    if name not in _RUNTIMES:
        raise ValueError(f"runtime {name!r} cannot be measured; known are {', '.join(_RUNTIMES)}")
    return _RUNTIMES[name]


def runtime_names() -> tuple[str, ...]:
    """The names of all registered runtimes."""
    return tuple(_RUNTIMES)
