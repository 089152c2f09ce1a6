"""Steps for the matrices of a network that move in all directions alike: the momentum, orthogonalized (Muon).

A gradient of a weight matrix is dominated by few directions, and AdamW follows these; in a training of some hundred
steps the others hardly move. Here the singular values of every step are about equal. Sources: K. Jordan, "Muon" (2024),
and the records of his airbench; the polynomial is his.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

LEAST_SIDE = 8
"""Matrices with fewer rows than this are left to AdamW."""
LEAST_FAN_IN = 16
"""So are those with fewer columns: depthwise convolutions, whose rows have nothing to do with each other."""
MOMENTUM = 0.9
KEPT_STEPS = 2
"""What orthogonalizes is computed anew every so many steps, as the momentum changes little from one to the next. Every
step is hardly better, and costs twice as much."""
ITERATIONS = 3
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_SMALLEST_NORM = 1e-7


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is stepped here: a weight (O, I, ...) of a linear layer or a convolution, as (O, I * ...).

    The last layer, called "classifier", is not: it starts at zero, and its rows are classes.
    """
    return (
        parameter.ndim > 1
        and len(parameter) >= LEAST_SIDE
        and parameter[0].numel() >= LEAST_FAN_IN
        and not name.startswith("classifier")
    )


def orthogonal_macs(model: nn.Module) -> float:
    """MACs that `OrthogonalSteps` needs for one step of a network, which may be on torch's meta device."""
    total = 0.0
    for name, parameter in model.named_parameters():
        if is_matrix(name, parameter):
            small, large = sorted((len(parameter), parameter[0].numel()))
            whitened = small**2 * large + (4 * ITERATIONS - 3) * small**3
            total += whitened / KEPT_STEPS + small**2 * large
    return total


def whitening(matrix: Tensor) -> Tensor:
    """(m, m) by which `matrix` (m, n), of norm 1, becomes about orthogonal: singular values between 0.7 and 1.2.

    Newton and Schulz's iteration, all of it on the (m, m) products, as polynomials of one matrix commute. Very small
    singular values grow by 40 only.
    """
    first, third, fifth = _POLYNOMIAL
    gram = matrix @ matrix.T
    result: Tensor | None = None
    for left in reversed(range(ITERATIONS)):
        step = gram.mul(third).add_(gram @ gram, alpha=fifth)
        step.diagonal().add_(first)
        result = step if result is None else step @ result
        if left:
            gram = step @ gram @ step
    assert result is not None
    return result


class OrthogonalSteps(torch.optim.Optimizer):
    """Steps along the orthogonalized momentum, with Nesterov's look ahead and decoupled weight decay.

    A step has the spectral norm lr * sqrt(max(1, O / I)) for a weight of O outputs and I inputs. State by parameter:
    `momentum`, shaped as it is, and `whitening` (m, m), m the smaller of O and I.

    Args:
        parameters: see `is_matrix`; or groups of them with rates of their own, as torch's optimizers take them.
        lr: learning rate; the spectral norm of a square matrix's step.
        weight_decay: share of the weight that is taken off a step, over `lr`.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.done = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])
        self.done += 1

    def _move(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        matrix = gradient.lerp(momentum, MOMENTUM).flatten(1).float()
        outputs, inputs = matrix.shape
        if outputs > inputs:
            matrix = matrix.T
        matrix = matrix / (matrix.norm() + _SMALLEST_NORM)
        if "whitening" not in state or self.done % KEPT_STEPS == 0:
            state["whitening"] = whitening(matrix)
        step = state["whitening"] @ matrix
        if outputs > inputs:
            step = step.T
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(step.reshape(parameter.shape), alpha=-lr * math.sqrt(max(1.0, outputs / inputs)))
