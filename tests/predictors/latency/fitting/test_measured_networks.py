import numpy as np

from lownas.predictors.latency.fitting.cross_validation import fit_samples
from lownas.predictors.latency.fitting.measured_networks import profiling_ms
from lownas.predictors.latency.fitting.samples import Sample
from lownas.predictors.latency.sampling import spread_sample
from lownas.search_space import SearchSpace


def test_what_the_profiler_adds_is_taken_off(made_up_device):
    device = made_up_device(profiling_ms=0.004)
    configs = spread_sample(SearchSpace.load("default"), 16, seed=0)
    readings = [device(config, None) for config in configs]
    kernel_times = [np.array(list(reading.kernel_ms.values())) for reading in readings]
    times = np.array([reading.undisturbed_ms for reading in readings])
    assert 0.003 < profiling_ms(kernel_times, times) < 0.005
    assert profiling_ms(kernel_times, np.array([t.sum() for t in kernel_times])) < 0.0015
    samples = [Sample(c, r.undisturbed_ms, 0.0, r.kernel_ms) for c, r in zip(configs, readings, strict=True)]
    assert fit_samples(samples, "onnxruntime", 8).held_out_error < 0.02
