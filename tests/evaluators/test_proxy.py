import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lownas.evaluators import proxy
from lownas.evaluators.data import linear_baseline, load_data
from lownas.evaluators.proxy import ProxySettings, choose_settings, silence_residual_branches, train_proxy
from lownas.search_space import PRESETS, Attention, LowFormerConfig, StageConfig, build_model

TINY = LowFormerConfig(
    resolution=224,
    stem_width=8,
    stages=(
        StageConfig(width=12, depth=1, down_expansion=2),
        StageConfig(width=16, depth=2, down_expansion=2, expansion=2),
        StageConfig(width=24, depth=1, down_expansion=2, attention=Attention(stride=2), mlp_ratio=2),
        StageConfig(width=32, depth=1, down_expansion=2, attention=Attention(stride=1, upsampling="nearest")),
    ),
    head_widths=(64, 64),
)
QUICK = ProxySettings(data="formula:4", classes=4, epochs=2, train_images=64, validation_images=40, batch_size=16)


def test_settings_survive_json_and_refuse_nonsense() -> None:
    settings = replace(QUICK, resolution_scale=0.3, flip=False, expected_seconds=4.5)
    assert ProxySettings.from_json(settings.to_json()) == settings
    with pytest.raises(ValueError, match="unknown \\['epoch'\\]"):
        ProxySettings.from_dict({"epoch": 3})
    with pytest.raises(ValueError, match="broken JSON"):
        ProxySettings.from_json("{")
    for bad in ({"epochs": 0}, {"epochs": 1.5}, {"learning_rate": math.nan}, {"warmup_share": 1.0}, {"classes": 1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ProxySettings.from_dict(bad)


def test_proxy_resolution_is_the_candidates_times_a_constant() -> None:
    settings = ProxySettings(resolution_scale=1 / 7)
    sides = [settings.proxy_resolution(side) for side in (160, 192, 224, 256, 288)]
    assert sides == [24, 28, 32, 36, 40]
    assert replace(settings, resolution_scale=1.0).proxy_resolution(28) == 28


def test_same_seed_same_result_other_seed_another() -> None:
    before = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    first, again, other = (train_proxy(TINY, None, QUICK, seed) for seed in (1, 1, 2))
    assert first.status == "complete", first.reason
    assert (first.accuracy, first.loss, first.history) == (again.accuracy, again.loss, again.history)
    assert first.loss != other.loss
    assert torch.equal(before, torch.random.get_rng_state()) and torch.get_num_threads() == threads
    assert first.images_per_second > 0 and first.resolution == 32


def test_it_learns_shapes_that_a_linear_model_does_not() -> None:
    settings = ProxySettings(
        data="formula:4", classes=4, epochs=4, train_images=512, validation_images=200, batch_size=32
    )
    data = load_data("formula:4", 32, train_images=512, validation_images=200)
    epochs: list[int] = []
    result = train_proxy(TINY, data, settings, 0, report=lambda record: epochs.append(record.epoch))
    assert result.accuracy is not None
    assert epochs == [0, 1, 2, 3] and len(result.history) == 4
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert result.accuracy > linear_baseline(data) + 0.1


def test_silenced_branches_make_blocks_the_identity() -> None:
    model = build_model(PRESETS["cpubone_nano"].replace(classes=3)).eval()
    block = model.stages[3][1]
    x = torch.randn(2, 192, 3, 3)
    assert not torch.equal(block(x), x)
    count = silence_residual_branches(model)
    assert torch.equal(block(x), x)
    assert count == sum(getattr(module, "shortcut", False) is True for module in model.modules())


def test_wide_layers_learn_at_lower_rates() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(256, 8, 1))
    training = proxy._Training(model, ProxySettings(full_rate_fan_in=64), 10, "cpu")
    rates = {
        id(parameter): scale
        for scale, group in zip(training.scales, training.optimizer.param_groups, strict=True)
        for parameter in group["params"]
    }
    weights = [rates[id(layer.weight)] for layer in model]
    assert weights == pytest.approx([1.0, math.sqrt(64 / 72), 0.5])
    assert {rates[id(layer.bias)] for layer in model} == {1.0}


def test_a_loss_that_is_not_finite_fails_the_candidate() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(x.mean(dim=(2, 3))) * math.nan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proxy, "build_model", lambda config: Broken())
        result = train_proxy(TINY, None, QUICK, 0)
    assert (result.status, result.accuracy, result.loss) == ("failed", None, None)
    assert "not finite" in result.reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines"),
    ],
)
def test_what_a_candidate_raises_is_its_reason(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config: LowFormerConfig) -> nn.Module:
        raise error

    monkeypatch.setattr(proxy, "build_model", build)
    result = train_proxy(TINY, None, QUICK, 0)
    assert result.status == "failed" and result.reason.startswith(reason) and "\n" not in result.reason


