"""The bulk search for candidates."""

import time

import numpy as np
import pytest

from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.search.strategies.feasible import (
    BAND,
    Front,
    check_budget,
    children,
    evolve_front,
    fastest,
    feasible_share,
    most_varied,
    slowest,
)


@pytest.fixture(scope="module")
def prior() -> AccuracyPrior:
    return AccuracyPrior()


@pytest.fixture(scope="module")
def front(space, predictor, prior) -> Front:
    return evolve_front(space, predictor, prior.imagenet_top1, 0.6, np.random.default_rng(0), evaluations=3000)


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


def test_everything_found_fits_and_the_best_uses_the_budget(front, predictor) -> None:
    assert front.scored == 3000
    assert len({config.id for config in front.configs}) == len(front.configs)
    assert predictor.quantile_ms(front.configs, 0.9) == pytest.approx(front.quantile_ms)
    assert front.quantile_ms.max() <= 0.6
    band = front.band()
    assert front.best_index() in band
    assert front.quantile_ms[band].min() >= BAND * 0.6


def test_beats_random_search_with_as_many_evaluations(front, space, predictor, prior) -> None:
    rng = np.random.default_rng(1)
    samples = [space.sample(rng) for _ in range(front.scored)]
    feasible = [c for c, q in zip(samples, predictor.quantile_ms(samples, 0.9), strict=True) if q <= 0.6]
    assert front.score.max() > prior.imagenet_top1(feasible).max()
    assert front.score.max() > front.random_best


def test_same_seed_same_front(front, space, predictor, prior) -> None:
    again = evolve_front(space, predictor, prior.imagenet_top1, 0.6, np.random.default_rng(0), evaluations=3000)
    assert again.configs == front.configs
    other = evolve_front(space, predictor, prior.imagenet_top1, 0.6, np.random.default_rng(1), evaluations=3000)
    assert other.configs != front.configs


def test_sizes_are_spanned_evenly(front) -> None:
    targets = [front.size_target(position, 6) for position in range(6)]
    assert np.diff(targets) == pytest.approx(np.diff(targets)[0])
    chosen = [front.nearest_in_size(target, ()) for target in targets]
    macs = np.array([front.macs[front.configs.index(config)] for config in chosen])
    assert np.log(macs) == pytest.approx(targets, abs=0.1)
    assert macs[-1] / macs[0] >= 3
    again = front.nearest_in_size(targets[0], {chosen[0].id})
    assert again is not None and again != chosen[0]
    assert front.nearest_in_size(targets[0], {config.id for config in front.configs}) is None


def test_hardly_feasible_budget(space, predictor, prior) -> None:
    _, low = fastest(space, predictor, np.random.default_rng(0))
    front = evolve_front(space, predictor, prior.imagenet_top1, low, np.random.default_rng(0), evaluations=600)
    assert len(front.configs) >= 1 and front.quantile_ms.max() <= low


def test_children_fit_and_know_their_parents(space, predictor, front) -> None:
    parents = [front.configs[i] for i in front.band()[:3]]
    found, origin = children(space, predictor, parents, 0.6, np.random.default_rng(0), count=300)
    assert len(found) == len(origin) == len({config.id for config in found})
    assert set(origin.tolist()) == {0, 1, 2}
    assert predictor.quantile_ms(found, 0.9).max() <= 0.6


def test_most_varied(space) -> None:
    rng = np.random.default_rng(0)
    candidates = [space.sample(rng) for _ in range(20)]
    assert most_varied(space, candidates, []) == candidates[0]
    assert most_varied(space, [candidates[0], candidates[1]], [candidates[0]]) == candidates[1]


def test_feasible_share(space, predictor) -> None:
    rng = np.random.default_rng(0)
    assert feasible_share(space, predictor, 100.0, rng) == 1
    assert feasible_share(space, predictor, 0.001, rng) == 0


def test_thousands_of_candidates_a_second(space, predictor, prior) -> None:
    started = time.perf_counter()
    front = evolve_front(space, predictor, prior.imagenet_top1, 0.6, np.random.default_rng(3), evaluations=4000)
    assert front.scored / (time.perf_counter() - started) > 500  # 2,500 on an idle core; this one may be shared
