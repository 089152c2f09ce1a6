"""Where the randomness of a search comes from: the seed, a purpose and a trial's number, never from stored state."""

from __future__ import annotations

import numpy as np

# The order is part of what a seed means: new purposes go to the end.
_PURPOSES = ("front", "fastest", "slowest", "children", "training", "dry run", "sampler")


def stream(seed: int, purpose: str, trial: int = 0) -> np.random.Generator:
    """Gives the generator of random numbers for one purpose of a run, and for one trial of it."""
    return np.random.default_rng([seed, _PURPOSES.index(purpose), trial])


def training_seed(seed: int, trial: int) -> int:
    """Gives the seed of a trial's training."""
    return int(stream(seed, "training", trial).integers(2**31))
