"""Measures what a network costs: latency on a device of this machine, through any runtime (`device.runtimes`).

Every look warms up until its times settle, keeps all raw times and the state of the machine, and notes when they cannot
be trusted: wide spread, drift from the first to the last third, other work on the machine. No two measurements run at
once on this machine; a second one waits for the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...search_space import LowFormerConfig, OpGraph
from . import runtimes
from .latency_record import LatencyMeasurement, Setting
from .runtimes import Network
from .runtimes.torch_eager import TorchEager

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda")
"""What the devices of this machine are called."""
CALIBRATION_TIME_LIMIT_S = 3.0
CALIBRATION_RUNS = 12
"""Limits of a measurement for a calibration, which makes some dozens of them in at most 4 minutes."""


def measure_latency(
    network: Network,
    target: Setting,
    *,
    time_limit_s: float = 10.0,
    min_runs: int = 30,
    kernels: bool = False,
) -> LatencyMeasurement:
    """Times `network` in the setting `target`.

    Args:
        network: a configuration, its operator graph, or the path of an ONNX file.
        target: device "cpu" or "cuda" of this machine, and a runtime installed here.
        time_limit_s: warm-up and timed runs end by then (one run is always made).
        min_runs: timed runs to make where the limit allows them; more if they are short.
        kernels: with onnxruntime on the CPU, also the times of single kernels.

    Raises:
        ValueError: the target cannot be measured here.
    """
    check_measurable(target)
    runtime = runtimes.runtime(target.runtime)
    return runtime.measure(network, target, time_limit_s=time_limit_s, min_runs=min_runs, kernels=kernels)


def measure_for_calibration(
    network: LowFormerConfig | OpGraph, target: Setting, measure: Callable[..., LatencyMeasurement] = measure_latency
) -> LatencyMeasurement:
    """Makes the short measurements of a calibration, with kernel times where there are any."""
    return measure(network, target, time_limit_s=CALIBRATION_TIME_LIMIT_S, min_runs=CALIBRATION_RUNS, kernels=True)


def check_measurable(target: Setting) -> None:
    """Raises ValueError, in one line, if this machine cannot measure `target`."""
    if target.device not in DEVICES:
        raise ValueError(f"{target.device} is not this machine's (cpu and cuda are): a target file names its `host`")
    import psutil

    if target.device == "cpu" and target.threads > (cores := psutil.cpu_count(logical=False) or 1):
        raise ValueError(f"{target} asks for {target.threads} threads, and this machine has {cores} cores")
    try:
        runtime = runtimes.runtime(target.runtime)
    except ValueError as error:
        raise ValueError(f"{target}: {error}") from None
    runtime.check(target)


def measure_torch(
    module: torch.nn.Module,
    input_size: tuple[int, int, int],
    target: Setting,
    *,
    what: str = "torch",
    time_limit_s: float = 10.0,
    min_runs: int = 30,
) -> LatencyMeasurement:
    """Times a torch module in inference mode: eager ("torch"), as a CUDA graph ("torch-graph") or compiled.

    On CUDA the times are those of CUDA events around one batch, channels-last, in the target's precision.

    Args:
        input_size: channels, height and width of an image.
    """
    check_measurable(target)
    runtime = runtimes.runtime(target.runtime)
    if not isinstance(runtime, TorchEager):
        raise ValueError(f"{target}: {runtime.name} does not run torch modules")
    return runtime.measure_module(module, input_size, target, what=what, time_limit_s=time_limit_s, min_runs=min_runs)
