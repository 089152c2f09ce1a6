import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lownas.evaluators.data.loading import linear_baseline, load_data
from lownas.evaluators.training import proxy
from lownas.evaluators.training.batches import ImageBatches
from lownas.evaluators.training.inherit import Source
from lownas.evaluators.training.proxy import ProxySettings, prepared_model, train_proxy
from lownas.evaluators.training.trainer import EpochRecord, Training, evaluate, recompute_batch_norm
from lownas.search_space import Attention, LowFormerConfig, StageConfig

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


def test_settings_of_runs_that_knew_no_matrix_rate_stay_the_same() -> None:
    assert "matrix_rate" not in QUICK.to_dict()
    assert ProxySettings.from_dict(QUICK.to_dict()).matrix_rate == 0.0
    faster = replace(QUICK, matrix_rate=0.02)
    assert ProxySettings.from_dict(faster.to_dict()) == faster
    with pytest.raises(ValueError, match="matrix_rate"):
        replace(QUICK, matrix_rate=-1.0)


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
    def interrupt(record: EpochRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_proxy(TINY, None, QUICK, 0, report=interrupt)


def test_bad_data_is_the_users_error_not_the_candidates() -> None:
    with pytest.raises(ValueError, match="no such folder"):
        train_proxy(TINY, "imagefolder:/no/such/folder", QUICK, 0)
    with pytest.raises(ValueError, match="trains at 32"):
        train_proxy(TINY, load_data("digits", 16, train_images=20, validation_images=20), QUICK, 0)


@pytest.mark.parametrize("matrix_rate", [0.0, 0.02])
@pytest.mark.parametrize("until", [(1 / 9, 1 / 3), (0.4,)])
def test_in_parts_as_in_one_go(until: tuple[float, ...], matrix_rate: float, tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=3, max_shift=0.1, matrix_rate=matrix_rate)
    whole = train_proxy(TINY, None, settings, 5)
    state = tmp_path / "states" / "5.safetensors"
    for share in until:
        part = train_proxy(TINY, None, settings, 5, until=share, state=state)
        assert part.status == "paused" and part.share == pytest.approx(share, abs=0.06) and state.exists()
        assert part.accuracy is not None
    last = train_proxy(TINY, None, settings, 5, state=state)
    assert (last.status, last.share) == ("complete", 1.0) and not state.exists()
    assert (last.accuracy, last.loss, last.history) == (whole.accuracy, whole.loss, whole.history)


@pytest.mark.parametrize("damage", ["missing", "cut", "other seed", "pickle"])
def test_a_state_that_does_not_fit_only_costs_time(damage: str, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    train_proxy(TINY, None, QUICK, 6 if damage == "other seed" else 5, until=0.5, state=state)
    if damage == "missing":
        state.unlink()
    elif damage == "cut":
        state.write_bytes(state.read_bytes()[:-100])
    elif damage == "pickle":
        torch.save({"model.x": torch.zeros(1)}, state)
    whole, after = train_proxy(TINY, None, QUICK, 5), train_proxy(TINY, None, QUICK, 5, state=state)
    assert after.status == "complete", after.reason
    assert (after.accuracy, after.loss, after.history) == (whole.accuracy, whole.loss, whole.history)


@pytest.mark.parametrize("blocked", ["folder", "file"])
def test_a_state_that_cannot_be_written_only_costs_time(blocked: str, tmp_path: Path) -> None:
    state = tmp_path / "states" / "5.safetensors"
    if blocked == "folder":
        state.parent.write_text("in its way")
    else:
        state.mkdir(parents=True)
    part = train_proxy(TINY, None, QUICK, 5, until=0.5, state=state)
    assert part.status == "paused" and part.accuracy is not None
    whole, after = train_proxy(TINY, None, QUICK, 5), train_proxy(TINY, None, QUICK, 5, state=state)
    assert (after.status, after.accuracy) == ("complete", whole.accuracy)


def test_inherited_weights_are_where_it_starts(tmp_path: Path) -> None:
    few = ProxySettings(data="digits", classes=10, resolution_scale=1 / 7, epochs=1, train_images=32, batch_size=32)
    torch.manual_seed(0)
    model = prepared_model(TINY.replace(classes=10), "cpu")
    data = load_data("digits", 32, train_images=512, validation_images=200)
    images = ImageBatches(data, "train", "cpu")
    training = Training(model, replace(few, epochs=12, flip=False), len(images), "cpu")
    list(training.run(images, None, training.steps))
    recompute_batch_norm(model, images, 0)
    accuracy, _ = evaluate(model, ImageBatches(data, "validation", "cpu"))
    source = Source(model, "0123456789ab")
    fresh = train_proxy(TINY, data, few, 0, until=1e-6)
    inherited = train_proxy(TINY, data, few, 0, until=1e-6, source=source, state=tmp_path / "s")
    assert fresh.accuracy is not None and inherited.accuracy is not None
    assert accuracy > 0.6 and inherited.accuracy > fresh.accuracy + 0.3
    again = train_proxy(TINY, data, few, 0, source=source)
    assert train_proxy(TINY, data, few, 0, source=source, state=tmp_path / "s").accuracy == again.accuracy


@pytest.mark.parametrize("until", [0.0, -1.0, 1.1, math.nan])
def test_impossible_shares_are_refused(until: float) -> None:
    with pytest.raises(ValueError, match="until"):
        train_proxy(TINY, None, QUICK, 0, until=until)
