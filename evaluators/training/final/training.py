"""Trains one network to its final weights: settles what the time allows, trains, and keeps everything on disk.

A training lives in a store (a folder, as a rule):

training.json      what is trained on what, and how: written once, when the recipe is settled
log.csv            one row an epoch
state.safetensors  what the training goes on from, after the last epoch or some before; removed at the end
best.safetensors   the trained network: averaged weights, BatchNorm recomputed; there when the training has ended
result.json        what it reached
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ....search_space import LowFormerConfig
from ... import tasks
from ...data import sources
from ...data.feeding import readable_labels
from ...data.loading import find_parts
from ...data.sources import Data
from ...device.agent.lock import HoldingOff
from ..trainer import torch_threads
from .images import TrainingImages, fit_in_memory, judged, lopsidedness, memory_needed, outputs_for
from .learner import Learner
from .modules import about_module, look_at
from .optimization import rate_share
from .planning import Plan, Planner
from .recipe import TrainingFacts, TrainingRecipe
from .records import FinalSettings, Report, TrainedNetwork, TrainingStatus
from .store import Store
from .weights import Pixels, Weights, load_weights, network_bytes, prepared_network, tensors_of
from .workers import Workers

logger = logging.getLogger("lownas.evaluators")

SCHEMA = 1
SAVED_EVERY_S = 10.0  # epochs that are shorter are kept on disk together
SETBACKS = 2  # how often a training whose loss is not finite goes back, with half the rate
LOOK_EVERY = 50  # steps after which the loss is looked at
MOST_MEMORY = 0.8  # share of the available memory that images may take where they were in memory before
_STREAM = 0xF17A1  # tells the random numbers of final trainings from others that are drawn from the same seed


class TrainingFailed(RuntimeError):
    """The training cannot go on; the message is one line."""


def train_network(
    network: LowFormerConfig | nn.Module,
    data: Data,
    store: Store,
    settings: FinalSettings,
    *,
    task: str | tasks.Task = "classification",
    resolution: int | None = None,
    resume: bool = False,
    report: Report | None = None,
    announce: Callable[[Plan], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainedNetwork:
    """Trains a network on data, keeps what it does in `store`, and gives the trained network.

    The same arguments give the same weights on the same machine's CPU, in one go or interrupted anywhere and resumed.
    Where torch.distributed is initialized, every worker calls this, and each learns from its share of every batch.

    Args:
        network: a configuration, whose head and classes become those of the task and the data; or a torch module with
            as many outputs as there are classes, for images (N, 3, R, R).
        resolution: side of a module's images in pixels; of a configuration in the place of its own.
        task: what is learned.
        resume: goes on with what is in the store; settings that are not stored there with the same values are refused.
        report: is called after every step that is looked at, and after every epoch.
        announce: is called with what was settled, before the first epoch.
        on_step: is called after every step with its number, from 0, and its mean loss over all workers.

    Raises:
        ValueError: the request is wrong: data, weights, a time shorter than an epoch, another training in the store.
        OSError: a file cannot be written; what was kept before is intact.
        TrainingFailed: the loss is not finite, again and again.
    """
    workers = Workers.here()
    run = _Run(network, data, store, settings, tasks.task(task), resolution, workers)
    with torch_threads(settings.threads), torch.random.fork_rng(_cuda(settings.device)):
        run.begin(resume=resume, announce=announce)
        return run.to_the_end(report, on_step)


def _cuda(device: str) -> list[torch.device]:
    return [torch.device(device)] if torch.device(device).type == "cuda" else []


class _Run:
    """One call's part of a training."""

    def __init__(
        self,
        network: LowFormerConfig | nn.Module,
        data: Data,
        store: Store,
        settings: FinalSettings,
        task: tasks.Task,
        resolution: int | None,
        workers: Workers,
    ) -> None:
        self.started = time.monotonic()
        self.store, self.settings, self.task, self.workers = store, settings, task, workers
        self.device = torch.device(settings.device)
        self.side = _resolution(network, resolution)
        source = sources.source(data)
        self.parts = find_parts(source, settings.data_seed, resolution=self.side, task=task)
        self.network = self._fitted(network)
        if settings.freeze and settings.init_from is None and isinstance(network, LowFormerConfig):
            raise ValueError("a frozen backbone needs weights to start from (--init-from)")
        self.start = None if settings.init_from is None else load_weights(settings.init_from)
        self.teacher = None if settings.teacher is None else self._teacher(settings.teacher)
        self.facts = self._facts(source.mirrored, source.max_shift)
        if self.facts.images < 2:
            raise ValueError(f"{self.parts.spec}: at least 2 images to train on are needed, found {self.facts.images}")
        self.before_s = 0.0
        self.done = 0
        self.rate_factor, self.setbacks = 1.0, 0
        self.history: list[dict[str, Any]] = []

    # --- what is trained

    def _fitted(self, network: LowFormerConfig | nn.Module) -> LowFormerConfig | nn.Module:
        """The network with the outputs that the data ask for."""
        self.outputs = outputs_for(self.parts, self.task, self.side)
        if isinstance(network, LowFormerConfig):
            return network.replace(resolution=self.side, classes=self.outputs, head=self.task.head)
        return network

    def _teacher(self, spec: str) -> Weights:
        if not isinstance(self.task, tasks.MixableTask):
            raise ValueError(f"--teacher {spec}: only classifications can be taught, not {self.task.name}")
        weights = load_weights(spec)
        if weights.model is None:
            raise ValueError(f"--teacher {spec}: not a LowFormer")
        assert weights.config is not None
        classes = self.parts.classes
        if weights.config.classes != len(classes):
            raise ValueError(f"--teacher {spec} has {weights.config.classes} classes, the data have {len(classes)}")
        if weights.classes and weights.classes != classes:
            raise ValueError(f"--teacher {spec} has other classes: {difference(weights.classes, classes)}")
        side = weights.resolution or weights.config.resolution
        if side != self.side:
            raise ValueError(f"--teacher {spec} is for images of {side} pixels, the network for {self.side}")
        return weights

    def _facts(self, mirrored: bool, max_shift: float) -> TrainingFacts:
        settings = self.settings
        both = settings.train_on == "train+validation"
        look = look_at(self.network, self.side, len(self.parts.classes))
        return TrainingFacts(
            config=self.network if isinstance(self.network, LowFormerConfig) else None,
            images=len(self.parts.train) + (len(self.parts.validation) if both else 0),
            side=self.side,
            lopsidedness=lopsidedness(self.parts.train, self.task),
            mirrored=mirrored,
            max_shift=max_shift,
            on_gpu=self.device.type == "cuda",
            inherited=self.start is not None,
            frozen=settings.freeze,
            mixes=isinstance(self.task, tasks.MixableTask),
            orthogonal_images=look.orthogonal_images,
            one_size=look.one_size,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a training to be gone on with; JSON values."""
        settings = self.settings.to_dict()
        for name in ("device", "threads", "loaders"):
            del settings[name]
        network = self.network
        about: Any = network.to_dict() if isinstance(network, LowFormerConfig) else about_module(network)
        facts = {
            "network": about,
            "resolution": self.side,
            "data": self.parts.spec,
            "images": [len(self.parts.train), len(self.parts.validation)],
            "classes": self.parts.classes,
            "task": self.task.name,
            "settings": settings,
        }
        found: dict[str, Any] = json.loads(json.dumps(facts))  # as it is read from the file
        return found

    # --- beginning

    def begin(self, *, resume: bool, announce: Callable[[Plan], None] | None) -> None:
        """Settles the recipe, or takes up what was settled; then everything is ready for the next epoch."""
        stored = self._stored(resume=resume)
        self.goes_on = stored is not None
        settings, workers = self.settings, self.workers
        workers.wait()  # all have seen what is there before one of them writes
        both = settings.train_on == "train+validation"
        in_memory = workers.agreed(self._in_memory(stored))
        self.images = TrainingImages(
            self.parts, both=both, side=self.side, workers=settings.loaders, in_memory=in_memory
        )
        if stored is None:
            known = self.start.pixels if self.start is not None and self.start.pixels else None
            self.pixels = workers.agreed(known or self.images.pixels())
            self.plan = workers.agreed(self._planned())
        self.recipe = self.plan.recipe
        self.learner = self._learner(self.recipe)
        if announce is not None and workers.first:
            announce(self.plan)
        if stored is None:
            about = {"schema": SCHEMA, **self.identity, "plan": self.plan.to_dict(), "pixels": self.pixels.to_dict()}
            about |= {"threads": settings.threads, "device": settings.device, "workers": workers.world}
            about |= {"in_memory": in_memory}
            self._write("training.json", _json({**about, "data_card": self.parts.card}))
        content = self.store.read("state.safetensors") if stored is not None else None
        if content is not None:
            self._take_up(self.learner.load(content, "state.safetensors"))

    def _planned(self) -> Plan:
        """The recipe and the epochs, as they are settled before the first one."""
        settings = self.settings
        planner = Planner(self.facts, settings.choices, self.images, self.workers, self.device)
        if settings.epochs is not None:
            return planner.for_epochs(settings.epochs)
        assert settings.budget_s is not None
        with HoldingOff():  # what is timed must not disturb a measurement, nor be disturbed by one
            left = settings.budget_s - (time.monotonic() - self.started)
            return planner.for_time(left, settings.budget_s, self._learner)

    def _stored(self, *, resume: bool) -> dict[str, Any] | None:
        """training.json, if this training goes on; raises ValueError if it cannot."""
        content = self.store.read("training.json")
        if content is None:
            return None
        if not resume:
            raise ValueError("there is already a training: go on with it (--resume) or name another folder (--out)")
        try:
            stored: dict[str, Any] = json.loads(content)
            if stored["schema"] != SCHEMA:
                raise ValueError(f"its schema is {stored['schema']!r}, this version reads {SCHEMA}")
            for name, wanted in self.identity.items():
                _check_same(name, stored[name], wanted)
            self.plan = Plan.from_dict(stored["plan"])
            self.pixels = Pixels(tuple(stored["pixels"]["mean"]), tuple(stored["pixels"]["std"]))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"training.json is damaged: {error}") from None
        if stored["workers"] != self.workers.world or stored["threads"] != self.settings.threads:
            logger.warning(
                "this training began with %s workers and %s threads, and goes on with %s and %s: its weights will be "
                "others than without the interruption",
                *(stored["workers"], stored["threads"], self.workers.world, self.settings.threads),
            )
        return stored

    def _in_memory(self, stored: Mapping[str, Any] | None) -> bool:
        """Whether images are kept in memory, as before if this training goes on."""
        needed, world = memory_needed(self.parts, self.side), self.workers.world
        before = None if stored is None else stored.get("in_memory")
        if before is None:
            return fit_in_memory(needed, world)
        if before and not fit_in_memory(needed, world, share=MOST_MEMORY):
            logger.warning(
                "the images do not fit into memory any more and are decoded again and again: the weights will be "
                "others than without the interruption"
            )
            return False
        return bool(before)

    def _learner(self, recipe: TrainingRecipe) -> Learner:
        """The network as its training starts."""
        torch.manual_seed(self._seed(0))
        network = self.network
        prepared = prepared_network(
            network,
            recipe.drop_path,
            task=self.task,
            start=self.start,
            classes=self.parts.classes,
            freeze=self.settings.freeze,
        )
        return Learner(
            prepared,
            recipe,
            self.task,
            self.pixels,
            self.device,
            self.workers,
            outputs=self.outputs,
            class_weights=self.images.weights(recipe, self.task, self.outputs),
            teacher=self.teacher,
        )

    def _take_up(self, facts: Mapping[str, Any]) -> None:
        self.done, self.history = facts["epoch"], list(facts["history"])
        self.rate_factor, self.setbacks = facts["rate_factor"], facts["setbacks"]
        self.before_s = facts["seconds"]

    # --- the epochs

    def to_the_end(self, report: Report | None, on_step: Callable[[int, float], None] | None) -> TrainedNetwork:
        if self.goes_on and (finished := self._finished()) is not None:
            return finished
        saved = time.monotonic()
        self._report, self._on_step = report, on_step
        if self.done == 0:
            self._save()  # what a training goes back to whose first epoch fails
        while self.done < self.recipe.epochs:
            row = self._epoch(self.done)
            if row is None:
                self._go_back()
                continue
            self.done += 1
            self.history.append(row)
            last = self.done == self.recipe.epochs
            if last or self.workers.agreed(time.monotonic() - saved >= SAVED_EVERY_S):
                self._save()
                saved = time.monotonic()
            self._say(self.done, self.steps, row)
        with HoldingOff():
            return self._conclude()

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.recipe.steps_per_epoch(len(self.images.train))

    @property
    def seconds(self) -> float:
        return self.before_s + time.monotonic() - self.started

    def _seed(self, epoch: int) -> int:
        """Of torch's generator: in each epoch, and for each worker, another one."""
        words = [_STREAM, self.settings.seed, epoch, self.workers.rank if epoch else 0]
        return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _epoch(self, epoch: int) -> dict[str, Any] | None:
        """Goes over the training images once, and judges; None if the loss is not finite."""
        begun = time.monotonic()
        torch.manual_seed(self._seed(epoch + 1))
        self.learner.train()
        with HoldingOff() as holding:
            learned = self._learn(epoch, holding)
            if learned is None:
                return None
            trained = time.monotonic()
            holding.let_measure()
            judged = self._validated(epoch)
        images = learned.pop("images")
        speed = round(images / (trained - begun), 1)
        row = {**learned, **judged, "images_per_second": speed, "seconds": round(self.seconds, 2)}
        return None if row["validation_loss"] is not None and not math.isfinite(row["validation_loss"]) else row

    def _learn(self, epoch: int, holding: HoldingOff) -> dict[str, Any] | None:
        """The steps of an epoch: what its row says of them, and how many images there were; None as `_epoch`."""
        recipe, workers = self.recipe, self.workers
        losses, scores, seen, total = [], [], 0, self.steps * recipe.epochs
        plan = self.images.epoch(recipe, self.settings.seed, epoch, workers.rank, workers.world)
        least = 2 * (recipe.accumulation if workers.world > 1 else 1)  # BatchNorm needs two images each time
        for step, (images, labels) in enumerate(self.images.train.batches(plan)):
            if len(images) < least:  # the others could not be read
                if workers.world > 1:  # the others wait for this one's gradients
                    raise TrainingFailed("hardly an image of a worker's share of a batch could be read")
                continue
            holding.let_measure()
            number = epoch * self.steps + step
            rate = self.rate_factor * rate_share(number, total, recipe)
            loss, score = self.learner.step(images, labels, rate, number, number / total)
            losses.append(loss)
            scores.append(score)
            seen += len(images)
            if self._on_step is not None:
                self._on_step(number, workers.mean(loss).item())
            if (step + 1) % LOOK_EVERY == 0:
                if not math.isfinite(workers.mean(torch.stack(losses[-LOOK_EVERY:]).mean()).item()):
                    return None
                self._say(epoch + 1, step + 1, None)
        if epoch == 0 and self.images.train.skipped:
            readable = readable_labels(self.images.train)
            self.task.check_readable(self.images.train.labels, readable, self.parts.classes, self.parts.spec)
        train_loss = workers.mean(torch.stack(losses).mean()).item()
        accuracy = workers.mean(torch.stack(scores).sum() / max(1, seen)).item()
        if not math.isfinite(train_loss):
            return None
        return {
            "epoch": epoch + 1,
            "learning_rate": float(f"{rate * recipe.learning_rate:.6g}"),
            "train_loss": round(train_loss, 6),
            "train_accuracy": round(accuracy, 6),
            "images": seen * workers.world,
        }

    def _validated(self, epoch: int) -> dict[str, float | None]:
        """Validation loss and accuracy after an epoch, where it is one of those that are judged."""
        loss = accuracy = None
        due = (epoch + 1) % self.plan.validate_every == 0 or epoch + 1 == self.recipe.epochs
        if self.images.validation is not None and due:
            found = (0.0, 0.0)
            if self.workers.first:
                found = self.learner.judge(self.images.validation, self._judged())
            accuracy, loss = (round(value, 6) for value in self.workers.agreed(found))
        return {"validation_loss": loss, "validation_accuracy": accuracy}

    def _judged(self) -> list[Any]:
        assert self.images.validation is not None
        return judged(np.arange(len(self.images.validation), dtype=np.int64), self.side, self.recipe)

    def _go_back(self) -> None:
        """To the last epoch that was kept, with half the rate."""
        if self.setbacks == SETBACKS:
            raise TrainingFailed(
                f"the loss was not finite in epoch {self.done + 1}, also after going back {SETBACKS} times with half "
                f"the learning rate; try --set learning_rate={self.recipe.learning_rate * self.rate_factor / 4:.2g}"
            )
        setbacks, factor = self.setbacks + 1, self.rate_factor / 2
        failed = self.done + 1
        content = self.store.read("state.safetensors")
        assert content is not None
        self.learner = self._learner(self.recipe)
        seconds = self.before_s
        self._take_up(self.learner.load(content, "state.safetensors"))
        self.before_s = seconds
        self.setbacks, self.rate_factor = setbacks, factor
        logger.warning(
            "the loss is not finite in epoch %d: back to epoch %d with %g of the learning rate",
            *(failed, self.done, factor),
        )
        self._save()

    def _say(self, epoch: int, step: int, row: Mapping[str, Any] | None) -> None:
        if self._report is None or not self.workers.first:
            return
        recipe, now = self.recipe, self.seconds
        share = ((epoch - 1) * self.steps + step) / (recipe.epochs * self.steps)
        begun = self.history[0]["seconds"] - self.plan.epoch_s if self.plan.epoch_s and self.history else 0.0
        left = (now - max(0.0, begun)) * (1 - share) / share
        self._report(TrainingStatus(epoch, recipe.epochs, step, self.steps, now, left, row))

    def _save(self) -> None:
        """Keeps everything that the training goes on from; then the log."""
        if not self.workers.first:
            return
        facts = {
            "epoch": self.done,
            "history": self.history,
            "rate_factor": self.rate_factor,
            "setbacks": self.setbacks,
            "seconds": self.seconds,
        }
        self.store.write("state.safetensors", self.learner.to_bytes(facts))
        self.store.write("log.csv", log_csv(self.history))

    # --- the end

    def _conclude(self) -> TrainedNetwork:
        learner, workers = self.learner, self.workers
        count = min(self.recipe.batch_norm_images, len(self.images.train))
        accuracy = loss = None
        if workers.first:
            learner.recompute_batch_norm(self.images.train, self.images.some(self.recipe, count, self.settings.seed))
            if self.images.validation is not None:
                accuracy, loss = learner.judge(self.images.validation, self._judged())
        accuracy, loss = workers.agreed((accuracy, loss))
        if not learner.is_finite() or (loss is not None and not math.isfinite(loss)):
            raise TrainingFailed("the trained network has numbers that are not finite: lower the learning rate")
        trained = self._trained(learner.averaged.model, accuracy, loss, self.seconds)
        if workers.first:
            facts = {"epochs": trained.epochs, "validation_accuracy": accuracy, "data": self.parts.spec}
            split = {"split_seed": self.settings.data_seed, "train_on": self.settings.train_on}
            content = network_bytes(
                trained.model,
                resolution=self.side,
                classes=self.parts.classes,
                pixels=self.pixels,
                task=self.task.name,
                judged_share=self.recipe.judged_share,
                fit=self.parts.train.fit,
                **facts,
                **split,
            )
            self.store.write("best.safetensors", content)
            result = {**facts, "validation_loss": loss, "seconds": round(trained.seconds, 2), "history": self.history}
            self.store.write("result.json", _json(result))
            self.store.remove("state.safetensors")
        workers.wait()
        return trained

    def _finished(self) -> TrainedNetwork | None:
        """The trained network, if this training has ended before."""
        content, tensors = (self.store.read(name) for name in ("result.json", "best.safetensors"))
        if content is None or tensors is None:
            return None
        result = json.loads(content)
        self.learner.averaged.model.load_state_dict(tensors_of(tensors, "best.safetensors"))
        self.history = result["history"]
        return self._trained(
            self.learner.averaged.model, result["validation_accuracy"], result["validation_loss"], result["seconds"]
        )

    def _trained(self, model: nn.Module, accuracy: float | None, loss: float | None, seconds: float) -> TrainedNetwork:
        return TrainedNetwork(
            config=self.network if isinstance(self.network, LowFormerConfig) else None,
            resolution=self.side,
            classes=self.parts.classes,
            pixels=self.pixels,
            recipe=self.recipe,
            why=self.plan.why,
            history=tuple(self.history),
            validation_accuracy=accuracy,
            validation_loss=loss,
            seconds=seconds,
            model=model.cpu().eval(),
        )

    def _write(self, name: str, content: bytes) -> None:
        if self.workers.first:
            self.store.write(name, content)
        self.workers.wait()


# --- small things


def _resolution(network: LowFormerConfig | nn.Module, resolution: int | None) -> int:
    if isinstance(network, LowFormerConfig):
        return resolution or network.resolution
    if resolution is None:
        raise ValueError("resolution: a torch module does not say the size of its images; give it in pixels")
    return resolution


def _check_same(name: str, stored: Any, wanted: Any) -> None:
    if stored == wanted:
        return
    if name == "settings":
        name = next(key for key in {**wanted, **stored} if stored.get(key) != wanted.get(key))
        stored, wanted = stored.get(name), wanted.get(name)
    if name == "classes":
        raise ValueError(f"the training to go on with has other classes: {difference(tuple(stored), tuple(wanted))}")
    raise ValueError(f"cannot go on with another {name}: {_short(wanted)} is not {_short(stored)}")


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    """How two lists of classes differ, in words."""
    said = []
    if missing := [name for name in theirs if name not in ours]:
        said.append(f"the data lack {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}")
    if more := [name for name in ours if name not in theirs]:
        said.append(f"only the data have {', '.join(more[:5])}{', ...' if len(more) > 5 else ''}")
    return "; ".join(said) or "the same ones in another order"


def log_csv(history: list[dict[str, Any]]) -> bytes:
    """The rows of all epochs as log.csv has them."""
    text = io.StringIO()
    names = list(history[0]) if history else ["epoch"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if row[name] is None else row[name] for name in names} for row in history)
    return text.getvalue().encode()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
