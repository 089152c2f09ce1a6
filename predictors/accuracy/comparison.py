"""In words, how a network differs from a published one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ...search_space.config import LowFormerConfig, StageConfig, blocks_after_downsampler

MOST_DIFFERENCES = 4
MOST_CHARACTERS = 180  # of the sentence, before "and more"
_SAME_FACTOR = 0.005  # widths are rounded; factors so near to each other count as one


@dataclass(frozen=True)
class _Difference:
    """One difference, and how much it weighs beside the others (about a factor of e in one stage's width is 2)."""

    weight: float
    text: str


def describe_difference(config: LowFormerConfig, reference: LowFormerConfig, name: str) -> str:
    """How `config` differs from `reference`, whose name is `name`, in one short sentence.

    The weightiest differences come first; where there are more than a sentence holds, it ends with "and more". The name
    alone stands for the same network, "NAME at 256 pixels" for the same one at another resolution. Numbers of blocks
    count as `StageConfig.depth` does.
    """
    same = config.resolution == reference.resolution
    start = name if same else f"{name} at {config.resolution} pixels"
    differences = sorted(_differences(config, reference), key=lambda difference: -difference.weight)
    if not differences:
        return start
    said: list[str] = []
    for difference in differences[:MOST_DIFFERENCES]:
        if said and len(", ".join([start, *said, difference.text])) > MOST_CHARACTERS:
            break
        said.append(difference.text)
    more = ", and more" if len(said) < len(differences) else ""
    return f"{start}, but {', '.join(said)}{more}"


def _differences(config: LowFormerConfig, reference: LowFormerConfig) -> Iterator[_Difference]:
    factor = _common_factor(config, reference)
    if factor is not None and factor != 1:
        yield _Difference(8 * abs(math.log(factor)), f"all widths times {factor:.3g}")
    pairs = list(zip(config.stages, reference.stages, strict=True))
    if factor is None:
        for number, (stage, other) in enumerate(pairs, start=1):
            yield from _width_of_stage(number, stage, other)
        same_width = [(stage, other) if stage.width == other.width else None for stage, other in pairs]
    else:
        same_width = list(pairs)
    yield from _in_stages(_depth, same_width)
    for describe in (_attention, _attention_details, _mlp, _local, _expansion, _down_expansion, _groups, _kernel):
        yield from _in_stages(describe, pairs)
    yield from _stem(config, reference, widths=factor is None)
    yield from _head(config, reference)


def _common_factor(config: LowFormerConfig, reference: LowFormerConfig) -> float | None:
    """What all widths, the stem's included, are multiplied by; None if there is no such factor."""
    factors = [config.stem_width / reference.stem_width]
    factors += [stage.width / other.width for stage, other in zip(config.stages, reference.stages, strict=True)]
    if max(factors) == min(factors) == 1:
        return 1.0
    return factors[-1] if max(factors) - min(factors) <= _SAME_FACTOR else None


def _width_of_stage(number: int, stage: StageConfig, other: StageConfig) -> Iterator[_Difference]:
    """The stage's width, and its depth with it where both differ."""
    wider = abs(math.log(stage.width / other.width))
    channels = f"{stage.width} instead of {other.width} channels"
    if wider and (depth := _depth(number, stage, other)) is not None:
        yield _Difference(2 * wider + depth[1], f"stage {number} with {channels} and {depth[0]}")
    elif wider:
        yield _Difference(2 * wider, f"{channels} in stage {number}")


# --- what can differ alike in several stages: each gives the text and the weight of a difference, or None

_Said = tuple[str, float] | None


def _in_stages(
    describe: Callable[[int, StageConfig, StageConfig], _Said], pairs: Sequence[tuple[StageConfig, StageConfig] | None]
) -> Iterator[_Difference]:
    """What `describe` says of each stage (but of those that are None), alike ones together."""
    weights: dict[str, float] = {}
    stages: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs, start=1):
        if pair is not None and (said := describe(number, *pair)) is not None:
            text, weight = said
            weights[text] = weights.get(text, 0.0) + weight
            stages.setdefault(text, []).append(number)
    for text, weight in weights.items():
        yield _Difference(weight, f"{text} in {_named(stages[text])}")


def _named(stages: list[int]) -> str:
    if len(stages) == 1:
        return f"stage {stages[0]}"
    if len(stages) == 4:
        return "all stages"
    return f"stages {', '.join(map(str, stages[:-1]))} and {stages[-1]}"


def _depth(number: int, stage: StageConfig, other: StageConfig) -> _Said:
    if stage.depth == other.depth:
        return None
    weight = 1.5 * abs(math.log((stage.depth + 1) / (other.depth + 1)))
    return f"{stage.depth} instead of {other.depth} blocks", weight


