"""Timing torch modules that torch.compile has compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .torch_eager import TorchEager

if TYPE_CHECKING:
    import torch


class TorchCompile(TorchEager):
    """Torch's compiler with its defaults ("torch-compile")."""

    name = "torch-compile"

    def prepared(self, module: torch.nn.Module, images: torch.Tensor) -> Callable[[], object]:
        import torch

        torch._dynamo.reset()  # or after some networks it would not compile any more
        compiled = torch.compile(module)
        compiled(images)  # compiles, however long that takes
        return lambda: compiled(images)