def test_an_interrupt_passes() -> None:
    def interrupt(record: proxy.EpochRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_proxy(TINY, None, QUICK, 0, report=interrupt)


def test_bad_data_is_the_users_error_not_the_candidates() -> None:
    with pytest.raises(ValueError, match="no such folder"):
        train_proxy(TINY, "imagefolder:/no/such/folder", QUICK, 0)
    with pytest.raises(ValueError, match="trains at 32"):
        train_proxy(TINY, load_data("digits", 16, train_images=20, validation_images=20), QUICK, 0)


def test_shifts_move_images_and_keep_their_channels() -> None:
    settings = replace(QUICK, flip=False, max_shift=0.25)
    ramp = torch.arange(8.0).expand(3, 8, 8) + 10 * torch.arange(3.0).view(3, 1, 1)
    images = ramp.expand(20, 3, 8, 8)
    moved = proxy._augment(images, settings, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert torch.equal(moved - moved[:, :1], images - images[:, :1])
    shifts = {round(float(image[0, 0, 3] - 3)) for image in moved}
    assert shifts == {-2, -1, 0, 1, 2}


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> list[LowFormerConfig]:
    """Training costs 1 ms per image for every candidate; gives the candidates timed."""
    timed: list[LowFormerConfig] = []

    def seconds(config: LowFormerConfig, *_: object) -> float:
        timed.append(config)
        return 1e-3

    monkeypatch.setattr(proxy, "_seconds_per_image", seconds)
    return timed


def test_chosen_settings_fit_the_budget(steady_clock: list[LowFormerConfig]) -> None:
    small = choose_settings([TINY], "formula", 24, trials=16, workers=2)
    assert small.expected_seconds * 16 / 2 <= 24
    assert small.resolution_scale == pytest.approx(1 / 7) and small.classes == 10
    more = choose_settings([TINY], "formula", 400, trials=16, workers=2)
    assert more.epochs * more.train_images > 5 * small.epochs * small.train_images
    assert more.classes > small.classes
    assert more.expected_seconds * 16 / 2 <= 400
    assert choose_settings([TINY], "formula:12", 400, 16, 2).classes == 12


def test_chosen_settings_time_the_smallest_and_the_largest(steady_clock: list[LowFormerConfig]) -> None:
    names = ("lowformer_b3", "lowformer_b0", "lowformer_b1", "lowformer_e3")
    choose_settings([PRESETS[name] for name in names], "formula", 100, 4, 0)
    assert {PRESETS["lowformer_b0"], PRESETS["lowformer_b3"]} <= set(steady_clock)
    assert len(steady_clock) == 3


def test_small_sets_are_used_whole_for_more_epochs(steady_clock: list[LowFormerConfig]) -> None:
    settings = choose_settings([TINY.replace(resolution=32)], "digits", 100, trials=4, workers=0)
    available = load_data("digits", 8).card["available_train_images"]
    assert settings.epochs > 3 and settings.resolution_scale == 1.0 and not settings.flip
    assert available * 0.9 <= settings.train_images <= available
    assert choose_settings([TINY], "digits", 100, 4, 0, epochs=2).epochs == 2


def test_a_budget_too_small_is_warned_of(steady_clock: list[LowFormerConfig], caplog: pytest.LogCaptureFixture) -> None:
    settings = choose_settings([TINY], "formula", 0.5, trials=16, workers=1)
    assert settings.steps(settings.train_images) >= proxy.MIN_STEPS
    assert "proxy budget of" in caplog.text
    for budget in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="proxy budget"):
            choose_settings([TINY], "formula", budget, 16, 1)


def test_real_timing_gives_usable_settings() -> None:
    settings = choose_settings([TINY], "formula:4", 5, trials=2, workers=1)
    assert settings.expected_seconds > 0
    assert np.isfinite(settings.expected_seconds)
