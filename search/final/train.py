"""Trains one network to its final weights: the network, the data and the settings by their names, then the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ...evaluators import tasks
from ...evaluators.data import sources
from ...evaluators.data.sources import Data
from ...evaluators.training.final.planning import Plan
from ...evaluators.training.final.recipe import read_choices
from ...evaluators.training.final.records import FinalSettings, Report, TrainedNetwork, TrainingStatus
from ...evaluators.training.final.store import LocalStore
from ...evaluators.training.final.tracking import Tracker, check_trackers, open_trackers
from ...evaluators.training.final.training import train_network
from ...search_space import LowFormerConfig
from ..devices import find_network
from ..paths import absolute_data, new_folder
from ..quantities import parse_duration
from ..results.exporters import export_config
from ..results.files import run_config
from ..results.trained import TRAINING, load_trained, stored_training
from .evaluate import Part, evaluate
from .folders import claimed, run_settings
from .machine import machine_settings

if TYPE_CHECKING:
    from ...evaluators.training.final.judging import Judgement

_NOTHING = "what to train? name a run (--run), a config file (--config) or a published model (--preset)"
Network = LowFormerConfig | nn.Module | str | Path


@dataclass(frozen=True)
class FinalTraining(TrainedNetwork):
    """What a final training gave: the attributes of `TrainedNetwork`, and

    Attributes:
        folder: that holds it.
    """

    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: what `lownas train --json` prints."""
        return {
            "folder": str(self.folder),
            "id": None if self.config is None else self.config.id,
            "resolution": self.resolution,
            "classes": list(self.classes),
            "epochs": self.epochs,
            "seconds": self.seconds,
            "validation_accuracy": self.validation_accuracy,
            "validation_loss": self.validation_loss,
            "recipe": self.recipe.to_dict(),
            "why": dict(self.why),
            "history": [dict(row) for row in self.history],
        }

    def export(self, *formats: str, to: str | Path | None = None) -> list[Path]:
        """Writes the trained network in these formats ("onnx", "weights", "config"); gives the files.

        Args:
            to: path without suffix; `best` in the folder of the training if None.

        Raises ValueError for an unknown format, or if the network is no LowFormer.
        """
        weights, about = load_trained(self.folder / "best.safetensors")
        if weights.config is None:
            raise ValueError("only LowFormers can be exported, and this network is another one")
        stem = Path(to or self.folder / "best")
        return export_config(weights.config, stem, formats=formats or ("onnx",), model=weights.model, about=about)

    def evaluate(
        self, data: Data | None = None, *, part: Part = "test", task: str | tasks.Task | None = None
    ) -> Judgement:
        """Judges the trained network; see `lownas.evaluate`. A `Task` that is not registered must be given again."""
        return evaluate(self, data, part=part, task=task)


def train(
    network: Network | None = None,
    data: Data | None = None,
    *,
    run: str | Path | None = None,
    out: str | Path | None = None,
    budget: str | None = None,
    epochs: int | None = None,
    recipe: Mapping[str, Any] | None = None,
    init_from: str | Path | None = None,
    teacher: str | Path | None = None,
    freeze: bool | None = None,
    train_on: Literal["train", "train+validation"] | None = None,
    task: str | tasks.Task | None = None,
    resolution: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    loaders: int | None = None,
    workers: int = 0,
    ray_address: str | None = None,
    insecure: bool = False,
    track: Sequence[str] = (),
    resume: bool = False,
    progress: bool | Report = False,
    announce: Callable[[Plan], None] | None = None,
) -> FinalTraining:
    """Trains a network on labelled images to its final weights.

        trained = train("lowformer_b0", "imagefolder:pictures", budget="1h", out="b0")
        print(train(run="runs/cpu-3ms-1", budget="20m").evaluate(part="test").top1)

    The recipe follows from network, data and time; `recipe` and `why` of what is returned say it.

    Args:
        network: a configuration, the name of a published model, a config file, or a torch module with as many outputs
            as there are classes.
        data: a specification ("imagefolder:DIR"), a `DataSource`, or arrays (images, labels).
        run: the folder of a search, in the place of a network: its answer is trained, on its data if none are given.
        out: the folder of the training; RUN/training, or trainings/NAME-N, if None.
        budget, epochs: wall time of the whole training ("1h"), which decides how many epochs there are; or these.
        recipe: choices by the names of the fields of `TrainingRecipe`: {"mixup": 0.2}.
        init_from, teacher: checkpoints, or "timm:NAME": weights to start from; outputs to learn from too.
        freeze: whether only the head is trained.
        train_on: "train", or "train+validation" for the last percent: then only the test part can judge.
        task, seed: those of the run, or classification and 0, if None.
        resolution: side of the images in pixels; needed for a torch module.
        device, threads, loaders: "cpu" or "cuda"; of torch; processes that decode what does not fit into memory.
        workers, ray_address, insecure: Ray workers that train it together (0: this process), and their cluster.
        track: where metrics go beside log.csv: "tensorboard", "mlflow".
        resume: goes on with the training in `out`; what is not given is as it was there.
        progress: True shows a bar; a function is called with each `TrainingStatus`.
        announce: is called with the `Plan` before the first epoch.

    Raises ValueError, in one line, for a wrong request or a time shorter than one epoch; OSError if the folder cannot
    be written, and what was there stays intact; RuntimeError if the loss is not finite, again and again.
    """
    options: dict[str, Any] = {"budget": budget, "epochs": epochs, "recipe": recipe, "init_from": init_from}
    options |= {"teacher": teacher, "freeze": freeze, "train_on": train_on, "task": task}
    options |= {"resolution": resolution, "seed": seed, "device": device, "threads": threads, "loaders": loaders}
    asked = _asked(network, data, run, _folder(network, run, out, resume=resume), options, workers, resume=resume)
    if ray_address is not None and not workers:
        raise ValueError("--ray-address: say with --workers how many train there together")
    places = _Places(workers, ray_address, insecure)
    return run_training(asked, places, track=track, resume=resume, progress=progress, announce=announce)


