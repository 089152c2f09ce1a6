import math

import numpy as np
import pytest

from lownas.evaluators.data.loading import load_data
from lownas.evaluators.training.budget import MIN_STEPS, SHIFTED_EPOCHS, choose_settings
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace

SMALL = PRESETS["cpubone_nano"]


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> list[LowFormerConfig]:
    """Training costs 1 ms per image for every candidate; gives the candidates timed."""
    timed: list[LowFormerConfig] = []

    def seconds(config: LowFormerConfig, *_: object) -> float:
        timed.append(config)
        return 1e-3

    monkeypatch.setattr("lownas.evaluators.training.budget._seconds_per_image", seconds)
    return timed


def test_chosen_settings_fit_the_budget(steady_clock: list[LowFormerConfig]) -> None:
    small = choose_settings([SMALL], "formula", 24, trials=16, workers=2)
    assert small.expected_seconds * 16 / 2 <= 24
    assert small.resolution_scale == pytest.approx(1 / 7) and small.classes == 10
    more = choose_settings([SMALL], "formula", 400, trials=16, workers=2)
    assert more.epochs * more.train_images > 5 * small.epochs * small.train_images
    assert more.classes > small.classes
    assert more.expected_seconds * 16 / 2 <= 400
    assert choose_settings([SMALL], "formula:12", 400, 16, 2).classes == 12


def test_chosen_settings_time_the_smallest_and_the_largest(steady_clock: list[LowFormerConfig]) -> None:
    names = ("lowformer_b3", "lowformer_b0", "lowformer_b1", "lowformer_e3")
    choose_settings([PRESETS[name] for name in names], "formula", 100, 4, 0)
    assert {PRESETS["lowformer_b0"], PRESETS["lowformer_b3"]} <= set(steady_clock)
    assert len(steady_clock) == 3


def test_small_sets_are_used_whole_for_more_epochs(steady_clock: list[LowFormerConfig]) -> None:
    settings = choose_settings([SMALL.replace(resolution=32)], "digits", 100, trials=4, workers=0)
    available = load_data("digits", 8).card["available_train_images"]
    assert settings.epochs > 3 and settings.resolution_scale == 1.0 and not settings.flip
    assert available * 0.9 <= settings.train_images <= available
    assert choose_settings([SMALL], "digits", 100, 4, 0, epochs=2).epochs == 2


def test_time_that_is_no_whole_epoch_is_used(steady_clock: list[LowFormerConfig]) -> None:
    available = load_data("digits", 8).card["available_train_images"]
    for passes in (3.7, 5.6):
        seconds = (passes * available + (350 + 512) / 3) * 1e-3 / 0.8
        settings = choose_settings([SMALL], "digits", seconds, 1, 1)
        assert settings.epochs * settings.train_images == pytest.approx(passes * available, rel=0.03)


def test_trainings_that_stop_early_leave_no_worker_idle(steady_clock: list[LowFormerConfig]) -> None:
    def steps(trials: float, workers: int) -> int:
        settings = choose_settings([SMALL], "formula:100", 200, trials, workers)
        return settings.steps(settings.train_images)

    assert steps(8.0, 1) >= steps(8.1, 1) > 0.95 * steps(8.0, 1)
    assert steps(8.0, 2) > steps(8.1, 2) > steps(9.0, 2) == steps(10.0, 2)
    assert steps(0.3, 4) == steps(1.0, 4)


def test_images_are_shifted_in_long_trainings_only(steady_clock: list[LowFormerConfig]) -> None:
    small = SMALL.replace(resolution=32)
    short, long = (choose_settings([small], "digits", seconds, 1, 1) for seconds in (6, 60))
    assert short.epochs < SHIFTED_EPOCHS <= long.epochs
    assert short.max_shift == 0 < long.max_shift


def test_steps_are_orthogonalized_where_networks_are_narrow(steady_clock: list[LowFormerConfig]) -> None:
    tiny = SearchSpace.load("tiny").sample(np.random.default_rng(0)).replace(resolution=64)
    assert choose_settings([tiny], "digits", 10, 1, 1).matrix_rate > 0
    assert choose_settings([PRESETS["lowformer_b1"]], "digits", 10, 1, 1).matrix_rate == 0


def test_a_budget_too_small_is_warned_of(steady_clock: list[LowFormerConfig], caplog: pytest.LogCaptureFixture) -> None:
    settings = choose_settings([SMALL], "formula", 0.5, trials=16, workers=1)
    assert settings.steps(settings.train_images) >= MIN_STEPS
    assert "proxy budget of" in caplog.text
    for budget in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="proxy budget"):
            choose_settings([SMALL], "formula", budget, 16, 1)


def test_real_timing_gives_usable_settings() -> None:
    settings = choose_settings([SMALL], "formula:4", 5, trials=2, workers=1)
    assert settings.expected_seconds > 0
    assert np.isfinite(settings.expected_seconds)
