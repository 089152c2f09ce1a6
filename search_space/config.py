"""The configuration of a network: one frozen, validated, hashable description of one point of the LowFormer space.

Settings that have no effect because others switch them off are reset to their defaults when a configuration is made.
So two configurations that build the same network are equal, hash equally and share one `id`.

Source of the design: LowFormer (WACV 2025, arXiv 2409.03460), "Beyond MACs" (IJCV 2026, arXiv 2603.26551) and CPUBone
(arXiv 2603.26425).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Upsampling = Literal["transposed", "separable", "nearest"]
LocalBlock = Literal["fused", "unfused"]
DEFAULT_HEAD = "classification"
"""The head of configurations that name none. Files and ids of such configurations do not mention the head."""
STAGES_COUNTING_DOWNSAMPLER = (1, 2)
"""In these stages the papers count the downsampler as one of the stage's blocks (`StageConfig.depth`)."""


def _known_reduction(value: float) -> float:
    if value not in (0.25, 0.5, 1.0):
        raise ValueError("allowed are 0.25, 0.5 and 1.0")
    return value


Reduction = Annotated[float, AfterValidator(_known_reduction)]

_PLACEMENT = re.compile(r"all|alternate|last_[1-9]\d*")
_FUSED_BELOW = re.compile(r"fused_below_([1-9]\d*)")


def is_default_head(name: str) -> bool:
    """Tells whether a head's name is left out of files and ids."""
    return name == DEFAULT_HEAD


MOST_HEAD_WIDTH = 65_536


