"""The objective: the prior without the user's data, the accuracy with it."""

import json

import numpy as np
import pytest

from lownas.experiments.tabular.table import TABLE
from lownas.search.objectives.estimates import FORMULA_TAU, Objective, Observation

PRESETS_STUDY = TABLE.parents[1] / "proxy_presets" / "results.json"


def observed(*, repeats: int, noise: float, count: int = 16) -> list[Observation]:
    """Candidates with a spread of prior and accuracy; some have two seeds."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        true = 0.5 + 0.2 * number / count
        seeds = 2 if number < repeats else 1
        accuracies = tuple((true + noise * rng.standard_normal(seeds)).tolist())
        found.append(Observation(f"c{number}", 75 + 6 * number / count, accuracies))
    return found


def test_without_the_users_data_it_is_the_prior() -> None:
    objective = Objective(observed(repeats=6, noise=0.1), on_user_data=False)
    assert all(objective.value(name) == seen.prior_top1 for name, seen in objective.observed.items())
    assert objective.estimate("c3", np.array([80.0])) == pytest.approx(80)
    sentence = objective.reliability.sentence()
    assert "by the ImageNet prior alone" in sentence and "0.36" in sentence and "over 6 candidates" in sentence


def test_what_is_said_of_formula_is_what_the_study_found() -> None:
    study = json.loads(PRESETS_STUDY.read_text())["summary"]
    found = {"proxy": study["kendall_tau_published"], "MACs": study["kendall_tau_published_of_macs_alone"]}
    assert pytest.approx(found, abs=0.0051) == FORMULA_TAU
    assert FORMULA_TAU["proxy"] < 0.5  # else the proxy would have to take part


@pytest.mark.parametrize("noise", [0.001, 0.01])
def test_the_noise_between_seeds_is_measured(noise: float) -> None:
    reliability = Objective(observed(repeats=16, noise=noise), on_user_data=True).reliability
    assert reliability.noise == pytest.approx(noise, rel=0.5)
    assert reliability.kendall_tau is not None and reliability.kendall_tau > 0.7


@pytest.mark.parametrize("repeats", [0, 2])
def test_too_few_repeats(repeats: int) -> None:
    reliability = Objective(observed(repeats=repeats, noise=0.0), on_user_data=False).reliability
    assert (reliability.repeats, reliability.kendall_tau) == (repeats, None)


def test_user_data_counts_as_it_is_until_more_is_learned() -> None:
    seen = [Observation("a", 80.0, (0.5, 0.6)), Observation("b", 70.0, (0.7,))]
    objective = Objective(seen, on_user_data=True)
    assert [objective.value(name) for name in "ab"] == pytest.approx([55, 70])
    learned = Objective(seen, on_user_data=True, learned={"a": 0.6})
    assert [learned.value(name) for name in "ab"] == pytest.approx([60, 70])


def test_children_inherit_half_of_their_parents_departure() -> None:
    seen = [*observed(repeats=0, noise=0.0), Observation("better", 78.0, (0.75,))]
    objective = Objective(seen, on_user_data=True)
    parent, likes = objective.estimate("better", np.array([78.0]))[0], objective.estimate("c8", np.array([78.0]))[0]
    assert likes + 2 < parent < objective.value("better") - 2


def test_degenerate_observations() -> None:
    for seen in ([], [Observation("a", 80.0, (0.5,))], [Observation(n, 80.0, (0.5, 0.5)) for n in "abcde"]):
        for on_user_data in (False, True):
            objective = Objective(seen, on_user_data=on_user_data)
            assert all(np.isfinite(objective.value(observation.config_id)) for observation in seen)
