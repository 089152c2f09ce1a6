import json
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx
import pytest

from lownas.predictors import LatencyPredictor, Target, list_profiles
from lownas.predictors.latency.fitting.kernel_times import with_ranges
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import KernelModel
from lownas.predictors.latency.kernel_terms import COEFFICIENTS
from lownas.predictors.latency.kernels import KERNEL_CLASSES
from lownas.predictors.latency.predictor import SCHEMA
from lownas.predictors.latency.sizes import Sizes
from lownas.predictors.latency.uncertainty import LogErrors
from lownas.predictors.model_files import checksum
from lownas.search_space import PRESETS, SearchSpace, heads, op_graph
from lownas.search_space.graph import GRAPH_INPUT
from lownas.search_space.graph.onnx_reader import op_graph_from_onnx
from lownas.search_space.graph.onnx_writer import write_onnx


def sampled(count, seed=0):
    space = SearchSpace.load("default")
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def predictor() -> LatencyPredictor:
    """Of `cpu` on this machine, with made-up coefficients."""
    coefficients = np.zeros((len(KERNEL_CLASSES), len(COEFFICIENTS)))
    coefficients[:, 0] = 0.005
    coefficients[:, COEFFICIENTS.index("macs")] = 0.02
    coefficients[:, COEFFICIENTS.index("outputs")] = 0.3
    model = KernelModel("onnxruntime", 16, coefficients, overhead_ms=0.2, scale=1.1)
    fitted_on = [fuse(op_graph(config), "onnxruntime", 16) for config in [*sampled(100, seed=5), *PRESETS.values()]]
    errors = LogErrors.from_errors(np.random.default_rng(0).normal(0.01, 0.04, 40))
    target = Target.parse("cpu")
    provenance = {"source": "made up", "samples": 40, "held_out_error": 0.03, "macs_only_error": 0.09}
    return LatencyPredictor(target, with_ranges(model, fitted_on), errors, provenance, target.fingerprint())


@pytest.fixture
def folder(predictor, tmp_path):
    predictor.save(tmp_path)
    return tmp_path


def profile_of(folder):
    return folder / Target.parse("cpu").file_name


def test_saved_and_loaded_predictions_agree(predictor, folder):
    loaded = LatencyPredictor.load("cpu", profiles=folder)
    assert loaded.target == predictor.target
    assert loaded.provenance == predictor.provenance
    configs = sampled(30)
    assert np.allclose(loaded.latency_ms(configs), predictor.latency_ms(configs), rtol=1e-5)
    assert [p.name for p in folder.iterdir()] == [profile_of(folder).name]


def test_bulk_single_and_graph_predictions_are_one(predictor):
    configs = [*PRESETS.values(), *sampled(30)]
    bulk = predictor.latency_ms(configs)
    single = predictor.predict(configs)
    graphs = predictor.predict([op_graph(config) for config in configs])
    assert np.allclose(bulk, [p.latency_ms for p in single])
    assert np.allclose(bulk, [p.latency_ms for p in graphs])
    low, high = predictor.quantile_ms(configs, 0.05), predictor.quantile_ms(configs, 0.95)
    assert np.allclose(low, [p.low_ms for p in single])
    assert np.allclose(high, [p.high_ms for p in single])
    assert (low < bulk).all() and (bulk < high).all()


def test_weights_beyond_the_caches_cost_more_one_by_one_and_in_bulk(predictor):
    coefficients = predictor.model.coefficients.copy()
    coefficients[:, COEFFICIENTS.index("cold")] = 0.5
    cold = LatencyPredictor(
        predictor.target, replace(predictor.model, coefficients=coefficients, kept=20_000_000), predictor.errors, {}
    )
    configs = [*PRESETS.values(), *sampled(30)]
    weights = np.array([op_graph(config).column("weights").sum() for config in configs])
    assert (weights < 2e7).any() and (weights > 2e7).any()
    bulk, more = cold.latency_ms(configs), cold.latency_ms(configs) - predictor.latency_ms(configs)
    assert np.allclose(bulk, [p.latency_ms for p in cold.predict(configs)])
    assert (more[weights < 2e7] == 0).all() and (more[weights > 2.01e7] > 0).all()


