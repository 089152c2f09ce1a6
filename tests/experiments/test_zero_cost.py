"""Zero-cost scores: small networks worked out by hand, and all of the space's kinds of network."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lownas.experiments.proxy_fidelity.scores import ZICO_BATCHES, grad_norm, naswot, synflow, zero_cost_scores, zico
from lownas.search_space import PRESETS, SearchSpace, build_model

NAMES = {"naswot", "synflow", "zico", "grad_norm"}


def linear(*rows: Sequence[float]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def batch(size: int = 32, count: int = 8, classes: int = 10) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=random)
    return images, torch.randint(0, classes, (count,), generator=random)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardswish, nn.GELU, nn.SiLU])
def test_naswot_by_hand(activation: type[nn.Module]) -> None:
    # Codes (1, 0, 1), (1, 1, 0): they agree at one unit of three.
    model = nn.Sequential(linear([1.0, 0.0], [0.0, 1.0], [0.0, -1.0]), activation(), nn.Linear(3, 2))
    images = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    assert naswot(model, images) == pytest.approx(math.log(3 * 3 - 1 * 1))


def test_naswot_counts_the_units_of_all_activations() -> None:
    model = nn.Sequential(linear([1.0, 0.0], [0.0, 1.0]), nn.ReLU(), linear([1.0, -2.0], [1.0, 1.0]), nn.ReLU())
    images = torch.tensor([[1.0, -1.0], [1.0, 1.0]])  # codes (1, 0 | 1, 1), (1, 1 | 0, 1)
    assert naswot(model, images) == pytest.approx(math.log(4 * 4 - 2 * 2))


def test_naswot_of_equal_images_is_minus_infinity() -> None:
    model = nn.Sequential(linear([1.0], [-1.0]), nn.ReLU())
    assert naswot(model, torch.ones(2, 1)) == -math.inf


def test_synflow_by_hand() -> None:
    # |weights| [[1, 2], [3, 4]] then [1, 1]: R = 10 for an input of ones, and each layer's parameters earn R.
    model = nn.Sequential(linear([1.0, -2.0], [-3.0, 4.0]), nn.LayerNorm(2), nn.GELU(), linear([1.0, -1.0]))
    assert synflow(model, (2,)) == pytest.approx(math.log(2 * 10))


def test_synflow_attention_averages_values() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = linear([5.0]), linear([7.0]), linear([-3.0])

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.unsqueeze(-1)  # (N, T, 1)
            return F.scaled_dot_product_attention(self.query(tokens), self.key(tokens), self.value(tokens))

    assert synflow(Attention(), (4,)) == pytest.approx(math.log(4 * 3.0))


def test_zico_by_hand() -> None:
    # Logits (w x, 0) with w = 0: the gradient by w is x (softmax - target) = x / 2 for class 1, -x / 2 for class 0.
    class OneWeight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear([0.0])

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.layer(x), torch.zeros_like(x)], dim=1)

    images = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    labels = torch.tensor([0, 1, 0, 1])
    magnitudes = np.array([0.5, 1.0, 1.5, 2.0])
    assert len(images) == ZICO_BATCHES
    assert zico(OneWeight(), images, labels) == pytest.approx(math.log(magnitudes.mean() / magnitudes.std()))
    assert grad_norm(OneWeight(), images, labels) == pytest.approx(abs(-1 + 2 - 3 + 4) / 2 / 4)


def test_grad_norm_sums_over_layers() -> None:
    # w2 w1 x and 0 as logits, w1 = w2 = 1, x = ln 3, class 1: softmax 3/4, gradient 3/4 w2 x and 3/4 w1 x.
    class TwoWeights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(linear([1.0]), linear([1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.layers(x), torch.zeros_like(x)], dim=1)

    images, labels = torch.tensor([[math.log(3.0)]]), torch.tensor([1])
    assert grad_norm(TwoWeights(), images, labels) == pytest.approx(2 * 0.75 * math.log(3.0))


def test_the_module_stays_as_it_was() -> None:
    model = build_model(PRESETS["cpubone_nano"].replace(classes=10)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = batch()
    for _ in range(2):
        naswot(model, images)
        synflow(model, (3, 32, 32))
        zico(model, images, labels)
        grad_norm(model, images, labels)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_same_seed_same_scores_and_torch_generator_untouched() -> None:
    config = SearchSpace.load("tiny").sample(np.random.default_rng(0))
    images, labels = batch()
    state = torch.get_rng_state()
    first = zero_cost_scores(config, images, labels, seed=3)
    torch.rand(5)
    assert zero_cost_scores(config, images, labels, seed=3) == first
    assert zero_cost_scores(config, images, labels, seed=4) != first
    torch.set_rng_state(state)
    zero_cost_scores(config, images, labels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("count", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_finite_for_random_networks(count: int) -> None:
    space, rng = SearchSpace.load("tiny"), np.random.default_rng(1)
    for _ in range(count):
        config = space.sample(rng)
        scores = zero_cost_scores(config, *batch(config.resolution))
        assert scores.keys() == NAMES
        assert all(map(math.isfinite, scores.values())), (config.id, scores)


LARGE = ("lowformer_b15", "lowformer_b2", "lowformer_b3", "lowformer_e3", "cpubone_b3")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in PRESETS]
)
def test_finite_for_published_networks(name: str) -> None:
    scores = zero_cost_scores(PRESETS[name].replace(resolution=32, classes=10), *batch())
    assert all(map(math.isfinite, scores.values())), scores


def test_wider_networks_score_higher() -> None:
    nano = PRESETS["cpubone_nano"].replace(resolution=32, classes=10)
    small, large = (
        zero_cost_scores(config, *batch())
        for config in (nano, PRESETS["cpubone_s0"].replace(resolution=32, classes=10))
    )
    assert all(large[name] > small[name] for name in ("naswot", "synflow", "zico"))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(8, 1, 32, 32), torch.zeros(8, dtype=torch.long), r"\(N, 3, R, R\), given \(8, 1, 32, 32\)"),
        (torch.zeros(8, 3, 32, 32), torch.zeros(7, dtype=torch.long), r"\(8,\), one for each image, given \(7,\)"),
        (torch.zeros(3, 3, 32, 32), torch.zeros(3, dtype=torch.long), "at least 4 images are needed, given 3"),
        (torch.zeros(8, 3, 32, 32), torch.full((8,), 10), "labels must be 0 to 9, .* given 10 to 10"),
    ],
)
def test_what_does_not_fit_is_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zero_cost_scores(PRESETS["cpubone_nano"].replace(resolution=32, classes=10), images, labels)
