"""Networks whose latency is asked for."""

import numpy as np
import pytest


@pytest.fixture
def configs(space):
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(12)]
