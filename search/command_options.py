"""The options of `lownas train` and `lownas evaluate`, which are those of the functions of these names in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WHAT, _HOW, _RESULT, _MACHINE = "What", "How", "Result", "Machine"


@dataclass(frozen=True)
class CommandOption:
    """One option of a command.

    Attributes:
        name: in Python; on the command line with dashes.
        kind: its type on the command line; a flag is a bool.
        help: one line; the default stands in square brackets.
        group: heading that it stands under in the help.
    """

    name: str
    kind: Any
    help: str
    group: str

    @property
    def flags(self) -> str:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}"


_RUN = CommandOption("run", Path, "The run folder of a search: its answer, on its data.", _WHAT)
_DATA = CommandOption("data", str, "Labelled images: imagefolder:DIR, arrays:PATH, ... [those of the run]", _WHAT)
_TASK = CommandOption("task", str, "What the network does with an image. [that of the run, or classification]", _WHAT)
_MACHINES = (
    CommandOption("device", str, "cpu or cuda. [a GPU if there is one]", _MACHINE),
    CommandOption("threads", int, "Of torch. [one for each core]", _MACHINE),
    CommandOption("loaders", int, "Processes that decode images where these do not fit into memory.", _MACHINE),
)
_JSON = CommandOption("json", bool, "JSON on stdout, and nothing else there.", _RESULT)

TRAIN: Sequence[CommandOption] = (
    _RUN,
    CommandOption("config", Path, "A config file (JSON) in the place of a run.", _WHAT),
    CommandOption("preset", str, "A published model in the place of a run.", _WHAT),
    _DATA,
    _TASK,
    CommandOption("resolution", int, "Side of the images in pixels. [the network's]", _WHAT),
    CommandOption("budget", str, "Wall time of the whole training: 1h; it decides how many epochs there are.", _HOW),
    CommandOption("epochs", int, "Passes over the training images, in the place of --budget.", _HOW),
    CommandOption("set", list[str], "A choice of the recipe: mixup=0.2; may be repeated.", _HOW),
    CommandOption("init_from", str, "Checkpoint to start from, or timm:NAME. [fresh weights]", _HOW),
    CommandOption("teacher", str, "Checkpoint of a network whose outputs are learned from too.", _HOW),
    CommandOption("freeze", bool, "Train only the head; needs --init-from.", _HOW),
    CommandOption("train_on", str, "train, or train+validation: then only the test part can judge. [train]", _HOW),
    CommandOption("seed", int, "Of weights, order and augmentation. [that of the run, or 0]", _HOW),
    CommandOption("out", Path, "Folder of the training. [RUN/training, or trainings/NAME-N]", _RESULT),
    CommandOption("track", str, "Metrics go there too, beside log.csv: tensorboard,mlflow.", _RESULT),
    CommandOption("resume", bool, "Go on with the training in --out or --run; the rest is as it was there.", _RESULT),
    CommandOption("dry_run", bool, "Only say how it would be trained.", _RESULT),
    _JSON,
    *_MACHINES,
    CommandOption("workers", int, "Ray workers that train it together. [0: this process]", _MACHINE),
    CommandOption("ray_address", str, "A Ray cluster that is there: auto on one of its nodes, or HOST:PORT.", _MACHINE),
    CommandOption("insecure", bool, "Accept a cluster without authentication.", _MACHINE),
)

EVALUATE: Sequence[CommandOption] = (
    CommandOption("run", Path, "The run folder of a search whose answer was trained.", _WHAT),
    CommandOption("checkpoint", str, "The folder of a training, a checkpoint, or timm:NAME.", _WHAT),
    CommandOption("onnx", Path, "An ONNX file.", _WHAT),
    CommandOption("data", str, "Labelled images: imagefolder:DIR, arrays:PATH, ... [those of the training]", _WHAT),
    _TASK,
    CommandOption("part", str, "test, validation or train. [test]", _WHAT),
    CommandOption("resolution", int, "Side of the images in pixels, where the network does not say it.", _WHAT),
    CommandOption("mean", str, "Of the input's channels, where the network does not say it: 0.5,0.5,0.5.", _WHAT),
    CommandOption("std", str, "Of these too: the input is (pixel / 255 - mean) / std.", _WHAT),
    CommandOption("seed", int, "Of the split into training and validation. [that of the training, or 0]", _WHAT),
    _JSON,
    *_MACHINES,
)
