import pytest
import torch
from torch import nn

from lownas.evaluators.training.orthogonal import OrthogonalSteps, is_matrix, orthogonal_macs, whitening


@pytest.mark.parametrize("shape", [(16, 16), (16, 64)])
def test_singular_values_become_about_equal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = left @ torch.diag(torch.linspace(0.05, 1.0, 16)) @ right
    matrix = matrix / matrix.norm()
    values = torch.linalg.svdvals(whitening(matrix) @ matrix)
    assert values.min() > 0.3 and values.max() < 1.3
    assert torch.linalg.svdvals(matrix).max() / torch.linalg.svdvals(matrix).min() > 15


@pytest.mark.parametrize("weight", [torch.ones(8, 32), torch.ones(32, 8, 3, 3), torch.ones(64, 16, 1, 1)])
def test_a_step_is_as_long_as_the_rate_says(weight: torch.Tensor) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(weight.clone())
    parameter.grad = torch.randn_like(weight)
    OrthogonalSteps([parameter], lr=0.1, weight_decay=0.0).step()
    step = (weight - parameter.detach()).flatten(1)
    outputs, inputs = step.shape
    expected = 0.1 * max(1, outputs / inputs) ** 0.5
    assert torch.linalg.matrix_norm(step, ord=2).item() == pytest.approx(expected, rel=0.35)
    assert (step * parameter.grad.flatten(1)).sum() > 0, "downhill"


def test_weights_decay_and_parameters_without_gradient_stay() -> None:
    moved, still = nn.Parameter(torch.ones(8, 16)), nn.Parameter(torch.ones(8, 16))
    moved.grad = torch.zeros(8, 16)
    OrthogonalSteps([moved, still], lr=0.5, weight_decay=0.1).step()
    assert torch.equal(still.detach(), torch.ones(8, 16))
    assert moved.detach().numpy() == pytest.approx(0.95)


def test_which_parameters_are_matrices() -> None:
    model = nn.ModuleDict(
        {
            "dense": nn.Conv2d(4, 16, 3),
            "depthwise": nn.Conv2d(16, 16, 3, groups=16),
            "few_rows": nn.Linear(64, 4),
            "norm": nn.BatchNorm2d(16),
            "classifier": nn.Linear(64, 10),
        }
    )
    assert [name for name, parameter in model.named_parameters() if is_matrix(name, parameter)] == ["dense.weight"]


def test_what_a_step_costs() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(32, 16), nn.Conv2d(16, 16, 3, groups=16))
    assert orthogonal_macs(model) == (16 * 16 * 32 + 9 * 16**3) / 2 + 16 * 16 * 32
