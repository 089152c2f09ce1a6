"""Judges a trained network on one part of a data set: one of ours, an ONNX file, or any torch module."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ...evaluators import tasks
from ...evaluators.data import sources
from ...evaluators.data.feeding import Batch, ImageFeed, image_feed
from ...evaluators.data.loading import DataParts, find_parts
from ...evaluators.data.records import LabelledImages, Labels
from ...evaluators.data.sources import Data, Fitted
from ...evaluators.training.final.judging import (
    Judgement,
    OnnxNetwork,
    check_same_classes,
    judge,
    network_outputs,
    onnx_outputs,
)
from ...evaluators.training.final.records import TrainedNetwork
from ...evaluators.training.final.weights import IMAGENET_MEAN, IMAGENET_SPREAD, Pixels, load_weights, trained_file
from ..paths import absolute_data
from ..results.trained import load_trained, stored_training
from .folders import is_run, run_settings, training_of
from .machine import machine_settings

logger = logging.getLogger("lownas.search")


Part = Literal["test", "validation", "train"]


class NoTestPart(ValueError):
    """The data have no test part."""


_SAID = {
    "data": "data",
    "task": "task",
    "judged_share": "judged_share",
    "split_seed": "seed",
    "train_on": "train_on",
    "fit": "fit",
}
"""What files of trained networks say of their training, and what it is called here."""
PARTS: tuple[Part, ...] = ("test", "validation", "train")
Trained = TrainedNetwork | nn.Module | str | Path


def evaluate(
    network: Trained,
    data: Data | None = None,
    *,
    part: Part = "test",
    task: str | tasks.Task | None = None,
    resolution: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    loaders: int | None = None,
) -> Judgement:
    """Judges a trained network on a part of labelled images.

        judgement = evaluate("runs/cpu-3ms-1")            # on the test part of the data it was trained on
        judgement = evaluate("best.onnx", "imagefolder:pictures", part="validation")
        print(judgement.top1, judgement.calibration_error)

    The test part is for once everything is chosen: whoever chooses by it has no held-out images any more.

    Args:
        network: the folder of a training or of a search, a checkpoint, an ONNX file, what `train` gave, or a torch
            module whose outputs are in the order of the data's classes.
        data: as in `train`; those that the network was trained on if None.
        part: "test", "validation" or "train".
        task: name of a task, or a `Task`; that of the training, or classification, if None.
        resolution: side of the images in pixels, where the network does not say it.
        mean, std: of the input's channels, where the network does not say them: (pixel / 255 - mean) / std.
        seed: of the split into training and validation; that of the training, or 0, if None.
        device, threads, loaders: as in `train`; ONNX files run on the CPU.

    Raises:
        ValueError: the request is wrong; one line says what was given and what is allowed.
        OSError: a file cannot be read.
    """
    if part not in PARTS:
        raise ValueError(f"part: one of {', '.join(PARTS)}, given {part!r}")
    here = machine_settings(device, threads, loaders, 0)
    judged = _judged(network, resolution, mean, std, here["threads"])
    if part == "validation" and judged.about.get("train_on") == "train+validation" and judged.is_its(data):
        logger.warning("%s has learned from the validation images too: only the test part can judge it", judged.origin)
    judged = judged.with_defaults(data, task, seed)
    parts = _parts(judged, part)
    images = judged.fitted(_part(parts, part))
    judged.check_classes(parts.classes)
    feed = _Centred(image_feed(images, judged.side, workers=here["loaders"]), judged.judged_share)
    outputs, labels = judged.outputs(feed, parts.classes, here)
    return judge(outputs, labels, parts.classes, task=judged.task)


@dataclass(frozen=True)
class _Judged:
    """A network with what must be known to judge it.

    Attributes:
        network: a torch module, or an ONNX file that is open.
        side: of its images, pixels.
        pixels: how its input is made.
        classes: names; empty where it does not say them.
        count: of its outputs; None where that is not known.
        origin: what it is called in messages.
        judged_share: share of an image's side that it looks at.
        about: what is known of its training: "data", "task", "seed" of the split, "train_on", "fit".
    """

    network: nn.Module | OnnxNetwork
    side: int
    pixels: Pixels
    classes: tuple[str, ...]
    count: int | None
    origin: str
    judged_share: float
    about: Mapping[str, Any]

    def is_its(self, data: Data | None) -> bool:
        """Whether these are the data that it was trained on, as far as their specification tells."""
        if data is None:
            return True
        spec = sources.source(absolute_data(data) if isinstance(data, str) else data).spec
        return _unfitted(spec) == _unfitted(self.about.get("data") or "")

    def with_defaults(self, data: Data | None, task: str | tasks.Task | None, seed: int | None) -> _Judged:
        """With the data, task and seed that were given, or those of its training."""
        data = self.about.get("data") if data is None else data
        if data is None:
            raise ValueError("--data is missing: what to judge by? (imagefolder:DIR, ...)")
        data = absolute_data(data) if isinstance(data, str) else data
        chosen = task or self.about.get("task") or "classification"
        seed = self.about.get("seed", 0) if seed is None else seed
        return replace(self, about={"data": data, "task": chosen, "seed": seed, "fit": self.about.get("fit", "crop")})

    def fitted(self, part: LabelledImages) -> LabelledImages:
        """The images, made squares as those of its training were, unless the data say how themselves."""
        return part if isinstance(sources.source(self.about["data"]), Fitted) else replace(part, fit=self.about["fit"])

    @property
    def task(self) -> str | tasks.Task:
        task: str | tasks.Task = self.about["task"]
        return task

    def check_classes(self, classes: tuple[str, ...]) -> None:
        """Raises ValueError, saying which, if the data's classes are not the network's."""
        if self.classes and classes:
            check_same_classes(self.classes, classes, self.origin)
        elif classes and self.count is not None and self.count != len(classes):
            raise ValueError(f"{self.origin}: it has {self.count} outputs, and the data has {len(classes)} classes")

    def outputs(self, feed: ImageFeed, classes: tuple[str, ...], here: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Outputs and labels of all images that can be read."""
        from ...evaluators.training.trainer import torch_threads

        mean, std = self.pixels.mean, self.pixels.spread
        if isinstance(self.network, OnnxNetwork):
            return onnx_outputs(self.network, feed, side=self.side, mean=mean, std=std, classes=classes)
        with torch_threads(here["threads"]):
            before = next((value.device for value in self.network.parameters()), None)
            try:
                return network_outputs(self.network.to(here["device"]), feed, self.side, mean, std, here["device"])
            finally:
                self.network.to(before)  # as it was given


