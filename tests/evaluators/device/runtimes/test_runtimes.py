"""A contract that every runtime keeps, and a runtime from outside that is measured without an edit in the package."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from lownas.evaluators.device.latency_record import LatencyMeasurement
from lownas.evaluators.device.measure import check_measurable, measure_for_calibration, measure_latency, measure_torch
from lownas.evaluators.device.runtimes import register_runtime, runtime, runtime_names
from lownas.search_space import PRESETS

from ...toys import NumpyRuntime

NETWORK = PRESETS["cpubone_nano"].replace(resolution=32, head_widths=(32, 32), classes=4)


@dataclass(frozen=True)
class Setting:
    """A target, as measuring sees it."""

    runtime: str
    device: str = "cpu"
    precision: str = "fp32"
    batch: int | None = 1
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.device}/{self.runtime}/{self.precision}/b{self.batch}/t{self.threads}"

    def fingerprint(self) -> dict[str, str]:
        return {"cpu": "some", "library": "1.0"}


@pytest.fixture(autouse=True)
def _quiet():
    """The machine that runs the tests may well be busy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=[*runtime_names(), NumpyRuntime.name])
def setting(request: pytest.FixtureRequest, toys: None) -> Setting:
    """A setting of each runtime, on the first of its devices."""
    return Setting(request.param, runtime(request.param).devices[0])


def test_what_a_runtime_says_of_itself(setting: Setting) -> None:
    found = runtime(setting.runtime)
    assert found.name == setting.runtime and found.package
    assert found.devices and set(found.devices) <= {"cpu", "cuda"}
    assert "fp32" in found.precisions


def test_it_measures_or_says_in_one_line_why_not(setting: Setting) -> None:
    if setting.runtime == "torch-compile":
        pytest.skip("compiling takes a quarter of a minute; see `test_compiling_is_not_timed`")
    try:
        check_measurable(setting)
    except ValueError as error:
        assert str(setting) in str(error) and "\n" not in str(error)
        with pytest.raises(ValueError, match="needs"):
            measure_latency(NETWORK, setting, time_limit_s=0.2)
        return
    record = measure_latency(NETWORK, setting, time_limit_s=0.3, min_runs=3)
    assert isinstance(record, LatencyMeasurement)
    assert record.target == str(setting) and record.what == NETWORK.id
    assert record.host == setting.fingerprint() and record.versions
    assert record.runs >= 1 and 0 < record.undisturbed_ms <= record.quantile_ms(1)
    assert LatencyMeasurement.from_dict(record.to_dict()).target == record.target


@pytest.mark.parametrize(
    ("change", "message"),
    [({"batch": None}, "batch size|needs"), ({"threads": 4096}, "4096 threads|needs"), ({"device": "tpu"}, "not this")],
)
def test_settings_that_none_can_measure(setting: Setting, change: dict[str, object], message: str) -> None:
    wrong = Setting(**{**vars(setting), **change})  # type: ignore[arg-type]
    if wrong.device == "cuda" and "threads" in change:
        pytest.skip("a GPU has no such limit")
    with pytest.raises(ValueError, match=message) as caught:
        check_measurable(wrong)
    assert "\n" not in str(caught.value)


def test_a_toy_runtime_is_checked_and_measured(toys: None) -> None:
    check_measurable(Setting("toy-numpy"))
    assert measure_for_calibration(NETWORK, Setting("toy-numpy")).versions["numpy"]
    with pytest.raises(ValueError, match="toy-numpy measures fp32, not int8"):
        measure_latency(NETWORK, Setting("toy-numpy", precision="int8"))
    with pytest.raises(ValueError, match="toy-numpy runs on cpu, not on cuda"):
        check_measurable(Setting("toy-numpy", "cuda"))
    with pytest.raises(ValueError, match="toy-numpy does not run torch modules"):
        measure_torch(None, (3, 8, 8), Setting("toy-numpy"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="registered already"):
        register_runtime(NumpyRuntime())


def test_unknown_runtimes_are_named_with_those_known() -> None:
    with pytest.raises(ValueError, match=r"cpu/toy-numpy.* cannot be measured; known are onnxruntime, .*torch-graph"):
        check_measurable(Setting("toy-numpy"))


def test_providers_belong_to_devices() -> None:
    known = "known are cpu/onnxruntime/..., cuda/onnxruntime-cuda/... and cuda/onnxruntime-tensorrt/..."
    for wrong in (Setting("onnxruntime", "cuda"), Setting("onnxruntime-cuda", "cpu")):
        with pytest.raises(ValueError) as caught:
            check_measurable(wrong)
        assert str(caught.value) == f"{wrong}: this runtime is not that device's; {known}"


def test_compiling_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler itself takes a quarter of a minute here, so a stand-in compiles."""
    calls: list[str] = []

    def compiled(module: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(images: torch.Tensor) -> torch.Tensor:
            calls.append("run")
            return module(images)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    record = measure_torch(module, (3, 16, 16), Setting("torch-compile"), time_limit_s=0.3, min_runs=3)
    assert len(calls) == 1 + record.warmup_runs + record.runs
    assert record.versions["torch"] == torch.__version__
