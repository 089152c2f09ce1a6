"""A data source, a head, a task and a runtime as one may write them outside the package: mean brightness, regressed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lownas.evaluators.data.records import DataRequest, FoundData, LabelledImages
from lownas.evaluators.data.sources import DataSource
from lownas.evaluators.device.agent.lock import alone
from lownas.evaluators.device.agent.timing import time_runs
from lownas.evaluators.device.latency_record import latency_measurement
from lownas.evaluators.device.runtimes import check_setting
from lownas.evaluators.tasks.augmentation import flips_and_shifts

SCALE = 0.1  # the error at which the score is 1 / e


@dataclass(frozen=True)
class Brightness(DataSource):
    """Grey noise of 12 x 16 pixels; the label of an image is its mean brightness, 0 to 1."""

    count: int = 600

    @classmethod
    def named(cls, argument: str) -> Brightness:
        return cls(int(argument))

    @property
    def spec(self) -> str:
        return f"brightness:{self.count}"

    def read(self, request: DataRequest) -> FoundData:
        return FoundData(self._noise(self.count, 0), None, None, {"origin": "noise", "parts": {"test": "more of it"}})

    def read_test(self, request: DataRequest) -> LabelledImages:
        return self._noise(50, 1)

    @staticmethod
    def _noise(count: int, seed: int) -> LabelledImages:
        rng = np.random.default_rng(seed)
        level = rng.uniform(0.1, 0.9, (count, 1, 1))
        images = np.clip(255 * level + rng.normal(0, 20, (count, 12, 16)), 0, 255).astype(np.uint8)
        return LabelledImages(images, images.mean(axis=(1, 2)) / 255)


class MeanUnit(NamedTuple):
    """The mean over the map and one linear layer."""

    channels: int
    size: int
    outputs: int
    kind: str = "toy_mean"

    def graph(self, build: Any) -> None:
        from lownas.search_space.graph.operators import GRAPH_INPUT

        shape = (self.channels, self.size, self.size)
        row = build.add_op("global_pool", [GRAPH_INPUT], shape_in=shape, shape_out=(self.channels, 1, 1))
        build.linear(row, self.channels, self.outputs, bias=True)


class MeanHead:
    name = "toy_mean"

    def units(self, config: Any, channels: int, size: int) -> list[MeanUnit]:
        return [MeanUnit(channels, size, config.classes)]

    def layers(self, config: Any, channels: int) -> dict[str, Any]:
        from torch import nn

        from lownas.search_space.blocks import GlobalAverage

        return {"global_pool": GlobalAverage(), "output": nn.Linear(channels, config.classes)}


@dataclass(frozen=True)
class AbsoluteError:
    """The mean absolute error, whose score falls exponentially."""

    name = "mean absolute error"
    unit = "of the full brightness"
    range = (0.0, math.inf)
    higher_is_better = False

    def value(self, outputs: Any, labels: Any) -> float:
        return float((outputs[:, 0] - labels).abs().mean())

    def score(self, value: float) -> float:
        return math.exp(-value / SCALE)

    def from_score(self, score: float) -> float:
        return -SCALE * math.log(score)


@dataclass(frozen=True)
class Regression:
    """One number for each image."""

    name = "toy_regression"
    head = "toy_mean"
    metric = AbsoluteError()

    def prepared(self, found: FoundData, spec: str) -> FoundData:
        def floats(part: LabelledImages | None) -> LabelledImages | None:
            if part is None:
                return None
            if part.labels.ndim != 1 or not np.isfinite(part.labels).all():
                raise ValueError(
                    f"{spec}: labels are {part.labels.dtype} {part.labels.shape}, expected are numbers (N,)"
                )
            return LabelledImages(part.images, part.labels.astype(np.float32))

        train = floats(found.train)
        assert train is not None
        return FoundData(train, floats(found.validation), None, found.card, floats(found.test))

    def split(
        self, part: LabelledImages, share: float, classes: Any, spec: str, rng: np.random.Generator
    ) -> tuple[LabelledImages, LabelledImages]:
        if len(part) < 2:
            raise ValueError(f"{spec}: at least 2 images are needed")
        order = rng.permutation(len(part))
        held_out = max(1, round(share * len(part)))
        return part.take(np.sort(order[held_out:])), part.take(np.sort(order[:held_out]))

    def subset(self, labels: Any, count: int, rng: np.random.Generator) -> Any:
        return np.sort(rng.permutation(len(labels))[:count])

    def check_readable(self, labels: Any, readable: Any, classes: Any, spec: str) -> None:
        if not len(readable):
            raise ValueError(f"{spec}: no training image could be read")

    def label_card(self, data: Any) -> dict[str, Any]:
        guess = np.median(data.train_labels)
        chance = self.metric.score(float(np.abs(data.validation_labels - guess).mean()))
        return {"smallest_label": float(data.train_labels.min()), "chance": chance}

    def outputs(self, data: Any) -> int:
        return 1

    def start(self, model: Any) -> None:
        from torch import nn

        nn.init.zeros_(model.get_classifier().weight)

    def augmentation(self, recipe: Any, side: int) -> Any:
        augment = flips_and_shifts(recipe, side)
        return lambda images, labels: (augment(images), labels)

    def loss(self, outputs: Any, labels: Any, recipe: Any = None) -> Any:
        return ((outputs[:, 0] - labels) ** 2).mean()

    def summed_score(self, outputs: Any, labels: Any) -> Any:
        return (-(outputs[:, 0] - labels).abs() / SCALE).exp().sum()


class NumpyRuntime:
    """Times a product of matrices instead of the network."""

    name = "toy-numpy"
    devices = ("cpu",)
    precisions = ("fp32",)
    package = "numpy"

    def check(self, setting: Any) -> None:
        check_setting(self, setting)

    def measure(self, network: Any, setting: Any, *, time_limit_s: float, min_runs: int, kernels: bool) -> Any:
        matrix = np.ones((64, 64), np.float32)
        with alone(print):
            timed = time_runs(lambda: matrix @ matrix, time_limit_s, min_runs)
        return latency_measurement(setting, network.id, timed, None, setting.fingerprint(), {"numpy": np.__version__})