def plan_of(network: Network | None = None, data: Data | None = None, **options: Any) -> Plan:
    """How `train` would train, with these of its arguments: nothing is trained or written. Raises as `train`."""
    run = options.pop("run", None)
    _folder(network, run, None, resume=False)  # raises if there is neither
    asked = _asked(network, data, run, None, options, 0, resume=False)
    return plan_training(asked)


@dataclass(frozen=True)
class AskedTraining:
    """A training with everything found by its name: what, on what, how, and where it is kept."""

    network: LowFormerConfig | nn.Module
    data: Data
    task: str | tasks.Task
    settings: FinalSettings
    folder: Path
    resolution: int | None = None

    @property
    def about(self) -> dict[str, Any]:
        """It in JSON values, for whoever looks at many trainings."""
        network = self.network.id if isinstance(self.network, LowFormerConfig) else type(self.network).__name__
        data = self.data if isinstance(self.data, str) else sources.source(self.data).spec
        return {"network": network, "data": data, **self.settings.to_dict()}


@dataclass(frozen=True)
class _Places:
    """Where it is trained: in this process, or by Ray workers."""

    workers: int = 0
    ray_address: str | None = None
    insecure: bool = False


def _asked(
    network: Network | None,
    data: Data | None,
    run: str | Path | None,
    folder: Path | None,
    options: Mapping[str, Any],
    workers: int,
    *,
    resume: bool,
) -> AskedTraining:
    """Finds a training's parts by their names; what is not given is the run's, or the one's that is gone on with.

    Args:
        folder: of the training; None where nothing is written.
        options: arguments of `train`, None where they were not given.

    Raises ValueError, in one line, for what is missing, unknown or contradictory.
    """
    if network is not None and run is not None:
        raise ValueError("a network and a run: give one of them")
    searched = {} if run is None else run_settings(Path(run))
    stored = {} if folder is None else _stored(folder, resume=resume)
    if network is None:
        network = run_config(run) if run is not None else _stored_network(stored, folder)
    if data is None:
        data = stored.get("data") or searched.get("data")
    if data is None:
        raise ValueError("--data is missing: what to train on? (imagefolder:DIR, ...)")
    get = options.get
    threads = stored.get("threads") if get("threads") is None else get("threads")  # other numbers round otherwise
    machine = machine_settings(get("device"), threads, get("loaders"), workers)
    settings = FinalSettings(**_settings(options, stored, searched), **machine)
    if settings.freeze and settings.init_from is None and not isinstance(network, nn.Module):
        raise ValueError("--freeze: a frozen backbone needs weights to start from (--init-from)")
    return AskedTraining(
        network if isinstance(network, LowFormerConfig | nn.Module) else _found(network),
        absolute_data(data) if isinstance(data, str) else sources.source(data),
        get("task") or stored.get("task") or searched.get("task") or "classification",
        settings,
        folder or Path(),
        get("resolution") or stored.get("resolution"),
    )


