"""What a final training is asked for, how far it is, and what it gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import nn

from ....search_space import LowFormerConfig
from .recipe import TrainingRecipe
from .weights import Pixels


@dataclass(frozen=True)
class FinalSettings:
    """What a final training is asked for.

    Attributes:
        epochs: passes over the training images; None for as many as `budget_s` allows.
        budget_s: wall time of the whole training in seconds; None without a limit, and then `epochs` must be given.
        choices: of the recipe, by the names of its fields.
        init_from: checkpoint whose weights are inherited (or "timm:NAME"); None for fresh ones.
        teacher: checkpoint of a network whose outputs are learned from too.
        freeze: whether only the head is trained.
        train_on: "train", or "train+validation": then nothing judges until the test part does.
        seed: of weights, order and augmentation.
        data_seed: of the split.
        device: "cpu" or "cuda".
        threads: of torch.
        loaders: processes that decode images where these do not fit into memory.
    """

    epochs: int | None = None
    budget_s: float | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    teacher: str | None = None
    freeze: bool = False
    train_on: Literal["train", "train+validation"] = "train"
    seed: int = 0
    data_seed: int = 0
    device: str = "cpu"
    threads: int = 1
    loaders: int = 0

    def __post_init__(self) -> None:
        if self.epochs is None and self.budget_s is None:
            raise ValueError("how long to train? give a time budget (1h) or a number of epochs")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs: at least 1, given {self.epochs}")
        if self.budget_s is not None and not (math.isfinite(self.budget_s) and self.budget_s > 0):
            raise ValueError(f"the time budget of a training must be positive, given {self.budget_s} s")
        if self.train_on not in ("train", "train+validation"):
            raise ValueError(f"train_on: train or train+validation, given {self.train_on!r}")
        for name, least in (("seed", 0), ("data_seed", 0), ("threads", 1), ("loaders", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: at least {least}, given {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "choices": dict(self.choices)}


@dataclass(frozen=True)
class TrainingStatus:
    """How far a training is.

    Attributes:
        epoch: that is under way, from 1; steps within it are `step` of `steps`.
        epochs: how many there will be.
        seconds: since the training began, those before an interruption included.
        seconds_left: expected.
        row: of the epoch that has just ended, as in log.csv; None within one.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    seconds: float
    seconds_left: float
    row: Mapping[str, Any] | None = None


Report = Callable[[TrainingStatus], None]


@dataclass(frozen=True)
class TrainedNetwork:
    """What a final training gave.

    Attributes:
        config: of the network; None if it is no LowFormer.
        resolution: side of its images in pixels.
        classes: names, in the order of its outputs; empty where labels are no classes.
        pixels: how its input is made.
        recipe, why: how it was trained, and what made each choice.
        history: a row for each epoch, as in log.csv.
        validation_accuracy, validation_loss: of the trained network, score 0 to 1 and the task's loss; None if it
            learned from the validation part too.
        seconds: wall time of the training.
        model: the trained network on the CPU, in eval mode.
    """

    config: LowFormerConfig | None
    resolution: int
    classes: tuple[str, ...]
    pixels: Pixels
    recipe: TrainingRecipe
    why: Mapping[str, str]
    history: tuple[Mapping[str, Any], ...]
    validation_accuracy: float | None
    validation_loss: float | None
    seconds: float
    model: nn.Module

    @property
    def epochs(self) -> int:
        return len(self.history)