def test_onnx_files_predict_as_their_config(predictor, tmp_path):
    config = PRESETS["cpubone_nano"]
    write_onnx(config, tmp_path / "model.onnx")
    from_file, from_config = predictor.predict([tmp_path / "model.onnx", config])
    numbers = ("latency_ms", "low_ms", "high_ms")
    found = [[getattr(each, name) for name in numbers] for each in (from_file, from_config)]
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert (from_file.source, from_file.outside) == (from_config.source, from_config.outside)


def test_probability_is_the_quantiles_inverse(predictor):
    configs = sampled(5)
    for q in (0.05, 0.5, 0.9):
        budgets = predictor.quantile_ms(configs, q)
        got = [predictor.probability_within(b, [c])[0] for b, c in zip(budgets, configs, strict=True)]
        assert np.allclose(got, q, atol=0.005)
    assert predictor.probability_within(1e6, configs).min() > 0.999
    assert predictor.probability_within(1e-3, configs).max() < 0.001
    with pytest.raises(ValueError, match="-1"):
        predictor.probability_within(-1, configs)


def test_outside_widens_the_interval(predictor):
    narrow = replace(predictor.model, counts=predictor.model.counts * 0)
    unsure = LatencyPredictor(predictor.target, narrow, predictor.errors, predictor.provenance)
    known, unknown = (p.predict([PRESETS["lowformer_b1"]])[0] for p in (predictor, unsure))
    assert known.outside == ()
    assert "conv_dense" in unknown.outside
    assert unknown.high_ms / unknown.low_ms > (known.high_ms / known.low_ms) ** 2
    assert unsure.quantile_ms([PRESETS["lowformer_b1"]], 0.95)[0] == pytest.approx(unknown.high_ms)


