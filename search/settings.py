"""The settings of a search: names, types, defaults and help, in one place.

The command line, the arguments of `lownas.search.search`, run.json and the documentation all follow from the fields of
`SearchSettings`.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from ..search_space.config import one_line
from .command_options import EVALUATE, TRAIN
from .quantities import parse_duration, parse_quantity

Kind = Literal["plain", "flag", "seconds", "milliseconds", "amount", "bytes", "budgets"]
# What a kind's unit adds to a field's name; people give the unit with the value.
_UNIT: Mapping[Kind, str] = {"seconds": "_s", "milliseconds": "_ms", "bytes": "_bytes"}


@dataclass(frozen=True)
class Option:
    """How a setting is given by people.

    Attributes:
        help: one line, without the default.
        group: heading that it stands under in the help; empty where it is given in Python only.
        kind: how its text is read. "seconds" and "milliseconds" are durations with a unit ("2ms"), "amount" and "bytes"
            numbers such as "5M" and "50MB", "budgets" a list of TARGET=DURATION.
        default: what is done where nothing is given, if the field's default does not say it.
        changeable: whether a resumed run may change it; all others decide what the run's numbers mean.
    """

    help: str
    group: str
    kind: Kind = "plain"
    default: str = ""
    changeable: bool = False

    def shown_default(self, field: FieldInfo) -> str:
        """The default as people read it; empty where there is none, or it goes without saying."""
        if self.default or self.kind in ("flag", "budgets") or field.is_required() or field.default is None:
            return self.default
        return str(field.default)


_GOAL, _SPACE, _ACCURACY = "Target and limits", "Space", "Accuracy"
_SEARCH, _WORKERS, _RUN = "Search", "Workers", "Run"
_CODE = ""  # given in Python only
_ASKS = "asks for trainings where there is no --data"

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SearchSettings(BaseModel):
    """Everything that one search was asked to do; frozen, with a JSON round trip (run.json)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Annotated[
        str, Option("Device and setting: rtx3090, cpu (`lownas targets` lists them), or a YAML file.", _GOAL)
    ] = Field(min_length=1)
    latency_budget_ms: Annotated[
        float, Option("What the latency must not exceed: 2ms, 800us.", _GOAL, "milliseconds")
    ] = Field(gt=0, allow_inf_nan=False)
    pareto: Annotated[
        bool, Option("Find the front of accuracy against latency, up to the budget if one is given.", _GOAL, "flag")
    ] = False
    also: Annotated[
        dict[str, _Positive],
        Option("A further target whose budget must hold too: cpu=20ms; may be repeated.", _GOAL, "budgets"),
    ] = Field(default_factory=dict)
    max_params: Annotated[_Positive | None, Option("Most parameters: 5M.", _GOAL, "amount")] = None
    max_macs: Annotated[_Positive | None, Option("Most multiply-accumulates of one image: 600M.", _GOAL, "amount")] = (
        None
    )
    max_memory_bytes: Annotated[
        _Positive | None, Option("Most memory for weights and activations: 50MB.", _GOAL, "bytes")
    ] = None
    confidence: Annotated[float, Option("The answer is within the budget with this probability.", _GOAL)] = Field(
        default=0.9, ge=0.5, lt=1
    )

    budget_on: Annotated[
        Literal["undisturbed", "p50", "p90", "p99"],
        Option("The latency within the budget: undisturbed, or a percentile under load (devices at hand).", _GOAL),
    ] = "undisturbed"

    space: Annotated[str, Option("`default`, `tiny`, or a YAML file of your own.", _SPACE)] = "default"
    resolution: Annotated[
        int | None, Option("Fixes the input resolution, in pixels.", _SPACE, default="the space decides")
    ] = Field(default=None, ge=16, le=2048)

    data: Annotated[
        str | None,
        Option(
            "What to train on: imagefolder:DIR, arrays:PATH, hf:NAME, cifar10:PATH, ...",
            _ACCURACY,
            default="none: ImageNet top-1 is predicted, nothing trains",
        ),
    ] = None
    task: Annotated[str, Option("What the network is to do with an image.", _ACCURACY)] = "classification"
    objective: Annotated[
        str | None,
        Option(
            "What is maximized: accuracy (on your data), imagenet (top-1), or another one by its name.",
            _ACCURACY,
            default="accuracy with --data, else imagenet",
        ),
    ] = None
    proxy_budget_s: Annotated[
        _Positive | None,
        Option(f"Time for all proxy trainings together; {_ASKS}.", _ACCURACY, "seconds", "6m"),
    ] = None
    proxy_epochs: Annotated[
        int | None, Option(f"Pins the epochs of a proxy training; {_ASKS}.", _ACCURACY, default="chosen for the time")
    ] = Field(default=None, ge=1)
    init_from: Annotated[
        str | None,
        Option(
            f"Checkpoint of a LowFormer whose weights all candidates start from; {_ASKS}.",
            _ACCURACY,
            default="fresh weights",
        ),
    ] = None
    rungs: Annotated[
        int | None,
        Option(
            f"Points of a training at which only the best third goes on, 1 trains all to the end; {_ASKS}.",
            _ACCURACY,
            default="3 with --data (2 with --pareto), else 1",
        ),
    ] = Field(default=None, ge=1, le=6)
    repeats: Annotated[
        int, Option("Candidates that are trained again with a second seed.", _ACCURACY, changeable=True)
    ] = Field(default=5, ge=0)

    train_s: Annotated[
        _Positive | None,
        Option(
            "Train the answer on the data, after the search, for so long: 1h.", _ACCURACY, "seconds", changeable=True
        ),
    ] = None

    strategy: Annotated[
        str | None,
        Option(
            f"Who proposes candidates: surrogate, evolution, or a sampler of Optuna (tpe, nsga2, gp, random); {_ASKS}.",
            _SEARCH,
            default="surrogate with --data, else evolution",
        ),
    ] = None
    trials: Annotated[
        int, Option("Distinct candidates to train, or to keep where nothing trains.", _SEARCH, changeable=True)
    ] = Field(default=16, ge=1)
    time_budget_s: Annotated[
        _Positive | None,
        Option("No training starts that would end later: 5m, 2h.", _SEARCH, "seconds", changeable=True),
    ] = None
    seed: Annotated[int, Option("Of everything random in the run.", _SEARCH)] = Field(default=0, ge=0, lt=2**32)
    workers: Annotated[
        int,
        Option("Ray workers; 0 trains in this process.", _WORKERS, default="one per core", changeable=True),
    ] = Field(default=0, ge=0, le=4096)
    gpu_fraction: Annotated[
        float | None,
        Option("Share of a GPU that each worker has.", _WORKERS, default="GPUs are shared evenly", changeable=True),
    ] = Field(default=None, gt=0, le=1)
    trial_timeout_s: Annotated[
        _Positive | None, Option("A training that takes longer has failed: 10m.", _WORKERS, "seconds", changeable=True)
    ] = None
    ray_address: Annotated[
        str | None,
        Option(
            "A Ray cluster that is there: auto on one of its nodes, or HOST:PORT.",
            _WORKERS,
            default="workers start on this machine",
            changeable=True,
        ),
    ] = None
    insecure: Annotated[bool, Option("Accept a cluster without authentication.", _WORKERS, "flag", changeable=True)] = (
        False
    )

    run: Annotated[str, Option("The run folder.", _RUN, default="runs/TARGET-BUDGET-N", changeable=True)] = Field(
        min_length=1
    )
    storage: Annotated[str | None, Option("Optuna storage URL.", _RUN, default="study.db in the run folder")] = None

    evaluations: Annotated[
        int, Option("Configurations that are scored by prior and latency predictor to propose candidates.", _CODE)
    ] = Field(default=20_000, ge=100)
    finalists: Annotated[
        int, Option("How many of the best are measured where the target is at hand.", _CODE, changeable=True)
    ] = Field(default=3, ge=1)

    @property
    def trains(self) -> bool:
        """Whether trainings are asked for: there is data, or an option that only means something for trainings."""
        asked = (self.data, self.proxy_budget_s, self.proxy_epochs, self.init_from, self.rungs, self.strategy)
        return any(value is not None for value in asked)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for name in ("trial_timeout_s", "ray_address", "gpu_fraction"):
            if getattr(self, name) is not None and not self.workers:
                raise ValueError(f"{name} needs workers: with none, candidates train in the search's own process")
        if self.train_s is not None and self.data is None:
            raise ValueError("train needs data: say with --data what the answer is to be trained on")
        return self

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Settings from plain values. Raises ValueError, in one line, for unknown names or impossible values."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ValueError(f"impossible search settings: {one_line(error)}") from None

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def replace(self, **changes: Any) -> Self:
        return self.from_dict({**self.to_dict(), **changes})

    def check_resumable_from(self, stored: SearchSettings) -> None:
        """Raises ValueError if this run would not continue the one with the settings `stored`."""
        changeable = sorted(name for name, field in type(self).model_fields.items() if _option(field).changeable)
        for name in type(self).model_fields:
            before, now = getattr(stored, name), getattr(self, name)
            if name not in changeable and before != now:
                raise ValueError(
                    f"cannot resume with {name} = {now!r}: the run was started with {before!r} "
                    f"(may change: {', '.join(changeable)}); search anew with it: "
                    f"{replay_command(Path(self.run), _written(name, now))}"
                )


