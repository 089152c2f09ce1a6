"""How much the steps do: on a GPU, and in a rehearsal on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lownas.experiments.gpu.record import Skipped

if TYPE_CHECKING:
    from lownas.search_space import LowFormerConfig


@dataclass(frozen=True)
class Sizes:
    """What the steps work on, and how much of it.

    Attributes:
        device: "cuda", or "cpu" in a rehearsal.
        presets, resolution: published models that are timed, at their own resolution if None.
        runs_as: runtimes in whose place another one runs.
        largest_batch: up to which the largest batch is searched for by doubling.
        slow_s: a batch that takes longer than this is the largest that is tried.
        look_s: seconds of one timing.
        product: side of the matrices whose product shows what the device can do at most.
        target, space: what is calibrated.
        samples, others: configurations it is calibrated on, and those that judge it.
        speeds: networks and sides of their images in pixels at which training steps are timed, each for `speed_s`.
        trained: the network that is trained; None for one of the tiny space.
        seeds, proxy_epochs, final_epochs, train_images, batch: of its trainings; `batch` where steps are timed, too.
        workers: how many train at once, each `trainings_each` times.
    """

    device: str = "cuda"
    presets: tuple[str, ...] = ("lowformer_b0", "lowformer_b15", "lowformer_b3")
    resolution: int | None = None
    runs_as: Mapping[str, str] = field(default_factory=dict)
    largest_batch: int = 1024
    slow_s: float = 1.0
    look_s: float = 1.5
    product: int = 8192
    target: str = "cuda"
    space: str = "default"
    samples: int = 40
    others: int = 40
    speeds: tuple[tuple[str, int], ...] = (("lowformer_b0", 32), ("lowformer_b1", 64), ("lowformer_b1", 224))
    speed_s: float = 2.0
    trained: str | None = "lowformer_b0"
    seeds: tuple[int, ...] = (0, 1, 2)
    proxy_epochs: int = 6
    final_epochs: int = 12
    train_images: int = 1088
    batch: int = 64
    workers: tuple[int, ...] = (1, 2, 4)
    trainings_each: int = 4

    def check_device(self) -> None:
        """Raises Skipped if torch cannot use the device."""
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise Skipped("torch can use no CUDA device here")

    def trained_config(self) -> LowFormerConfig:
        """The network that is trained."""
        import numpy as np

        from lownas.search_space import PRESETS, SearchSpace

        if self.trained is not None:
            return PRESETS[self.trained]
        return SearchSpace.load("tiny").sample(np.random.default_rng(3))


REAL = Sizes()
REHEARSED = Sizes(
    device="cpu",
    presets=("lowformer_b0", "cpubone_nano", "cpubone_t0"),
    resolution=32,
    runs_as={"torch-graph": "torch", "torch-compile": "torch"},
    largest_batch=4,
    look_s=0.1,
    product=64,
    target="cpu:torch",
    space="tiny",
    samples=8,
    others=4,
    speeds=(("cpubone_nano", 32),),
    speed_s=0.2,
    trained=None,
    seeds=(0,),
    proxy_epochs=1,
    final_epochs=1,
    train_images=64,
    batch=16,
    workers=(1, 2),
    trainings_each=1,
)
"""Every step in seconds on a CPU. Eager mode takes the place of CUDA graphs and of torch.compile."""


def there(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return find_spec(package) is not None
