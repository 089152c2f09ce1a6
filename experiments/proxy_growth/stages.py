"""The stages of the study: how long the trainings are, at how many pixels, and the rows that finished ones leave."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lownas.evaluators.data.sources.formula import FORMULA_CLASSES
from lownas.evaluators.training.settings import ProxySettings
from lownas.search_space import PRESETS

NAMES = tuple(name for name in PRESETS if name.startswith("lowformer_"))
PUBLISHED_RESOLUTION = 224
TRAININGS = Path(__file__).with_name("trainings.jsonl")


@dataclass(frozen=True)
class Stage:
    """Trainings of one length at one resolution.

    Attributes:
        steps: optimizer steps of 64 images.
        resolution: pixels.
        train_images, epochs: their product is the images that a training sees.
        seeds: those that it is done with unless said otherwise. A seed decides the data (the classes included), the
            weights and the order.
        classes: of the images.
    """

    steps: int
    resolution: int
    train_images: int
    epochs: int
    seeds: tuple[int, ...]
    classes: int = FORMULA_CLASSES

    @property
    def name(self) -> str:
        return f"{self.steps}@{self.resolution}" + (f"x{self.classes}" if self.classes != FORMULA_CLASSES else "")

    def settings(self, seed: int) -> ProxySettings:
        settings = ProxySettings(
            data_seed=seed,
            classes=self.classes,
            resolution_scale=self.resolution / PUBLISHED_RESOLUTION,
            train_images=self.train_images,
            epochs=self.epochs,
        )
        assert settings.steps(self.train_images) == self.steps, self.name
        assert settings.proxy_resolution(PUBLISHED_RESOLUTION) == self.resolution, self.name
        return settings


MANY_CLASSES = 100
"""Classes of the harder images: of ten kinds, 300 steps leave nothing to tell the models apart by."""
# In the order in which they are trained. Those with ten kinds that are at their ceiling come last.
STAGES = {
    stage.name: stage
    for stage in (
        Stage(30, 32, 640, 3, (1, 2, 3)),
        Stage(30, 64, 640, 3, (1, 2)),
        Stage(300, 32, 6400, 3, (1,)),
        Stage(300, 32, 6400, 3, (1, 2), MANY_CLASSES),
        Stage(300, 64, 6400, 3, (1,), MANY_CLASSES),
        Stage(2000, 32, 12800, 10, (1,), MANY_CLASSES),
        Stage(300, 64, 6400, 3, (1,)),
        Stage(2000, 32, 12800, 10, (1,)),
        Stage(2000, 64, 12800, 10, (1,)),
    )
}


def load_rows(path: Path = TRAININGS) -> list[dict[str, Any]]:
    """The finished trainings; a last line that was not written to its end is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def drop_broken_end(path: Path = TRAININGS) -> None:
    """Removes a last line that was not written to its end, so that the next row begins a line."""
    if path.exists():
        text = path.read_text()
        if text and not text.endswith("\n"):
            path.write_text(text[: text.rfind("\n") + 1])
