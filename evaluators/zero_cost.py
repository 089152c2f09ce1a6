"""Scores of a network that was not trained: from its fresh weights and one batch of images.

Whether such a score tells anything beyond MACs and parameters is measured on the table of `experiments/tabular`
(`experiments/proxy_fidelity/`); a search uses none unless it does. Higher is meant to be better, for all of them.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..search_space import LowFormerConfig, build_model

SCORES = ("naswot", "synflow", "zico", "grad_norm")
ZICO_PARTS = 4  # batches whose gradients are compared

_ACTIVATIONS = (nn.Hardswish, nn.GELU, nn.ReLU)
_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def zero_cost_scores(config: LowFormerConfig, images: Tensor, labels: Tensor, seed: int = 0) -> dict[str, float]:
    """All `SCORES` of the network of `config`.

    Args:
        images: (N, 3, R, R), normalized; N at least 2 for each of `ZICO_PARTS`.
        labels: (N,) below `config.classes`.
        seed: of the weights; torch's own generator is left as it was.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build_model(config)
    return {
        "naswot": naswot(model, images),
        "synflow": synflow(model, (3, *images.shape[-2:])),
        "zico": zico(model, images, labels),
        "grad_norm": grad_norm(model, images, labels),
    }


@torch.no_grad()
def naswot(model: nn.Module, images: Tensor) -> float:
    """How differently the images drive the activations: log determinant of the kernel of their sign patterns.

    Two images agree in an activation if its input has the same sign for both. Source: Mellor et al., arXiv 2006.04647,
    there for ReLU; Hardswish and GELU bend at zero too. BatchNorm by the batch.
    """
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64)

    def compare(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        positive = (inputs[0].flatten(1) > 0).float()
        kernel.add_((positive @ positive.T + (1 - positive) @ (1 - positive).T).double())

    hooks = [
        module.register_forward_pre_hook(compare) for module in model.modules() if isinstance(module, _ACTIVATIONS)
    ]
    try:
        model.train()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return float(torch.linalg.slogdet(kernel).logabsdet)


def synflow(model: nn.Module, shape: tuple[int, ...]) -> float:
    """ln of the sum over all weights of weight times gradient, of a network of absolute weights and an input of ones.

    Source: Tanaka et al., arXiv 2006.05467. Norms are taken out: they would undo the scale that is measured.
    """
    positive = copy.deepcopy(model).double().eval()
    for parent in list(positive.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _NORMS):
                setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for parameter in positive.parameters():
            parameter.abs_()
    positive(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    flow = sum(
        float((parameter.detach() * parameter.grad).abs().sum())
        for parameter in positive.parameters()
        if parameter.ndim > 1 and parameter.grad is not None
    )
    return math.log(flow) if flow > 0 else -math.inf


def zico(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Sum over the layers of ln(sum over their weights of mean |gradient| / its deviation), over parts of the batch.

    Source: Li et al., arXiv 2301.11300.
    """
    layers = [module for module in model.modules() if isinstance(module, _WEIGHTED)]
    parts = zip(images.chunk(ZICO_PARTS), labels.chunk(ZICO_PARTS), strict=True)
    by_part = [_gradients(model, part, wanted) for part, wanted in parts]
    total = 0.0
    for module in layers:
        gradients = [part[module.weight] for part in by_part if module.weight in part]
        if len(gradients) < 2:
            continue
        stacked = torch.stack(gradients).flatten(1)
        mean, deviation = stacked.abs().mean(dim=0), stacked.std(dim=0, correction=0)
        moves = deviation > 0
        if (ratio := float((mean[moves] / deviation[moves]).sum())) > 0:
            total += math.log(ratio)
    return total


def grad_norm(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """ln of the Euclidean norm of the loss's gradient."""
    gradients = _gradients(model, images, labels).values()
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    return math.log(norm) if norm > 0 else -math.inf


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[Tensor, Tensor]:
    """Of the cross-entropy, by parameter; BatchNorm by the batch."""
    model.train().zero_grad(set_to_none=True)
    F.cross_entropy(model(images), labels).backward()
    found: dict[Tensor, Tensor] = {
        parameter: parameter.grad for parameter in model.parameters() if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return found
