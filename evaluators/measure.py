"""What a network does cost: latency of ONNX files through onnxruntime and of torch modules.

Every measurement warms up until its times settle, keeps all raw times, and says when they cannot be trusted: wide
spread, drift from the first to the last third, other work on the machine.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np

from ..search_space import LowFormerConfig, OpGraph, op_graph

if TYPE_CHECKING:
    import onnxruntime
    import torch

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
    "onnxruntime": ("fp32",),
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
        from ..search_space import build_model

        return measure_torch(
            build_model(network),
            (3, network.resolution, network.resolution),
            target,
            what=network.id,
            time_limit_s=time_limit_s,
            min_runs=min_runs,
        )
    if isinstance(network, str | Path):
        if not Path(network).is_file():
            raise ValueError(f"no such ONNX file: {network}")
        return measure_onnx(
            network, target, what=Path(network).name, time_limit_s=time_limit_s, min_runs=min_runs, kernels=kernels
        )
    what = network.id if isinstance(network, LowFormerConfig) else "graph"
    from ..search_space.onnx_graph import onnx_model

    graph = op_graph(network) if isinstance(network, LowFormerConfig) else network
    model = onnx_model(graph, batch=target.batch or 1).SerializeToString()
    return measure_onnx(model, target, what=what, time_limit_s=time_limit_s, min_runs=min_runs, kernels=kernels)


def measure_for_calibration(config: LowFormerConfig, target: Setting) -> LatencyMeasurement:
    """What `predictors.calibrate.calibrate` is handed: a short measurement, with kernel times where there are any.

    Its doubts are kept in the measurement but not given as warnings: calibration deals with them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measure_latency(config, target, time_limit_s=3.0, min_runs=12, kernels=True)


