"""Trainings and trained networks in three precisions: the steps `proxy` and `final`."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lownas.evaluators import tasks
from lownas.evaluators.tasks.classification import Classification
from lownas.evaluators.training.final.optimization import computing
from lownas.evaluators.training.settings import RESOLUTION_SCALE, ProxySettings
from lownas.experiments.gpu.record import Record, one_line
from lownas.experiments.gpu.sizes import Sizes, there

if TYPE_CHECKING:
    from lownas.evaluators.data.loading import DataParts
    from lownas.search.final.train import FinalTraining
    from lownas.search_space import LowFormerConfig

PRECISIONS = ("fp32", "fp16", "bf16")
STEPS = 8  # between two looks at the clock
SPEED_IMAGES = 512
MARGIN_S = 4.0  # before a step's limit in which no training begins


@dataclass(frozen=True)
class Unvaried(Classification):
    """A classification whose training images are not varied, which needs no kornia."""

    def augmentation(self, recipe: tasks.Recipe, side: int) -> Any:
        return lambda images, labels: (images, labels)


def learned() -> tasks.Task:
    """What is learned: a classification, with the package's own augmentation where that can be made."""
    return tasks.task("classification") if there("kornia") else Unvaried()


def data() -> str:
    """What is trained on: scikit-learn's digits, or generated images where that is not there."""
    return "digits" if there("sklearn") else "formula:10"


def proxy_settings(config: LowFormerConfig, sizes: Sizes) -> ProxySettings:
    """How the network is trained briefly: as a search does it, at 32 pixels, without flips and shifts."""
    return ProxySettings(
        data=data(),
        resolution_scale=RESOLUTION_SCALE if config.resolution > 112 else 1.0,
        epochs=sizes.proxy_epochs,
        train_images=sizes.train_images,
        validation_images=sizes.train_images,
        batch_size=sizes.batch,
        flip=False,
    )


@contextmanager
def proxy_in(precision: str) -> Iterator[None]:
    """Has proxy trainings compute in this precision; by themselves they take bf16 wherever a GPU has it."""
    from lownas.evaluators.training import trainer

    def chosen(device: torch.device) -> Any:
        return computing(precision, device)

    before = trainer.autocast
    trainer.autocast = chosen
    try:
        yield
    finally:
        trainer.autocast = before


# --- short trainings


def proxy(record: Record, sizes: Sizes) -> str:
    """How fast proxy trainings are in three precisions, and whether those with 16 bits cost accuracy."""
    sizes.check_device()
    augmented = "flips and shifts" if there("kornia") else "none: kornia is not installed"
    record.note(batch=sizes.batch, augmentation_while_timed=augmented, fp16="without scaling the loss")
    for name, side in sizes.speeds:
        for precision in PRECISIONS:
            if record.left_s < MARGIN_S + sizes.speed_s:
                break
            row = {"network": name, "side": side, "precision": precision}
            try:
                record.add(row | _speed(name, side, precision, sizes), to="speed")
            except RuntimeError as error:  # out of memory, or what this GPU cannot do
                record.add(row | {"error": one_line(error)}, to="speed")
    from lownas.evaluators.training.proxy import train_proxy

    config = sizes.trained_config()
    settings = proxy_settings(config, sizes)
    record.note(config=config.id, settings=settings.to_dict())

    def train(precision: str, seed: int) -> dict[str, Any]:
        with proxy_in(precision):
            found = train_proxy(config, None, settings, seed, sizes.device, task=learned())
        row = {"accuracy": found.accuracy, "loss": found.loss, "reason": found.reason}
        return row | {"images_per_second": found.images_per_second, "took_s": found.seconds}

    _by_seed(record, sizes, train)
    speeds = {
        row["precision"]: row["images_per_second"]
        for row in record.document.get("speed", [])
        if "error" not in row and (row["network"], row["side"]) == sizes.speeds[-1]
    }
    said = ", ".join(f"{precision} {value:.0f}" for precision, value in speeds.items())
    return f"images a second of {sizes.speeds[-1][0]} at {sizes.speeds[-1][1]} pixels: {said}; {_said(record)}"


