"""The published models as configurations (`PRESETS`), and what was published about them (`PUBLISHED`).

Sources: LowFormer (arXiv 2409.03460), "Beyond MACs" (arXiv 2603.26551), CPUBone (arXiv 2603.26425), their repositories
(altair199797/LowFormer, altair199797/CPUBone), and timm's model cards for the test resolutions 256 and 288.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .config import Attention, LowFormerConfig, StageConfig


def _lowformer(
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    *,
    down_expansion: int = 6,
    stem_expansion: int = 2,
    head_widths: tuple[int, int] = (1536, 1600),
    attention: bool = True,
    mlp: bool = True,
) -> LowFormerConfig:
    stages = [StageConfig(width=widths[n], depth=depths[n], down_expansion=down_expansion) for n in (1, 2)]
    for n in (3, 4):
        stages.append(
            StageConfig(
                width=widths[n],
                depth=depths[n],
                down_expansion=down_expansion,
                local="fused" if widths[n] < 256 else "unfused",
                attention=Attention(stride=2 if n == 3 else 1) if attention else None,
                mlp_ratio=4 if mlp else 0,
            )
        )
    return LowFormerConfig(
        stem_width=widths[0],
        stem_depth=depths[0],
        stem_expansion=stem_expansion,
        stages=tuple(stages),  # type: ignore[arg-type]
        head_widths=head_widths,
    )


def _cpubone(
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    *,
    down_expansion: int = 6,
    stem_expansion: int = 2,
    head_widths: tuple[int, int] = (1536, 1600),
) -> LowFormerConfig:
    stages = [StageConfig(width=widths[n], depth=depths[n], down_expansion=down_expansion, groups=2) for n in (1, 2)]
    for n in (3, 4):
        stages.append(
            StageConfig(
                width=widths[n],
                depth=depths[n],
                down_expansion=down_expansion,
                local="fused" if widths[n] < 256 else "unfused",
                kernel=2,
                groups=2,
                attention=Attention(stride=2 if n == 3 else 1, upsampling="nearest"),
                mlp_ratio=4,
            )
        )
    return LowFormerConfig(
        stem_width=widths[0],
        stem_depth=depths[0],
        stem_expansion=stem_expansion,
        stem_groups=2,
        stages=tuple(stages),  # type: ignore[arg-type]
        head_widths=head_widths,
    )


_LARGE_HEAD = (2304, 2560)

PRESETS: Mapping[str, LowFormerConfig] = MappingProxyType(
    {
        "lowformer_b0": _lowformer((16, 32, 64, 128, 256), (0, 1, 1, 3, 4), down_expansion=4),
        "lowformer_b1": _lowformer((16, 32, 64, 128, 256), (0, 1, 1, 5, 5)),
        "lowformer_b15": _lowformer((20, 40, 80, 160, 320), (0, 1, 1, 6, 6), head_widths=_LARGE_HEAD),
        "lowformer_b2": _lowformer((24, 48, 96, 192, 384), (0, 1, 1, 6, 6), head_widths=_LARGE_HEAD),
        "lowformer_b3": _lowformer((32, 64, 128, 256, 512), (1, 2, 3, 6, 6), stem_expansion=4),
        "lowformer_e1": _lowformer(
            (20, 40, 80, 160, 320), (0, 1, 1, 4, 4), head_widths=_LARGE_HEAD, attention=False, mlp=False
        ),
        "lowformer_e2": _lowformer(
            (32, 64, 128, 256, 512), (1, 2, 3, 4, 4), stem_expansion=4, attention=False, mlp=False
        ),
        "lowformer_e3": _lowformer((32, 64, 128, 256, 512), (1, 2, 3, 6, 6), stem_expansion=4, mlp=False),
        "cpubone_nano": _cpubone((12, 24, 48, 96, 192), (0, 1, 1, 1, 2), down_expansion=4),
        "cpubone_t0": _cpubone((12, 24, 48, 96, 192), (0, 1, 1, 2, 3), down_expansion=4),
        "cpubone_s0": _cpubone((14, 28, 56, 112, 224), (0, 1, 1, 2, 3), down_expansion=4),
        "cpubone_b3": _cpubone((32, 64, 128, 256, 512), (1, 2, 3, 6, 6), stem_expansion=4),
    }
)


# Published without a checkpoint that matches; these configurations have the published parameters and MACs.
_CPUBONE_B0 = _cpubone((16, 32, 64, 128, 256), (0, 1, 1, 3, 4), down_expansion=4)
_CPUBONE_B1 = _cpubone((16, 32, 64, 128, 256), (0, 1, 1, 5, 5))
_CPUBONE_B2 = _cpubone((20, 40, 80, 160, 320), (0, 1, 1, 6, 6), head_widths=_LARGE_HEAD)


@dataclass(frozen=True)
class Published:
    """What was published about one trained model.

    Attributes:
        macs: multiply-accumulates at 224 x 224 pixels; torch's count for models that are presets.
        params: number of parameters.
        top1: ImageNet-1k top-1 accuracy in percent by test resolution in pixels.
        config: its architecture, at 224 pixels.
    """

    macs: float
    params: float
    top1: Mapping[int, float]
    config: LowFormerConfig


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "lowformer_b0": Published(944.042e6, 14100472, {224: 78.39, 256: 79.19, 288: 79.31}, PRESETS["lowformer_b0"]),
        "lowformer_b1": Published(1410.980e6, 17936312, {224: 79.81, 256: 80.26, 288: 80.41}, PRESETS["lowformer_b1"]),
        "lowformer_b15": Published(
            2573.738e6, 33982028, {224: 81.10, 256: 81.56, 288: 81.71}, PRESETS["lowformer_b15"]
        ),
        # Read off a figure of the paper; no checkpoint was published.
        "lowformer_b2": Published(3689.207e6, 44986912, {224: 81.6}, PRESETS["lowformer_b2"]),
        "lowformer_b3": Published(6098.685e6, 57086920, {224: 83.66, 256: 83.99, 288: 84.07}, PRESETS["lowformer_b3"]),
        "lowformer_e1": Published(1348.157e6, 18896268, {224: 78.77, 256: 79.37, 288: 79.62}, PRESETS["lowformer_e1"]),
        "lowformer_e2": Published(3789.335e6, 22750664, {224: 81.61, 256: 81.98, 288: 82.16}, PRESETS["lowformer_e2"]),
        "lowformer_e3": Published(4865.560e6, 41316808, {224: 83.04, 256: 83.17, 288: 83.40}, PRESETS["lowformer_e3"]),
        "cpubone_b0": Published(519e6, 10.4e6, {224: 77.6}, _CPUBONE_B0),
        "cpubone_b1": Published(746e6, 12.4e6, {224: 78.7}, _CPUBONE_B1),
        "cpubone_b2": Published(1354e6, 23.9e6, {224: 80.3}, _CPUBONE_B2),
        "cpubone_b3": Published(4054.590e6, 40742344, {224: 83.1}, PRESETS["cpubone_b3"]),
        "cpubone_nano": Published(187.293e6, 6519700, {224: 72.7}, PRESETS["cpubone_nano"]),
        "cpubone_t0": Published(264.810e6, 7542100, {224: 74.9}, PRESETS["cpubone_t0"]),
        "cpubone_s0": Published(354.836e6, 8732766, {224: 75.9}, PRESETS["cpubone_s0"]),
    }
)


def published_name(config: LowFormerConfig) -> str | None:
    """The name of the published model that this is, at any resolution; None if it is none."""
    for name, model in PUBLISHED.items():
        if model.config.replace(resolution=config.resolution) == config:
            return name
    return None


def published_top1(config: LowFormerConfig) -> float | None:
    """The ImageNet top-1 in percent that was published for this model at its resolution; None if none was."""
    name = published_name(config)
    return None if name is None else PUBLISHED[name].top1.get(config.resolution)
