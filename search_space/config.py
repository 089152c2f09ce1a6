"""What an architecture is: one frozen, validated, hashable description of one point of the LowFormer space.

Settings that the rest of a configuration switches off are reset to their defaults when it is made, so that two
configurations which build the same network are equal, hash equally and share one `id`.

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


def _known_reduction(value: float) -> float:
    if value not in (0.25, 0.5, 1.0):
        raise ValueError("allowed are 0.25, 0.5 and 1.0")
    return value


Reduction = Annotated[float, AfterValidator(_known_reduction)]

_PLACEMENT = re.compile(r"all|alternate|last_[1-9]\d*")
_FUSED_BELOW = re.compile(r"fused_below_([1-9]\d*)")


def one_line(error: ValidationError) -> str:
    """A pydantic error as one line: where, what was given, what is allowed."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "config"
        if item["type"] == "extra_forbidden":
            parts.append(f"{where}: unknown key")
        elif item["type"] == "missing":
            parts.append(f"{where}: missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item["input"], dict | list) else f" (given: {item['input']!r})"
            parts.append(f"{where}: {message}{given}")
    return "; ".join(parts)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Attention(_Frozen):
    """Lowtention in the blocks of one stage.

    Attributes:
        placement: which of the stage's LowFormer blocks attend: "all", "alternate" (every other one, counted back from
            the last) or "last_K" (the last K).
        stride: the attention works on the map reduced by this factor in each direction.
        reduction: share of the block's channels that attention works with (0.5 in all published models).
        upsampling: how the result returns to C channels and full size: "transposed" (one dense transposed convolution,
            projection included), "separable" (1x1 convolution, then a depthwise transposed one) or "nearest" (1x1
            convolution, then nearest-neighbour upsampling; CPUBone).
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
        """For each of `depth` blocks, whether it attends."""
        return _attends(self.placement, depth)

    def canonical(self, depth: int) -> Attention:
        """The same attention under the first of its possible names (one attending block is "last_1", say)."""
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
    """One of the four stages. The first block of each is a stride-2 downsampler (a fused local block, 3x3).

    Attributes:
        width: output channels.
        depth: blocks, counted as the papers do: in stages 1 and 2 the downsampler is one of them (1 = the downsampler
            alone), in stages 3 and 4 it is not.
        down_expansion: channel expansion of the downsampler.
        expansion: channel expansion of the other local blocks.
        local: "fused" (dense convolution, then 1x1) or "unfused" (1x1, depthwise, 1x1) local blocks;
            "fused_below_N" is accepted and means fused if width < N (256 in the published models).
        kernel: kernel size of the local blocks; with 2 the attention's reducing convolution is 2x2 as well (CPUBone).
        groups: groups of the expanding convolutions, the downsampler's included (2 in CPUBone).
        attention: Lowtention (stages 2, 3 and 4), or None.
        mlp_ratio: hidden channels of the MLP over the block's; 0 is no MLP (stages 2, 3 and 4).
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
        stem_depth: residual local blocks at the stem's width.
        stem_expansion: their channel expansion.
        stem_groups: groups of their expanding convolution.
        stages: the four stages, at strides 4, 8, 16 and 32 of the input.
        head_widths: (channels of the head's 1x1 convolution, width of its hidden linear layer).
        classes: outputs of the classifier.
    """

    resolution: int = Field(default=224, ge=16, le=2048)
    stem_width: int = Field(ge=4, le=1024, multiple_of=2)
    stem_depth: int = Field(default=0, ge=0, le=16)
    stem_expansion: int = Field(default=2, ge=1, le=16)
    stem_groups: int = Field(default=1, ge=1, le=64)
    stages: tuple[StageConfig, StageConfig, StageConfig, StageConfig]
    head_widths: tuple[int, int] = (1536, 1600)
    classes: int = Field(default=1000, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _validate_and_canonicalize(self) -> Self:
        if min(self.head_widths) < 1:
            raise ValueError(f"head_widths: both must be at least 1, given {self.head_widths}")
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
        object.__setattr__(self, name, value)  # only while it is being made

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits derived from the content."""
        content = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON or YAML."""
        return self.model_dump(mode="json")

    def to_json(self, indent: int | None = None) -> str:
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """The configuration that `to_dict` gave. Raises ValueError, in one line, for unknown keys or bad values."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a LowFormer config is a mapping with keys {sorted(cls.model_fields)}, not {data!r:.60}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ValueError(f"not a LowFormer config: {one_line(error)}") from None

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"not a LowFormer config: broken JSON: {error}") from None
        return cls.from_dict(data)

    def replace(self, **changes: Any) -> Self:
        """A copy with these fields changed, validated again."""
        return self.from_dict({**self.to_dict(), **changes})


def blocks_after_downsampler(number: int, stage: StageConfig) -> int:
    """Blocks of stage `number` (1-4) that keep the map's size."""
    return stage.depth - 1 if number <= 2 else stage.depth


@lru_cache(maxsize=8192)
def _canonical_stage(number: int, in_width: int, stage: StageConfig) -> StageConfig:
    """Checks `stage` in its place and resets what is switched off."""
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
