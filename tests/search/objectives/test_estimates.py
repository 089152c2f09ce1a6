"""What is known of trained candidates: how far seeds agree, and what to expect of others."""

from __future__ import annotations

import numpy as np
import pytest

from lownas.evaluators.tasks import task
from lownas.predictors.accuracy.prior import AccuracyPrior
from lownas.search.objectives import BestWithinBudget, DataAccuracy, ImageNetPrior, Objective
from lownas.search.objectives.estimates import SeedAgreement, TrainedCandidate

from .candidates import named, networks, trained


@pytest.fixture(scope="module", params=[ImageNetPrior, DataAccuracy])
def objective(request) -> Objective:
    return request.param(BestWithinBudget(), AccuracyPrior.load(), task("classification").metric)


@pytest.mark.parametrize("noise", [0.001, 0.01])
def test_the_noise_between_seeds_is_measured(objective, noise: float) -> None:
    agreement = objective.estimates_of(trained(repeats=16, noise=noise, configs=networks(16))).agreement
    assert agreement.noise == pytest.approx(noise, rel=0.5)
    assert agreement.kendall_tau is not None and agreement.kendall_tau > 0.7


@pytest.mark.parametrize("repeats", [0, 2])
def test_too_few_repeats(objective, repeats: int) -> None:
    agreement = objective.estimates_of(trained(repeats=repeats, noise=0.0, configs=networks(16))).agreement
    assert (agreement.repeats, agreement.kendall_tau) == (repeats, None)


def test_equal_accuracies_do_not_agree() -> None:
    assert SeedAgreement.of([TrainedCandidate(named(name), 80.0, (0.5, 0.5)) for name in "abcde"]).kendall_tau == 0.0


def test_degenerate_observations(objective) -> None:
    for seen in (
        [],
        [TrainedCandidate(networks(1)[0], 80.0, (0.5,))],
        [TrainedCandidate(config, 80.0, (0.5, 0.5)) for config in networks(5)],
    ):
        estimates = objective.estimates_of(seen)
        assert all(np.isfinite(estimates.value(candidate.config_id)) for candidate in seen)
