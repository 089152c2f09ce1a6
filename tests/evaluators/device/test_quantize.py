"""int8 models: what the quantizer makes of float ones, and the fusion rules against what onnxruntime executes."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lownas.evaluators.device.kernel_times import kernel_names
from lownas.evaluators.device.measure import check_measurable, measure_for_calibration, measure_latency
from lownas.evaluators.device.quantize import is_quantized, quantized, quantized_file
from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.latency.calibration import calibrate
from lownas.predictors.latency.fusion import fuse
from lownas.search_space import PRESETS, SearchSpace, op_graph, write_onnx
from lownas.search_space.graph.onnx_writer import onnx_model

INT8 = Target.parse("cpu:int8")


def small(config):
    stages = [{**stage, "width": stage["width"] // 8 * 4} for stage in config.to_dict()["stages"]]
    return config.replace(stages=stages, stem_width=config.stem_width // 8 * 4, resolution=96, head_widths=(64, 64))


def samples(count: int, seed: int):
    space, rng = SearchSpace.load("default"), np.random.default_rng(seed)
    return [small(space.sample(rng)) for _ in range(count)]


def optimized(model: onnx.ModelProto, path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


@pytest.mark.parametrize("name", ["lowformer_b0", "lowformer_e3", "cpubone_s0"])
def test_presets_have_the_kernels_that_onnxruntime_executes(name, tmp_path):
    config = small(PRESETS[name])
    executed = optimized(quantized(onnx_model(config)), tmp_path / "optimized.onnx")
    assert {f"{row}:{role}" for row, role in fuse(op_graph(config), "onnxruntime-int8").keys} == set(
        kernel_names(executed.graph.node)
    )


@pytest.mark.parametrize("config", samples(4, seed=7), ids=lambda config: config.id)
def test_samples_have_the_kernels_that_onnxruntime_executes(config, tmp_path):
    executed = optimized(quantized(onnx_model(config)), tmp_path / "optimized.onnx")
    assert {f"{row}:{role}" for row, role in fuse(op_graph(config), "onnxruntime-int8").keys} == set(
        kernel_names(executed.graph.node)
    )


def test_convolutions_and_products_become_integer(tmp_path):
    config = small(PRESETS["lowformer_b0"])
    kinds = Counter(op_graph(config).kinds)
    executed = Counter(
        node.op_type for node in optimized(quantized(onnx_model(config)), tmp_path / "o.onnx").graph.node
    )
    assert executed["QLinearConv"] == kinds["conv"]
    assert executed["QLinearMatMul"] == kinds["matmul"]
    assert executed["QGemm"] == kinds["linear"]
    assert executed["QLinearAdd"] == kinds["add"]
    assert executed["ConvTranspose"] == kinds["conv_transpose"]
    assert not executed["Conv"] and not executed["MatMul"] and not executed["Gemm"]


def test_weights_are_signed_with_a_scale_per_channel():
    model = quantized(onnx_model(small(PRESETS["cpubone_nano"])))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [t for name, t in tensors.items() if name.startswith("op0_conv") and len(t.dims) == 4]
    assert [t.data_type for t in weights] == [TensorProto.INT8]
    scales = [
        t
        for name, t in tensors.items()
        if name.startswith(weights[0].name.removesuffix("_quantized")) and "scale" in name
    ]
    assert list(scales[0].dims) == [weights[0].dims[0]]


def test_measuring_int8_gives_kernels_of_the_graph():
    config = small(PRESETS["lowformer_b0"])
    measurement = measure_for_calibration(config, INT8)
    assert measurement.target == "cpu/onnxruntime/int8/b1/t1"
    assert measurement.kernel_ms is not None
    named = {f"{row}:{role}" for row, role in fuse(op_graph(config), INT8.fusion).keys}
    assert set(measurement.kernel_ms) == named
    assert (
        0.7 < sum(measurement.kernel_ms.values()) / measurement.undisturbed_ms < 5
    )  # small kernels: the profiler's own


def test_files_are_quantized_once(tmp_path):
    config = small(PRESETS["cpubone_nano"])
    write_onnx(config, tmp_path / "float.onnx")
    content = quantized_file(tmp_path / "float.onnx")
    assert isinstance(content, bytes)
    (tmp_path / "int8.onnx").write_bytes(content)
    assert quantized_file(tmp_path / "int8.onnx") == tmp_path / "int8.onnx"
    model = onnx.load_from_string(content)
    assert is_quantized(model) and quantized(model) is model
    assert measure_latency(tmp_path / "int8.onnx", INT8, time_limit_s=0.3).what == "int8.onnx"


def conv_model(opset: int, relu: bool = False) -> onnx.ModelProto:
    """Unnamed nodes, as some exporters write them."""
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c" if relu else "y"])]
    if relu:
        nodes.append(helper.make_node("Relu", ["c"], ["y"]))
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c, s, s]) for n, c, s in (("x", 3, 8), ("y", 8, 6))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_relu_is_part_of_the_convolution(tmp_path):
    executed = optimized(quantized(conv_model(17, relu=True)), tmp_path / "o.onnx")
    kinds = Counter(node.op_type for node in executed.graph.node)
    assert kinds["QLinearConv"] == 1 and not kinds["Relu"]


def test_bad_models_end_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="opset 13 or newer, given 12"):
        quantized(conv_model(12))
    (tmp_path / "broken.onnx").write_bytes(b"\x0anonsense" * 5)
    with pytest.raises(ValueError, match="not a valid ONNX model") as error:
        quantized_file(tmp_path / "broken.onnx")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("cpu/onnxruntime/fp32/b1/t4096", "4096 threads, and this machine has"),
        ("cpu/torch/fp32/b1/t4096", "4096 threads, and this machine has"),
        ("cuda/onnxruntime/fp32/b1/t1", "not that device's"),
        ("cpu/onnxruntime-cuda/fp32/b1/t1", "not that device's"),
        ("cuda/onnxruntime-cuda/int8/b1/t1", "measures fp32, not int8"),
    ],
)
def test_settings_that_cannot_be_measured(target, says):
    with pytest.raises(ValueError, match=says) as error:
        check_measurable(Target.parse(target))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_int8_is_calibrated_on_its_kernels(tmp_path):
    predictor = calibrate("cpu:int8", measure_for_calibration, space="tiny", samples=8, probes={}, profiles=tmp_path)
    loaded = LatencyPredictor.load("cpu:int8", profiles=tmp_path)
    assert loaded.model.fusion == "onnxruntime-int8"
    space, rng = SearchSpace.load("tiny"), np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(3)]
    predictions = [p.latency_ms for p in loaded.predict(configs)]
    assert predictions == pytest.approx(loaded.latency_ms(configs).tolist())
    assert min(predictions) > 0
    assert predictor.provenance["samples"] == 8


def test_kernels_of_a_setting():
    assert Target.parse("cpu:int8").fusion == "onnxruntime-int8"
    assert Target.parse("cpu").fusion == "onnxruntime"
    assert Target.parse("cuda:tensorrt").fusion == "onnxruntime-tensorrt"
    with pytest.raises(ValueError, match="target runtime"):
        Target.parse("cpu/onnxruntime-int8/int8/b1/t1")
