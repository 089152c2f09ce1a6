"""Zero-cost scores: what fresh weights and one batch of images tell about a network before any training.

Each score is a plain function of a module and leaves that module as it was; higher is meant to be better. None of them
is an accuracy: only the order of networks scored on the same images means something.

Shapes: N images of (3, R, R) pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lownas.evaluators.training.trainer import seeded
from lownas.search_space import LowFormerConfig, build_model

ACTIVATIONS = (nn.Hardswish, nn.GELU, nn.ReLU, nn.SiLU)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
ZICO_BATCHES = 4


def zero_cost_scores(config: LowFormerConfig, images: Tensor, labels: Tensor, seed: int = 0) -> dict[str, float]:
    """All scores of the network of `config`: "naswot", "synflow", "zico" and "grad_norm".

    Args:
        images: (N, 3, R, R), normalized, N at least `ZICO_BATCHES`. The scores are computed on their device.
        labels: (N,) classes below `config.classes`.
        seed: of the fresh weights. Torch's global generators are left as they were.

    Raises:
        ValueError: shapes or labels that do not fit.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (N, 3, R, R), given {tuple(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be ({len(images)},), one for each image, given {tuple(labels.shape)}")
    if len(images) < ZICO_BATCHES:
        raise ValueError(f"at least {ZICO_BATCHES} images are needed, given {len(images)}")
    if labels.min() < 0 or labels.max() >= config.classes:
        raise ValueError(
            f"labels must be 0 to {config.classes - 1}, the classes of the config; given {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    with seeded(seed, str(images.device)):
        model = build_model(config).to(images.device)
        return {
            "naswot": naswot(model, images),
            "synflow": synflow(model, images.shape[1:]),
            "zico": zico(model, images, labels),
            "grad_norm": grad_norm(model, images, labels),
        }


def naswot(model: nn.Module, images: Tensor) -> float:
    """ln det of the (N, N) kernel that counts the units at which two images are active or inactive together.

    A unit is one input of an activation, active where it is positive: so ReLU networks get the published score, and
    smooth activations the same code. BatchNorm uses the batch's statistics. -inf if two images have the same code.

    Source: Mellor et al., arXiv 2006.04647.
    """
    model = copy.deepcopy(model).train()
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64)

    def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Signs of +-1: their product is the units that agree less those that differ.
        signs = torch.where(inputs[0].flatten(1) > 0, 1.0, -1.0)
        kernel.add_(((signs @ signs.T + signs.shape[1]) / 2).double().cpu())

    for module in model.modules():
        if isinstance(module, ACTIVATIONS):
            module.register_forward_pre_hook(count)
    with torch.no_grad():
        model(images)
    return float(torch.linalg.slogdet(kernel).logabsdet)


def synflow(model: nn.Module, shape: tuple[int, ...] | torch.Size) -> float:
    """ln of the sum over parameters of parameter x dR/dparameter, R the output's sum for an image of ones.

    All parameters are replaced by their absolute values, norms and activations are left out, and attention
    (`scaled_dot_product_attention`) averages its tokens, so that R is a sum of positive products over the paths through
    the network. In double precision, because that sum grows exponentially with depth. No data is used.

    Args:
        shape: (3, R, R).

    Source: Tanaka et al., arXiv 2006.05467; summed over a network by Abdelfattah et al., arXiv 2101.08134.
    """
    model = copy.deepcopy(model).double().eval()
    for module in model.modules():
        if isinstance(module, NORMS + ACTIVATIONS):
            module.register_forward_hook(lambda _module, inputs, _output: inputs[0])
    parameters = list(model.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.abs_()
    ones = torch.ones(1, *shape, dtype=torch.float64, device=parameters[0].device)
    with _UniformAttention():
        gradients = torch.autograd.grad(model(ones).sum(), parameters, allow_unused=True)
    pairs = zip(parameters, gradients, strict=True)
    return math.log(sum(float(torch.sum(p.detach() * gradient)) for p, gradient in pairs if gradient is not None))


class _UniformAttention(TorchFunctionMode):
    """Inside, every token attends to all alike: with a softmax the output would not be linear in queries and keys."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        queries, _, values = args[:3]  # (..., T, channels)
        return values.mean(-2, keepdim=True).expand(*queries.shape[:-1], values.shape[-1])


def zico(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Sum over layers of ln(sum over the layer's weights of mean / standard deviation of the gradient's magnitude).

    Mean and deviation are over the gradients of `ZICO_BATCHES` equal parts of the images. Weights whose gradient does
    not vary are left out, and so are layers that have no others.

    Source: Li et al., arXiv 2301.11300.
    """
    model = copy.deepcopy(model).train()
    parts = zip(images.chunk(ZICO_BATCHES), labels.chunk(ZICO_BATCHES), strict=True)
    score = 0.0
    for layer in zip(*(_weight_gradients(model, *part) for part in parts), strict=True):
        magnitude = torch.stack(layer).abs().double()
        mean = magnitude.mean(0)
        deviation = (magnitude - mean).square().mean(0).sqrt()  # `torch.std` is many times slower along this axis
        varies = deviation > 0
        if varies.any():
            score += float((mean[varies] / deviation[varies]).sum().log())
    return score


def grad_norm(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Sum over layers of the Euclidean norm of the gradient of cross-entropy by the layer's weights.

    Source: Abdelfattah et al., arXiv 2101.08134.
    """
    gradients = _weight_gradients(copy.deepcopy(model).train(), images, labels)
    return sum(float(gradient.norm()) for gradient in gradients)


def _weight_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The gradient of the mean cross-entropy by the weights of each convolution and linear layer."""
    weights = [module.weight for module in model.modules() if isinstance(module, LAYERS)]
    return torch.autograd.grad(F.cross_entropy(model(images), labels), weights)
