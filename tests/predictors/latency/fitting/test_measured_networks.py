import numpy as np

from lownas.predictors.latency.fitting.cross_validation import fit_samples
from lownas.predictors.latency.fitting.measured_networks import profiled_nodes, profiling_ms
from lownas.predictors.latency.fitting.samples import Sample
from lownas.predictors.latency.fusion import fuse_config
from lownas.predictors.latency.sampling import spread_sample
from lownas.search_space import SearchSpace


def test_what_the_profiler_adds_is_taken_off(made_up_device):
    device = made_up_device(profiling_ms=0.004)
    configs = spread_sample(SearchSpace.load("default"), 16, seed=0)
    readings = [device(config, None) for config in configs]
    kernel_times = [np.array(list(reading.kernel_ms.values())) for reading in readings]
    times = np.array([reading.undisturbed_ms for reading in readings])
    of_class = profiled_nodes("onnxruntime")
    nodes = [of_class[fuse_config(config, "onnxruntime", 8).column("class")] for config in configs]
    assert 0.003 < profiling_ms(kernel_times, nodes, times) < 0.005
    assert profiling_ms(kernel_times, nodes, np.array([t.sum() for t in kernel_times])) < 0.0015
    samples = [Sample(c, r.undisturbed_ms, 0.0, r.kernel_ms) for c, r in zip(configs, readings, strict=True)]
    assert fit_samples(samples, "onnxruntime", 8).held_out_error < 0.02
