"""Published models scaled in width, depth and resolution: what an engineer takes for a budget that none meets."""

from __future__ import annotations

from .config import LowFormerConfig, StageConfig, blocks_after_downsampler
from .presets import PRESETS
from .space import SearchSpace

FAMILIES = ("lowformer_b", "lowformer_e", "cpubone")
"""What the names of the published models begin with, by their design."""
WIDTHS = tuple(2 ** (step / 3) for step in range(-9, 4))
DEPTHS = (0.5, 1.0)
"""Factors by which `published_scaled` scales."""
_STEM_MULTIPLE, _STAGE_MULTIPLE, _HEAD_MULTIPLE = 4, 8, 32


def scaled(
    config: LowFormerConfig, *, width: float = 1.0, depth: float = 1.0, resolution: int | None = None
) -> LowFormerConfig:
    """The configuration with its widths, those of the head too, and its depths multiplied.

    Widths are rounded to multiples of 4 (stem), 8 (stages) and 32 (head), depths to at least one block beside the
    downsampler where there was one.
    """
    return config.replace(
        stem_width=_times(config.stem_width, width, _STEM_MULTIPLE),
        stages=tuple(_scaled_stage(number, stage, width, depth) for number, stage in enumerate(config.stages, 1)),
        head_widths=tuple(_times(each, width, _HEAD_MULTIPLE) for each in config.head_widths),
        resolution=config.resolution if resolution is None else resolution,
    )


def published_scaled(space: SearchSpace) -> dict[str, tuple[LowFormerConfig, ...]]:
    """By family: what is nearest in a space to its models, scaled in width and depth at each of the resolutions."""
    found: dict[str, dict[str, LowFormerConfig]] = {family: {} for family in FAMILIES}
    for name, preset in PRESETS.items():
        own = found[next(family for family in FAMILIES if name.startswith(family))]
        for width in WIDTHS:
            for depth in DEPTHS:
                nearest = space.nearest(scaled(preset, width=width, depth=depth))
                for pixels in space.choices.resolution:
                    config = nearest.replace(resolution=pixels)
                    own.setdefault(config.id, config)
    return {family: tuple(own.values()) for family, own in found.items()}


def _scaled_stage(number: int, stage: StageConfig, width: float, depth: float) -> StageConfig:
    blocks = blocks_after_downsampler(number, stage)
    fewer = blocks - max(1, round(blocks * depth)) if blocks else 0
    changes = {"width": _times(stage.width, width, _STAGE_MULTIPLE), "depth": stage.depth - fewer}
    return stage.model_copy(update=changes)


def _times(channels: int, factor: float, multiple: int) -> int:
    return channels if factor == 1 else max(multiple, multiple * round(channels * factor / multiple))
