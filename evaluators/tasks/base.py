"""What a task and its metric are; their docstrings are the guide to writing others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..data.records import FoundData, ImageData, LabelledImages, Labels

if TYPE_CHECKING:
    from torch import Tensor, nn

    Augmentation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Varies a batch at random: images (N, 3, R, R) and labels (N, ...), of which a task may move both alike."""


class Recipe(Protocol):
    """What a task needs of the settings of a training (`ProxySettings` has it)."""

    @property
    def label_smoothing(self) -> float: ...
    @property
    def flip(self) -> bool: ...
    @property
    def max_shift(self) -> float: ...


class Metric(Protocol):
    """How good a network's outputs are, in the unit that people know, and as a score that a search can maximize.

    To write another one, name what is measured, give its range and direction, and map its values to scores: 0 to 1,
    higher is better, the order kept. Searches compare, store and model scores alone; `from_score` brings a score back
    to the unit, for people.
    """

    @property
    def name(self) -> str:
        """What is measured, in lower case: "accuracy"."""
        ...

    @property
    def unit(self) -> str:
        """The unit, in words that can follow a number: "share of the images"; empty if there is none."""
        ...

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value there can be, infinite ones included."""
        ...

    @property
    def higher_is_better(self) -> bool: ...

    def value(self, outputs: Tensor, labels: Tensor) -> float:
        """The metric of a whole part of the data.

        Args:
            outputs: (N, ...) float32, as the network gives them.
            labels: (N, ...).
        """
        ...

    def score(self, value: float) -> float:
        """The score of a value: 0 to 1, higher is better."""
        ...

    def from_score(self, score: float) -> float:
        """The value whose score that is."""
        ...


@runtime_checkable
class Task(Protocol):
    """What a network is to learn: which head it has, what its labels are, how it is taught and how it is judged.

    To write another one, give a class these members in a file of its own (with a head in `search_space.heads`, where
    none of those fits). Then give an object of it wherever a task is asked for (`train_proxy(..., task=MyTask())`), or
    call `register_task(MyTask())` to have it found by name. `classification.py` is an example. Nothing else has to
    know of a task: loading, training, judging and data cards all go through it.

    An object must be hashable and picklable, as it is sent to workers. Methods get torch's tensors, and import torch
    themselves, so that a task can be looked up without it. All randomness comes from the generator that a method is
    given, or from torch's global one in `start` and in augmentations; a training is then the same each time.
    """

    @property
    def name(self) -> str:
        """By which it is found, and which run files hold."""
        ...

    @property
    def head(self) -> str:
        """The network's head, one of `search_space.heads`."""
        ...

    @property
    def metric(self) -> Metric: ...

    # --- data

    def prepared(self, found: FoundData, spec: str) -> FoundData:
        """The data as found, with labels as the loss takes them; where labels are classes, with their names.

        All parts that are there are prepared alike, the test part (`found.test`) among them.

        Raises:
            ValueError: labels that the task cannot learn from; one line that begins with `spec`.
        """
        ...

    def split(
        self, part: LabelledImages, share: float, classes: Sequence[str], spec: str, rng: np.random.Generator
    ) -> tuple[LabelledImages, LabelledImages]:
        """The images to train on and those to judge by, which are about this `share` and at least one.

        Raises:
            ValueError: too few images; one line that begins with `spec`.
        """
        ...

    def subset(self, labels: Labels, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Which `count` images stand for all of these; ascending indices."""
        ...

    def check_readable(self, labels: Labels, readable: Labels, classes: Sequence[str], spec: str) -> None:
        """Raises ValueError, in one line that begins with `spec`, if what could be decoded is too little to train on.

        Args:
            labels: of the training images that were chosen.
            readable: of those that could be decoded.
        """
        ...

    def label_card(self, data: ImageData) -> dict[str, Any]:
        """What a data card says of the labels, as plain JSON values; "chance" is the score of a constant guess."""
        ...

    # --- training

    def outputs(self, data: ImageData) -> int:
        """How many outputs a network for these data has."""
        ...

    def start(self, model: nn.Module) -> None:
        """Sets the weights of a new network's head, in place, to where a training starts best."""
        ...

    def augmentation(self, recipe: Recipe, side: int) -> Augmentation:
        """What varies the training images of (N, 3, side, side), and their labels with them."""
        ...

    def loss(self, outputs: Tensor, labels: Tensor, recipe: Recipe | None = None) -> Tensor:
        """The mean loss of a batch, with what regularizes it where a `recipe` is given, as in training.

        Args:
            outputs: (N, ...) float32.
        """
        ...

    def summed_score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The sum of the scores of a batch's images, each 0 to 1, as a scalar; the training's progress is told by it.

        It stays a tensor, as reading it after every batch would make a GPU wait. A metric that exists for whole parts
        alone is approximated.
        """
        ...


@runtime_checkable
class MixableTask(Protocol):
    """A task whose labels can be mixed and smoothed, as those of a classification; a `Task` that has this too.

    What mixes images (mixup, cutmix), weighs classes or agrees with a teacher is used in its final trainings only.
    """

    def shares(self, labels: Tensor, outputs: int) -> Tensor:
        """Labels (N,) as float32 (N, outputs): of each image the share of every class, one in all."""
        ...
