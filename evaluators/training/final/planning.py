"""Settles how long a final training is: the epochs that a time allows, by steps that are timed, and its recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from .images import TrainingImages, judged
from .recipe import MAX_EPOCHS, TrainingFacts, TrainingRecipe, choose_recipe
from .workers import Workers

if TYPE_CHECKING:
    from .learner import Learner

RESERVE = 0.08  # share of a time budget that is not planned: machines are slower at times
LOOKS = 6  # steps of each size of images that are timed, at least
TIMED_SHARE = (
    0.015  # share of the time budget in which more of them are timed: a machine is slower for seconds at a time
)
WARM_UP = 2  # steps before
VALIDATION_SHARE = 0.1  # of an epoch's time that validation may take after it; else some epochs are not judged


@dataclass(frozen=True)
class Plan:
    """What was settled before the first epoch.

    Attributes:
        recipe: how it is trained.
        why: for each of the recipe's fields what made the choice.
        validate_every: epochs after which the network is judged.
        epoch_s: what an epoch takes, timed; None where no time had to be kept.
    """

    recipe: TrainingRecipe
    why: Mapping[str, str]
    validate_every: int = 1
    epoch_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "why": dict(self.why),
            "validate_every": self.validate_every,
            "epoch_s": self.epoch_s,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        recipe = TrainingRecipe.from_dict(values["recipe"])
        return cls(recipe, dict(values["why"]), int(values["validate_every"]), values["epoch_s"])


class Planner:
    """Settles recipes and epochs for one network on one machine."""

    def __init__(
        self,
        facts: TrainingFacts,
        choices: Mapping[str, Any],
        images: TrainingImages,
        workers: Workers,
        device: torch.device,
    ) -> None:
        self.facts, self.choices, self.images = facts, choices, images
        self.workers, self.device = workers, device

    def for_epochs(self, epochs: int) -> Plan:
        recipe, why = self._recipe(epochs)
        return Plan(recipe, why)

    def _recipe(self, epochs: int) -> tuple[TrainingRecipe, dict[str, str]]:
        recipe, why = choose_recipe(self.facts, epochs, {**self.choices, "epochs": epochs})
        world, images = self.workers.world, min(recipe.batch_size, self.facts.images)
        least = 2 * recipe.accumulation  # BatchNorm needs two images each time
        if world > 1 and (recipe.batch_size % world or images < least * world):
            raise ValueError(
                f"a batch of {images} images cannot be shared by {world} workers, evenly and at least {least} for "
                "each: give another one (--set batch_size=...), or fewer workers"
            )
        return recipe, why | {"epochs": "given"}

    def for_time(self, left_s: float, budget_s: float, learner: Callable[[TrainingRecipe], Learner]) -> Plan:
        """The plan for a training of which `left_s` seconds of `budget_s` are left.

        Args:
            learner: makes the network as a training starts; what is timed is thrown away.

        Raises ValueError if not even one epoch fits.
        """
        begun = time.monotonic()
        epochs, timed = 10, None
        for _ in range(2):  # what an epoch takes depends a little on the recipe, and that on the epochs
            recipe, _ = self._recipe(epochs)
            if timed is None or _work(recipe) != timed:
                timed = _work(recipe)
                epoch_s, judging_s, norm_s = self._timed(recipe, learner(recipe), TIMED_SHARE * budget_s)
            every = max(1, round(judging_s / (VALIDATION_SHARE * epoch_s)))
            each_s = epoch_s + judging_s / every
            usable_s = (1 - RESERVE) * (left_s - (time.monotonic() - begun)) - judging_s - norm_s
            affordable = self.workers.agreed(int(usable_s / each_s))
            if affordable < 1:
                needed = (each_s + judging_s + norm_s) / (1 - RESERVE) + budget_s - left_s + time.monotonic() - begun
                raise ValueError(
                    f"a training of {budget_s:.3g} s is shorter than one epoch: with {self.facts.images} images that "
                    f"takes about {each_s:.3g} s here, and a training of one epoch {needed:.3g} s"
                )
            epochs = min(MAX_EPOCHS, affordable)
        recipe, why = self._recipe(epochs)
        reason = f"of {each_s:.3g} s each, in {budget_s:.4g} s" if epochs == affordable else f"at most {MAX_EPOCHS}"
        return Plan(recipe, {**why, "epochs": reason}, min(every, epochs), round(each_s, 3))

    def _timed(self, recipe: TrainingRecipe, learner: Learner, look_s: float) -> tuple[float, float, float]:
        """Seconds of an epoch's steps, of judging the validation images, and of recomputing BatchNorm's statistics.

        Args:
            look_s: for how long steps are timed, but `LOOKS` of each size are at least.
        """
        learner.train()
        steps = recipe.steps_per_epoch(len(self.images.train))
        sides = list(dict.fromkeys(self.images.sides(recipe)))
        by_side = {side: self._step_s(recipe, learner, side, look_s / len(sides)) for side in sides}
        epoch_s = steps * float(np.mean([by_side[side] for side in self.images.sides(recipe)]))
        per_image = self._judging(recipe, learner)
        validated = 0 if self.images.validation is None else len(self.images.validation)
        normed = min(recipe.batch_norm_images, len(self.images.train))
        return epoch_s, validated * per_image, normed * per_image

    def _step_s(self, recipe: TrainingRecipe, learner: Learner, side: int, look_s: float) -> float:
        """The median time of a step with images of this size, in seconds."""
        plan = list(self.images.epoch(recipe, 0, 0, self.workers.rank, self.workers.world))
        begun = time.perf_counter()
        times = [begun]
        for images, labels in self.images.train.batches(replace(batch, side=side) for batch in plan):
            if len(images) > 1:  # else they could not be read
                learner.step(images, labels, 1e-3, 0, 1.0)
            self._synchronize()
            times.append(time.perf_counter())
            enough = len(times) > WARM_UP + LOOKS and times[-1] - begun >= look_s
            if self.workers.agreed(enough):
                break
        return float(np.median(np.diff(times)[min(WARM_UP, len(times) - 2) :]))

    def _judging(self, recipe: TrainingRecipe, learner: Learner) -> float:
        """Seconds to judge one image."""
        feed = self.images.validation or self.images.train
        index = np.arange(min(len(feed), 512), dtype=np.int64)
        batches = judged(index, self.images.side, recipe)
        learner.judge(feed, batches[:1])
        start = time.perf_counter()
        learner.judge(feed, batches)
        self._synchronize()
        return (time.perf_counter() - start) / len(index)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _work(recipe: TrainingRecipe) -> tuple[object, ...]:
    """What of a recipe makes a step take longer."""
    varied = (
        recipe.randaugment_layers,
        recipe.erasing,
        recipe.mixup,
        recipe.cutmix,
        recipe.drop_path,
        recipe.max_shift,
    )
    return (recipe.batch_size, recipe.sides, recipe.crop, recipe.matrix_rate, *(bool(value) for value in varied))
