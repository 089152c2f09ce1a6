"""Settles how long a final training is: the epochs that a time allows, by steps that are timed, and its recipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from .images import TrainingImages, judged
from .recipe import MAX_EPOCHS, TrainingFacts, TrainingRecipe, choose_recipe
from .workers import Workers

if TYPE_CHECKING:
    from .learner import Learner

RESERVE = 0.08  # share of a time budget that is not planned: machines are slower at times
LOOKS = 6  # steps of each size of images that are timed
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
        epochs = 10
        for _ in range(2):  # what an epoch takes depends a little on the recipe, and that on the epochs
            recipe, _ = self._recipe(epochs)
            epoch_s, judging_s, norm_s = self._timed(recipe, learner(recipe))
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

    def _timed(self, recipe: TrainingRecipe, learner: Learner) -> tuple[float, float, float]:
        """Seconds of an epoch's steps, of judging the validation images, and of recomputing BatchNorm's statistics."""
        learner.train()
        by_side = {}
        steps = recipe.steps_per_epoch(len(self.images.train))
        count = min(WARM_UP + LOOKS, max(WARM_UP, steps))
        plan = list(self.images.epoch(recipe, 0, 0, self.workers.rank, self.workers.world))[:count]
        for side in dict.fromkeys(self.images.sides(recipe)):
            batches = [type(batch)(batch.index, side, batch.seed, batch.crop) for batch in plan]
            times = [time.perf_counter()]
            for images, labels in self.images.train.batches(batches):
                if len(images) > 1:  # else they could not be read
                    learner.step(images, labels, 1e-3, 0, 1.0)
                self._synchronize()
                times.append(time.perf_counter())
            took = np.diff(times)[min(WARM_UP, len(batches) - 1) :]
            by_side[side] = float(np.mean(took))
        epoch_s = steps * float(np.mean([by_side[side] for side in self.images.sides(recipe)]))
        per_image = self._judging(recipe, learner)
        validated = 0 if self.images.validation is None else len(self.images.validation)
        normed = min(recipe.batch_norm_images, len(self.images.train))
        return epoch_s, validated * per_image, normed * per_image

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
