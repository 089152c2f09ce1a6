import json
import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lownas.evaluators.device import latency_record
from lownas.evaluators.device.agent import models, timing
from lownas.evaluators.device.agent.timing import Timed
from lownas.evaluators.device.latency_record import LatencyMeasurement
from lownas.evaluators.device.measure import measure_for_calibration, measure_latency, measure_torch
from lownas.evaluators.device.runtimes.onnxruntime import onnx_source
from lownas.predictors import Target
from lownas.predictors.latency.fusion import fuse
from lownas.search_space import PRESETS, OnnxFile, op_graph
from lownas.search_space.graph.onnx_writer import write_onnx

CPU = Target.parse("cpu")


def small(name="cpubone_nano", resolution=64):
    return PRESETS[name].replace(resolution=resolution, head_widths=(64, 64), classes=10)


@pytest.fixture(autouse=True)
def _quiet():
    """The machine that runs the tests may well be busy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_statistics_are_derived_from_the_raw_times():
    times = tuple(float(t) for t in range(1, 102))
    record = LatencyMeasurement(str(CPU), "x", times)
    assert (record.median_ms, record.p90_ms, record.iqr_ms) == (51.0, 91.0, 50.0)
    assert record.p99_ms == pytest.approx(100.0)
    assert record.undisturbed_ms == pytest.approx(11.0)
    assert record.runs == 101


def test_cpu_time_takes_out_what_other_processes_were_given():
    record = LatencyMeasurement(str(CPU), "x", (10.0, 20.0, 30.0), cpu_times_ms=(10.0, 10.1, 10.2))
    assert record.undisturbed_ms == pytest.approx(10.02)
    assert record.median_ms == 20.0


def test_record_round_trip():
    record = measure_latency(small(), CPU, time_limit_s=0.5, min_runs=5, kernels=True)
    again = LatencyMeasurement.from_dict(json.loads(json.dumps(record.to_dict())))
    assert again.median_ms == pytest.approx(record.median_ms, rel=1e-3)
    assert again.target == str(CPU) and again.host == CPU.fingerprint()
    assert again.began > 1.7e9 and (again.settings, again.readings) == (record.settings, record.readings)
    assert again.kernel_ms.keys() == record.kernel_ms.keys()


@pytest.mark.parametrize("times", [(), (1.0, float("nan")), (0.0,), (-1.0,)])
def test_impossible_times_are_refused(times):
    with pytest.raises(ValueError, match="positive"):
        LatencyMeasurement(str(CPU), "x", times)


@pytest.mark.slow
def test_more_work_takes_longer():
    quick = measure_latency(small(resolution=64), CPU, time_limit_s=2, min_runs=10)
    slow = measure_latency(small("lowformer_b0", resolution=160), CPU, time_limit_s=2, min_runs=10)
    assert slow.undisturbed_ms > 3 * quick.undisturbed_ms
    assert quick.runs >= 10 and quick.versions["onnxruntime"]


@pytest.mark.slow
def test_config_graph_and_file_are_one_network(tmp_path):
    config = small()
    write_onnx(config, tmp_path / "model.onnx")
    records = [
        measure_latency(item, CPU, time_limit_s=1.5) for item in (config, op_graph(config), tmp_path / "model.onnx")
    ]
    times = [record.undisturbed_ms for record in records]
    assert max(times) < 2 * min(times)
    assert [record.what for record in records] == [config.id, "graph", "model.onnx"]


@pytest.mark.parametrize("name", [pytest.param("cpubone_nano", marks=pytest.mark.slow), "lowformer_b0"])
def test_kernel_times_are_named_after_our_kernels(name):
    """And add up to about the whole."""
    config = small(name, resolution=128)
    record = measure_for_calibration(config, CPU)
    names = {b: {f"{row}:{role}" for row, role in fuse(op_graph(config), "onnxruntime", b).keys} for b in (16, 8, 4, 0)}
    assert any(set(record.kernel_ms) == expected for expected in names.values())
    assert 0.5 < sum(record.kernel_ms.values()) / record.undisturbed_ms < 2


def test_time_limit_bounds_the_work():
    record = measure_latency(small("lowformer_b0", 224), CPU, time_limit_s=0.3, min_runs=100_000)
    assert sum(record.times_ms) < 2000


def test_noise_drift_and_busy_machine_are_said():
    quiet = Timed([1.0] * 30, [], 5, 0.0, 0.0, {}, {}, [])
    timed = quiet._replace(times_ms=[1.0] * 10 + [1.5] * 10 + [2.0] * 10, busy_cores=1.5, throttled=["gpu power cap"])
    notes = latency_record._doubts(timed)
    assert [note.split(":")[0] for note in notes] == ["noisy", "drift", "busy machine", "throttled"]
    assert latency_record._doubts(quiet) == ()
    assert LatencyMeasurement(str(CPU), "x", (1.0,), notes=notes).noisy


def one_conv(path, shape, half=False):
    """An ONNX file with one convolution; names in `shape` are symbolic sizes."""
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), dtype), "w")
    value = [helper.make_tensor_value_info(name, kind, size) for name, size in (("x", shape), ("y", None))]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", value[:1], value[1:], [weight])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_a_symbolic_batch_is_the_targets_and_other_symbolic_sizes_are_refused(tmp_path):
    free = one_conv(tmp_path / "batch.onnx", ["n", 3, 32, 32])
    assert measure_latency(free, CPU, time_limit_s=0.3).median_ms > 0
    with pytest.raises(ValueError, match=r"size.onnx: input 'x' has open sizes .* --input-shape 1x3x224x224"):
        measure_latency(one_conv(tmp_path / "size.onnx", ["n", 3, "h", "w"]), CPU, time_limit_s=0.3)
    said = OnnxFile(tmp_path / "size.onnx", {"": (1, 3, 40, 24)})
    assert measure_latency(said, CPU, time_limit_s=0.3).median_ms > 0


def test_inputs_of_every_type_are_fed(tmp_path):
    kinds = {
        "f": TensorProto.FLOAT, "d": TensorProto.DOUBLE, "h": TensorProto.FLOAT16, "l": TensorProto.INT64,
        "i": TensorProto.INT32, "s": TensorProto.INT16, "b": TensorProto.INT8, "B": TensorProto.UINT8,
        "H": TensorProto.UINT16, "I": TensorProto.UINT32, "L": TensorProto.UINT64, "o": TensorProto.BOOL,
    }  # fmt: skip
    inputs = [
        helper.make_tensor_value_info(name, kind, [] if name == "l" else ["n", "t"]) for name, kind in kinds.items()
    ]
    nodes = [helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT) for name in kinds]
    nodes.append(helper.make_node("Sum", [f"{name}_float" for name in kinds], ["y"]))
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    path = tmp_path / "all.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    assert measure_latency(OnnxFile(path, {"f": (1, 7)}), CPU, time_limit_s=0.3).median_ms > 0


def test_a_file_in_another_precision_is_said(tmp_path):
    half = one_conv(tmp_path / "half.onnx", [1, 3, 32, 32], half=True)
    with pytest.warns(UserWarning, match="half.onnx computes in fp16, not in the target's fp32"):
        onnx_source(half, CPU)


def test_warm_up_ends_once_times_settle():
    times = iter([10.0, 8.0, 6.0, 5.0, 4.0, *[2.0] * 1000])
    assert timing._warm_up(lambda: None, lambda run: next(times), limit_s=60.0) == 15


def test_torch_module_is_measured():
    torch = pytest.importorskip("torch")
    target = Target.parse("cpu:torch")
    threads = torch.get_num_threads()
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    record = measure_torch(module, (3, 32, 32), target, time_limit_s=0.5)
    assert record.median_ms > 0 and record.versions["torch"] == torch.__version__
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("rtx3090", "not this machine"),
        ("cpu/torch-graph/fp32/b1/t1", "CUDA"),
        ("cpu/onnxruntime/fp32/bmax/t1", "batch size"),
        ("cpu/tensorrt/fp16/b1/t1", "cannot be measured"),
        ("cpu/onnxruntime/fp16/b1/t1", "fp32, int8, not fp16"),
        ("cpu/torch/int8/b1/t1", "torch measures fp32, fp16, bf16, not"),
        ("cpu/onnxruntime/fp32/b1/t4096", "4096 threads"),
    ],
)
def test_what_cannot_be_measured_here_is_said(target, says):
    with pytest.raises(ValueError, match=says):
        measure_latency(small(), Target.parse(target))


def test_missing_provider_is_said_with_those_there_are():
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the CUDA provider")
    with pytest.raises(ValueError, match="CPUExecutionProvider"):
        measure_latency(small(), Target.parse("cuda:onnxruntime"))


def test_batch_of_a_file_is_the_targets(tmp_path):
    config = small()
    four = Target.parse("cpu/onnxruntime/fp32/b4/t1")
    write_onnx(config, tmp_path / "one.onnx")
    write_onnx(config, tmp_path / "any.onnx", batch="batch")
    with pytest.raises(ValueError, match="of batch 4"):
        measure_latency(tmp_path / "one.onnx", four)
    single = measure_latency(tmp_path / "any.onnx", CPU, time_limit_s=1.0)
    batch = measure_latency(tmp_path / "any.onnx", four, time_limit_s=1.0)
    assert batch.undisturbed_ms > 1.5 * single.undisturbed_ms


def test_broken_files_end_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such ONNX file"):
        measure_latency(tmp_path / "none.onnx", CPU)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(ValueError, match="cannot load") as error:
        measure_latency(broken, CPU)
    assert "\n" not in str(error.value)


def test_what_would_run_on_the_cpu_instead_is_not_measured(monkeypatch, tmp_path) -> None:
    """onnxruntime falls back to the CPU, and says so in a log at most, where a GPU's libraries are not there."""
    real = models.load_onnxruntime()
    write_onnx(PRESETS["cpubone_nano"], tmp_path / "a.onnx")

    class Without:
        """As onnxruntime, whose providers for GPUs do not start."""

        def __getattr__(self, name: str):
            return getattr(real, name)

        def InferenceSession(self, model, options, providers):
            return real.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(models, "load_onnxruntime", Without)
    setting = {"what": "a network", "target": "cuda", "provider_options": {}, "batch": 1, "threads": 1}
    job = models.Job(**setting, provider="CUDAExecutionProvider", time_limit_s=1.0, min_runs=1, kernels=False)
    with pytest.raises(ValueError, match="CUDAExecutionProvider does not start here"):
        models.time_model(str(tmp_path / "a.onnx"), job, print)
