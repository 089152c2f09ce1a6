"""Timing torch modules as they are, and as CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ....search_space import LowFormerConfig
from ..agent.lock import alone
from ..agent.timing import time_runs
from ..latency_record import LatencyMeasurement, Setting, latency_measurement
from .base import Network, check_batch

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("lownas.evaluators")

GRAPH_WARM_UP_RUNS = 3  # before a CUDA graph is captured, as in the example of torch's documentation


class TorchEager:
    """Torch in inference mode, channels-last, one kernel after the other ("torch").

    On CUDA the times are those of CUDA events around one batch. A runtime that has torch run a module in another way
    derives from this one and overrides `prepared`.
    """

    name = "torch"
    devices: tuple[str, ...] = ("cpu", "cuda")
    precisions: tuple[str, ...] = ("fp32", "fp16", "bf16")
    package = "torch"

    def check(self, setting: Setting) -> None:
        import torch

        if setting.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"{setting} needs a CUDA device that torch can use, and there is none")
        self.check_device(setting)
        check_batch(setting)

    def check_device(self, setting: Setting) -> None:
        """Raises ValueError, in one line, if it does not run on the setting's device."""

    def prepared(self, module: torch.nn.Module, images: torch.Tensor) -> Callable[[], object]:
        """What is timed: a function that runs the module on `images` once. Compiling happens here, untimed."""
        return lambda: module(images)

    def measure(
        self, network: Network, setting: Setting, *, time_limit_s: float, min_runs: int, kernels: bool
    ) -> LatencyMeasurement:
        if not isinstance(network, LowFormerConfig):
            raise ValueError(f"{setting} measures torch models: give a config, not {network!r:.60}")
        from ....search_space import build_model

        return self.measure_module(
            build_model(network),
            (3, network.resolution, network.resolution),
            setting,
            what=network.id,
            time_limit_s=time_limit_s,
            min_runs=min_runs,
        )

    def measure_module(
        self,
        module: torch.nn.Module,
        input_size: tuple[int, int, int],
        setting: Setting,
        *,
        what: str,
        time_limit_s: float,
        min_runs: int,
    ) -> LatencyMeasurement:
        """Times a module on random images of `input_size` (channels, height, width)."""
        import torch

        dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        if setting.precision not in self.precisions:
            raise ValueError(f"{setting}: torch measures {', '.join(self.precisions)}, not {setting.precision!r}")
        device, dtype = torch.device(setting.device), dtypes[setting.precision]
        threads = torch.get_num_threads()
        module = module.eval().to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randn(setting.batch or 1, *input_size, device=device, dtype=dtype)
        images = images.to(memory_format=torch.channels_last)
        try:
            torch.set_num_threads(setting.threads)
            with alone(logger.warning), torch.inference_mode():
                run = self.prepared(module, images)
                if device.type == "cuda":
                    timed = time_runs(run, time_limit_s, min_runs, _cuda_clock(), gpu=True)
                else:
                    timed = time_runs(run, time_limit_s, min_runs, one_thread=setting.threads == 1)
        finally:
            torch.set_num_threads(threads)
        return latency_measurement(setting, what, timed, None, setting.fingerprint(), {"torch": torch.__version__})


class TorchGraph(TorchEager):
    """Torch's kernels recorded once and replayed as a CUDA graph ("torch-graph"), so that none is launched alone."""

    name = "torch-graph"
    devices = ("cuda",)

    def check_device(self, setting: Setting) -> None:
        if setting.device != "cuda":
            raise ValueError(f"{setting}: CUDA graphs need a CUDA device; use cpu/torch/... or cpu/torch-compile/...")

    def prepared(self, module: torch.nn.Module, images: torch.Tensor) -> Callable[[], object]:
        import torch

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(GRAPH_WARM_UP_RUNS):
                module(images)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            module(images)
        return graph.replay


def _cuda_clock() -> Callable[[Callable[[], object]], float]:
    """A clock that gives the ms between CUDA events before and after a run."""
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def clock(run: Callable[[], object]) -> float:
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return clock