def model_with(path, *nodes, weight=np.float32):
    """An ONNX file: a convolution and `nodes`, each (operator, output, more inputs)."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(weight))
    made, last = [onnx.helper.make_node("Conv", ["x", "w"], ["c"])], "c"
    for op, output, *more in nodes:
        made.append(onnx.helper.make_node(op, [last, *more], [output]))
        last = output
    value = [
        onnx.helper.make_tensor_value_info(n, kind, s) for n, s in (("x", [1, 3, 34, 34]), (last, [1, 16, 32, 32]))
    ]
    stored = [onnx.numpy_helper.from_array(np.ones((16, 3, 3, 3), weight), "w")]
    graph = onnx.helper.make_graph(made, "g", value[:1], value[1:], stored)
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)]), path)
    return path


def test_operators_of_no_known_kind_are_named_and_widen_the_upper_end(predictor, tmp_path):
    files = [model_with(tmp_path / "a.onnx"), model_with(tmp_path / "b.onnx", ("Sin", "s"), ("Mish", "m"))]
    plain, odd = predictor.predict(files)
    assert "Sin" in odd.outside and "other" not in odd.outside and "Sin" not in plain.outside
    assert odd.high_ms / odd.latency_ms > 9 * plain.high_ms / plain.latency_ms
    # Also where such an operator was among those fitted on: one tells nothing about another.
    graph = op_graph_from_onnx(files[1])
    seen = replace(predictor.model, counts=predictor.model.counts + 1)
    assert "other" in seen.outside(fuse(graph, "onnxruntime", 16))


def test_a_file_in_another_precision_is_said(predictor, tmp_path):
    half = model_with(tmp_path / "half.onnx", weight=np.float16)
    with pytest.warns(UserWarning, match="half.onnx computes in fp16; predicted as if in fp32"):
        predictor.predict([half])
    rtx3090 = LatencyPredictor.load("rtx3090")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rtx3090.predict([half])


def test_a_file_that_is_not_what_its_name_says_is_said(predictor, tmp_path):
    with pytest.warns(UserWarning, match=r"net_int8\.onnx computes in fp32, whatever its name says"):
        predictor.predict([model_with(tmp_path / "net_int8.onnx")])
    half = model_with(tmp_path / "net-fp16.onnx", weight=np.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor.predict([model_with(tmp_path / "halfway_point8.onnx")])
        LatencyPredictor.load("rtx3090").predict([half])


def test_a_profile_of_a_former_version_is_read_and_said(predictor, tmp_path):
    path = predictor.save(tmp_path)
    assert "former version" not in LatencyPredictor.read(path, check_host=False).source
    content = json.loads(path.read_text())
    del content["checksum"]
    content["schema"] = 3
    content["checksum"] = checksum(content)
    path.write_text(json.dumps(content))
    older = LatencyPredictor.read(path, check_host=False)
    assert "of a former version, intervals as they were: calibrate again" in older.source
    (now,), (before,) = (each.predict([PRESETS["lowformer_b0"]]) for each in (predictor, older))
    assert before.high_ms == pytest.approx(now.high_ms, rel=1e-4)


def test_a_quantized_file_is_predicted_as_what_it_is_where_that_is_known(predictor, tmp_path):
    from lownas.evaluators.device.quantize import quantized

    path = model_with(tmp_path / "float.onnx")
    onnx.save(quantized(onnx.load(path)), tmp_path / "quantized.onnx")
    with pytest.warns(
        UserWarning, match=r"computes in int8; predicted as if in fp32 \(cpu:int8 predicts it as it is\)"
    ):
        predictor.predict([tmp_path / "quantized.onnx"])
    same = replace(predictor.target, precision="int8")
    int8 = LatencyPredictor(same, replace(predictor.model, fusion=same.fusion, block=0), predictor.errors, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        int8.predict([tmp_path / "quantized.onnx"])


def test_one_item_must_stand_in_a_list(predictor):
    for item in ("model.onnx", PRESETS["lowformer_b1"]):
        with pytest.raises(ValueError, match="put it into a list"):
            predictor.predict(item)


def test_bulk_is_fast(predictor):
    """20,000 a second on an idle core; a busy machine gets a factor of eight. In CPU time, with warm unit costs."""
    configs = sampled(1500)
    predictor.latency_ms(configs)
    begin = time.process_time()
    predictor.latency_ms(configs)
    assert len(configs) / (time.process_time() - begin) > 2_500


def test_intervals_come_in_bulk_too(predictor):
    """They are those that come one by one; a fifth as fast as the medians at least, more than half on an idle core."""
    configs = [*sampled(1500), *PRESETS.values()]
    predictor.predict(configs)
    begin = time.process_time()
    predictor.latency_ms(configs)
    middle = time.process_time()
    found = predictor.predict(configs)
    assert time.process_time() - middle < 5 * (middle - begin)
    single = [predictor._predict(config, 0.9) for config in configs[:20] + configs[-12:]]
    for one, other in zip(found[:20] + found[-12:], single, strict=True):
        assert one.outside == other.outside and one.source == other.source
        assert [one.latency_ms, one.low_ms, one.high_ms] == pytest.approx(
            [other.latency_ms, other.low_ms, other.high_ms]
        )


def test_intervals_in_bulk_know_operators_without_a_cost_model(predictor, monkeypatch):
    class Unit(NamedTuple):
        cin: int
        size: int
        kind: str = "odd"

        def graph(self, build):
            build.pointwise("other", [GRAPH_INPUT], (self.cin, self.size, self.size))

    class Odd:
        name = "odd"

        def units(self, config, channels, size):
            return [Unit(channels, size)]

    monkeypatch.setitem(heads.HEADS, "odd", Odd())
    config = PRESETS["lowformer_b0"].replace(head="odd")
    for found in predictor.predict([config, op_graph(config)]):
        assert "other" in found.outside and found.high_ms > 10 * found.latency_ms
    in_bulk, alone = predictor.predict([config])[0], predictor._predict(config, 0.9)
    assert in_bulk.high_ms == pytest.approx(alone.high_ms)


def other_network():
    """A graph whose kernels are larger than all that was fitted on."""
    return op_graph(PRESETS["lowformer_b3"].replace(resolution=1024))


def test_errors_on_networks_of_other_kinds_are_their_own(predictor, folder):
    """A graph beyond what was fitted on has the interval of other kinds, or a wider one; the space keeps its own."""
    known = LogErrors.from_errors(np.random.default_rng(1).normal(0.05, 0.2, 60))
    taught = LatencyPredictor(
        predictor.target,
        predictor.model,
        predictor.errors,
        predictor.provenance,
        predictor.fingerprint,
        other_kinds=known,
    )
    taught.save(folder)
    read = LatencyPredictor.load("cpu", profiles=folder)
    graph, config = other_network(), sampled(1)[0]
    before, after = predictor.predict([graph])[0], read.predict([graph])[0]
    assert before.outside and after.outside
    low, high = np.exp(known.interval(0.9))
    physical = before.latency_ms / np.exp(predictor.errors.quantile(0.5))
    assert after.latency_ms == pytest.approx(physical * np.exp(known.quantile(0.5)), rel=1e-3)
    assert after.low_ms <= physical * low * 1.001 and after.high_ms >= physical * high * 0.999
    mine, same = read.predict([config])[0], predictor.predict([config])[0]
    assert (mine.low_ms, mine.high_ms) == pytest.approx((same.low_ms, same.high_ms), rel=1e-5)
    narrow = LogErrors.from_errors(np.random.default_rng(1).normal(0.0, 0.001, 60))
    read.other_kinds = narrow
    del read.__dict__["_errors_elsewhere"]
    least = read.predict([graph])[0]
    assert (least.low_ms, least.high_ms) == pytest.approx((before.low_ms, before.high_ms), rel=0.01)


def test_predicting_loads_neither_torch_nor_ray_nor_optuna(folder):
    code = f"""