def options() -> dict[str, tuple[str, FieldInfo, Option]]:
    """The settings by the names that people use: each with the field's name, the field and how it is given."""
    found = {}
    for name, field in SearchSettings.model_fields.items():
        option = _option(field)
        found[name.removesuffix(_UNIT.get(option.kind, ""))] = (name, field, option)
    return found


def options_page() -> str:
    """docs/options.md: every setting with its default and help, in Markdown."""
    lines = [
        "# Settings of a search",
        "",
        'The same names on the command line (`--latency-budget 2ms`) and in Python (`search(latency_budget="2ms")`).',
        "Made from `search/settings.py`; a test holds it to that. *r* marks what a resumed run may change.",
    ]
    group = None
    for name, (_, field, option) in options().items():
        if option.group != group:
            group = option.group
            lines += ["", f"## {group or 'In Python only'}", "", "| setting | default | |", "|---|---|---|"]
        may_change = " *r*" if option.changeable else ""
        shown = name.replace("_", "-") if group else name
        lines.append(f"| `{shown}`{may_change} | {option.shown_default(field)} | {option.help} |")
    for command, known in (("train", TRAIN), ("evaluate", EVALUATE)):
        lines += ["", f"# Options of `lownas {command}`", "", "| option | |", "|---|---|"]
        lines += [f"| `{one.flags}` | {one.help} |" for one in known]
    return "\n".join(lines) + "\n"


