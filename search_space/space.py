"""The search space: which values each part of a configuration may take.

A space is a YAML file. Its set of parameters is static: every parameter is always drawn. Values that have no effect
because of other choices are reset when the configuration is made, so different draws may give the same architecture
(the same `id`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .config import (
    DEFAULT_HEAD,
    Attention,
    LowFormerConfig,
    Reduction,
    StageConfig,
    Upsampling,
    blocks_after_downsampler,
    is_default_head,
    one_line,
)

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Choice = str | int | float
MUTATION_ATTEMPTS = 100
"""How often `mutate` redraws at most until the result is a different configuration."""
JUMP_PROBABILITY = 0.2
"""How often a redrawn number may become any other value instead of a neighbouring one."""
CACHED_CODES, CACHED_PARAMETERS, CACHED_STAGES = 10_000, 3_000, 8_192
"""How many results of `encode`, of `to_params` and of its parts a space keeps for the next call."""


class _Choices(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _nothing_empty_or_twice(self) -> Self:
        for name in type(self).model_fields:
            values = getattr(self, name)
            if isinstance(values, tuple) and name != "stages" and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name}: at least one value and none twice, given {list(values)}")
        return self


class StageChoices(_Choices):
    """The values that the settings of one stage may take; the fields are those of `StageConfig` and `Attention`."""

    width: tuple[int, ...]
    depth: tuple[int, ...]
    down_expansion: tuple[int, ...] = (6,)
    expansion: tuple[int, ...] = (4,)
    local: tuple[str, ...] = ("fused_below_256",)
    attention: tuple[str, ...] = ("none",)
    stride: tuple[Literal[1, 2, 4], ...] = (2,)
    reduction: tuple[Reduction, ...] = (0.5,)
    mlp_ratio: tuple[int, ...] = (0,)


class SpaceChoices(_Choices):
    """The content of a space's YAML file: the values that each setting of a configuration may take.

    `classes` and `head` are the same for all configurations of a space.
    """

    name: str = Field(min_length=1, max_length=64)
    resolution: tuple[int, ...]
    stem_width: tuple[int, ...]
    stem_depth: tuple[int, ...] = (0,)
    stem_expansion: tuple[int, ...] = (2,)
    head_widths: tuple[tuple[int, int], ...] = ((1536, 1600),)
    classes: int = 1000
    head: str = Field(default=DEFAULT_HEAD, min_length=1, max_length=64, exclude_if=is_default_head)
    groups: tuple[int, ...] = (1,)
    kernel: tuple[Literal[2, 3, 5], ...] = (3,)
    upsampling: tuple[Upsampling, ...] = ("transposed",)
    stages: tuple[StageChoices, StageChoices, StageChoices, StageChoices]

    @field_validator("resolution")
    @classmethod
    def _sorted(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(values))


@lru_cache(maxsize=8192)
def _stage(
    fields: tuple[str, ...], values: tuple[Choice, ...], kernel: int, groups: int, upsampling: str
) -> StageConfig:
    own = dict(zip(fields, values, strict=True))
    placement, stride, reduction = (own.pop(name, None) for name in ("attention", "stride", "reduction"))
    attention = None
    if placement not in (None, "none"):
        attention = {"placement": placement, "stride": stride, "reduction": reduction, "upsampling": upsampling}
    return StageConfig.model_validate({**own, "kernel": kernel, "groups": groups, "attention": attention})


class SearchSpace:
    """A space of LowFormer configurations.

    Attributes:
        choices: the values that each setting may take.
        parameters: the static set of parameters, name to allowed values, in a fixed order. Names are those of the
            configuration's settings; those of a stage have its number before them ("s3.width").
    """

    def __init__(self, choices: SpaceChoices) -> None:
        self.choices = choices
        self.parameters: dict[str, tuple[Choice, ...]] = {
            "resolution": choices.resolution,
            "stem_width": choices.stem_width,
            "stem_depth": choices.stem_depth,
            "stem_expansion": choices.stem_expansion,
            "head_widths": tuple(f"{a}x{b}" for a, b in choices.head_widths),
            "groups": choices.groups,
            "kernel": choices.kernel,
            "upsampling": choices.upsampling,
        }
        for number, stage in enumerate(choices.stages, start=1):
            fields = ["width", "depth", "down_expansion", "expansion", "local"]
            if number > 1:
                fields += ["attention", "stride", "reduction", "mlp_ratio"]
            for field in fields:
                self.parameters[f"s{number}.{field}"] = getattr(stage, field)
        self._known_stages: dict[tuple[int, StageConfig], dict[str, Choice | None]] = {}
        self._params: dict[str, dict[str, Choice]] = {}
        self._codes: dict[str, NDArray[np.float64]] = {}
        self._stage_fields = [
            {name.partition(".")[2]: name for name in self.parameters if name.startswith(f"s{number}.")}
            for number in range(1, 5)
        ]
        self._check_corners()

    @classmethod
    def load(cls, name: str | Path, resolution: int | None = None) -> SearchSpace:
        """Reads a shipped space by its name ("default", "tiny"), or the user's own YAML file.

        Args:
            name: the name or the file.
            resolution: fixes the input resolution in pixels, whatever the file allows.

        Raises:
            ValueError: an unknown name, a broken file, an unknown key or an impossible value; in one line.
        """
        import yaml  # here, so that predicting needs no YAML

        shipped = {
            Path(entry.name).stem: entry
            for entry in resources.files(f"{__package__}.spaces").iterdir()
            if entry.name.endswith(".yaml")
        }
        if str(name) in shipped:
            text = shipped[str(name)].read_text(encoding="utf-8")
        elif Path(name).is_file():
            try:
                text = Path(name).read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"space {name}: not a text file ({error.reason})") from None
        else:
            near = difflib.get_close_matches(str(name), shipped, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"space {str(name)!r}: neither a file nor one of {sorted(shipped)}{hint}")
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"space {name}: broken YAML: {' '.join(str(error).split())}") from None
        if not isinstance(data, dict):
            raise ValueError(f"space {name}: a space is a mapping with keys {sorted(SpaceChoices.model_fields)}")
        if resolution is not None:
            data["resolution"] = [resolution]
        return cls.from_dict(data, str(name))

    @classmethod
    def from_dict(cls, data: dict[str, Any], name: str) -> SearchSpace:
        """The space of a YAML file's content. Raises ValueError, in one line that begins with `name`."""
        try:
            return cls(SpaceChoices.model_validate(data))
        except ValidationError as error:
            raise ValueError(f"space {name}: {one_line(error)}") from None

    @property
    def name(self) -> str:
        return self.choices.name

    @property
    def size(self) -> int:
        """Number of combinations of all parameters' values; some combinations give the same architecture."""
        return math.prod(len(values) for values in self.parameters.values())

    def from_params(self, params: dict[str, Any]) -> LowFormerConfig:
        """Makes the configuration that a full set of parameter values describes."""
        stages = []
        for number, fields in enumerate(self._stage_fields, start=1):
            values = tuple(params[name] for name in fields.values())
            kernel = params["kernel"] if number >= 3 else 3
            stages.append(_stage(tuple(fields), values, kernel, params["groups"], params["upsampling"]))
        first, _, second = params["head_widths"].partition("x")
        return LowFormerConfig(
            resolution=params["resolution"],
            stem_width=params["stem_width"],
            stem_depth=params["stem_depth"],
            stem_expansion=params["stem_expansion"],
            stem_groups=params["groups"],
            stages=tuple(stages),  # type: ignore[arg-type]
            head_widths=(int(first), int(second)),
            classes=self.choices.classes,
            head=self.choices.head,
        )

    def to_params(self, config: LowFormerConfig) -> dict[str, Choice]:
        """Gives a set of parameter values that describes `config`.

        Parameters that have no effect on it get their first allowed value. Raises ValueError, naming the first thing
        that lies outside this space.
        """
        if (known := self._params.get(config.id)) is not None:
            return dict(known)
        if config.classes != self.choices.classes:
            raise ValueError(
                f"config {config.id} is outside space {self.name!r}: "
                f"{config.classes} classes, not {self.choices.classes}"
            )
        if config.head != self.choices.head:
            raise ValueError(
                f"config {config.id} is outside space {self.name!r}: head {config.head!r}, not {self.choices.head!r}"
            )
        wanted = self._wanted(config)
        params: dict[str, Choice] = {}
        for name, values in self.parameters.items():
            value = values[0] if wanted[name] is None else wanted[name]
            if value not in values:
                raise ValueError(
                    f"config {config.id} is outside space {self.name!r}: {name} = {value!r}, not in {list(values)}"
                )
            params[name] = value  # type: ignore[assignment]
        if self.from_params(params) != config:
            raise ValueError(
                f"config {config.id} is outside space {self.name!r}: its stages differ in groups, kernel or upsampling"
            )
        if len(self._params) >= CACHED_PARAMETERS:
            self._params.clear()
        self._params[config.id] = params
        return dict(params)

    def nearest(self, config: LowFormerConfig) -> LowFormerConfig:
        """Gives the configuration of this space that comes closest to `config`, which may lie outside of it.

        Each parameter takes its nearest value, by logs; a name that the space lacks becomes the first of its names.
        """
        wanted = self._wanted(config)
        return self.from_params({name: _nearest(values, wanted[name]) for name, values in self.parameters.items()})

    def _wanted(self, config: LowFormerConfig) -> dict[str, Choice | None]:
        """The value of each parameter that describes `config`, allowed or not; None for those without effect on it."""
        groups = config.stages[0].groups
        with_blocks = [
            (n, stage) for n, stage in enumerate(config.stages, start=1) if blocks_after_downsampler(n, stage)
        ]
        late = [stage for n, stage in with_blocks if n >= 3]
        attending = [stage.attention for _, stage in with_blocks if stage.attention]
        wanted: dict[str, Choice | None] = {
            "resolution": config.resolution,
            "stem_width": config.stem_width,
            "stem_depth": config.stem_depth,
            "stem_expansion": config.stem_expansion if config.stem_depth else None,
            "head_widths": "{}x{}".format(*config.head_widths),
            "groups": groups,
            "kernel": late[0].kernel if late else None,
            "upsampling": attending[0].upsampling if attending else None,
        }
        for number, stage in enumerate(config.stages, start=1):
            wanted |= self._stage_params(number, stage)
        return wanted

    def _stage_params(self, number: int, stage: StageConfig) -> dict[str, Choice | None]:
        """Gives the parameters of one stage; None for those that have no effect."""
        if (number, stage) in self._known_stages:
            return self._known_stages[number, stage]
        active = blocks_after_downsampler(number, stage) > 0
        attention = stage.attention
        wanted: dict[str, Choice | None] = {
            f"s{number}.width": stage.width,
            f"s{number}.depth": stage.depth,
            f"s{number}.down_expansion": stage.down_expansion,
            f"s{number}.expansion": stage.expansion if active else None,
            f"s{number}.local": self._local_name(number, stage) if active else None,
        }
        if number > 1:
            wanted |= {
                f"s{number}.attention": self._placement_name(number, stage) if active else None,
                f"s{number}.stride": attention.stride if attention else None,
                f"s{number}.reduction": attention.reduction if attention else None,
                f"s{number}.mlp_ratio": stage.mlp_ratio if active else None,
            }
        if len(self._known_stages) >= CACHED_STAGES:
            self._known_stages.clear()
        self._known_stages[number, stage] = wanted
        return wanted

    def _local_name(self, number: int, stage: StageConfig) -> str:
        """Finds the value of this space that means the stage's local blocks ("fused_below_256" may mean "fused")."""
        for name in self.parameters[f"s{number}.local"]:
            if StageConfig(width=stage.width, depth=stage.depth, local=name).local == stage.local:  # type: ignore[arg-type]
                return str(name)
        return stage.local

    def _placement_name(self, number: int, stage: StageConfig) -> str:
        """Finds the value of this space that means the stage's placement of attention."""
        if stage.attention is None:
            return "none"
        blocks = blocks_after_downsampler(number, stage)
        mask = stage.attention.attends(blocks)
        for name in self.parameters[f"s{number}.attention"]:
            if name != "none" and Attention(placement=str(name)).attends(blocks) == mask:
                return str(name)
        return stage.attention.placement

    def __contains__(self, config: object) -> bool:
        if not isinstance(config, LowFormerConfig):
            return False
        try:
            self.to_params(config)
        except ValueError:
            return False
        return True

    def sample(self, rng: np.random.Generator) -> LowFormerConfig:
        """Draws a configuration, each parameter uniformly from its values."""
        places = rng.random(len(self.parameters))
        return self.from_params(
            {
                name: values[int(place * len(values))]
                for (name, values), place in zip(self.parameters.items(), places, strict=True)
            }
        )

    def suggest(self, trial: BaseTrial) -> LowFormerConfig:
        """Lets an Optuna trial draw a configuration; every parameter is suggested, all of them are categorical."""
        return self.from_params(
            {name: trial.suggest_categorical(name, values) for name, values in self.parameters.items()}
        )

    def mutate(
        self, config: LowFormerConfig, rng: np.random.Generator, *, rate: float | None = None
    ) -> LowFormerConfig:
        """Gives a different configuration, in which each parameter was redrawn with probability `rate`.

        By default two parameters are redrawn on average. Numbers mostly move to a neighbouring value. Gives `config`
        itself if no different one was found, as in a space that has no other.
        """
        params = self.to_params(config)
        rate = 2 / len(params) if rate is None else rate
        for _ in range(MUTATION_ATTEMPTS):
            child = dict(params)
            redrawn = rng.random(len(params)) < rate
            for (name, values), redraw in zip(self.parameters.items(), redrawn, strict=True):
                if redraw and len(values) > 1:
                    child[name] = self._neighbour(values, params[name], rng)
            mutant = self.from_params(child)
            if mutant != config:
                return mutant
        return config

    @staticmethod
    def _neighbour(values: tuple[Choice, ...], value: Choice, rng: np.random.Generator) -> Choice:
        here = values.index(value)
        if isinstance(value, str) or rng.random() < JUMP_PROBABILITY:
            others = [index for index in range(len(values)) if index != here]
        else:
            others = [index for index in (here - 1, here + 1) if 0 <= index < len(values)]
        return values[others[rng.integers(len(others))]]

    def crossover(self, a: LowFormerConfig, b: LowFormerConfig, rng: np.random.Generator) -> LowFormerConfig:
        """Gives a child of two configurations.

        Each stage as a whole, and each parameter that belongs to no stage, comes from either parent.
        """
        params = (self.to_params(a), self.to_params(b))
        origin: dict[str, int] = {}
        child = {}
        for name in self.parameters:
            part = name.partition(".")[0] if "." in name else name
            child[name] = params[origin.setdefault(part, int(rng.integers(2)))][name]
        return self.from_params(child)

    def encode(self, config: LowFormerConfig) -> NDArray[np.float64]:
        """Encodes a configuration as a vector of numbers in [0, 1], one for each of `parameters` in their order.

        Each number is the place of the parameter's value among the allowed ones.
        """
        if (known := self._codes.get(config.id)) is not None:
            return known
        params = self.to_params(config)
        code = np.array(
            [values.index(params[name]) / max(1, len(values) - 1) for name, values in self.parameters.items()]
        )
        code.flags.writeable = False  # because the same array is given to all later callers
        if len(self._codes) >= CACHED_CODES:
            self._codes.clear()
        self._codes[config.id] = code
        return code

    def _check_corners(self) -> None:
        """Raises ValueError if some combination of values is no valid configuration.

        Validity is decided value by value, so trying each value once, with each number of groups, is enough.
        """
        for end in (0, -1):
            self.from_params({name: values[end] for name, values in self.parameters.items()})
        base: dict[str, Choice] = {name: values[0] for name, values in self.parameters.items()}
        base |= {
            name: max(v for v in values if isinstance(v, int))
            for name, values in self.parameters.items()
            if name.endswith("depth")
        }
        for groups in self.choices.groups:
            for name, values in self.parameters.items():
                for value in values:
                    self.from_params({**base, "groups": groups, name: value})


def _nearest(values: tuple[Choice, ...], wanted: Choice | None) -> Choice:
    """The allowed value that comes closest to the one that is wanted; the first one if there is no way to tell."""
    if wanted is None:
        return values[0]
    if wanted in values:
        return wanted
    if isinstance(wanted, str):
        if "x" not in wanted:
            return next((value for value in values if value != "none"), values[0])
        widths = [int(part) for part in wanted.split("x")]
        return min(values, key=lambda value: _distance([int(part) for part in str(value).split("x")], widths))
    return min(values, key=lambda value: _distance([float(value)], [float(wanted)]))


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(abs(math.log((a + 1) / (b + 1))) for a, b in zip(one, other, strict=True))
