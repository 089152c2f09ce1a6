"""What a runtime is, on the side of timing; its docstring is the guide to writing another one."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ....search_space import LowFormerConfig, OnnxFile, OpGraph
from ..latency_record import LatencyMeasurement, Setting

Network = LowFormerConfig | OpGraph | str | Path | OnnxFile
"""What can be timed: a configuration, its operator graph, or an ONNX file, perhaps with the shapes of its inputs."""


class Runtime(Protocol):
    """A library that runs networks on a device of this machine, as measurements see it.

    Another runtime takes two files. This side says how a network is timed; `predictors/latency/runtimes/` has a file of
    the same name that says which kernels the runtime makes of a network, from which latency is predicted. Neither
    imports the other, the runtime's name joins them. Without the second file nothing can be predicted, but a network
    can be timed.

    To write this side, give a class these members and register an object of it:

        class Toy:
            name = "toy"
            devices = ("cpu",)
            precisions = ("fp32",)
            package = "toy-runtime"

            def check(self, setting):
                check_setting(self, setting)

            def measure(self, network, setting, *, time_limit_s, min_runs, kernels):
                run = ...  # a function that runs `network` once, on a batch of random images
                with alone(logger.warning):
                    timed = time_runs(run, time_limit_s, min_runs)
                return latency_measurement(setting, "a name", timed, None, setting.fingerprint(), {"toy": "1.0"})

        register_runtime(Toy())

    What has to hold:
    - Nothing else on this machine is measured meanwhile: `agent.lock.alone` holds the one lock that all measurements
      take.
    - `agent.timing.time_runs` warms up, keeps to the limit, and notes the state of the machine; times are those of
      whole batches, in ms, from the call to the finished result.
    - As many threads compute as the setting says, and settings that are global are put back afterwards.
    - The library is imported late, within `check` and `measure`.
    """

    @property
    def name(self) -> str:
        """As in a target's name: cpu/NAME/fp32/b1/t1."""
        ...

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of this machine that it runs on: "cpu", "cuda"."""
        ...

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that can be timed."""
        ...

    @property
    def package(self) -> str:
        """The package that must be installed."""
        ...

    def check(self, setting: Setting) -> None:
        """Raises ValueError, in one line, if this machine cannot measure `setting`.

        That there are such a device and so many threads is checked before.
        """
        ...

    def measure(
        self, network: Network, setting: Setting, *, time_limit_s: float, min_runs: int, kernels: bool
    ) -> LatencyMeasurement:
        """Times `network` in a setting that `check` has let pass.

        Args:
            time_limit_s: warm-up and timed runs end by then (one run is always made).
            min_runs: timed runs to make where the limit allows them.
            kernels: also time single kernels, named as in `LatencyMeasurement.kernel_ms`, if the runtime tells.

        Raises:
            ValueError: such a network cannot be timed; in one line.
        """
        ...


def check_batch(setting: Setting) -> None:
    """Raises ValueError, in one line, if the setting leaves the batch size open."""
    if setting.batch is None:
        raise ValueError(f"{setting} has no fixed batch size: give one (b1, b8, ...) to measure")


def check_setting(runtime: Runtime, setting: Setting) -> None:
    """Raises ValueError, in one line, if `runtime` has not the setting's device or precision, or the batch is open."""
    if setting.device not in runtime.devices:
        raise ValueError(f"{setting}: {runtime.name} runs on {', '.join(runtime.devices)}, not on {setting.device}")
    check_batch(setting)
    if setting.precision not in runtime.precisions:
        allowed = ", ".join(runtime.precisions)
        raise ValueError(f"{setting}: {runtime.name} measures {allowed}, not {setting.precision}")