def _attention(number: int, stage: StageConfig, other: StageConfig) -> _Said:
    if stage.attention is None:
        # Without blocks there can be none; then the number of blocks says it.
        return ("no attention", 1.0) if other.attention and blocks_after_downsampler(number, stage) else None
    blocks = blocks_after_downsampler(number, stage)
    attending = sum(stage.attention.attends(blocks))
    where = "attention" if attending == blocks else f"attention in {attending} of {blocks} blocks"
    if other.attention is None:
        return where, 1.0
    if stage.attention.placement == other.attention.placement:
        return None
    return (where if attending < blocks else "attention in all blocks"), 0.5


def _attention_details(number: int, stage: StageConfig, other: StageConfig) -> _Said:
    new, old = stage.attention, other.attention
    if new is None or old is None:
        return None
    said = []
    if new.stride != old.stride:
        said.append(f"stride {new.stride} instead of {old.stride}")
    if new.reduction != old.reduction:
        said.append(f"{new.reduction:g} instead of {old.reduction:g} of the channels")
    if new.upsampling != old.upsampling:
        said.append(f"{new.upsampling} upsampling")
    return (f"attention with {' and '.join(said)}", 0.15 * len(said)) if said else None


def _mlp(number: int, stage: StageConfig, other: StageConfig) -> _Said:
    if stage.mlp_ratio == other.mlp_ratio or not blocks_after_downsampler(number, stage):
        return None
    if not stage.mlp_ratio:
        return "no MLP", 0.8
    if not other.mlp_ratio:
        return "an MLP", 0.8
    return f"MLP ratio {stage.mlp_ratio} instead of {other.mlp_ratio}", 0.4


def _both_have_blocks(number: int, stage: StageConfig, other: StageConfig) -> bool:
    return bool(blocks_after_downsampler(number, stage) and blocks_after_downsampler(number, other))


def _local(number: int, stage: StageConfig, other: StageConfig) -> _Said:
    if stage.local == other.local or not _both_have_blocks(number, stage, other):
        return None
    return f"{stage.local} blocks", 0.6


def _expansion(number: int, stage: StageConfig, other: StageConfig) -> _Said:
    if stage.expansion == other.expansion or not _both_have_blocks(number, stage, other):
        return None
    return f"expansion {stage.expansion} instead of {other.expansion}", 0.6 * abs(
        math.log(stage.expansion / other.expansion)
    )


def _down_expansion(number: int, stage: StageConfig, other: StageConfig) -> _Said:
    if stage.down_expansion == other.down_expansion:
        return None
    return f"downsampling expansion {stage.down_expansion} instead of {other.down_expansion}", 0.3 * abs(
        math.log(stage.down_expansion / other.down_expansion)
    )


def _groups(number: int, stage: StageConfig, other: StageConfig) -> _Said:
    if stage.groups == other.groups:
        return None
    return f"groups {stage.groups} instead of {other.groups}", 0.3 * abs(math.log(stage.groups / other.groups))


def _kernel(number: int, stage: StageConfig, other: StageConfig) -> _Said:
    if stage.kernel == other.kernel or not _both_have_blocks(number, stage, other):
        return None
    return f"kernel {stage.kernel} instead of {other.kernel}", 0.3


# --- stem and head


def _stem(config: LowFormerConfig, reference: LowFormerConfig, *, widths: bool) -> Iterator[_Difference]:
    new, old = config, reference
    if widths and new.stem_width != old.stem_width:
        weight = 0.5 * abs(math.log(new.stem_width / old.stem_width))
        yield _Difference(weight, f"a stem of {new.stem_width} instead of {old.stem_width} channels")
    if new.stem_depth != old.stem_depth:
        weight = 0.5 * abs(math.log((new.stem_depth + 1) / (old.stem_depth + 1)))
        yield _Difference(weight, f"{new.stem_depth} instead of {old.stem_depth} blocks in the stem")
    if new.stem_depth and old.stem_depth:
        if new.stem_expansion != old.stem_expansion:
            yield _Difference(0.1, f"expansion {new.stem_expansion} instead of {old.stem_expansion} in the stem")
        if new.stem_groups != old.stem_groups:
            yield _Difference(0.1, f"groups {new.stem_groups} instead of {old.stem_groups} in the stem")


def _head(config: LowFormerConfig, reference: LowFormerConfig) -> Iterator[_Difference]:
    new, old = config.head_widths, reference.head_widths
    if new != old:
        weight = 0.2 * sum(abs(math.log(a / b)) for a, b in zip(new, old, strict=True))
        yield _Difference(weight, f"a head of {new[0]} and {new[1]} instead of {old[0]} and {old[1]} channels")
    if config.head != reference.head:
        yield _Difference(0.1, f"the head {config.head!r}")
    if config.classes != reference.classes:
        yield _Difference(0.05, f"{config.classes} instead of {reference.classes} classes")
