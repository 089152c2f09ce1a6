import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from lownas.predictors import LatencyPredictor
from lownas.predictors.latency.calibration import borrow, calibrate, spread_sample
from lownas.predictors.latency.fit import Sample, fit_samples
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import COEFFICIENTS, KernelModel, with_ranges
from lownas.predictors.latency.kernels import KERNEL_CLASSES
from lownas.predictors.latency.transfer import (
    MIN_MEASUREMENTS,
    Part,
    StackedModel,
    Transfer,
    fit_transfer,
    leave_one_out,
)
from lownas.predictors.latency.uncertainty import LogErrors
from lownas.search_space import PRESETS, SearchSpace, op_graph


def latencies(n=20, seed=0):
    """Predicted latencies on three known devices, and a new one that is a mix of two of them and an overhead."""
    rng = np.random.default_rng(seed)
    known = {name: np.exp(rng.normal(1, 0.6, n)) for name in ("a", "b", "c")}
    return known, 0.2 + 2 * known["a"] + 0.5 * known["c"]


def test_a_mix_of_known_devices_is_found():
    known, new = latencies()
    transfer = fit_transfer(known, new, penalty=1e-6)
    assert transfer.weights["a"] == pytest.approx(2, rel=0.01)
    assert transfer.weights["c"] == pytest.approx(0.5, rel=0.05)
    assert transfer.weights.get("b", 0) < 0.01
    assert sum(transfer.shares.values()) + transfer.overhead_ms / np.median(new) == pytest.approx(1, abs=0.1)
    more, truth = latencies(200, seed=1)
    assert np.abs(transfer.latency_ms(more) / truth - 1).max() < 0.02


def test_few_measurements_are_drawn_towards_equal_shares():
    rng = np.random.default_rng(0)
    known = {name: np.exp(rng.normal(0, 0.5, MIN_MEASUREMENTS)) for name in "abcdef"}
    new = np.mean(list(known.values()), axis=0) * np.exp(rng.normal(0, 0.2, MIN_MEASUREMENTS))
    loose, tight = (fit_transfer(known, new, penalty=penalty) for penalty in (1e-9, 1e3))
    spread = [np.std([transfer.shares.get(name, 0) for name in known]) for transfer in (loose, tight)]
    assert spread[1] < 0.01 < spread[0]


def test_one_disturbed_measurement_does_not_turn_the_fit():
    known, new = latencies()
    disturbed = new.copy()
    disturbed[3] *= 4
    more, truth = latencies(200, seed=1)
    errors = {
        freedom: np.abs(fit_transfer(known, disturbed, freedom=freedom).latency_ms(more) / truth - 1).mean()
        for freedom in (4.0, np.inf)
    }
    assert errors[4.0] < 0.03 < errors[np.inf]


def test_errors_are_those_of_measurements_left_out():
    """Noise cannot be predicted: what is left out is off by at least as much."""
    known, new = latencies()
    noise = np.random.default_rng(5).choice([-0.2, 0.2], len(new))
    errors = leave_one_out(known, new * np.exp(noise))
    assert np.abs(errors).mean() > 0.19
    assert np.abs(leave_one_out(known, new)).max() < 0.1


@pytest.mark.parametrize(
    ("known", "new", "says"),
    [
        ({"a": [1, 2]}, [1, 2], "at least 4"),
        ({}, [1, 2, 3, 4], "known device"),
        ({"a": [1, 2, 3]}, [1, 2, 3, 4], "a: 4 positive"),
        ({"a": [1, 2, 3, -4]}, [1, 2, 3, 4], "a: 4 positive"),
        ({"a": [1, 2, 3, 4]}, [1, 2, 3, float("nan")], "measured: 4 positive"),
    ],
)
def test_what_is_no_latency(known, new, says):
    with pytest.raises(ValueError, match=says):
        fit_transfer(known, new)
    with pytest.raises(ValueError, match="no predictions for b"):
        Transfer({"b": 1.0}, 0.0, {"b": 1.0}).latency_ms({"a": [1.0]})


# --- profiles that lean on known devices ---


def made_up(seed, runtime="onnxruntime"):
    rng = np.random.default_rng(seed)
    coefficients = np.zeros((len(KERNEL_CLASSES), len(COEFFICIENTS)))
    for term, value in {"launch": 0.003, "macs": 0.02, "macs_per_cin": 0.05, "inputs": 0.1, "outputs": 0.1}.items():
        coefficients[:, COEFFICIENTS.index(term)] = value * rng.uniform(0.3, 3, len(KERNEL_CLASSES))
    graphs = [fuse(op_graph(config), runtime, 16) for config in PRESETS.values()]
    return with_ranges(KernelModel(runtime, 16, coefficients), graphs)