def replay_command(run: Path, options: str) -> str:
    """The command that searches anew as the run in `run` did, but for these options."""
    return f"lownas --replay {shlex.quote(str(run / 'run.json'))} {options}"


def read_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Field values from settings as people give them ("latency_budget": "2ms"); those that are None are left out.

    Raises ValueError for an unknown name, naming the nearest known ones, or a text that cannot be read.
    """
    known = options()
    values = {}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"unknown setting {name!r}: {hint}")
        if value is not None:
            field, _, option = known[name]
            values[field] = _read(value, option.kind, f"--{name.replace('_', '-')}")
    return values


def _read(value: Any, kind: Kind, what: str) -> Any:
    if kind == "seconds":
        return parse_duration(str(value), what)
    if kind == "milliseconds":
        return milliseconds(str(value), what)
    if kind in ("amount", "bytes") and isinstance(value, str):
        return parse_quantity(value, what, "B" if kind == "bytes" else "")
    if kind == "budgets":
        pairs = value.items() if isinstance(value, Mapping) else [_budget(text) for text in value]
        return {target: milliseconds(str(budget), f"{what} {target}") for target, budget in pairs}
    return value


def milliseconds(text: str, what: str) -> float:
    """A duration in ms, without the noise of a unit's factor in the last digits."""
    return round(1e3 * parse_duration(text, what), 9)


def _budget(text: str) -> tuple[str, str]:
    name, equals, budget = text.rpartition("=")
    if not equals:
        raise ValueError(f"--also: a target and its latency budget, such as cpu=20ms, given {text!r}")
    return name, budget


def _written(name: str, value: Any) -> str:
    """How a field is given on the command line, in short."""
    option = _option(SearchSettings.model_fields[name])
    dashed = name.removesuffix(_UNIT.get(option.kind, "")).replace("_", "-")
    if option.kind == "flag":
        return f"--{dashed}" if value else f"--no-{dashed}"
    return f"--{dashed} ..."


def _option(field: FieldInfo) -> Option:
    return next(item for item in field.metadata if isinstance(item, Option))
