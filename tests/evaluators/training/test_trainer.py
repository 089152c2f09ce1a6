import math

import pytest
import torch
from torch import nn

from lownas.evaluators.data.loading import ImageData, load_data
from lownas.evaluators.training.proxy import ProxySettings
from lownas.evaluators.training.trainer import (
    Images,
    Training,
    augmentation,
    evaluate,
    recompute_batch_norm,
    silence_residual_branches,
)
from lownas.search_space import PRESETS, build_model


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
    training = Training(model, ProxySettings(full_rate_fan_in=64), 10, "cpu")
    rates = {
        id(parameter): scale
        for scale, group in zip(training.scales, training.optimizer.param_groups, strict=True)
        for parameter in group["params"]
    }
    weights = [rates[id(layer.weight)] for layer in model]
    assert weights == pytest.approx([1.0, math.sqrt(64 / 72), 0.5])
    assert {rates[id(layer.bias)] for layer in model} == {1.0}


def test_shifts_move_images_and_keep_their_channels() -> None:
    settings = ProxySettings(flip=False, max_shift=0.25)
    ramp = torch.arange(8.0).expand(3, 8, 8) + 10 * torch.arange(3.0).view(3, 1, 1)
    images = ramp.expand(60, 3, 8, 8)
    torch.manual_seed(0)
    moved = augmentation(settings, 8)(images)
    assert moved.shape == images.shape
    assert torch.allclose(moved - moved[:, :1], images - images[:, :1])
    assert {round(float(image[0, 0, 3] - 3)) for image in moved} == {-2, -1, 0, 1, 2}
    assert moved.min() >= 0, "what a shift uncovers repeats the border"


def test_half_of_the_images_are_mirrored() -> None:
    images = torch.arange(4.0).expand(200, 3, 4, 4)
    torch.manual_seed(0)
    turned = augmentation(ProxySettings(), 4)(images)
    mirrored = (turned[:, 0, 0, 0] == 3).sum()
    assert 60 < mirrored < 140
    assert torch.equal(augmentation(ProxySettings(flip=False), 4)(images), images)


@pytest.fixture
def digits() -> ImageData:
    return load_data("digits", 24, train_images=90, validation_images=40)


def test_a_loader_gives_what_resident_images_give(digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = Images(digits, "train", "cpu")
    monkeypatch.setattr("lownas.evaluators.training.trainer._fits", lambda size, device: False)
    loaded = Images(digits, "train", "cpu")
    assert resident.resident and not loaded.resident
    parts = torch.randperm(90, generator=torch.Generator().manual_seed(1)).split(32)
    before = torch.get_rng_state()
    for (first, wanted), (second, labels) in zip(resident.batches(parts), loaded.batches(parts), strict=True):
        assert torch.equal(first, second) and torch.equal(wanted, labels)
        assert second.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(before, torch.get_rng_state()), "the loader must not draw from the training's generator"


def test_looking_in_between_changes_nothing(digits: ImageData) -> None:
    def trained(looks: bool) -> float:
        torch.manual_seed(3)
        model = build_model(PRESETS["cpubone_nano"].replace(classes=10))
        images = Images(digits, "train", "cpu")
        training = Training(model, ProxySettings(epochs=2, batch_size=30), len(images), "cpu")
        for steps in (2, 4, 6) if looks else (6,):
            list(training.run(images, nn.Identity(), steps))
            if looks:
                recompute_batch_norm(model, images, 0)
                evaluate(model, images)
        return training.history[-1].train_loss

    assert trained(True) == trained(False)
