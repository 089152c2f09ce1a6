import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.latency.calibration import calibrate
from lownas.predictors.latency.fitting.cross_validation import fit_samples
from lownas.predictors.latency.fitting.kernel_times import with_ranges
from lownas.predictors.latency.fitting.known_devices import stack_with_known
from lownas.predictors.latency.fitting.samples import Sample
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import KernelModel
from lownas.predictors.latency.kernel_terms import COEFFICIENTS
from lownas.predictors.latency.kernels import KERNEL_CLASSES
from lownas.predictors.latency.sampling import spread_sample
from lownas.predictors.latency.stacked_model import StackedModel, StackedPart
from lownas.predictors.latency.uncertainty import LogErrors
from lownas.search_space import PRESETS, SearchSpace, op_graph


def made_up(seed, runtime="onnxruntime"):
    rng = np.random.default_rng(seed)
    coefficients = np.zeros((len(KERNEL_CLASSES), len(COEFFICIENTS)))
    for term, value in {"launch": 0.003, "macs": 0.02, "macs_per_cin": 0.05, "inputs": 0.1, "outputs": 0.1}.items():
        coefficients[:, COEFFICIENTS.index(term)] = value * rng.uniform(0.3, 3, len(KERNEL_CLASSES))
    graphs = [fuse(op_graph(config), runtime, 16) for config in PRESETS.values()]
    return with_ranges(KernelModel(runtime, 16, coefficients), graphs)


def predictor_of(target, model):
    errors = LogErrors.from_errors(np.random.default_rng(0).normal(0.01, 0.03, 30))
    return LatencyPredictor(Target.parse(target), model, errors, {"source": "made up", "samples": 30})


def samples_of(model, count=14):
    """Whole networks' times alone, as of a runtime that tells no kernel times."""
    rng = np.random.default_rng(1)
    configs = spread_sample(SearchSpace.load("default"), count, seed=3)
    times = [model.graph_ms(fuse(op_graph(config), model.fusion, model.block)) for config in configs]
    return [Sample(c, t * np.exp(rng.normal(0, 0.01)), 0.0, None) for c, t in zip(configs, times, strict=True)]


@pytest.fixture(scope="module")
def known():
    return {"rtx3090": predictor_of("rtx3090", made_up(7)), "cpu": predictor_of("cpu", made_up(8))}


@pytest.fixture(scope="module")
def stacked(known):
    """Of a device like one of the known ones, at half the speed."""
    samples = samples_of(replace(known["rtx3090"].model, scale=2.0))
    fit = fit_samples(samples, "torch", 0)
    return fit, stack_with_known(fit, samples, "new", known)


def test_a_device_whose_times_have_nothing_to_do_with_size_is_not_stacked(known):
    """No model has any weight there, so there is nothing to stack."""
    samples = [replace(sample, latency_ms=5 * sample.latency_ms**-0.05) for sample in samples_of(made_up(9))]
    assert stack_with_known(fit_samples(samples, "torch", 0), samples, "new", known) is None


def test_a_device_like_a_known_one_leans_on_it(known, stacked):
    fit, found = stacked
    assert found is not None
    assert found.held_out_error < 0.5 * fit.held_out_error and len(found.log_errors) == 14
    shares = {part.name: part.share for part in found.model.parts}
    assert shares["rtx3090"] > 0.5


def test_a_device_unlike_the_known_ones_does_not(known):
    samples = samples_of(made_up(21), count=40)
    fit = fit_samples(samples, "onnxruntime", 16)
    assert stack_with_known(fit, samples, "new", {}) is None
    stranger = {"rtx3090": predictor_of("rtx3090", replace(made_up(9), overhead_ms=50.0, scale=1e-6))}
    assert stack_with_known(fit, samples, "new", stranger) is None


def test_stacked_profiles_are_saved_and_predict_alike(stacked, known, tmp_path):
    _, found = stacked
    model, log_errors = found.model, found.log_errors
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
        StackedModel(0.0, (StackedPart("a", -1.0, 1.0, made_up(1)),))


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
        settings: dict[str, str] = field(default_factory=dict)

    def measure(config, target):
        ms = device.graph_ms(fuse(op_graph(config), device.fusion, device.block))
        return Reading(ms, ms, host=target.fingerprint())

    predictor = calibrate("cpu:torch", measure, samples=10, profiles=tmp_path)
    lent = LatencyPredictor.load("rtx3090", tmp_path)
    assert f"{lent.target} (" in predictor.source and "leaning on known devices" in predictor.source
    shares = predictor.provenance["borrowed"]["shares"]
    assert shares[str(lent.target)] > 0.5
    assert predictor.provenance["held_out_error"] < predictor.provenance["borrowed"]["held_out_error_without"]
    assert LatencyPredictor.load("cpu:torch", tmp_path).source == predictor.source
