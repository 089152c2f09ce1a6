import math

import pytest
import torch
from torch import nn

from lownas.evaluators.data.loading import load_data
from lownas.evaluators.data.records import ImageData
from lownas.evaluators.training.batches import ImageBatches
from lownas.evaluators.training.settings import ProxySettings
from lownas.evaluators.training.trainer import (
    Training,
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


@pytest.fixture
def digits() -> ImageData:
    return load_data("digits", 24, train_images=90, validation_images=40)


def test_looking_in_between_changes_nothing(digits: ImageData) -> None:
    def trained(looks: bool) -> float:
        torch.manual_seed(3)
        model = build_model(PRESETS["cpubone_nano"].replace(classes=10))
        images = ImageBatches(digits, "train", "cpu")
        training = Training(model, ProxySettings(epochs=2, batch_size=30), len(images), "cpu")
        for steps in (2, 4, 6) if looks else (6,):
            list(training.run(images, None, steps))
            if looks:
                recompute_batch_norm(model, images, 0)
                evaluate(model, images)
        return training.history[-1].train_loss

    assert trained(True) == trained(False)
