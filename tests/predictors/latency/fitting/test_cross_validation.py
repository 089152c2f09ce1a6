from dataclasses import replace

import numpy as np
import pytest

from lownas.predictors.latency.fitting.cross_validation import fit_samples, held_out_bound
from lownas.predictors.latency.fitting.samples import Probe, Sample
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_terms import COEFFICIENTS
from lownas.predictors.latency.sampling import spread_sample
from lownas.search_space import PRESETS, SearchSpace, op_graph


def test_errors_are_those_of_samples_left_out(made_up_device):
    """Pure noise on whole graphs cannot be fitted: the held-out error must not be smaller than it."""
    device = made_up_device()
    rng = np.random.default_rng(0)
    samples = []
    for config in spread_sample(SearchSpace.load("default"), 12, seed=0):
        reading = device(config, None)
        samples.append(Sample(config, reading.undisturbed_ms * float(rng.choice([0.8, 1.25])), 0.0, reading.kernel_ms))
    fit = fit_samples(samples, "onnxruntime", 8)
    assert fit.held_out_error > 0.12
    assert len(fit.log_errors) == 12


def test_bound_is_above_the_error(made_up_device):
    device = made_up_device()
    configs = spread_sample(SearchSpace.load("default"), 12, seed=0)
    samples = [Sample(c, (r := device(c, None)).undisturbed_ms, 0.0, r.kernel_ms) for c in configs]
    assert held_out_bound(samples, "onnxruntime", 8) > 1.05 * fit_samples(samples, "onnxruntime", 8).held_out_error


def test_probes_teach_kernels_that_the_samples_lack(tmp_path, made_up_device):
    """Networks without attention, and one probe that has some: its classes are inside afterwards."""
    device = made_up_device(noise=0.0)
    configs = [PRESETS[name].replace(classes=10) for name in ("cpubone_nano", "lowformer_b0")]
    probe = op_graph(configs[1])
    samples = [Sample(c, (r := device(c, None)).undisturbed_ms, 0.0, r.kernel_ms) for c in configs[:1] * 8]
    alone = fit_samples(samples, "onnxruntime", 8).model
    taught = fit_samples(samples, "onnxruntime", 8, probes=[Probe(probe, device(probe, None).kernel_ms)]).model
    kernels = fuse(probe, "onnxruntime", 8)
    assert alone.outside(kernels) and not taught.outside(kernels)


def test_noise_is_what_the_looks_do_not_repeat(made_up_device):
    device = made_up_device()
    configs = spread_sample(SearchSpace.load("default"), 12, seed=0)
    samples = [Sample(c, (r := device(c, None)).undisturbed_ms, 0.03, r.kernel_ms) for c in configs]
    assert fit_samples(samples, "onnxruntime", 8).noise == pytest.approx(0.03)


@pytest.mark.parametrize("kept", [0, 2**22])
def test_the_size_of_the_caches_is_found(made_up_device, kept):
    device = made_up_device(noise=0.01)
    coefficients = device.model.coefficients.copy()
    coefficients[:, COEFFICIENTS.index("weights")] = 0.1
    coefficients[:, COEFFICIENTS.index("cold")] = 0.3
    device.model = replace(device.model, coefficients=coefficients, kept=kept)
    configs = spread_sample(SearchSpace.load("default"), 16, seed=0)
    samples = [Sample(c, (r := device(c, None)).undisturbed_ms, 0.0, r.kernel_ms) for c in configs]
    assert fit_samples(samples, "onnxruntime", 8).model.kept == kept
