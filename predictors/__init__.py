"""What an architecture will cost and reach, predicted: latency on a target, peak memory, ImageNet accuracy.

`latency.calibration.calibrate` makes a profile of another target, `latency.runtimes` says how to add a runtime.

Importing this and predicting latency needs numpy, pydantic and platformdirs; reading a target from YAML needs PyYAML,
and an ONNX file needs onnx. Calibrating and the accuracy surrogate need scipy. Nothing here needs torch, ray or optuna.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accuracy.prior import AccuracyPrior
    from .latency.fusion import fuse
    from .latency.kernels import Kernels
    from .latency.predictor import LatencyPrediction, LatencyPredictor, list_profiles
    from .latency.target import Target

__all__ = [
    "AccuracyPrior",
    "Kernels",
    "LatencyPrediction",
    "LatencyPredictor",
    "Target",
    "fuse",
    "list_profiles",
]

_LATE = {
    "AccuracyPrior": "accuracy.prior",
    "Kernels": "latency.kernels",
    "LatencyPrediction": "latency.predictor",
    "LatencyPredictor": "latency.predictor",
    "Target": "latency.target",
    "fuse": "latency.fusion",
    "list_profiles": "latency.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LATE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