def one_line(error: ValidationError) -> str:
    """Gives a pydantic error as one line that says where it is, what was given and what is allowed."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "config"
        if item["type"] == "extra_forbidden":
            parts.append(f"{where}: unknown key")
        elif item["type"] == "missing":
            parts.append(f"{where}: missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item["input"], dict | list) else f" (given: {item['input']!r:.200})"
            parts.append(f"{where}: {message}{given}")
    return "; ".join(parts)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Attention(_Frozen):
    """The attention (Lowtention) in the blocks of one stage.

    Attributes:
        placement: which of the stage's LowFormer blocks have attention: "all", "alternate" (every other one, counted
            back from the last) or "last_K" (the last K).
        stride: attention works on the feature map reduced by this factor in height and width.
        reduction: share of the block's channels that attention works with (0.5 in all published models).
        upsampling: how the result returns to all channels and full size: "transposed" (one dense transposed
            convolution, projection included), "separable" (1x1 convolution, then a depthwise transposed one) or
            "nearest" (1x1 convolution, then nearest-neighbour upsampling; CPUBone).
    """

    placement: str = "all"
    stride: Literal[1, 2, 4] = 2
    reduction: Reduction = 0.5
    upsampling: Upsampling = "transposed"

    @field_validator("placement")
    @classmethod
    def _known_placement(cls, value: str) -> str:
        if not _PLACEMENT.fullmatch(value):
            raise ValueError("allowed are 'all', 'alternate' and 'last_K' with K >= 1 (no attention: attention = null)")
        return value

    def attends(self, depth: int) -> tuple[bool, ...]:
        """Tells for each of `depth` blocks whether it has attention."""
        return _attends(self.placement, depth)

    def canonical(self, depth: int) -> Attention:
        """Gives the same attention with the first of its placement's possible names.

        Several names can mean the same blocks: of two blocks "alternate" and "last_1" both name the second.
        """
        placement = _canonical_placement(self.placement, depth)
        return self if placement == self.placement else self.model_copy(update={"placement": placement})


@lru_cache(maxsize=4096)
def _attends(placement: str, depth: int) -> tuple[bool, ...]:
    if placement == "all":
        return (True,) * depth
    if placement == "alternate":
        return tuple((depth - 1 - i) % 2 == 0 for i in range(depth))
    last = int(placement.removeprefix("last_"))
    return tuple(i >= depth - last for i in range(depth))


@lru_cache(maxsize=4096)
def _canonical_placement(placement: str, depth: int) -> str:
    mask = _attends(placement, depth)
    names = ("all", *(f"last_{k}" for k in range(1, depth)), "alternate")
    return next(name for name in names if _attends(name, depth) == mask)


class StageConfig(_Frozen):
    """One of the four stages. Its first block is a stride-2 downsampler (a fused 3x3 local block).

    Attributes:
        width: output channels.
        depth: number of blocks, counted as the papers do: in stages 1 and 2 the downsampler is one of them (1 is the
            downsampler alone), in stages 3 and 4 it is not.
        down_expansion: channel expansion of the downsampler.
        expansion: channel expansion of the other local blocks.
        local: "fused" (dense convolution, then 1x1) or "unfused" (1x1, depthwise, 1x1) local blocks;
            "fused_below_N" is accepted and means fused if width < N (256 in the published models).
        kernel: kernel size of the local blocks; with 2 the attention's reducing convolution is 2x2 as well (CPUBone).
        groups: groups of the expanding convolutions, the downsampler's included (2 in CPUBone).
        attention: attention in the blocks (possible in stages 2, 3 and 4), or None.
        mlp_ratio: hidden channels of the MLP divided by the block's channels; 0 means no MLP (possible in stages 2, 3
            and 4).
    """

    width: int = Field(ge=4, le=4096, multiple_of=2)
    depth: int = Field(ge=0, le=64)
    down_expansion: int = Field(default=6, ge=1, le=16)
    expansion: int = Field(default=4, ge=1, le=16)
    local: LocalBlock = "fused"
    kernel: Literal[2, 3, 5] = 3
    groups: int = Field(default=1, ge=1, le=64)
    attention: Attention | None = None
    mlp_ratio: int = Field(default=0, ge=0, le=16)

    @model_validator(mode="before")
    @classmethod
    def _resolve_fusion(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(local := data.get("local"), str):
            if match := _FUSED_BELOW.fullmatch(local):
                width = data.get("width")
                fused = isinstance(width, int) and width < int(match.group(1))
                return {**data, "local": "fused" if fused else "unfused"}
            if local not in ("fused", "unfused"):
                raise ValueError(f"local: allowed are 'fused', 'unfused' and 'fused_below_N', not {local!r}")
        return data


class LowFormerConfig(_Frozen):
    """One architecture, completely: everything that `build_model` and `op_graph` need.

    Attributes:
        resolution: side of the square input image in pixels.
        stem_width: channels of the stem (3x3 stride-2 convolution).
        stem_depth: number of residual local blocks at the stem's width.
        stem_expansion: channel expansion of these blocks.
        stem_groups: groups of their expanding convolution.
        stages: the four stages, whose feature maps have strides 4, 8, 16 and 32 relative to the input.
        head_widths: (channels of the 1x1 convolution, width of the hidden linear layer) of the classification head.
        classes: number of outputs of the head.
        head: name of the head, one of `search_space.heads.HEADS`. It is looked up when the network is built, so that
            configurations of a head that this process has not registered can still be read. `to_dict`, JSON and `id`
            leave it out where it is "classification".
    """

    resolution: int = Field(default=224, ge=16, le=2048)
    stem_width: int = Field(ge=4, le=1024, multiple_of=2)
    stem_depth: int = Field(default=0, ge=0, le=16)
    stem_expansion: int = Field(default=2, ge=1, le=16)
    stem_groups: int = Field(default=1, ge=1, le=64)
    stages: tuple[StageConfig, StageConfig, StageConfig, StageConfig]
    head_widths: tuple[int, int] = (1536, 1600)
    classes: int = Field(default=1000, ge=1, le=1_000_000)
    head: str = Field(default=DEFAULT_HEAD, min_length=1, max_length=64, exclude_if=is_default_head)

    @model_validator(mode="after")
    def _validate_and_canonicalize(self) -> Self:
        if not 1 <= min(self.head_widths) <= max(self.head_widths) <= MOST_HEAD_WIDTH:
            raise ValueError(f"head_widths: both must be 1 to {MOST_HEAD_WIDTH}, given {self.head_widths!s:.80}")
        if self.stem_depth == 0:
            self._set("stem_expansion", 2)
            self._set("stem_groups", 1)
        elif self.stem_width % self.stem_groups:
            raise ValueError(f"stem_groups: must divide stem_width {self.stem_width}, given {self.stem_groups}")
        width = self.stem_width
        stages = []
        for number, stage in enumerate(self.stages, start=1):
            stages.append(_canonical_stage(number, width, stage))
            width = stage.width
        self._set("stages", tuple(stages))
        return self

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # used only while the configuration is being made

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits derived from the content; equal architectures have equal ids."""
        content = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Gives plain values, ready for JSON or YAML."""
        return self.model_dump(mode="json")

    def to_json(self, indent: int | None = None) -> str:
        """Gives the same values as JSON text."""
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Makes a configuration from what `to_dict` gave. Raises ValueError, in one line, for anything else."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a LowFormer config is a mapping with keys {sorted(cls.model_fields)}, not {data!r:.60}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ValueError(f"not a LowFormer config: {one_line(error)}") from None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Makes a configuration from what `to_json` gave. Raises ValueError, in one line, for anything else."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"not a LowFormer config: broken JSON: {error}") from None
        return cls.from_dict(data)

    def replace(self, **changes: Any) -> Self:
        """Gives a copy with these fields changed, validated again."""
        return self.from_dict({**self.to_dict(), **changes})


def blocks_after_downsampler(number: int, stage: StageConfig) -> int:
    """Counts the blocks of stage `number` (1 to 4) that come after its downsampler and keep the feature map's size."""
    return stage.depth - 1 if number in STAGES_COUNTING_DOWNSAMPLER else stage.depth


@lru_cache(maxsize=8192)
def _canonical_stage(number: int, in_width: int, stage: StageConfig) -> StageConfig:
    """Checks a stage against its place in the network and resets the settings that have no effect there."""
    blocks = blocks_after_downsampler(number, stage)
    if blocks < 0:
        raise ValueError(f"stages.{number - 1}.depth: stages 1 and 2 count their downsampler, so at least 1, given 0")
    if in_width % stage.groups:
        raise ValueError(f"stages.{number - 1}.groups: must divide the {in_width} input channels, given {stage.groups}")
    if blocks and stage.width % stage.groups:
        raise ValueError(f"stages.{number - 1}.groups: must divide width {stage.width}, given {stage.groups}")
    if number == 1 and (stage.attention or stage.mlp_ratio):
        raise ValueError("stages.0: attention and MLP are possible in stages 2, 3 and 4 only")
    if blocks == 0:
        return stage.model_copy(
            update={"expansion": 4, "local": "fused", "kernel": 3, "attention": None, "mlp_ratio": 0}
        )
    if stage.attention:
        return stage.model_copy(update={"attention": stage.attention.canonical(blocks)})
    return stage
