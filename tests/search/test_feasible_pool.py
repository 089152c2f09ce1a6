"""The bulk search for candidates."""

import time

import numpy as np
import pytest

from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.search.feasible_pool import (
    FULL_USE,
    FeasibleSet,
    check_budget,
    evolve,
    fastest,
    feasible_share,
    most_varied,
    mutants,
    slowest,
)


@pytest.fixture(scope="module")
def prior() -> AccuracyPrior:
    return AccuracyPrior()


@pytest.fixture(scope="module")
def found(space, predictor, prior) -> FeasibleSet:
    return evolve(space, predictor, prior.imagenet_top1, 0.6, np.random.default_rng(0), evaluations=3000)


def test_fastest_and_slowest_enclose_every_sample(space, predictor) -> None:
    rng = np.random.default_rng(0)
    config, low = fastest(space, predictor, rng)
    _, high = slowest(space, predictor, rng)
    quantiles = predictor.quantile_ms([space.sample(rng) for _ in range(2000)], 0.9)
    assert low <= quantiles.min() and quantiles.max() <= high
    assert predictor.quantile_ms([config], 0.9)[0] == low


def test_a_budget_below_the_fastest(space, predictor) -> None:
    rng = np.random.default_rng(0)
    _, low = fastest(space, predictor, rng)
    assert check_budget(space, predictor, low, rng) == low
    with pytest.raises(ValueError, match=f"the fastest .* takes {low:.3g} ms"):
        check_budget(space, predictor, low * 0.99, rng)


def test_everything_found_fits_and_the_best_uses_the_budget(found, predictor) -> None:
    assert found.scored == 3000
    assert len({config.id for config in found.configs}) == len(found.configs)
    assert predictor.quantile_ms(found.configs, 0.9) == pytest.approx(found.quantile_ms)
    assert found.quantile_ms.max() <= 0.6
    band = found.near_best()
    assert found.best_index() in band
    assert found.quantile_ms[band].min() >= FULL_USE * 0.6


def test_beats_random_search_with_as_many_evaluations(found, space, predictor, prior) -> None:
    rng = np.random.default_rng(1)
    samples = [space.sample(rng) for _ in range(found.scored)]
    feasible = [c for c, q in zip(samples, predictor.quantile_ms(samples, 0.9), strict=True) if q <= 0.6]
    assert found.score.max() > prior.imagenet_top1(feasible).max()
    assert found.score.max() > found.random_best


def test_same_seed_same_found(found, space, predictor, prior) -> None:
    again = evolve(space, predictor, prior.imagenet_top1, 0.6, np.random.default_rng(0), evaluations=3000)
    assert again.configs == found.configs
    other = evolve(space, predictor, prior.imagenet_top1, 0.6, np.random.default_rng(1), evaluations=3000)
    assert other.configs != found.configs


def test_sizes_are_spanned_evenly(found) -> None:
    targets = [found.size_target(position, 6) for position in range(6)]
    assert np.diff(targets) == pytest.approx(np.diff(targets)[0])
    chosen = [found.nearest_in_size(target, ()) for target in targets]
    macs = np.array([found.macs[found.configs.index(config)] for config in chosen])
    assert np.log(macs) == pytest.approx(targets, abs=0.1)
    assert macs[-1] / macs[0] >= 3
    again = found.nearest_in_size(targets[0], {chosen[0].id})
    assert again is not None and again != chosen[0]
    assert found.nearest_in_size(targets[0], {config.id for config in found.configs}) is None


def test_hardly_feasible_budget(space, predictor, prior) -> None:
    _, low = fastest(space, predictor, np.random.default_rng(0))
    found = evolve(space, predictor, prior.imagenet_top1, low, np.random.default_rng(0), evaluations=600)
    assert len(found.configs) >= 1 and found.quantile_ms.max() <= low


def test_mutants_fit_and_know_their_parents(space, predictor, found) -> None:
    parents = [found.configs[i] for i in np.argsort(-found.score)[:3]]
    born, origin = mutants(space, predictor, parents, 0.6, np.random.default_rng(0), count=300)
    assert len(born) == len(origin) == len({config.id for config in born})
    assert set(origin.tolist()) == {0, 1, 2}
    assert predictor.quantile_ms(born, 0.9).max() <= 0.6


def test_most_varied(space) -> None:
    rng = np.random.default_rng(0)
    candidates = [space.sample(rng) for _ in range(20)]
    assert most_varied(space, candidates, []) == candidates[0]
    assert most_varied(space, [candidates[0], candidates[1]], [candidates[0]]) == candidates[1]


def test_feasible_share(space, predictor) -> None:
    rng = np.random.default_rng(0)
    assert feasible_share(space, predictor, 100.0, rng) == 1
    assert feasible_share(space, predictor, 0.001, rng) == 0


def test_the_time_grows_with_the_evaluations_and_no_faster(space, predictor, prior) -> None:
    seconds = []
    for seed, evaluations in ((3, 1200), (4, 4800)):
        started = time.process_time()
        found = evolve(space, predictor, prior.imagenet_top1, 0.6, np.random.default_rng(seed), evaluations=evaluations)
        seconds.append(time.process_time() - started)
        assert found.scored == evaluations
    assert seconds[1] < 12 * seconds[0]
