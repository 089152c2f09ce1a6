"""The surrogate of a run's accuracies."""

import numpy as np

from lownas.predictors.accuracy.surrogate import AccuracyObservation
from lownas.search.objectives.run_surrogate import learn, refit_step
from lownas.search_space import SearchSpace

from ..conftest import stub_accuracy


def test_hyperparameters_stay_for_a_while() -> None:
    counts = (0, 1, 9, 10, 11, 12, 19, 20, 21, 22)
    assert [refit_step(count) for count in counts] == [0, 1, 9, 10, 11, 12, 19, 20, 20, 22]
    steps = {refit_step(count) for count in range(100, 5001)}
    assert len(steps) < 50 and all(refit_step(step) == step for step in steps)


def test_many_observations_are_learned_from_as_a_whole(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(400)]
    seen = [AccuracyObservation(config, 0, stub_accuracy(config, 1)) for config in configs]
    assert learn(space, seen, 1).observations == 400
