"""Timing through onnxruntime: its providers for CPUs, for CUDA and for TensorRT."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ....search_space import LowFormerConfig, OnnxFile, OpGraph
from ..agent.models import Job, load_onnxruntime, time_model
from ..latency_record import LatencyMeasurement, Setting, latency_measurement
from .base import Network, check_batch

if TYPE_CHECKING:
    from ....search_space.graph.onnx_writer import Weights

logger = logging.getLogger("lownas.evaluators")

CPU_PROVIDER = "CPUExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"


@dataclass(frozen=True)
class OnnxRuntime:
    """Onnxruntime with one of its execution providers.

    Attributes:
        name: of the runtime, as in targets.
        devices: the ones that the provider runs on.
        precisions: those that are measured.
        provider: onnxruntime's name of it.
    """

    name: str
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    provider: str

    package = "onnxruntime"

    @property
    def tells_kernels(self) -> bool:
        """Whether its profile names kernels that are rows of the operator graph."""
        return self.provider == CPU_PROVIDER

    def check(self, setting: Setting) -> None:
        if setting.device not in self.devices:
            known = [f"{device}/{each.name}/..." for each in ONNX_RUNTIMES.values() for device in each.devices]
            raise ValueError(
                f"{setting}: this runtime is not that device's; known are {', '.join(known[:-1])} and {known[-1]}"
            )
        onnxruntime = load_onnxruntime()
        check_onnx_setting(setting)
        check_onnx_provider(setting, onnxruntime.get_available_providers(), onnxruntime.__version__)

    def measure(
        self, network: Network, setting: Setting, *, time_limit_s: float, min_runs: int, kernels: bool
    ) -> LatencyMeasurement:
        what, model = onnx_source(network, setting)
        return self.measure_model(
            model,
            setting,
            what=what,
            time_limit_s=time_limit_s,
            min_runs=min_runs,
            kernels=kernels,
            input_shapes=onnx_shapes(network, setting),
        )

    def measure_model(
        self,
        model: bytes | str | Path,
        setting: Setting,
        *,
        what: str,
        time_limit_s: float,
        min_runs: int,
        kernels: bool,
        input_shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> LatencyMeasurement:
        """Times an ONNX model, serialized or in a file, with all graph optimizations."""
        onnxruntime = load_onnxruntime()
        source = model if isinstance(model, bytes) else str(model)
        job = onnx_job(setting, what, time_limit_s, min_runs, kernels, input_shapes)
        timed, nodes = time_model(source, job, logger.warning)
        versions = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
        return latency_measurement(setting, what, timed, nodes, setting.fingerprint(), versions)


ONNX_RUNTIMES: Mapping[str, OnnxRuntime] = MappingProxyType(
    {
        runtime.name: runtime
        for runtime in (
            OnnxRuntime("onnxruntime", ("cpu",), ("fp32", "int8"), CPU_PROVIDER),
            OnnxRuntime("onnxruntime-cuda", ("cuda",), ("fp32",), "CUDAExecutionProvider"),
            OnnxRuntime("onnxruntime-tensorrt", ("cuda",), ("fp32", "fp16"), TENSORRT_PROVIDER),
        )
    }
)


def check_onnx_setting(setting: Setting) -> None:
    """Raises ValueError, in one line, if no onnxruntime can measure `setting`, here or on another machine."""
    check_batch(setting)
    if setting.runtime not in ONNX_RUNTIMES:
        known = ", ".join(ONNX_RUNTIMES)
        raise ValueError(f"{setting}: runtime {setting.runtime!r} cannot be measured; known are {known}")
    if setting.precision not in (precisions := ONNX_RUNTIMES[setting.runtime].precisions):
        raise ValueError(f"{setting}: {setting.runtime} measures {', '.join(precisions)}, not {setting.precision} yet")


def check_onnx_provider(setting: Setting, providers: Sequence[str], version: str) -> None:
    """Raises ValueError, in one line, if an onnxruntime with these execution providers cannot measure `setting`."""
    if (provider := ONNX_RUNTIMES[setting.runtime].provider) not in providers:
        raise ValueError(
            f"{setting} needs onnxruntime's {provider}, and this onnxruntime {version} has {', '.join(providers)} "
            "(pip install lownas[gpu] where there is an NVIDIA GPU)"
        )


def onnx_job(
    setting: Setting,
    what: str,
    time_limit_s: float,
    min_runs: int,
    kernels: bool,
    input_shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> Job:
    """What measuring an ONNX model in a setting means to onnxruntime, here or on another machine."""
    runtime = ONNX_RUNTIMES[setting.runtime]
    tensorrt = runtime.provider == TENSORRT_PROVIDER
    return Job(
        what=what,
        target=str(setting),
        provider=runtime.provider,
        provider_options={"trt_fp16_enable": str(setting.precision == "fp16")} if tensorrt else {},
        batch=setting.batch or 1,
        threads=setting.threads,
        time_limit_s=time_limit_s,
        min_runs=min_runs,
        kernels=kernels and runtime.tells_kernels,
        input_shapes={name: list(shape) for name, shape in input_shapes.items()},
    )


def onnx_source(network: Network, setting: Setting, weights: Weights | None = None) -> tuple[str, bytes | Path]:
    """A name for `network`, and the model to time: serialized, or its file.

    `weights` are those of a config or graph; random ones if None. For an int8 setting the model is quantized, unless a
    file holds one that already is.
    """
    if isinstance(network, str | Path | OnnxFile):
        path = _path(network)
        if not path.is_file():
            raise ValueError(f"no such ONNX file: {path}")
        if setting.precision == "int8":
            from ..quantize import quantized_file

            return path.name, quantized_file(path)
        _warn_of_other_precision(path, setting)
        return path.name, path
    if isinstance(network, LowFormerConfig):
        write = _kept_model if weights is None else _written_model
        return network.id, write(network, weights, setting.batch or 1, setting.precision)
    return "graph", _written_model(network, weights, setting.batch or 1, setting.precision)


def _written_model(network: LowFormerConfig | OpGraph, weights: Weights | None, batch: int, precision: str) -> bytes:
    from ....search_space.graph.onnx_writer import onnx_model

    model = onnx_model(network, weights, batch=batch)
    if precision == "int8":
        from ..quantize import quantized

        model = quantized(model)
    return model.SerializeToString()


_kept_model = lru_cache(maxsize=2)(_written_model)
"""Keeps the sentinel's, which is looked at between others."""


def onnx_shapes(network: Network, setting: Setting) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's inputs, where it leaves them open or they were given; none of anything else.

    Raises ValueError, in one line with a command that says them, if sizes are open.
    """
    if not isinstance(network, str | Path | OnnxFile):
        return {}
    from google.protobuf.message import DecodeError

    from ....search_space.graph.onnx_inputs import input_shapes

    try:
        return input_shapes(network if isinstance(network, OnnxFile) else OnnxFile(Path(network)), setting.batch or 1)
    except (OSError, DecodeError):
        return {}  # the runtime says what is wrong with the file


def _path(network: str | Path | OnnxFile) -> Path:
    return network.path if isinstance(network, OnnxFile) else Path(network)


def _warn_of_other_precision(file: Path, setting: Setting) -> None:
    import onnx
    from google.protobuf.message import DecodeError

    from ....search_space.graph.onnx_file import precision_of

    try:
        precision = precision_of(onnx.load(str(file), format="protobuf", load_external_data=False))
    except (OSError, DecodeError):
        return  # the runtime says what is wrong with the file
    if precision not in ("fp32", setting.precision):
        warnings.warn(f"{file.name} computes in {precision}, not in the target's {setting.precision}", stacklevel=4)
