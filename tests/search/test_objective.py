"""The objective: the prior, and how far the proxy may correct it."""

from __future__ import annotations

import numpy as np
import pytest

from lownas.search.objective import MAX_CORRECTION, Objective, Observation


def observed(signal: float, noise: float, *, repeats: int = 6, count: int = 16, seed: int = 0) -> list[Observation]:
    """Candidates whose accuracy follows the prior, with a real residual and noise of these standard deviations."""
    rng = np.random.default_rng(seed)
    result = []
    for n in range(count):
        prior = 75 + 0.5 * n
        true = 0.2 + 0.01 * (prior - 75) + signal * float(rng.standard_normal())
        seeds = 2 if n in np.linspace(0, count - 1, repeats).round() else 1
        accuracies = tuple(true + noise * float(rng.standard_normal()) for _ in range(seeds))
        result.append(Observation(f"c{n}", prior, accuracies))
    return result


def corrections(objective: Objective) -> np.ndarray:
    return np.array([objective.value(name) - seen.prior_top1 for name, seen in objective.observed.items()])


def test_a_reliable_proxy_corrects_within_a_point() -> None:
    objective = Objective(observed(0.03, 0.002), on_user_data=False, prior_error=0.43)
    assert objective.reliability.kendall_tau is not None and objective.reliability.kendall_tau > 0.5
    assert objective.reliability.weight > 0.9
    found = corrections(objective)
    assert 0.2 < found.std() < 0.5
    assert np.abs(found).max() <= MAX_CORRECTION
    assert "corrected by the proxy" in objective.reliability.sentence()


def test_noise_alone_corrects_little() -> None:
    weights = [
        Objective(observed(0.0, 0.01, seed=seed), on_user_data=False, prior_error=0.43).reliability.weight
        for seed in range(20)
    ]
    assert np.median(weights) < 0.3


def test_an_unreliable_proxy_is_not_used() -> None:
    objective = Objective(observed(0.0, 0.5), on_user_data=False, prior_error=0.43)
    assert objective.reliability.kendall_tau is not None and objective.reliability.kendall_tau < 0.5
    assert not corrections(objective).any()
    assert "by the ImageNet prior alone" in objective.reliability.sentence()
    assert "below 0.5" in objective.reliability.sentence()


@pytest.mark.parametrize("repeats", [0, 2])
def test_too_few_repeats(repeats: int) -> None:
    objective = Objective(observed(0.03, 0.0, repeats=repeats), on_user_data=False, prior_error=0.43)
    assert objective.reliability.kendall_tau is None
    assert not corrections(objective).any()
    assert f"{repeats} candidates" in objective.reliability.sentence()


def test_user_data_counts_as_it_is() -> None:
    seen = [Observation("a", 80.0, (0.5, 0.6)), Observation("b", 70.0, (0.7,))]
    objective = Objective(seen, on_user_data=True, prior_error=0.43)
    assert objective.value("a") == pytest.approx(55)
    assert objective.value("b") == pytest.approx(70)


def test_children_inherit_half_of_their_parents_departure() -> None:
    seen = observed(0.03, 0.002)
    objective = Objective(seen, on_user_data=False, prior_error=0.43)
    parent = seen[3]
    departure = objective.value(parent.config_id) - parent.prior_top1
    estimate = objective.estimate(parent.config_id, np.array([parent.prior_top1, parent.prior_top1 + 1]))
    assert estimate == pytest.approx(parent.prior_top1 + 0.5 * departure + np.array([0, 1]))


def test_degenerate_observations() -> None:
    for seen in ([], [Observation("a", 80.0, (0.5,))], [Observation(n, 80.0, (0.5, 0.5)) for n in "abcde"]):
        for on_user_data in (False, True):
            objective = Objective(seen, on_user_data=on_user_data, prior_error=0.43)
            for observation in seen:
                assert np.isfinite(objective.value(observation.config_id))
            assert not objective.reliability.relied_on