def check_measurable(target: Setting) -> None:
    """Raises ValueError, in one line, if this machine cannot measure `target`."""
    if target.device not in ("cpu", "cuda"):
        raise ValueError(f"{target} is not this machine: only cpu and cuda targets can be measured here")
    if target.batch is None:
        raise ValueError(f"{target} has no fixed batch size: give one (b1, b8, ...) to measure")
    if target.runtime.startswith("torch"):
        import torch

        if target.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"{target} needs a CUDA device that torch can use, and there is none")
        if target.runtime == "torch-graph" and target.device != "cuda":
            raise ValueError(f"{target}: CUDA graphs need a CUDA device; use cpu/torch/... or cpu/torch-compile/...")
        return
    if target.runtime not in _PROVIDERS:
        known = [*_PROVIDERS, "torch", "torch-compile", "torch-graph"]
        raise ValueError(f"{target}: runtime {target.runtime!r} cannot be measured; known are {', '.join(known)}")
    if target.precision not in _PRECISIONS[target.runtime]:
        allowed = ", ".join(_PRECISIONS[target.runtime])
        raise ValueError(f"{target}: {target.runtime} measures {allowed}, not {target.precision} yet")
    import onnxruntime

    provider = _PROVIDERS[target.runtime]
    if provider not in onnxruntime.get_available_providers():
        raise ValueError(
            f"{target} needs onnxruntime's {provider}, and this onnxruntime {onnxruntime.__version__} has "
            f"{', '.join(onnxruntime.get_available_providers())} (pip install lownas[gpu] where there is an NVIDIA GPU)"
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
    """Times an ONNX model (serialized, or a file) through onnxruntime with all graph optimizations."""
    check_measurable(target)
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="lownas-") as folder:
        optimized = Path(folder) / "optimized.onnx" if kernels and target.runtime == "onnxruntime" else None
        session = _session(model, target, optimized)
        feeds = _random_feeds(session, target)
        try:
            session.run(None, feeds)
        except Exception as error:  # onnxruntime's own, which share no public base class
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            reason = " ".join(str(error).split())
            raise ValueError(f"{what} does not run in onnxruntime: {reason[:200]}") from None

        def run() -> None:
            session.run(None, feeds)

        timed = _time_runs(run, time_limit_s, min_runs, one_thread=target.device == "cpu" and target.threads == 1)
        kernel_ms = None
        if optimized is not None:
            del session  # its arena would only crowd the caches
            from .kernel_times import kernel_times_ms

            kernel_ms = kernel_times_ms(optimized, feeds, target.threads, Path(folder))
    return LatencyMeasurement(
        target=str(target),
        what=what,
        times_ms=timed.times_ms,
        cpu_times_ms=timed.cpu_times_ms,
        host=target.fingerprint(),
        versions={"onnxruntime": onnxruntime.__version__, "numpy": np.__version__},
        warmup_runs=timed.warmup_runs,
        busy_cores=timed.busy_cores,
        notes=_doubts(timed),
        kernel_ms=kernel_ms,
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
        with torch.inference_mode():
            if target.runtime == "torch-compile":
                compiled = torch.compile(module)
                call = lambda: compiled(images)  # noqa: E731
            elif target.runtime == "torch-graph":
                call = _captured(module, images)
            if device.type == "cuda":
                timed = _time_runs(call, time_limit_s, min_runs, _cuda_clock())
            else:
                timed = _time_runs(call, time_limit_s, min_runs, one_thread=target.threads == 1)
    finally:
        torch.set_num_threads(threads)
    return LatencyMeasurement(
        target=str(target),
        what=what,
        times_ms=timed.times_ms,
        cpu_times_ms=timed.cpu_times_ms,
        host=target.fingerprint(),
        versions={"torch": torch.__version__},
        warmup_runs=timed.warmup_runs,
        busy_cores=timed.busy_cores,
        notes=_doubts(timed),
    )


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


def _wall_clock(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def _session(model: bytes | str | Path, target: Setting, optimized: Path | None) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if target.threads > 1 else "0")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    provider: Any = _PROVIDERS[target.runtime]
    if provider == "TensorrtExecutionProvider":
        provider = (provider, {"trt_fp16_enable": target.precision == "fp16"})
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions share no narrower base class than this
        raise ValueError(f"onnxruntime cannot load the model: {str(error).splitlines()[0]:.200}") from None


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def _random_feeds(session: onnxruntime.InferenceSession, target: Setting, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of the declared shapes; a symbolic first size is the target's batch, other symbolic ones are 1."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for node in session.get_inputs():
        if node.type not in _DTYPES:
            raise ValueError(f"input {node.name!r} is {node.type}; measured are {', '.join(_DTYPES)}")
        batch = target.batch or 1
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in node.shape]
        if node.shape and not isinstance(node.shape[0], int):
            shape[0] = batch
        elif len(shape) == 4 and shape[0] != batch:
            raise ValueError(
                f"{target} is of batch {batch}, and the model's input {node.name!r} is of batch {shape[0]}"
            )
        feeds[node.name] = rng.standard_normal(shape).astype(_DTYPES[node.type])
    return feeds


class _Timed(NamedTuple):
    times_ms: tuple[float, ...]
    cpu_times_ms: tuple[float, ...]
    warmup_runs: int
    busy_cores: float


def _time_runs(
    run: Callable[[], object],
    time_limit_s: float,
    min_runs: int,
    clock: Callable[[Callable[[], object]], float] = _wall_clock,
    one_thread: bool = False,
) -> _Timed:
    """Warms up, then times. With `one_thread` the calling thread does all the work, and its CPU time is noted too."""
    import psutil

    deadline = time.perf_counter() + time_limit_s
    warmup = _warm_up(run, clock, time_limit_s / 4)
    process = psutil.Process()
    psutil.cpu_percent(None)
    own = process.cpu_times()
    begin = time.perf_counter()
    # Enough runs for a stable median; short ones are repeated for at least a twentieth of the limit.
    least = begin + time_limit_s / 20
    times: list[float] = []
    cpu_times: list[float] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        while not times or (time.perf_counter() < deadline and (len(times) < min_runs or time.perf_counter() < least)):
            cpu_begin = time.thread_time()
            times.append(clock(run))
            cpu_times.append((time.thread_time() - cpu_begin) * 1e3)
    finally:
        if collecting:
            gc.enable()
    elapsed = time.perf_counter() - begin
    total = psutil.cpu_percent(None) / 100 * (psutil.cpu_count() or 1)
    now = process.cpu_times()
    ours = (now.user + now.system - own.user - own.system) / elapsed
    busy = max(0.0, total - ours) if elapsed > 0.2 else 0.0  # the kernel counts in steps of 10 ms
    return _Timed(tuple(times), tuple(cpu_times) if one_thread else (), warmup, busy)


def _warm_up(run: Callable[[], object], clock: Callable[[Callable[[], object]], float], limit_s: float) -> int:
    """Runs until the medians of two successive windows of five agree within 3 %, for at most `limit_s`."""
    window = 5
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < limit_s:
        times.append(clock(run))
        if len(times) >= 2 * window and len(times) % window == 0:
            before, after = np.median(times[-2 * window : -window]), np.median(times[-window:])
            if abs(after / before - 1) < 0.03:
                break
    return len(times)


def _doubts(timed: _Timed) -> tuple[str, ...]:
    """What makes these times doubtful, each also given as a warning."""
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
        warnings.warn(note, stacklevel=3)
    return tuple(notes)