def predictor_of(target, model):
    from lownas.predictors import Target

    errors = LogErrors.from_errors(np.random.default_rng(0).normal(0.01, 0.03, 30))
    return LatencyPredictor(Target.parse(target), model, errors, {"source": "made up", "samples": 30})


def samples_of(model, count=14):
    """Whole networks' times alone, as of a runtime that tells no kernel times."""
    rng = np.random.default_rng(1)
    configs = spread_sample(SearchSpace.load("default"), count, seed=3)
    times = [model.graph_ms(fuse(op_graph(config), model.runtime, model.block)) for config in configs]
    return [Sample(c, t * np.exp(rng.normal(0, 0.01)), 0.0, None) for c, t in zip(configs, times, strict=True)]


@pytest.fixture(scope="module")
def known():
    return {"rtx3090": predictor_of("rtx3090", made_up(7)), "cpu": predictor_of("cpu", made_up(8))}


@pytest.fixture(scope="module")
def stacked(known):
    """Of a device like one of the known ones, at half the speed."""
    samples = samples_of(replace(known["rtx3090"].model, scale=2.0))
    fit = fit_samples(samples, "torch", 0)
    return fit, borrow(fit, samples, "new", known)


def test_a_device_like_a_known_one_leans_on_it(known, stacked):
    fit, borrowed = stacked
    assert borrowed is not None
    model, log_errors, error = borrowed
    assert error < 0.5 * fit.held_out_error and len(log_errors) == 14
    shares = {part.name: part.share for part in model.parts}
    assert shares["rtx3090"] > 0.5


def test_a_device_unlike_the_known_ones_does_not(known):
    samples = samples_of(made_up(21), count=40)
    fit = fit_samples(samples, "onnxruntime", 16)
    assert borrow(fit, samples, "new", {}) is None
    stranger = {"rtx3090": predictor_of("rtx3090", replace(made_up(9), overhead_ms=50.0, scale=1e-6))}
    assert borrow(fit, samples, "new", stranger) is None


def test_stacked_profiles_are_saved_and_predict_alike(stacked, known, tmp_path):
    _, (model, log_errors, _) = stacked
    written = predictor_of("cuda", model)
    written.errors = LogErrors.from_errors(log_errors)
    path = written.save(tmp_path)
    read = LatencyPredictor.read(path, check_host=False)
    configs = list(PRESETS.values())
    bulk = read.latency_ms(configs)
    assert np.allclose(bulk, written.latency_ms(configs), rtol=1e-5)
    assert np.allclose(bulk, [found.latency_ms for found in read.predict(configs)])
    truth = 2 * known["rtx3090"].latency_ms(configs)
    assert np.abs(bulk / truth - 1).max() < 0.1
    # What is outside is judged by what was measured on the new device, whatever the known ones were fitted on.
    strange = replace(model.parts[-1].model, counts=0 * model.parts[-1].model.counts)
    others = (*model.parts[:-1], replace(model.parts[-1], model=strange))
    for predictor in (written, predictor_of("cuda", replace(model, parts=others))):
        known_outside = model.parts[0].model.outside(fuse(op_graph(configs[0]), "torch", 0))
        assert list(predictor.predict(configs[:1])[0].outside) == known_outside
    data = json.loads(path.read_text())
    assert {part["name"] for part in data["model"]["parts"]} <= {"rtx3090", "cpu", "new"}
    with pytest.raises(ValueError, match="parts of positive weight"):
        StackedModel(0.0, (Part("a", -1.0, 1.0, made_up(1)),))


def test_a_calibration_says_on_what_it_leans(known, tmp_path):
    known["rtx3090"].save(tmp_path)
    device = replace(known["rtx3090"].model, scale=2.0)

    @dataclass
    class Reading:
        median_ms: float
        undisturbed_ms: float
        kernel_ms: None = None
        host: dict[str, str] = field(default_factory=dict)
        versions: dict[str, str] = field(default_factory=dict)

    def measure(config, target):
        ms = device.graph_ms(fuse(op_graph(config), device.runtime, device.block))
        return Reading(ms, ms, host=target.fingerprint())

    predictor = calibrate("cpu:torch", measure, samples=10, profiles=tmp_path)
    lent = LatencyPredictor.load("rtx3090", tmp_path)
    assert f"{lent.target} (" in predictor.source and "leaning on known devices" in predictor.source
    shares = predictor.provenance["borrowed"]["shares"]
    assert shares[str(lent.target)] > 0.5
    assert predictor.provenance["held_out_error"] < predictor.provenance["borrowed"]["held_out_error_without"]
    assert LatencyPredictor.load("cpu:torch", tmp_path).source == predictor.source
