"""A space without what is dominated on a device, from the costs of its elements.

A choice is left out if it is less capable than another one of the same parameter (fewer weights and MACs, or a coarser
map) and yet not faster than that, by more than the noise, at any place that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ...search_space import SearchSpace
from .catalog import Place
from .costs import ElementCost
from .findings import Cost, Costs, ratio_text

SIZES: dict[int, tuple[int, ...]] = {1: (56,), 2: (28,), 3: (14, 28), 4: (7, 14)}
"""Sides of the maps of each stage, of those that are measured."""


@dataclass(frozen=True)
class LeftOut:
    """A choice that is left out.

    Attributes:
        parameter: of the space: "groups", "s3.stride".
        value: the choice.
        reason: the better one, and by how much it is faster.
    """

    parameter: str
    value: Any
    reason: str


def smaller_space(space: SearchSpace, costs: Sequence[ElementCost]) -> tuple[dict[str, Any], list[LeftOut]]:
    """The content of a space's YAML file without what is dominated, and what that is."""
    known = Costs(costs)
    content = space.choices.model_dump(mode="json", exclude_defaults=False)
    out: list[LeftOut] = []
    _leave_out(content, "groups", (2, 1), lambda v: _conv(known, "dense 3x3" if v == 1 else f"3x3 in {v} groups"), out)
    _leave_out(content, "kernel", (2, 3, 5), lambda v: _conv(known, f"dense {v}x{v}"), out)
    upsamplings = ("nearest", "separable", "transposed")
    _leave_out(content, "upsampling", upsamplings, lambda v: _attention(known, f"stride 2, 0.5, {v}"), out)
    for number in (2, 3, 4):
        stage, prefix = content["stages"][number - 1], f"s{number}."
        sizes = SIZES[number]
        strides = _attention(known, "stride {}, 0.5, transposed", sizes)
        _leave_out(stage, "stride", (4, 2, 1), strides, out, prefix)
        reductions = _attention(known, "stride 2, {:g}, transposed", sizes)
        _leave_out(stage, "reduction", (0.25, 0.5, 1.0), reductions, out, prefix)
    for number, stage in enumerate(content["stages"], start=1):
        _fusion(known, stage, number, out)
    content["name"] = f"{space.name[:56]}-smaller"  # of at most 64 characters
    return content, out


_Times = Callable[[Any], dict[Place, Cost]]


def _conv(costs: Costs, name: str) -> dict[Place, Cost]:
    return _times(costs, "convolution", name)


def _attention(costs: Costs, pattern: str, sizes: tuple[int, ...] = ()) -> Any:
    """Times of Lowtention by the value in `pattern`; of one name if it holds no value."""
    if "{" not in pattern:
        return _times(costs, "attention", f"Lowtention, {pattern}")
    return lambda value: _times(costs, "attention", f"Lowtention, {pattern.format(value)}", sizes)


def _times(costs: Costs, topic: str, name: str, sizes: tuple[int, ...] = ()) -> dict[Place, Cost]:
    found = {place: costs.at(topic, name, place) for place in costs.places(topic) if not sizes or place[1] in sizes}
    return {place: cost for place, cost in found.items() if cost is not None}


def _leave_out(
    content: dict[str, Any], field: str, order: tuple[Any, ...], times: _Times, out: list[LeftOut], prefix: str = ""
) -> None:
    """Takes dominated values out of a field; `order` has the least capable one first."""
    values = [value for value in order if value in content[field]]
    for place, value in enumerate(values):
        for better in values[place + 1 :]:
            ratio = _not_faster(times(value), times(better))
            if ratio is not None and better in content[field]:
                content[field] = [each for each in content[field] if each != value]
                reason = f"{better} takes {ratio_text(ratio)} times as long as {value} where that saves most"
                out.append(LeftOut(prefix + field, value, reason))
                break


def _not_faster(less: dict[Place, Cost], more: dict[Place, Cost]) -> float | None:
    """The largest ratio of `more` over `less`, if at no place `less` is surely faster; None if it is somewhere."""
    shared = [place for place in less if place in more]
    if not shared:
        return None
    logs = np.array([np.log(more[place][0] / less[place][0]) for place in shared])
    errors = np.array([np.hypot(more[place][1], less[place][1]) for place in shared])
    return None if (logs > 2 * errors).any() else float(np.exp(logs.max()))


def _fusion(costs: Costs, stage: dict[str, Any], number: int, out: list[LeftOut]) -> None:
    """Leaves out thresholds below which blocks are fused, where a higher one fuses more and costs no time."""
    below = [name for name in stage["local"] if name.startswith("fused_below")]
    thresholds = sorted((int(name.rpartition("_")[2]), name) for name in below)
    fused, unfused = (_times(costs, "fusion", f"{name} MBConv", SIZES[number]) for name in ("fused", "unfused"))
    for (low, name), (high, higher) in pairwise(thresholds):
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
