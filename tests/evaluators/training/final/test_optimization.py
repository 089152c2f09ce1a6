"""Losses, rates, averaged weights and augmentations of final trainings, by cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lownas.evaluators import tasks
from lownas.evaluators.training.final.augmentation import Augmenter
from lownas.evaluators.training.final.learner import Learner
from lownas.evaluators.training.final.optimization import (
    AveragedWeights,
    FinalLoss,
    class_weights,
    distillation,
    optimizers_of,
    rate_share,
)
from lownas.evaluators.training.final.recipe import TrainingRecipe
from lownas.evaluators.training.final.weights import Pixels, Prepared
from lownas.evaluators.training.final.workers import Workers

TASK = tasks.task("classification")
PLAIN = TrainingRecipe(label_smoothing=0.0, flip=False, ema=0.0)
HALF = Pixels((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def loss(recipe: TrainingRecipe, outputs: torch.Tensor, labels: torch.Tensor, **more: torch.Tensor) -> float:
    weights = more.pop("weights", None)
    return FinalLoss(recipe, TASK, weights)(outputs, labels, more.get("teacher"), more.get("averaged")).item()


def test_the_loss_is_torchs_where_torch_has_it() -> None:
    torch.manual_seed(0)
    outputs, labels = torch.randn(8, 5), torch.randint(0, 5, (8,))
    assert loss(PLAIN, outputs, labels) == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-5)
    smooth = replace(PLAIN, label_smoothing=0.2)
    wanted = F.cross_entropy(outputs, labels, label_smoothing=0.2).item()
    assert loss(smooth, outputs, labels) == pytest.approx(wanted, rel=1e-5)
    one_hot = F.one_hot(labels, 5).float()
    wanted = F.binary_cross_entropy_with_logits(outputs, one_hot).item()
    assert loss(replace(PLAIN, loss="bce"), outputs, labels) == pytest.approx(wanted, rel=1e-5)
    weights = class_weights(labels, 5)
    wanted = F.cross_entropy(outputs, labels, weight=weights).item()
    assert loss(PLAIN, outputs, labels, weights=weights) == pytest.approx(wanted, rel=1e-5)


def test_mixed_labels_and_a_teacher_weigh_as_they_should() -> None:
    torch.manual_seed(0)
    outputs, teacher = torch.randn(8, 5), torch.randn(8, 5)
    first, second = torch.randint(0, 5, (8,)), torch.randint(0, 5, (8,))
    shares = 0.7 * F.one_hot(first, 5) + 0.3 * F.one_hot(second, 5)
    both = 0.7 * loss(PLAIN, outputs, first) + 0.3 * loss(PLAIN, outputs, second)
    assert loss(PLAIN, outputs, shares) == pytest.approx(both, rel=1e-5)
    taught = loss(replace(PLAIN, teacher_share=0.25), outputs, first, teacher=teacher)
    wanted = 0.75 * loss(PLAIN, outputs, first) + 0.25 * distillation(outputs, teacher, PLAIN.temperature).item()
    assert taught == pytest.approx(wanted, rel=1e-5)
    assert distillation(outputs, outputs, 2.0).item() == pytest.approx(0, abs=1e-6)
    agreed = loss(replace(PLAIN, agreement=2.0), outputs, first, averaged=teacher)
    assert agreed > loss(PLAIN, outputs, first)


def test_class_weights_are_the_root_of_rarity_and_one_on_average() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    weights = class_weights(labels, 2)
    assert (weights[1] / weights[0]).item() == pytest.approx(3.0)
    assert weights[labels].mean().item() == pytest.approx(1.0)


def test_the_rate_rises_and_falls_to_zero() -> None:
    recipe = replace(PLAIN, warmup_share=0.1)
    shares = [rate_share(step, 100, recipe) for step in range(100)]
    assert shares[0] == pytest.approx(0.1) and shares[9] == 1.0 and max(shares) == 1.0
    assert shares[10:] == sorted(shares[10:], reverse=True) and shares[-1] < 0.001


def test_rates_follow_fan_in_and_inheritance_and_frozen_parameters_have_none() -> None:
    model = nn.Sequential(nn.Linear(256, 8), nn.Linear(8, 4), nn.LayerNorm(4))
    prepared = Prepared(model, frozenset({"1.weight"}), frozenset({"2.weight", "2.bias"}))
    recipe = replace(PLAIN, learning_rate=1.0, full_rate_fan_in=64, inherited_rate=0.3)
    (adamw,) = optimizers_of(prepared, recipe).values()
    found = {
        id(value): (group["peak"], group["weight_decay"]) for group in adamw.param_groups for value in group["params"]
    }
    assert found[id(model[0].weight)] == (0.5, PLAIN.weight_decay)
    assert found[id(model[1].weight)] == (0.3, PLAIN.weight_decay)
    assert found[id(model[0].bias)] == (1.0, 0.0)
    assert len(found) == 4 and not model[2].weight.requires_grad
    both = optimizers_of(prepared, replace(recipe, matrix_rate=0.02))
    (group,) = both["matrices."].param_groups
    assert group["peak"] == 0.02 and [id(value) for value in group["params"]] == [id(model[0].weight)]


def test_averaged_weights_follow_weights_and_statistics() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    averaged = AveragedWeights(model, 0.9)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        averaged.model[0].weight.fill_(0.0)
        model[1].running_mean.fill_(2.0)
        model[1].num_batches_tracked.fill_(7)
    averaged.update(10_000)
    assert averaged.model[0].weight.flatten().tolist() == pytest.approx([0.1] * 4)
    assert averaged.model[1].running_mean.tolist() == pytest.approx([0.2] * 2)
    assert averaged.model[1].num_batches_tracked == 7
    averaged.update(0)  # early on the latest weights count for most
    assert averaged.model[0].weight[0, 0].item() == pytest.approx(0.1 + 0.9 * 0.9)


def test_a_layer_under_two_names_is_averaged_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.add_module("again", model[0])
    averaged = AveragedWeights(model, 0.9)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        averaged.model[0].weight.fill_(0.0)
    averaged.update(10_000)
    assert averaged.model[0].weight.flatten().tolist() == pytest.approx([0.1] * 4)


def learner(recipe: TrainingRecipe) -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU(), nn.Linear(16, 4))
    prepared = Prepared(model, frozenset(), frozenset())
    return Learner(prepared, recipe, TASK, HALF, torch.device("cpu"), Workers(), outputs=4)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (16, 3, 8, 8), generator=random, dtype=torch.uint8)
    return images, torch.randint(0, 4, (16,), generator=random)


def test_parts_of_a_batch_make_the_same_step_as_the_whole() -> None:
    whole, parts = learner(PLAIN), learner(replace(PLAIN, accumulation=4))
    for step in range(3):
        one, other = (each.step(*batch(), 0.25, step, 0.0) for each in (whole, parts))
        assert one[0].item() == pytest.approx(other[0].item(), rel=1e-5) and one[1] == other[1]
    for mine, theirs in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_narrow_precision_learns_and_its_scale_is_kept(precision: str) -> None:
    recipe = replace(PLAIN, precision=precision, matrix_rate=0.02)  # type: ignore[arg-type]
    one = learner(recipe)
    losses = [one.step(*batch(), 0.5, step, 0.0)[0].item() for step in range(13)]
    assert losses[-1] < losses[0]
    kept = one.to_bytes({"epoch": 3})
    other = learner(recipe)
    assert other.load(kept, "state") == {"epoch": 3}
    assert other._scale.state() == one._scale.state() and (precision == "bf16" or one._scale.state()["scale"] > 1)
    again = [each.step(*batch(), 0.5, 13, 0.0)[0].item() for each in (one, other)]
    assert again[0] == again[1]


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x04N."])
def test_a_damaged_state_is_one_line(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"state.safetensors cannot be gone on from: "):
        learner(PLAIN).load(content, "state.safetensors")


def test_images_are_mixed_with_their_labels() -> None:
    images = torch.zeros(64, 3, 16, 16)
    labels = torch.arange(64) % 2
    images[labels == 1] = 1.0
    for name in ("mixup", "cutmix"):
        torch.manual_seed(3)
        recipe = replace(PLAIN, **{name: 1.0})
        mixed, shares = Augmenter(recipe, TASK, 2)(images, labels, lambda x: x)
        # The share of white pixels in an image is the share of the white class in its label.
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), shares[:, 1], atol=1e-5, rtol=0)
        assert shares.sum(1).tolist() == pytest.approx([1.0] * 64) and shares[:, 1].std() > 0


def test_augmentations_follow_torchs_generator() -> None:
    recipe = TrainingRecipe(
        randaugment_layers=2, randaugment_magnitude=5.0, erasing=0.5, mixup=0.3, cutmix=0.3, max_shift=0.1
    )
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 2
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(Augmenter(recipe, TASK, 2)(images, labels, lambda x: x)[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert found[0].isfinite().all() and found[0].shape == images.shape
