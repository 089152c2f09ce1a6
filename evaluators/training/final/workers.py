"""The processes that train one network together, as torch.distributed knows them; else this one alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Workers:
    """This process among those that train together.

    Attributes:
        rank: its number; 0 writes files and judges.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Workers:
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wrapped(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The network as it is trained: with gradients averaged over all workers."""
        if self.world == 1:
            return model
        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a number over all workers."""
        if self.world == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value / self.world

    def agreed(self, value: Any) -> Any:
        """What the first worker has here; the others' values are dropped."""
        if self.world == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder)
        return holder[0]

    def wait(self) -> None:
        """Returns when all workers have come here."""
        if self.world > 1:
            dist.barrier()
