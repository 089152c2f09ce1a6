"""What a network does cost: latency of ONNX files through onnxruntime and of torch modules.

Every measurement warms up until its times settle, keeps all raw times, and says when they cannot be trusted: wide
spread, drift from the first to the last third, other work on the machine.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from ...search_space import LowFormerConfig, OpGraph
from .agent import Job, Node, Timed, alone, load_onnxruntime, time_model, time_runs
from .kernel_times import kernel_times_ms

if TYPE_CHECKING:
    import torch

    from ...search_space.graph.onnx_writer import Weights

logger = logging.getLogger("lownas.evaluators")

NOISY_SPREAD = 0.10
"""IQR over median above which a measurement is called noisy."""
DRIFT = 0.05
"""Change of the median from the first to the last third above which drift is reported."""
BUSY = 0.5
"""Cores kept busy by other processes above which the machine is called busy."""

_PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
_PRECISIONS = {
    "onnxruntime": ("fp32", "int8"),
    "onnxruntime-cuda": ("fp32",),
    "onnxruntime-tensorrt": ("fp32", "fp16"),
}


class Setting(Protocol):
    """What measuring needs of a target (`predictors.Target` has it)."""

    @property
    def device(self) -> str: ...
    @property
    def runtime(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def batch(self) -> int | None: ...
    @property
    def threads(self) -> int: ...
    def fingerprint(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class LatencyMeasurement:
    """Raw times of one network in one setting.

    Attributes:
        target: full name of the setting.
        what: what was timed (a config's id, a file's name).
        times_ms: every timed run after warm-up, in order, ms per run (one batch).
        cpu_times_ms: beside each wall time the CPU time of the one thread that did the work; empty where several did,
            or another device. What it falls short of the wall time, the operating system gave to other processes.
        host: device model and runtime version.
        versions: of the libraries involved.
        warmup_runs: runs before the first kept one.
        busy_cores: cores that other processes kept busy meanwhile.
        notes: what makes the times doubtful, one line each.
        kernel_ms: where the runtime tells, ms per kernel, named "ROW:op", "ROW:reorder_in" or "ROW:reorder_out" after
            the rows of the operator graph (`predictors.fusion.Kernels.keys`).
    """

    target: str
    what: str
    times_ms: tuple[float, ...]
    cpu_times_ms: tuple[float, ...] = ()
    host: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    warmup_runs: int = 0
    busy_cores: float = 0.0
    notes: tuple[str, ...] = ()
    kernel_ms: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.times_ms or not all(math.isfinite(t) and t > 0 for t in self.times_ms):
            raise ValueError(f"a measurement needs positive, finite times, given {self.times_ms[:5]}")

    @cached_property
    def _sorted(self) -> np.ndarray:
        return np.sort(np.asarray(self.times_ms))

    def quantile_ms(self, q: float) -> float:
        return float(np.quantile(self._sorted, q))

    @property
    def median_ms(self) -> float:
        return self.quantile_ms(0.5)

    @property
    def iqr_ms(self) -> float:
        return self.quantile_ms(0.75) - self.quantile_ms(0.25)

    @property
    def p90_ms(self) -> float:
        return self.quantile_ms(0.9)

    @property
    def p99_ms(self) -> float:
        return self.quantile_ms(0.99)

    @property
    def undisturbed_ms(self) -> float:
        """What the network takes while nothing else interrupts it; models are fitted on it.

        The lower decile of the times, without what other processes were given in between where that is known. On a
        quiet machine it is within a percent or two of the median.
        """
        times = np.minimum(self.times_ms, self.cpu_times_ms) if self.cpu_times_ms else np.asarray(self.times_ms)
        return float(np.quantile(times, 0.1))

    @property
    def runs(self) -> int:
        return len(self.times_ms)

    @property
    def noisy(self) -> bool:
        return bool(self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON Lines."""
        return {
            "target": self.target,
            "what": self.what,
            "times_ms": [round(t, 5) for t in self.times_ms],
            "cpu_times_ms": [round(t, 5) for t in self.cpu_times_ms],
            "host": dict(self.host),
            "versions": dict(self.versions),
            "warmup_runs": self.warmup_runs,
            "busy_cores": round(self.busy_cores, 3),
            "notes": list(self.notes),
            "kernel_ms": None if self.kernel_ms is None else {k: round(v, 6) for k, v in self.kernel_ms.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        lists = {name: tuple(data[name]) for name in ("times_ms", "cpu_times_ms", "notes")}
        return cls(**{**data, **lists})


def measure_latency(
    network: LowFormerConfig | OpGraph | str | Path,
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
    if target.runtime.startswith("torch"):
        if not isinstance(network, LowFormerConfig):
            raise ValueError(f"{target} measures torch models: give a config, not {network!r:.60}")
        from ...search_space import build_model

        return measure_torch(
            build_model(network),
            (3, network.resolution, network.resolution),
            target,
            what=network.id,
            time_limit_s=time_limit_s,
            min_runs=min_runs,
        )
    what, model = onnx_source(network, target)
    return measure_onnx(model, target, what=what, time_limit_s=time_limit_s, min_runs=min_runs, kernels=kernels)


def onnx_source(
    network: LowFormerConfig | OpGraph | str | Path, target: Setting, weights: Weights | None = None
) -> tuple[str, bytes | Path]:
    """A name for `network`, and the model to time: serialized, or its file.

    `weights` are those of a config or graph; random ones if None. For an int8 target the model is quantized, unless a
    file holds one that already is.
    """
    if isinstance(network, str | Path):
        if not Path(network).is_file():
            raise ValueError(f"no such ONNX file: {network}")
        if target.precision == "int8":
            from .quantize import quantized_file

            return Path(network).name, quantized_file(Path(network))
        _warn_of_other_precision(Path(network), target)
        return Path(network).name, Path(network)
    from ...search_space.graph.onnx_writer import onnx_model

    what = network.id if isinstance(network, LowFormerConfig) else "graph"
    model = onnx_model(network, weights, batch=target.batch or 1)
    if target.precision == "int8":
        from .quantize import quantized

        model = quantized(model)
    return what, model.SerializeToString()


def _warn_of_other_precision(file: Path, target: Setting) -> None:
    import onnx
    from google.protobuf.message import DecodeError

    from ...search_space.graph.onnx_file import precision_of

    try:
        precision = precision_of(onnx.load(str(file), format="protobuf", load_external_data=False))
    except (OSError, DecodeError):
        return  # the runtime says what is wrong with the file
    if precision not in ("fp32", target.precision):
        warnings.warn(f"{file.name} computes in {precision}, not in the target's {target.precision}", stacklevel=4)


def measure_for_calibration(
    network: LowFormerConfig | OpGraph, target: Setting, measure: Callable[..., LatencyMeasurement] = measure_latency
) -> LatencyMeasurement:
    """What `predictors.calibrate.calibrate` is handed: a short measurement, with kernel times where there are any.

    Its doubts are kept in the measurement but not given as warnings: calibration deals with them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure(network, target, time_limit_s=3.0, min_runs=12, kernels=True)


def check_measurable(target: Setting) -> None:
    """Raises ValueError, in one line, if this machine cannot measure `target`."""
    if target.device not in ("cpu", "cuda"):
        raise ValueError(f"{target.device} is not this machine's (cpu and cuda are): a target file names its `host`")
    import psutil

    if target.device == "cpu" and target.threads > (cores := psutil.cpu_count(logical=False) or 1):
        raise ValueError(f"{target} asks for {target.threads} threads, and this machine has {cores} cores")
    if target.runtime.startswith("torch"):
        import torch

        if target.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"{target} needs a CUDA device that torch can use, and there is none")
        if target.runtime == "torch-graph" and target.device != "cuda":
            raise ValueError(f"{target}: CUDA graphs need a CUDA device; use cpu/torch/... or cpu/torch-compile/...")
        _check_batch(target)
        return
    if (target.device == "cpu") != (_PROVIDERS.get(target.runtime) in (None, "CPUExecutionProvider")):
        known = "cpu/onnxruntime/..., cuda/onnxruntime-cuda/... and cuda/onnxruntime-tensorrt/..."
        raise ValueError(f"{target}: this runtime is not that device's; known are {known}")
    onnxruntime = load_onnxruntime()
    check_onnx_setting(target)
    check_onnx_provider(target, onnxruntime.get_available_providers(), onnxruntime.__version__)


def _check_batch(target: Setting) -> None:
    if target.batch is None:
        raise ValueError(f"{target} has no fixed batch size: give one (b1, b8, ...) to measure")


def check_onnx_setting(target: Setting) -> None:
    """Raises ValueError, in one line, if no onnxruntime can measure `target`."""
    _check_batch(target)
    if target.runtime not in _PROVIDERS:
        known = [*_PROVIDERS, *(("torch", "torch-compile", "torch-graph") if target.device in ("cpu", "cuda") else ())]
        raise ValueError(f"{target}: runtime {target.runtime!r} cannot be measured; known are {', '.join(known)}")
    if target.precision not in _PRECISIONS[target.runtime]:
        allowed = ", ".join(_PRECISIONS[target.runtime])
        raise ValueError(f"{target}: {target.runtime} measures {allowed}, not {target.precision} yet")


def check_onnx_provider(target: Setting, providers: Sequence[str], version: str) -> None:
    """Raises ValueError, in one line, if an onnxruntime with these execution providers cannot measure `target`."""
    if (provider := _PROVIDERS[target.runtime]) not in providers:
        raise ValueError(
            f"{target} needs onnxruntime's {provider}, and this onnxruntime {version} has {', '.join(providers)} "
            "(pip install lownas[gpu] where there is an NVIDIA GPU)"
        )


def measure_onnx(
    model: bytes | str | Path,
    target: Setting,
    *,
    what: str = "onnx",
    time_limit_s: float = 10.0,
    min_runs: int = 30,
    kernels: bool = False,
) -> LatencyMeasurement:
    """Times an ONNX model (serialized, or a file) through onnxruntime with all graph optimizations.

    No two measurements run at once on this machine; a second one waits for the first.
    """
    check_measurable(target)
    onnxruntime = load_onnxruntime()
    source = model if isinstance(model, bytes) else str(model)
    timed, nodes = time_model(source, onnx_job(target, what, time_limit_s, min_runs, kernels), logger.warning)
    versions = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    return latency_measurement(target, what, timed, nodes, target.fingerprint(), versions)


def onnx_job(target: Setting, what: str, time_limit_s: float, min_runs: int, kernels: bool) -> Job:
    """What measuring an ONNX model in the setting `target` means to onnxruntime."""
    provider = _PROVIDERS[target.runtime]
    options = {"trt_fp16_enable": str(target.precision == "fp16")} if provider == "TensorrtExecutionProvider" else {}
    return Job(
        what=what,
        target=str(target),
        provider=provider,
        provider_options=options,
        batch=target.batch or 1,
        threads=target.threads,
        time_limit_s=time_limit_s,
        min_runs=min_runs,
        kernels=kernels and target.runtime == "onnxruntime",
    )


def latency_measurement(
    target: Setting,
    what: str,
    timed: Timed,
    nodes: Sequence[Node] | None,
    host: Mapping[str, str],
    versions: Mapping[str, str],
) -> LatencyMeasurement:
    """The record of what was timed; its doubts are also given as warnings."""
    return LatencyMeasurement(
        target=str(target),
        what=what,
        times_ms=tuple(timed.times_ms),
        cpu_times_ms=tuple(timed.cpu_times_ms),
        host=host,
        versions=versions,
        warmup_runs=timed.warmup_runs,
        busy_cores=timed.busy_cores,
        notes=_doubts(timed, what),
        kernel_ms=None if nodes is None else kernel_times_ms(nodes),
    )


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
    """
    check_measurable(target)
    import torch

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if target.precision not in dtypes:
        raise ValueError(f"{target}: torch measures {', '.join(dtypes)}, not {target.precision!r}")
    device = torch.device(target.device)
    dtype = dtypes[target.precision]
    threads = torch.get_num_threads()
    module = module.eval().to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(target.batch or 1, *input_size, device=device, dtype=dtype)
    images = images.to(memory_format=torch.channels_last)
    call: Callable[[], object] = lambda: module(images)  # noqa: E731
    try:
        torch.set_num_threads(target.threads)
        with alone(logger.warning), torch.inference_mode():
            if target.runtime == "torch-compile":
                torch._dynamo.reset()  # or after some networks it would not compile any more
                compiled = torch.compile(module)
                call = lambda: compiled(images)  # noqa: E731
                call()  # compiles, however long that takes
            elif target.runtime == "torch-graph":
                call = _captured(module, images)
            if device.type == "cuda":
                timed = time_runs(call, time_limit_s, min_runs, _cuda_clock())
            else:
                timed = time_runs(call, time_limit_s, min_runs, one_thread=target.threads == 1)
    finally:
        torch.set_num_threads(threads)
    versions = {"torch": torch.__version__}
    return latency_measurement(target, what, timed, None, target.fingerprint(), versions)


def _captured(module: torch.nn.Module, images: torch.Tensor) -> Callable[[], object]:
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            module(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(images)
    return graph.replay


def _cuda_clock() -> Callable[[Callable[[], object]], float]:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def clock(run: Callable[[], object]) -> float:
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return clock


def _doubts(timed: Timed, what: str) -> tuple[str, ...]:
    """What makes the times of `what` doubtful, each also given as a warning."""
    times, busy = timed.times_ms, timed.busy_cores
    median = float(np.median(times))
    notes = []
    spread = float(np.subtract(*np.percentile(times, [75, 25]))) / median
    if spread > NOISY_SPREAD:
        notes.append(f"noisy: the middle half of the times spreads over {spread:.0%} of the median")
    if len(times) >= 12:
        third = len(times) // 3
        drift = float(np.median(times[-third:]) / np.median(times[:third])) - 1
        if abs(drift) > DRIFT:
            notes.append(f"drift: the last third of the runs took {drift:+.0%} against the first")
    if busy > BUSY:
        notes.append(f"busy machine: other processes kept {busy:.1f} cores busy")
    for note in notes:
        warnings.warn(f"{what}: {note}", stacklevel=4)
    return tuple(notes)
