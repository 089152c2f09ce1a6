"""The state of optimizers as named tensors, as they stand in safetensors files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def state_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state by "PREFIXnumber.name", the parameters in the order of its groups."""
    return {
        f"{prefix}{number}.{name}": value
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore(optimizer: torch.optim.Optimizer, stored: Mapping[str, Tensor]) -> None:
    """Gives an optimizer what `state_tensors` found, by "number.name"."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in stored.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        # A fused step reads moments in their parameter's memory format, whatever their own.
        like = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        state.setdefault(int(number), {})[name] = like
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
