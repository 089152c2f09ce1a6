import math

import numpy as np
import pytest
import torch
from torch import nn

from lownas.evaluators.zero_cost import SCORES, grad_norm, naswot, synflow, zero_cost_scores, zico
from lownas.search_space import PRESETS, SearchSpace


class Fixed(nn.Module):
    """A ReLU behind given weights (out, in), on (N, in, 1, 1) images."""

    def __init__(self, weights: list[list[float]]) -> None:
        super().__init__()
        self.layer = nn.Linear(len(weights[0]), len(weights), bias=False)
        self.layer.weight.data = torch.tensor(weights)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.layer(x.flatten(1)))


def test_naswot_of_two_images() -> None:
    model = Fixed([[1.0], [1.0], [-1.0], [2.0]])
    images = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
    # They disagree in all four activations: the kernel is 4 times the identity.
    assert naswot(model, images) == pytest.approx(math.log(16))
    assert naswot(model, images.abs()) == -math.inf, "the same pattern twice"


def test_synflow_of_a_linear_network_sums_its_paths() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.LayerNorm(2), nn.Linear(2, 1, bias=False))
    model[1].weight.data = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    model[3].weight.data = torch.tensor([[-1.0, 2.0]])
    paths = 1 * 1 + 2 * 1 + 3 * 2 + 0.5 * 2  # each path once for each of its two weights
    before = model[1].weight.clone()
    assert synflow(model, (2, 1, 1)) == pytest.approx(math.log(2 * paths))
    assert torch.equal(model[1].weight, before)


def test_gradient_norm_is_that_of_autograd() -> None:
    model = Fixed([[0.3, -0.2], [0.1, 0.4]])
    images, labels = torch.rand(8, 2, 1, 1), torch.tensor([0, 1] * 4)
    loss = nn.functional.cross_entropy(model(images), labels)
    wanted = torch.autograd.grad(loss, model.layer.weight)[0].norm()
    assert grad_norm(model, images, labels) == pytest.approx(math.log(wanted))
    assert model.layer.weight.grad is None


def test_zico_by_its_formula() -> None:
    model = Fixed([[0.3, -0.2], [0.1, 0.4]])
    torch.manual_seed(0)
    images, labels = torch.rand(8, 2, 1, 1), torch.tensor([0, 1] * 4)
    gradients = []
    for part, wanted in zip(images.chunk(4), labels.chunk(4), strict=True):
        loss = nn.functional.cross_entropy(model(part), wanted)
        gradients.append(torch.autograd.grad(loss, model.layer.weight)[0].flatten())
    stacked = torch.stack(gradients)
    wanted_score = math.log(float((stacked.abs().mean(0) / stacked.std(0, correction=0)).sum()))
    assert zico(model, images, labels) == pytest.approx(wanted_score, rel=1e-5)


def test_scores_are_finite_and_depend_on_nothing_but_the_seed() -> None:
    space, rng = SearchSpace.load("tiny"), np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(12)] + [PRESETS[name] for name in ("cpubone_nano", "lowformer_b0")]
    images, labels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10
    for config in configs:
        before = torch.get_rng_state()
        scores = zero_cost_scores(config, images, labels, seed=1)
        assert tuple(scores) == SCORES and all(map(math.isfinite, scores.values())), config.id
        assert torch.equal(before, torch.get_rng_state())
    assert zero_cost_scores(config, images, labels, seed=1) == scores
    assert zero_cost_scores(config, images, labels, seed=2) != scores