def _speed(name: str, side: int, precision: str, sizes: Sizes) -> dict[str, Any]:
    """Training images a second of a published model at this side, by the proxy training's own loop."""
    from lownas.evaluators.data.loading import load_data
    from lownas.evaluators.training.batches import ImageBatches
    from lownas.evaluators.training.proxy import prepared_model
    from lownas.evaluators.training.trainer import Training, seeded, torch_threads
    from lownas.search_space import PRESETS

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (SPEED_IMAGES * 5 // 4, side, side, 3), dtype=np.uint8)
    found = load_data((images, np.arange(len(images)) % 10), side)
    settings = ProxySettings(batch_size=sizes.batch, epochs=100_000, max_shift=1 / 16)
    task = learned()
    if sizes.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch_threads(1), seeded(0, sizes.device), proxy_in(precision):
        batches = ImageBatches(found, "train", sizes.device)
        model = prepared_model(PRESETS[name].replace(classes=10), sizes.device, task=task)
        training = Training(model, settings, len(batches), sizes.device, task)
        augment = task.augmentation(settings, side)
        list(training.run(batches, augment, STEPS))  # reads the loss, for which a GPU has to be done
        begin, before = time.perf_counter(), training.done
        while time.perf_counter() - begin < sizes.speed_s:
            list(training.run(batches, augment, training.done + STEPS))
        seconds = time.perf_counter() - begin
    row = {"images_per_second": (training.done - before) * sizes.batch / seconds, "steps": training.done - before}
    if sizes.device == "cuda":
        row["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def _by_seed(record: Record, sizes: Sizes, train: Callable[[str, int], dict[str, Any]]) -> None:
    """Trains in each precision with each seed, as far as the time goes, and keeps the differences of equal seeds."""
    for seed in sizes.seeds:
        for precision in PRECISIONS:
            if not record.has_time(MARGIN_S):
                record.note(cut_short="not all seeds were trained, for want of time")
                return
            row: dict[str, Any] = {"precision": precision, "seed": seed}
            with record.timed():
                try:
                    row |= train(precision, seed)
                except (RuntimeError, ValueError) as error:
                    row["error"] = one_line(error)
            record.add(row, to="trainings")
            record.note(against_fp32=differences(record.document["trainings"]))


def differences(trainings: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By precision, how accuracy and loss differ from fp32's with the same seed: the mean, and its standard error."""
    rows = {(row["precision"], row["seed"]): row for row in trainings if row.get("accuracy") is not None}
    found: dict[str, dict[str, Any]] = {}
    for precision in PRECISIONS[1:]:
        seeds = [seed for name, seed in rows if name == precision and ("fp32", seed) in rows]
        pairs = [(rows[precision, seed], rows["fp32", seed]) for seed in seeds]
        if not pairs:
            continue
        found[precision] = {"seeds": len(pairs)}
        for what in ("accuracy", "loss"):
            apart = np.array([row[what] - other[what] for row, other in pairs])
            error = float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else None
            found[precision] |= {what: float(apart.mean()), f"{what}_standard_error": error}
    return found


def _said(record: Record) -> str:
    """What 16 bits cost, in words."""
    against = record.document.get("against_fp32", {})
    costs = [
        f"{precision} {100 * found['accuracy']:+.2f} points ({found['seeds']} seed{'s' * (found['seeds'] > 1)})"
        for precision, found in against.items()
    ]
    return f"accuracy against fp32: {', '.join(costs) or 'not known'}"


# --- long trainings, and trained networks


def final(record: Record, sizes: Sizes) -> str:
    """Final trainings in three precisions; what is trained in fp32 is then judged in all of them."""
    sizes.check_device()
    from lownas.search.final.train import train as train_finally

    config = sizes.trained_config()
    side = proxy_settings(config, sizes).proxy_resolution(config.resolution)
    config = config.replace(resolution=side)
    plain = {"batch_size": sizes.batch, "flip": False, "max_shift": 0.0, "randaugment_layers": 0, "erasing": 0.0}
    record.note(config=config.id, data=data(), side=side, epochs=sizes.final_epochs, recipe=plain)

    def train(precision: str, seed: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            trained = train_finally(
                config,
                data(),
                out=Path(folder) / "training",
                epochs=sizes.final_epochs,
                seed=seed,
                recipe=plain | {"precision": precision},
                task=learned(),
                device=sizes.device,
                loaders=0,
            )
        row = {"accuracy": trained.validation_accuracy, "loss": trained.validation_loss, "took_s": trained.seconds}
        row["images_per_second"] = trained.history[-1].get("images_per_second")
        if precision == "fp32":
            for judged in judged_in_all(trained, sizes.device):
                record.add({"seed": seed, **judged}, to="judged")
        return row

    _by_seed(record, sizes, train)
    agreed = [row["agreement"] for row in record.document.get("judged", []) if "agreement" in row]
    judged = f"; judged in 16 bits, {min(agreed):.2%} of the answers or more are those of fp32" if agreed else ""
    return f"{_said(record)}{judged}"


class Cast(nn.Module):
    """A network that computes in another type of numbers, as latency is measured."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = copy.deepcopy(network).to(dtype), dtype

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images.to(self.dtype))
        return outputs.float()


def judged_in_all(trained: FinalTraining, device: str) -> Iterator[dict[str, Any]]:
    """The same weights judged by the test part in each precision, and how far outputs are from those of fp32.

    "agreement" is the share of the images with the same answer; "largest_difference" that of the outputs, over the
    spread (standard deviation) of all outputs in fp32.
    """
    from lownas.evaluators.data.loading import find_parts

    parts = find_parts(data(), 0, resolution=trained.resolution, task=learned(), test=True)
    reference: Tensor | None = None
    for precision in PRECISIONS:
        try:
            outputs, row = _judged(trained, parts, precision, device)
        except (RuntimeError, ValueError) as error:
            yield {"precision": precision, "error": one_line(error)}
            continue
        if reference is None and precision == "fp32":
            reference = outputs
        elif reference is not None:
            row["agreement"] = float((outputs.argmax(1) == reference.argmax(1)).double().mean())
            row["largest_difference"] = float((outputs - reference).abs().max() / reference.std())
        yield {"precision": precision, **row}


def _judged(trained: FinalTraining, parts: DataParts, precision: str, device: str) -> tuple[Tensor, dict[str, Any]]:
    from lownas.evaluators.data.feeding import image_feed
    from lownas.evaluators.training.final.judging import judge, network_outputs

    assert parts.test is not None
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    network = Cast(trained.model, dtype).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    feed = image_feed(parts.test, trained.resolution, workers=0)
    mean, std = trained.pixels.mean, trained.pixels.spread
    outputs, labels = network_outputs(network, feed, trained.resolution, mean, std, device)
    found = judge(outputs, labels, parts.classes)
    row = {"images": found.images, "accuracy": found.top1, "loss": found.loss}
    return outputs, row | {"calibration_error": found.calibration_error}