import sys
from lownas.predictors import LatencyPredictor
from lownas.search_space import PRESETS
predictor = LatencyPredictor.load("cpu", profiles={str(folder)!r})
assert predictor.predict(PRESETS.values())[0].latency_ms > 0
predictor.latency_ms(list(PRESETS.values()))
heavy = [name for name in ("torch", "ray", "optuna", "onnxruntime", "onnx", "scipy", "sklearn") if name in sys.modules]
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_predicting_needs_no_yaml():
    code = """
import sys
sys.modules["yaml"] = None  # importing it fails
from lownas.predictors import LatencyPredictor
from lownas.search_space import PRESETS
assert LatencyPredictor.load("rtx3090").predict([PRESETS["lowformer_b1"]])[0].latency_ms > 0
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def rewrite(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.write_text(p.read_text()[:500]), "not JSON"),
        (lambda p: p.write_text("[]"), "lacks schema"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00"), "not JSON"),
        (lambda p: p.write_text("[" * 100_000), "not JSON"),
        (lambda p: p.write_text(" " * 3_000_000), "bytes"),
        (lambda p: rewrite(p, lambda d: d.update(schema=SCHEMA + 1)), "newer"),
        (lambda p: rewrite(p, lambda d: d["model"].update(scale=0.5)), "altered"),
        (lambda p: rewrite(p, lambda d: d["provenance"].update(held_out_error=0.001)), "altered"),
        (lambda p: rewrite(p, lambda d: d.pop("checksum")), "checksum"),
    ],
)
def test_broken_profiles_end_in_one_line(folder, damage, says):
    damage(profile_of(folder))
    with pytest.raises(ValueError, match=says) as error:
        LatencyPredictor.load("cpu", profiles=folder)
    assert "\n" not in str(error.value)
    entry = next(e for e in list_profiles(folder) if e["alias"] == "cpu")
    assert not entry["usable"] and says in entry["reason"]


@pytest.mark.parametrize("key", ["target", "model", "uncertainty", "provenance", "fingerprint"])
def test_incomplete_profiles_end_in_one_line(predictor, folder, key, monkeypatch):
    monkeypatch.setattr("lownas.predictors.model_files.checksum", lambda body: "same")
    predictor.save(folder)
    rewrite(profile_of(folder), lambda d: d.pop(key))
    with pytest.raises(ValueError, match=f"'{key}' is missing"):
        LatencyPredictor.load("cpu", profiles=folder)


def test_profile_of_another_machine_is_refused_with_the_command(predictor, tmp_path):
    fingerprint = {**predictor.fingerprint, "cpu": "Another CPU"}
    other = LatencyPredictor(predictor.target, predictor.model, predictor.errors, predictor.provenance, fingerprint)
    path = other.save(tmp_path)
    with pytest.raises(ValueError, match=r"Another CPU.*lownas calibrate --target cpu --profiles"):
        LatencyPredictor.load("cpu", profiles=tmp_path)
    assert LatencyPredictor.read(path, check_host=False).provenance["source"] == "made up"


def test_missing_profile_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match="lownas calibrate --target cpu"):
        LatencyPredictor.load("cpu", profiles=tmp_path)
    with pytest.raises(ValueError, match="there are profiles of"):
        LatencyPredictor.load("pixel-8/onnxruntime/fp32/b1/t1", profiles=tmp_path)
    with pytest.raises(ValueError, match="rtx3090"):
        LatencyPredictor.load("rtx3091", profiles=tmp_path)


def test_failed_save_leaves_the_old_profile(predictor, folder, monkeypatch):
    before = profile_of(folder).read_bytes()
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        predictor.save(folder)
    assert profile_of(folder).read_bytes() == before
    assert len(list(folder.iterdir())) == 1


def test_list_profiles_has_every_alias(folder):
    entries = {entry["alias"]: entry for entry in list_profiles(folder)}
    assert entries["cpu"]["usable"] and entries["cpu"]["samples"] == 40
    assert {"cpu", "cuda", "rtx3090"} <= set(entries)
    assert entries["cuda"]["reason"]


def test_wrong_items_are_named(predictor):
    with pytest.raises(ValueError, match="not int"):
        predictor.predict([3])


def test_import_and_load_are_quick(folder):
    """Half a second on an idle machine, in CPU time; a busy one gets three times that."""
    code = f"""
