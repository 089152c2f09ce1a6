"""The accuracy surrogate, on made-up accuracies that are known exactly."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import kendalltau

from lownas.predictors.accuracy.gaussian_process import covariance, negative_log_posterior, noise_covariance
from lownas.predictors.accuracy.surrogate import (
    MAX_OBSERVATIONS,
    RUNGS_BEYOND_LAST,
    AccuracyObservation,
    AccuracySurrogate,
    accuracy,
)
from lownas.predictors.costs import total_macs
from lownas.search_space import LowFormerConfig, SearchSpace

SPACE = SearchSpace.load("tiny")
NOISE = 0.05  # in logits


@pytest.fixture(scope="module")
def configs() -> list[LowFormerConfig]:
    rng = np.random.default_rng(1)
    return [SPACE.sample(rng) for _ in range(260)]


@pytest.fixture(scope="module")
def truth(configs: list[LowFormerConfig]) -> np.ndarray:
    """Logits at the end of a training: half of the choices count, and MACs."""
    rng = np.random.default_rng(2)
    codes = np.stack([SPACE.encode(config) for config in configs])
    log_macs = np.log(total_macs(configs))
    weights = rng.normal(size=codes.shape[1]) * (rng.random(codes.shape[1]) < 0.5)
    return 2 + 0.15 * (codes - 0.5) @ weights + 0.2 * (log_macs - log_macs.mean())


Trained = Callable[[int, int], AccuracyObservation]


@pytest.fixture
def trained(configs: list[LowFormerConfig], truth: np.ndarray) -> Trained:
    """An observation of configuration i at rung r of 3; lower rungs are lower, wider apart and noisier."""
    rng = np.random.default_rng(3)

    def observe(index: int, rung: int) -> AccuracyObservation:
        scale = (1.6, 1.3, 1.0)[rung]
        logit = 2 - 0.5 * (2 - rung) + scale * (truth[index] - 2 + NOISE * rng.normal())
        return AccuracyObservation(configs[index], rung, float(accuracy(np.array([logit]))[0]))

    return observe


def test_it_ranks_what_it_has_not_seen(configs: list[LowFormerConfig], truth: np.ndarray, trained: Trained) -> None:
    taus = []
    for count in (20, 80):
        surrogate = AccuracySurrogate(SPACE, [trained(i, 2) for i in range(count)], rungs=3, rungs_beyond=0)
        mean, spread = surrogate.predict(configs[100:])
        taus.append(kendalltau(mean, truth[100:]).statistic)
        within = np.abs(mean - truth[100:]) < 1.645 * np.hypot(spread, 0.02)
        assert within.mean() > 0.8
    assert taus[0] > 0.35 and taus[1] > 0.7


def test_rungs_below_help_and_survivors_do_not_mislead(
    configs: list[LowFormerConfig], truth: np.ndarray, trained: Trained
) -> None:
    first = [trained(i, 0) for i in range(90)]
    best = sorted(range(90), key=lambda i: -first[i].accuracy)[:12]
    last = [trained(i, 2) for i in best]
    both = AccuracySurrogate(SPACE, first + last, rungs=3, rungs_beyond=0)
    alone = AccuracySurrogate(SPACE, last, rungs=3, rungs_beyond=0)
    truths = truth[100:]
    mean, spread = both.predict(configs[100:])
    tau = kendalltau(mean, truths).statistic
    assert tau > 0.65 and tau > kendalltau(alone.predict(configs[100:])[0], truths).statistic + 0.2
    # The survivors are above the average, and yet the level at the end is not taken to be theirs.
    assert abs(np.mean(mean - truths)) < 0.15
    assert np.mean([truth[i] for i in best]) - truths.mean() > 0.25
    assert np.mean(np.abs(mean - truths) < 1.645 * spread) > 0.5


def test_the_loss_tells_more_where_all_have_it(
    configs: list[LowFormerConfig], truth: np.ndarray, trained: Trained
) -> None:
    rng = np.random.default_rng(4)
    noisy = truth[:60] + 0.3 * rng.normal(size=60)
    losses = np.exp(-0.7 * (truth[:60] + 0.3 * rng.normal(size=60)))
    seen = [AccuracyObservation(configs[i], 0, float(accuracy(noisy[[i]])[0]), float(losses[i])) for i in range(60)]
    without = [AccuracyObservation(each.config, 0, each.accuracy) for each in seen]
    missing = [*seen[:-1], without[-1]]
    both, alone, partly = (
        AccuracySurrogate(SPACE, each, rungs_beyond=0).mean(configs[:60]) for each in (seen, without, missing)
    )
    assert kendalltau(both, truth[:60]).statistic > kendalltau(alone, truth[:60]).statistic + 0.03
    assert both.mean() == pytest.approx(alone.mean(), abs=0.02)  # still the accuracy
    assert np.array_equal(partly, alone)
    same = [AccuracyObservation(each.config, 0, each.accuracy, 0.5) for each in seen]
    assert np.array_equal(AccuracySurrogate(SPACE, same, rungs_beyond=0).mean(configs[:60]), alone)


@pytest.mark.parametrize("rise", [0.15, -0.15])
def test_what_longer_training_adds_to_larger_networks_is_learned(configs: list[LowFormerConfig], rise: float) -> None:
    log_macs = np.log(total_macs(configs))
    log_macs -= log_macs.mean()
    rng = np.random.default_rng(5)

    def after(rung: float) -> np.ndarray:
        return 1 + 0.3 * rung + rise * rung * log_macs

    seen = [
        AccuracyObservation(configs[i], rung, float(accuracy(after(rung)[[i]] + 0.02 * rng.normal())[0]))
        for rung in range(3)
        for i in range(40)
    ]
    now, later = (
        AccuracySurrogate(SPACE, seen, rungs=3, rungs_beyond=longer).mean(configs[40:])
        for longer in (0, RUNGS_BEYOND_LAST)
    )
    at_the_end, further = (np.polyfit(log_macs[40:], mean, 1)[0] for mean in (now, later))
    assert at_the_end == pytest.approx(2 * rise, abs=0.03)
    assert (
        0.02 < (further - at_the_end) / np.sign(rise) < 1.2 * RUNGS_BEYOND_LAST * abs(rise)
    )  # less: it is held near its prior
    assert later.mean() == pytest.approx(now.mean(), abs=0.05)  # for comparison: what all gain is not foretold


def test_uncertainty_shrinks_where_it_was_trained(configs: list[LowFormerConfig], trained: Trained) -> None:
    surrogate = AccuracySurrogate(SPACE, [trained(i, 2) for i in range(40)], rungs=3)
    _, known = surrogate.predict(configs[:40])
    _, unknown = surrogate.predict(configs[100:])
    assert np.median(known) < 0.7 * np.median(unknown)
    twice = [*(trained(i, 2) for i in range(40)), *(trained(i, 2) for i in range(40))]
    again = AccuracySurrogate(SPACE, twice, rungs=3, hyperparameters=surrogate.hyperparameters, fit=False)
    assert np.median(again.predict(configs[:40])[1]) < np.median(known)


def test_the_gradient_is_that_of_the_posterior(trained: Trained) -> None:
    observations = [trained(i, i % 3) for i in range(30)]
    surrogate = AccuracySurrogate(SPACE, observations, rungs=3)
    similarity = surrogate._similarity(surrogate._costs, surrogate._choices, surrogate._rung, surrogate._rises)
    vector = surrogate.hyperparameters + np.random.default_rng(5).normal(0, 0.3, len(surrogate.hyperparameters))

    def at(place: np.ndarray) -> tuple[float, np.ndarray]:
        return negative_log_posterior(place, similarity, surrogate._targets, surrogate._rung, 3)

    _, gradient = at(vector)
    for index, step in enumerate(1e-5 * np.eye(len(vector))):
        ahead, behind = at(vector + step)[0], at(vector - step)[0]
        assert gradient[index] == pytest.approx((ahead - behind) / 2e-5, rel=1e-3, abs=1e-3)


def test_candidates_under_way_are_less_uncertain(configs: list[LowFormerConfig], truth: np.ndarray) -> None:
    accuracies = accuracy(truth[:40])
    seen = [AccuracyObservation(configs[i], 0, float(accuracies[i])) for i in range(40)]
    surrogate = AccuracySurrogate(SPACE, seen)
    believed = surrogate.believing(configs[40:42])
    before, after = surrogate.predict(configs[:60]), believed.predict(configs[:60])
    assert np.allclose(before[0], after[0])
    assert (after[1] <= before[1] + 1e-9).all() and (after[1][40:42] < 0.9 * before[1][40:42]).all()
    assert believed.observations == 42 and surrogate.observations == 40
    assert surrogate.believing([]) is surrogate


def test_believing_is_conditioning(configs: list[LowFormerConfig], trained: Trained) -> None:
    """The covariance grows as if all had been observed at once."""
    observations = [trained(i, i % 2) for i in range(12)]
    believed = AccuracySurrogate(SPACE, observations, rungs=2).believing(configs[12:15])
    similarity = believed._similarity(believed._costs, believed._choices, believed._rung, believed._rises)
    noise = noise_covariance(believed.hyperparameters, believed._rung)
    assert np.allclose(believed._factor @ believed._factor.T, covariance(believed.hyperparameters, similarity) + noise)


def test_the_same_observations_give_the_same_surrogate(configs: list[LowFormerConfig], trained: Trained) -> None:
    observations = [trained(i, i % 2) for i in range(25)]
    first, second = (AccuracySurrogate(SPACE, observations, rungs=2) for _ in range(2))
    assert (first.predict(configs)[0] == second.predict(configs)[0]).all()


def test_hostile_observations_do_no_harm(configs: list[LowFormerConfig]) -> None:
    for values in ([0.0, 1.0], [0.5, 0.5, 0.5], [0.1] * 10):
        observations = [AccuracyObservation(configs[i % 2], 0, value) for i, value in enumerate(values)]
        mean, spread = AccuracySurrogate(SPACE, observations).predict(configs[:20])
        assert np.isfinite(mean).all() and (spread > 0).all()


def test_a_long_run_costs_no_more_than_a_part_of_it(configs: list[LowFormerConfig], trained: Trained) -> None:
    many = [trained(i % 200, 0) for i in range(MAX_OBSERVATIONS + 500)] + [trained(3, 2)]
    surrogate = AccuracySurrogate(
        SPACE, many, rungs=3, hyperparameters=AccuracySurrogate(SPACE, many[:50], rungs=3).hyperparameters, fit=False
    )
    assert surrogate.observations == MAX_OBSERVATIONS and surrogate.highest_rung == 2


def test_what_cannot_be_is_refused(configs: list[LowFormerConfig]) -> None:
    good = AccuracyObservation(configs[0], 0, 0.5)
    with pytest.raises(ValueError, match="at least 2 observations, given 1"):
        AccuracySurrogate(SPACE, [good])
    with pytest.raises(ValueError, match=r"rungs are 0 to 1 and accuracies 0 to 1, given 2, 0\.5"):
        AccuracySurrogate(SPACE, [good, AccuracyObservation(configs[1], 2, 0.5)], rungs=2)
    with pytest.raises(ValueError, match="given 0, 50"):
        AccuracySurrogate(SPACE, [good, AccuracyObservation(configs[1], 0, 50.0)])
    with pytest.raises(ValueError, match="given 0, nan"):
        AccuracySurrogate(SPACE, [good, AccuracyObservation(configs[1], 0, float("nan"))])


def test_larger_networks_are_expected_to_be_better_until_observations_tell(configs: list[LowFormerConfig]) -> None:
    log_macs = np.log(total_macs(configs))

    def slope(accuracies: np.ndarray) -> float:
        seen = [AccuracyObservation(config, 0, float(a)) for config, a in zip(configs, accuracies, strict=False)]
        mean, _ = AccuracySurrogate(SPACE, seen, rungs_beyond=0).predict(configs[100:])
        return float(np.polyfit(log_macs[100:], mean, 1)[0])

    assert slope(np.full(8, 0.85)) > 0
    assert slope(accuracy(2 - 0.3 * (log_macs[:60] - log_macs.mean()))) < -0.1
