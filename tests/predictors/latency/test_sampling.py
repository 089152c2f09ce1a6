import numpy as np

from lownas.predictors.latency.sampling import spread_sample
from lownas.search_space import SearchSpace, op_graph


def test_spread_sample_spreads():
    space = SearchSpace.load("default")
    chosen = spread_sample(space, 20, seed=0)
    assert len({config.id for config in chosen}) == 20
    assert [c.id for c in chosen] == [c.id for c in spread_sample(space, 20, seed=0)]
    assert [c.id for c in chosen] != [c.id for c in spread_sample(space, 20, seed=1)]
    macs = np.array([op_graph(config).macs for config in chosen])
    assert macs.max() / macs.min() > 8
    assert len({config.resolution for config in chosen}) >= 4
    limited = spread_sample(space, 20, seed=0, limit_macs=2e9)
    assert max(op_graph(config).macs for config in limited) <= 2e9


def test_a_sample_reaches_into_the_corners_and_is_the_beginning_of_a_larger_one():
    space = SearchSpace.load("tiny")
    leaning, plain = (spread_sample(space, 30, seed=0, leaning=each) for each in (1.0, 0.0))

    def span(configs):
        macs = [op_graph(config).macs for config in configs]
        return np.log(max(macs) / min(macs))

    assert span(leaning) > span(plain) + 0.3
    assert all(config in space for config in leaning)
    assert spread_sample(space, 40, seed=0)[:30] == leaning


def test_the_largest_networks_come_first():
    space = SearchSpace.load("tiny")
    sample = spread_sample(space, 100, seed=0)
    for size in ("params", "macs"):
        sizes = [getattr(op_graph(config), size) for config in sample]
        assert max(sizes) == max(sizes[:3]) > 1.2 * max(getattr(op_graph(c), size) for c in sample[3:])
