import pytest

from lownas.predictors.latency.fitting.samples import ConfigLook, Sample, block_size, merged
from lownas.predictors.latency.sampling import sentinel_config, spread_sample
from lownas.predictors.latency.undisturbed import Look
from lownas.search_space import SearchSpace


@pytest.mark.parametrize("block", [16, 8, 0])
def test_layout_is_recognized_from_kernel_names(block, made_up_device):
    device = made_up_device(block=block)
    configs = spread_sample(SearchSpace.load("default"), 4, seed=2)
    readings = [(config, device(config, None)) for config in configs]
    assert block_size([Sample(c, r.undisturbed_ms, 0.0, r.kernel_ms) for c, r in readings]) == block


def test_looks_at_one_configuration_are_merged():
    config = sentinel_config()
    quiet = [ConfigLook(config, Look(4.0, 0.0, 5.0), {"0:op": 2.0}), ConfigLook(config, Look(4.1, 0.0, 5.0), None)]
    sample = merged(quiet, 5.0)
    assert sample.latency_ms == pytest.approx(4.05, rel=1e-3) and sample.kernel_ms == {"0:op": pytest.approx(2.0)}
    slow = ConfigLook(config, Look(4.0 * 1.5**0.75, 0.0, 7.5), {"0:op": 2.0 * 1.5**0.75})
    assert merged([slow], 5.0).latency_ms == pytest.approx(4.0), "the machine was half as slow again"
    assert merged([slow], 5.0).kernel_ms == {"0:op": pytest.approx(2.0)}
    assert merged([slow], None).latency_ms == pytest.approx(4.0 * 1.5**0.75)
    assert merged([*quiet, slow], 5.0).latency_ms == pytest.approx(4.05, rel=5e-3)
    assert merged([ConfigLook(config, Look(4.0), None)], None).kernel_ms is None