def _parts(judged: _Judged, part: Part) -> DataParts:
    about = judged.about
    return find_parts(about["data"], about["seed"], resolution=judged.side, task=about["task"], test=part == "test")


def _part(parts: DataParts, part: Part) -> LabelledImages:
    if part == "train":
        return parts.train
    if part == "validation":
        return parts.validation
    if parts.test is None:
        raise NoTestPart(f"{parts.spec} has no test part (--part validation judges by the validation images)")
    return parts.test


# --- networks by what was given


def _judged(
    network: Trained,
    resolution: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    threads: int,
) -> _Judged:
    if (mean is None) != (std is None):
        raise ValueError("mean and std: both or neither")
    given = None if mean is None or std is None else Pixels(_three("mean", mean), _three("std", std))
    if isinstance(network, TrainedNetwork):
        about = _about_training(getattr(network, "folder", None))
        share, count = network.recipe.judged_share, len(network.classes) or None
        return _Judged(
            network.model, network.resolution, network.pixels, network.classes, count, "the network", share, about
        )
    if isinstance(network, nn.Module):
        if resolution is None:
            raise ValueError("resolution: a torch module does not say the size of its images; give it in pixels")
        return _Judged(network, resolution, given or _imagenet_pixels("the module"), (), None, "the module", 1.0, {})
    path = Path(network)
    if path.suffix == ".onnx":
        return _onnx(path, resolution, given, threads)
    return _checkpoint(network, resolution, given)