def _settings(options: Mapping[str, Any], stored: Mapping[str, Any], searched: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `FinalSettings` that say how it is trained."""
    if options.get("budget") is not None and options.get("epochs") is not None:
        raise ValueError("--budget and --epochs: give one of them; a number of epochs takes the time that it takes")
    names = ("epochs", "init_from", "teacher", "freeze", "train_on", "seed")
    given = {name: options.get(name) for name in names}
    if (budget := options.get("budget")) is not None:
        given["budget_s"] = parse_duration(str(budget), "--budget")
    if (recipe := options.get("recipe")) is not None:
        given["choices"] = read_choices(recipe)
    for name in ("init_from", "teacher"):
        if (checkpoint := given[name]) is not None:
            there = Path(checkpoint).exists()
            given[name] = str(Path(checkpoint).absolute() if there else checkpoint)
    seed = searched.get("seed", 0)
    known = {name: value for name, value in given.items() if value is not None}
    return {"seed": seed, "data_seed": seed, **stored.get("settings", {}), **known}


def _stored(folder: Path, *, resume: bool) -> dict[str, Any]:
    """What training.json says, where there is one to go on with; raises ValueError where there must or must not be."""
    stored = stored_training(folder)
    if stored is not None and not resume:
        raise ValueError(f"there is already a training in {folder}: go on with it (--resume) or name another (--out)")
    if stored is None and resume:
        raise ValueError(f"no training to go on with in {folder}: it has no training.json")
    return stored or {}


def run_training(
    asked: AskedTraining,
    places: _Places | None = None,
    *,
    track: Sequence[str] = (),
    resume: bool = False,
    progress: bool | Report = False,
    announce: Callable[[Plan], None] | None = None,
) -> FinalTraining:
    """Trains what was asked for, in its folder, which no other process may train in meanwhile."""
    check_trackers(track)
    with ExitStack() as stack:
        stack.enter_context(claimed(asked.folder))
        reports: list[Report] = [progress] if callable(progress) else []

        def begin(plan: Plan) -> None:
            if announce is not None:
                announce(plan)
            trackers = open_trackers(track, asked.folder, {**asked.about, **plan.recipe.to_dict()})
            for tracker in trackers:
                stack.callback(tracker.close)
                reports.append(_logging(tracker))
            if progress is True:
                from ..results.progress import TrainingProgress

                reports.append(stack.enter_context(TrainingProgress()))

        def report(status: TrainingStatus) -> None:
            for tell in reports:
                tell(status)

        trained = _train(asked, places or _Places(), report, begin, resume=resume)
    values = {field.name: getattr(trained, field.name) for field in fields(TrainedNetwork)}
    return FinalTraining(**values, folder=asked.folder)


def _logging(tracker: Tracker) -> Report:
    def log(status: TrainingStatus) -> None:
        if status.row is not None:
            tracker.log(status.row["epoch"], status.row)

    return log


def _train(
    asked: AskedTraining, places: _Places, report: Report, announce: Callable[[Plan], None], *, resume: bool
) -> TrainedNetwork:
    options: dict[str, Any] = {"task": asked.task, "resolution": asked.resolution, "resume": resume}
    options |= {"report": report, "announce": announce}
    store = LocalStore(asked.folder)
    if not places.workers and places.ray_address is None:
        return train_network(asked.network, asked.data, store, asked.settings, **options)
    from .distributed import train_distributed

    return train_distributed(
        asked.network,
        asked.data,
        store,
        asked.settings,
        workers=places.workers,
        address=places.ray_address,
        insecure=places.insecure,
        **options,
    )


class _Settled(Exception):
    """Ends a training when its plan is known."""

    def __init__(self, plan: Plan) -> None:
        super().__init__("the plan is known")
        self.plan = plan


class _Nowhere:
    """A store that keeps nothing."""

    def write(self, name: str, content: bytes) -> None:
        pass

    def read(self, name: str) -> bytes | None:
        return None

    def remove(self, name: str) -> None:
        pass


def plan_training(asked: AskedTraining) -> Plan:
    """Settles a training's recipe and epochs, as `train` would; nothing is trained or written."""

    def stop(plan: Plan) -> None:
        raise _Settled(plan)

    try:
        train_network(
            asked.network,
            asked.data,
            _Nowhere(),
            asked.settings,
            task=asked.task,
            resolution=asked.resolution,
            announce=stop,
        )
    except _Settled as settled:
        return settled.plan
    raise AssertionError("a training announces its plan")


# --- by their names


def _folder(network: Network | None, run: str | Path | None, out: str | Path | None, *, resume: bool) -> Path:
    if out is not None:
        return Path(out)
    if run is not None:
        return Path(run) / TRAINING
    if resume:
        raise ValueError("--resume: name the training to go on with (--out DIR), or its run (--run DIR)")
    if network is None:
        raise ValueError(_NOTHING)
    if isinstance(network, LowFormerConfig):
        name = network.id
    else:
        name = type(network).__name__.lower() if isinstance(network, nn.Module) else Path(network).stem
    return new_folder(Path("trainings"), name)


def _found(network: str | Path) -> LowFormerConfig:
    found = find_network(network)
    if not isinstance(found, LowFormerConfig):
        raise ValueError(f"{network} is not a configuration: an ONNX file cannot be trained")
    return found


def _stored_network(stored: Mapping[str, Any], folder: Path | None) -> LowFormerConfig:
    if not stored:
        raise ValueError(_NOTHING)
    try:
        return LowFormerConfig.from_dict(stored["network"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder} holds the training of a torch module: give it again to go on") from None
