"""A look at a network before it is trained, above all at torch modules of which nothing is known."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ....search_space import LowFormerConfig, build_model, op_graph
from ..orthogonal import orthogonal_macs

SMALLER = 4 / 7  # of its side: about the smallest images that a recipe shows


@dataclass(frozen=True)
class Look:
    """What a look at a network tells.

    Attributes:
        orthogonal_images: what orthogonalizing one step costs, in images of its size that pass forward and backward.
        one_size: whether it takes images of no other size than its own.
    """

    orthogonal_images: float
    one_size: bool = False


def look_at(network: LowFormerConfig | nn.Module, side: int, classes: int) -> Look:
    """Looks at a network for images of `side` pixels; a module's copy is run on the CPU.

    Args:
        classes: of the data; 0 where labels are no classes.

    Raises ValueError, in one line, for a module that does not take such images or has other outputs than there are
    classes.
    """
    if isinstance(network, LowFormerConfig):
        with torch.device("meta"):
            return Look(orthogonal_macs(build_model(network)) / (3 * op_graph(network).macs))
    module = copy.deepcopy(network).cpu().eval()
    with FlopCounterMode(display=False) as counted:
        outputs = _run(module, side)
    if not isinstance(outputs, Tensor) or (classes and outputs.shape != (1, classes)):
        found = f"{tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        wanted = f"(1, {classes}), one output for each class" if classes else "a tensor"
        raise ValueError(f"the torch module gives {found} for an image, expected is {wanted}")
    images = orthogonal_macs(network) / max(1.0, 1.5 * counted.get_total_flops())
    try:
        _run(module, max(1, round(SMALLER * side / 4)) * 4)
    except ValueError:
        return Look(images, one_size=True)
    return Look(images)


def _run(module: nn.Module, side: int) -> Any:
    try:
        with torch.no_grad():
            return module(torch.zeros(1, 3, side, side))
    except Exception as error:  # whatever somebody's module raises
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the torch module does not take images (1, 3, {side}, {side}): {said:.200}") from None


def about_module(module: nn.Module) -> dict[str, Any]:
    """A module in a few words, by which it is known again."""
    return {"module": type(module).__name__, "parameters": sum(value.numel() for value in module.parameters())}
