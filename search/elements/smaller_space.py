"""A space without what is dominated on a device, from the costs of its elements.

A choice is left out by one of two rules, each of which has to hold at all places of the space that were measured, by
more than the noise of the looks:

- it is less capable than another choice of the same parameter (fewer weights and MACs, or a coarser map), and yet not
  faster;
- it takes longer than a mix of two other choices with as many MACs in all: where it lies above the line between them,
  in time over MACs, some of its blocks are better built the one way and some the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ...predictors import Target
from ...search_space import SearchSpace
from .catalog import Place
from .costs import ElementCost
from .findings import LEAST_DIFFERENCE, Costs, ratio_text

SIZES: dict[int, tuple[int, ...]] = {1: (56,), 2: (28,), 3: (14, 28), 4: (7, 14)}
"""Sides of the maps of each stage, of those that are measured."""


@dataclass(frozen=True)
class LeftOut:
    """A choice that is left out.

    Attributes:
        parameter: of the space: "groups", "s3.stride".
        value: the choice.
        reason: the better ones, and by how much they are faster.
    """

    parameter: str
    value: Any
    reason: str


def smaller_space(space: SearchSpace, costs: Sequence[ElementCost]) -> tuple[dict[str, Any], list[LeftOut]]:
    """The content of a space's YAML file without what is dominated, and what that is."""
    known = Costs(costs)
    content = space.choices.model_dump(mode="json", exclude_defaults=False)
    out: list[LeftOut] = []
    stages = {number: content["stages"][number - 1] for number in SIZES}
    attended = [
        place
        for number, stage in stages.items()
        if set(stage["attention"]) != {"none"}
        for place in _places(known, stage, number)
    ]

    def convolution(name: str) -> _Elements:
        return _elements(known, "convolution", name, known.places("convolution"))

    _leave_out(content, "groups", (2, 1), lambda v: convolution("dense 3x3" if v == 1 else f"3x3 in {v} groups"), out)
    _leave_out(content, "kernel", (2, 3, 5), lambda v: convolution(f"dense {v}x{v}"), out)
    upsampling = _attention(known, "Lowtention, stride 2, 0.5, {}", attended)
    _leave_out(content, "upsampling", ("nearest", "separable", "transposed"), upsampling, out)
    for number in (2, 3, 4):
        stage, prefix = stages[number], f"s{number}."
        places = _places(known, stage, number)
        strides = _attention(known, "Lowtention, stride {}, 0.5, transposed", places)
        _leave_out(stage, "stride", (4, 2, 1), strides, out, prefix)
        reductions = _attention(known, "Lowtention, stride 2, {:g}, transposed", places)
        _leave_out(stage, "reduction", (0.25, 0.5, 1.0), reductions, out, prefix)
    for number, stage in stages.items():
        _fusion(known, stage, number, out)
    content["name"] = f"{space.name[:56]}-smaller"  # of at most 64 characters
    return content, out


def smaller_space_yaml(content: Mapping[str, Any], left_out: Sequence[LeftOut], target: Target) -> str:
    """The text of the space's YAML file, with what is left out and why in comments."""
    import yaml

    rule = "less capable than another choice and not faster, or slower than a mix of two others with as many MACs"
    lines = [f"# Without what is dominated on {target}: {rule}."]
    lines += [f"# Left out: {each.parameter} = {each.value}: {each.reason}." for each in left_out]
    return "\n".join(lines) + "\n" + yaml.safe_dump(dict(content), sort_keys=False, default_flow_style=None, width=110)


_Elements = Mapping[Place, ElementCost]


def _places(costs: Costs, stage: Mapping[str, Any], number: int) -> list[Place]:
    """Where attention was measured, of what a stage can have: maps of its sides, channels near its widths."""
    low, high = min(stage["width"]) / np.sqrt(2), max(stage["width"]) * np.sqrt(2)
    return [place for place in costs.places("attention") if place[1] in SIZES[number] and low <= place[0] <= high]


def _attention(costs: Costs, pattern: str, places: Sequence[Place]) -> Callable[[Any], _Elements]:
    return lambda value: _elements(costs, "attention", pattern.format(value), places)


def _elements(costs: Costs, topic: str, name: str, places: Sequence[Place]) -> _Elements:
    found = {place: costs.element(topic, name, place) for place in places}
    return {place: cost for place, cost in found.items() if cost is not None}