def _onnx(path: Path, resolution: int | None, given: Pixels | None, threads: int) -> _Judged:
    if not path.is_file():
        raise ValueError(f"no ONNX file at {path}")
    opened = OnnxNetwork(path, threads=threads)
    if opened.side is None and resolution is None:
        raise ValueError(f"{path}: it takes images of any size; say which (--resolution)")
    if opened.mean is not None and opened.std is not None:
        given = Pixels(_three("mean", opened.mean), _three("std", opened.std))
    pixels = given or _imagenet_pixels(str(path))
    side = opened.side or resolution or 0
    about = _about_training(path.parent) | _about_file(path)
    share = about.get("judged_share", 1.0)
    return _Judged(opened, side, pixels, tuple(opened.classes or ()), opened.outputs, str(path), share, about)


def _unfitted(spec: str) -> str:
    """A specification of data without how pictures are made squares."""
    return spec.removeprefix("squash:").removeprefix("pad:")


def _about_file(path: Path) -> dict[str, Any]:
    """What an ONNX file that was exported here says of its training."""
    import onnx

    said = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    names = [name for name in _SAID if f"lownas.{name}" in said]
    try:
        return {_SAID[name]: json.loads(said[f"lownas.{name}"]) for name in names}
    except ValueError as error:
        raise ValueError(f"{path}: its metadata is damaged: {error}") from None


def _checkpoint(network: str | Path, resolution: int | None, given: Pixels | None) -> _Judged:
    if isinstance(network, str) and network.startswith("timm:"):
        weights, folder = load_weights(network), None
        said: dict[str, Any] = {}
    else:
        path = Path(network)
        folder = path if path.is_dir() else path.parent
        weights, said = load_trained(trained_file(path) if path.is_dir() else path)
    if weights.model is None or weights.config is None:
        raise ValueError(f"{weights.origin} holds no LowFormer: load its weights into your module and judge that")
    if weights.fresh_head:
        raise ValueError(f"{weights.origin} has a backbone without a head: train one first (lownas train --init-from)")
    about = _about_training(folder)
    about |= {_SAID[name]: said[name] for name in _SAID if name in said}
    return _Judged(
        weights.model,
        resolution or weights.resolution or weights.config.resolution,
        weights.pixels or given or _imagenet_pixels(weights.origin),
        weights.classes,
        weights.config.classes,
        weights.origin,
        said.get("judged_share", 1.0),
        about,
    )


def _about_training(folder: Path | None) -> dict[str, Any]:
    """What the folder of a training or of a search says of data, task and seed of the split."""
    if folder is None:
        return {}
    stored = stored_training(training_of(folder))
    if stored is not None:
        recipe = stored.get("plan", {}).get("recipe", {})
        known = {"data": stored.get("data"), "task": stored.get("task"), "judged_share": recipe.get("judged_share")}
        known |= {"seed": stored["settings"].get("data_seed"), "train_on": stored["settings"].get("train_on")}
        known |= {"fit": stored.get("data_card", {}).get("fit")}
    elif is_run(folder):
        settings = run_settings(folder)
        known = {name: settings.get(name) for name in ("data", "task", "seed")}
    else:
        return {}
    return {name: value for name, value in known.items() if value is not None}


def _imagenet_pixels(origin: str) -> Pixels:
    logger.warning("%s does not say how its input is normalized: ImageNet's mean and std are taken", origin)
    return Pixels(IMAGENET_MEAN, IMAGENET_SPREAD)


def _three(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ValueError(f"{name}: three numbers, one for each channel, given {list(values)}")
    one, two, three = (float(value) for value in values)
    return one, two, three


class _Centred:
    """A feed whose images are looked at as those of a training's validation are: the centre alone."""

    def __init__(self, feed: ImageFeed, share: float) -> None:
        self._feed, self._share = feed, share**2

    def __len__(self) -> int:
        return len(self._feed)

    @property
    def labels(self) -> Labels:
        return self._feed.labels

    @property
    def resident(self) -> bool:
        return self._feed.resident

    @property
    def skipped(self) -> Mapping[int, str]:
        return self._feed.skipped

    def batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        share = (self._share, self._share)
        return self._feed.batches(Batch(batch.index, batch.side, batch.seed, share) for batch in batches)