from lownas.predictors import LatencyPredictor
LatencyPredictor.load("cpu", profiles={str(folder)!r})
import time
print(time.process_time())
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
        for _ in range(3)
    ]
    assert min(float(run.stdout) for run in runs) < 1.5


def test_networks_of_other_sizes_have_a_model_of_their_own(predictor, tmp_path):
    """The tiny ones take half as long as the model of the others says."""
    rng = np.random.default_rng(5)
    large, tiny = ([SearchSpace.load(name).sample(rng) for _ in range(20)] for name in ("default", "tiny"))
    fast = replace(predictor.model, coefficients=0.5 * predictor.model.coefficients)
    own = LatencyPredictor(predictor.target, fast, predictor.errors, predictor.provenance, sizes=Sizes.of(tiny))
    arguments = (predictor.target, predictor.model, predictor.errors, predictor.provenance, predictor.fingerprint)
    both = LatencyPredictor(*arguments, sizes=Sizes.of(large), further=[own])
    both.save(tmp_path)
    for each in (both, LatencyPredictor.load("cpu", profiles=tmp_path)):
        mixed = [config for pair in zip(large, tiny, strict=True) for config in pair]
        expected = np.stack([predictor.latency_ms(large), own.latency_ms(tiny)], axis=1).ravel()
        assert np.allclose(each.latency_ms(mixed), expected, rtol=1e-5)
        assert np.allclose([found.latency_ms for found in each.predict(mixed)], expected, rtol=1e-5)
        assert np.allclose([found.latency_ms for found in each.predict(map(op_graph, mixed))], expected, rtol=1e-5)
        budgets = each.quantile_ms(mixed, 0.9)
        assert np.allclose(
            [each.probability_within(b, [c])[0] for b, c in zip(budgets, mixed, strict=True)], 0.9, atol=0.01
        )
    with pytest.raises(ValueError, match="all say of which"):
        LatencyPredictor(*arguments, further=[own])