def _leave_out(
    content: dict[str, Any],
    field: str,
    order: tuple[Any, ...],
    elements: Callable[[Any], _Elements],
    out: list[LeftOut],
    prefix: str = "",
) -> None:
    """Takes dominated values out of a field; `order` has the least capable one first."""
    values = [value for value in order if value in content[field]]
    for value in list(values):
        if reason := _dominated(value, values, elements):
            values.remove(value)
            content[field] = [each for each in content[field] if each != value]
            out.append(LeftOut(prefix + field, value, reason))


def _dominated(value: Any, values: Sequence[Any], elements: Callable[[Any], _Elements]) -> str:
    """Why a value is dominated by the others; empty if it is not."""
    mine = elements(value)
    for better in values[values.index(value) + 1 :]:
        ratio = _not_faster(mine, elements(better))
        if ratio is not None:
            return f"{better} takes {ratio_text(ratio)} times as long as {value} where that saves most"
    for place, one in enumerate(values):
        for other in values[place + 1 :]:
            ratio = None if value in (one, other) else _over_mix(mine, elements(one), elements(other))
            if ratio is not None:
                return f"a mix of {one} and {other} with as many MACs is {ratio_text(ratio)} times as fast or faster"
    return ""


def _not_faster(less: _Elements, more: _Elements) -> float | None:
    """The largest ratio of `more` over `less`, if at no place `less` is surely faster; None if it is somewhere."""
    pairs = [(_ms(less[place]), _ms(more[place])) for place in less if place in more]
    if not pairs:
        return None
    logs = np.array([np.log(after / before) for (before, _), (after, _) in pairs])
    errors = np.array([np.hypot(a, b) for (_, a), (_, b) in pairs])
    return None if (logs > 2 * errors).any() else float(np.exp(logs.max()))


def _over_mix(mine: _Elements, one: _Elements, other: _Elements) -> float | None:
    """The least ratio of an element over a mix of two others; None if it is somewhere not surely the slower one."""
    ratios = []
    for place in mine:
        if place not in one or place not in other:
            continue
        low, high = sorted((one[place], other[place]), key=lambda cost: cost.macs)
        if not low.macs < mine[place].macs < high.macs:
            return None
        share = (mine[place].macs - low.macs) / (high.macs - low.macs)
        (ms, error), parts = _ms(mine[place]), ((1 - share, _ms(low)), (share, _ms(high)))
        mix = sum(weight * time for weight, (time, _) in parts)
        mix_error = math.hypot(*(weight * time * relative for weight, (time, relative) in parts)) / mix
        if np.log(ms / mix) <= max(2 * np.hypot(error, mix_error), np.log1p(LEAST_DIFFERENCE)):
            return None
        ratios.append(ms / mix)
    return min(ratios, default=None)


def _ms(cost: ElementCost) -> tuple[float, float]:
    """Time and its relative standard error, of a cost that has one."""
    assert cost.ms is not None
    return cost.ms, cost.error


def _thresholds(stage: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    for name in stage["local"]:
        if name.startswith("fused_below"):
            yield int(name.rpartition("_")[2]), name


def _fusion(costs: Costs, stage: dict[str, Any], number: int, out: list[LeftOut]) -> None:
    """Leaves out thresholds below which blocks are fused, where a higher one fuses more and costs no time."""
    places = [place for place in costs.places("fusion") if place[1] in SIZES[number]]
    fused, unfused = (_elements(costs, "fusion", f"{name} MBConv", places) for name in ("fused", "unfused"))
    for (low, name), (high, higher) in pairwise(sorted(_thresholds(stage))):
        between = {place: cost for place, cost in fused.items() if low <= place[0] < high}
        ratio = _not_faster({place: unfused[place] for place in between if place in unfused}, between)
        widths = [width for width in stage["width"] if low <= width < high]
        if ratio is not None and widths and name in stage["local"]:
            stage["local"] = [each for each in stage["local"] if each != name]
            reason = f"{higher}: fused takes {ratio_text(ratio)} times as long as unfused from {low} to {high} channels"
            out.append(LeftOut(f"s{number}.local", name, reason))
    if {"fused", "unfused"} <= set(stage["local"]):
        ratio = _not_faster(unfused, fused)
        if ratio is not None:
            stage["local"] = [each for each in stage["local"] if each != "unfused"]
            reason = f"fused takes {ratio_text(ratio)} times as long as unfused where that saves most"
            out.append(LeftOut(f"s{number}.local", "unfused", reason))
