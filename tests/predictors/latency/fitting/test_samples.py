import pytest

from lownas.predictors.latency.fitting.samples import Sample, block_size, merged
from lownas.predictors.latency.sampling import sentinel_config, spread_sample
from lownas.search_space import SearchSpace


@pytest.mark.parametrize("block", [16, 8, 0])
def test_layout_is_recognized_from_kernel_names(block, made_up_device):
    device = made_up_device(block=block)
    configs = spread_sample(SearchSpace.load("default"), 4, seed=2)
    readings = [(config, device(config, None)) for config in configs]
    assert block_size([Sample(c, r.undisturbed_ms, 0.0, r.kernel_ms) for c, r in readings]) == block


def test_measurements_of_one_configuration_are_merged():
    config = sentinel_config()
    quiet = [Sample(config, 4.0, 0.01, {"0:op": 2.0}), Sample(config, 9.0, 0.03, {"0:op": 8.0})]
    assert merged(quiet) == Sample(config, pytest.approx(6.0), 0.02, {"0:op": pytest.approx(4.0)})
    disturbed = [Sample(config, 5.0, 0.3, {"0:op": 4.0}), Sample(config, 4.0, 0.5, {"0:op": 4.5})]
    assert merged(disturbed) == Sample(config, 4.0, 0.3, {"0:op": 4.0})
    assert merged([quiet[0], *disturbed]) == merged(quiet[:1])
    assert merged([Sample(config, 4.0, 0.5, None)]).kernel_ms is None
