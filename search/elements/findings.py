"""What the costs of elements say of a device: comparisons with intervals, and which of the papers' guidelines hold.

The guidelines are those of LowFormer (arXiv 2409.03460), "Beyond MACs" (arXiv 2603.26551) and CPUBone (arXiv
2603.26425). Elements whose difference lies within the noise of the looks, or of which the places say different things,
are called equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy.stats import spearmanr, t  # type: ignore[import-untyped, unused-ignore]

from .catalog import EQUAL_MACS, Place
from .costs import ElementCost, NetworkCost

Verdict = Literal["holds", "does not hold", "equal", "depends", "not measured"]
FUSE_BELOW = 256
"""Channels below which the papers fuse MBConv."""
LEAST_DIFFERENCE = 0.03
"""Relative difference below which two elements are called equal, however sure it is."""
_LEVEL = 0.975  # of both ends of a 95 % interval


def ratio_text(ratio: float) -> str:
    """A ratio as text: "0.95", "2.30", "14"."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


@dataclass(frozen=True)
class Comparison:
    """How long one element takes over another, at the places where both were measured.

    Attributes:
        name: what is compared: "depthwise 3x3 over dense 3x3, per MAC".
        ratio, low, high: the geometric mean of the ratios, and its 95 % interval over places.
        noise: relative standard error of the mean by the looks alone.
        places: the ratio at each place.
    """

    name: str
    ratio: float
    low: float
    high: float
    noise: float
    places: Mapping[str, float]

    @property
    def differs(self) -> int:
        """1 if it takes longer, -1 if it takes less long, 0 if the two are equal as far as one can tell."""
        far = abs(np.log(self.ratio)) > max(2 * self.noise, np.log1p(LEAST_DIFFERENCE))
        if not far or self.low <= 1 <= self.high:
            return 0
        return 1 if self.ratio > 1 else -1

    @property
    def text(self) -> str:
        """The ratio with its interval: "2.30 (2.04 to 2.70)"."""
        return f"{ratio_text(self.ratio)} ({ratio_text(self.low)} to {ratio_text(self.high)})"

    def to_dict(self) -> dict[str, Any]:
        numbers = {"ratio": self.ratio, "low": self.low, "high": self.high, "noise": self.noise}
        return {
            "name": self.name,
            **{key: round(value, 4) for key, value in numbers.items()},
            "places": dict(self.places),
        }


@dataclass(frozen=True)
class Finding:
    """What was found about a guideline.

    Attributes:
        guideline: what the papers say.
        verdict: whether it holds on this device.
        text: the finding, with its numbers.
        comparisons: those that it rests on.
    """

    guideline: str
    verdict: Verdict
    text: str
    comparisons: Sequence[Comparison] = ()

    def to_dict(self) -> dict[str, Any]:
        about = {"guideline": self.guideline, "verdict": self.verdict, "text": self.text}
        return {**about, "comparisons": [each.to_dict() for each in self.comparisons]}


Cost = tuple[float, float]  # ms or ns per MAC, and its relative standard error


class Costs:
    """The costs of one setting, to be looked up."""

    def __init__(self, costs: Sequence[ElementCost]) -> None:
        self._known = {(c.element.topic, c.element.name, c.element.place): c for c in costs if c.ms is not None}

    def at(self, topic: str, name: str, place: Place, *, per_mac: bool = False) -> Cost | None:
        """The time of an element at a place, for a copy or for a MAC."""
        cost = self._known.get((topic, name, place))
        if cost is None or cost.ms is None:
            return None
        return (cost.ms / cost.macs * 1e6 if per_mac else cost.ms), cost.error

    def element(self, topic: str, name: str, place: Place) -> ElementCost | None:
        """What is known of an element at a place."""
        return self._known.get((topic, name, place))

    def names(self, topic: str) -> list[str]:
        return list(dict.fromkeys(name for known, name, _ in self._known if known == topic))

    def places(self, topic: str) -> list[Place]:
        return list(dict.fromkeys(place for known, _, place in self._known if known == topic))

    def over(self, topic: str, upper: str, lower: str, *, per_mac: bool = False) -> Comparison | None:
        """How long `upper` takes over `lower` at the same places."""
        what = f"{upper} over {lower}{', per MAC' if per_mac else ''}"
        pairs = {
            _label(place): (
                self.at(topic, upper, place, per_mac=per_mac),
                self.at(topic, lower, place, per_mac=per_mac),
            )
            for place in self.places(topic)
        }
        return compared(what, pairs)


def _label(place: Place) -> str:
    return f"{place[0]} channels, {place[1]} pixels"


def compared(what: str, pairs: Mapping[str, tuple[Cost | None, Cost | None]]) -> Comparison | None:
    """The comparison of pairs of costs, by place; None where no pair is complete."""
    known = {place: (a, b) for place, (a, b) in pairs.items() if a is not None and b is not None}
    if not known:
        return None
    logs = np.array([np.log(a[0] / b[0]) for a, b in known.values()])
    noise = float(np.sqrt(np.mean([a[1] ** 2 + b[1] ** 2 for a, b in known.values()]) / len(logs)))
    mean, error = float(logs.mean()), noise
    if len(logs) > 1:
        error = max(float(logs.std(ddof=1) / np.sqrt(len(logs))), noise)
    wide = error * float(t.ppf(_LEVEL, max(len(logs) - 1, 1)) if len(logs) > 1 else 2.0)
    ratios = {place: round(float(np.exp(value)), 4) for place, value in zip(known, logs, strict=True)}
    low, high = float(np.exp(mean - wide)), float(np.exp(mean + wide))
    return Comparison(what, float(np.exp(mean)), low, high, noise, ratios)


def per_mac(costs: Costs) -> list[Comparison]:
    """How many times slower per MAC each convolution is than a dense 3x3 one at the same place, the slowest first."""
    found = [costs.over("convolution", name, "dense 3x3", per_mac=True) for name in costs.names("convolution")]
    found += [_equal_macs(costs, groups) for groups in ("2", "8", "")]
    known = [each for each in found if each is not None and each.name.partition(" over ")[0] != "dense 3x3"]
    return sorted(known, key=lambda each: -each.ratio)


def _equal_macs(costs: Costs, groups: str) -> Comparison | None:
    """Grouped or depthwise convolutions with more channels over dense ones, at equal MACs."""
    start = f"3x3 in {groups} groups for " if groups else "depthwise 3x3 for "
    pairs = {}
    for place in costs.places("equal MACs"):
        for name in costs.names("equal MACs"):
            if name.startswith(start) and (wide := costs.at("equal MACs", name, place, per_mac=True)):
                width = int(name.removeprefix(start))
                dense = costs.at("equal MACs", f"dense 3x3 of {width}", (width, place[1]), per_mac=True)
                pairs[_label((width, place[1]))] = (wide, dense)
    what = f"3x3 in {groups} groups" if groups else "depthwise 3x3"
    return compared(f"{what} over dense 3x3, at equal MACs by more channels", pairs)


def findings(costs: Sequence[ElementCost], networks: Sequence[NetworkCost]) -> list[Finding]:
    """What the costs of one setting say about each guideline."""
    known = Costs(costs)
    found = [rule(known) for rule in _RULES]
    return [*found, _macs_of_networks(networks)]


def _slower(guideline: str, comparison: Comparison | None, says: str, *, expects: int = 1) -> Finding:
    """The finding of a guideline that one thing takes longer (1), or less long (-1), than another.

    `says` has {} for the ratio and its interval.
    """
    if comparison is None:
        return Finding(guideline, "not measured", "Not measured here.")
    verdict: Verdict = (
        "equal" if comparison.differs == 0 else "holds" if comparison.differs == expects else "does not hold"
    )
    return Finding(guideline, verdict, says.format(comparison.text), (comparison,))


@dataclass(frozen=True)
class _Rule:
    """A guideline about two elements of a topic at the same places, as `_slower` takes it."""

    guideline: str
    topic: str
    upper: str
    lower: str
    says: str
    per_mac: bool = False
    expects: int = 1

    def __call__(self, costs: Costs) -> Finding:
        comparison = costs.over(self.topic, self.upper, self.lower, per_mac=self.per_mac)
        return _slower(self.guideline, comparison, self.says, expects=self.expects)


def _resolution(costs: Costs) -> Finding:
    pairs = {}
    for high, low in pairwise(EQUAL_MACS):
        pairs[f"{_label(high)} over {_label(low)}"] = (
            costs.at("convolution", "dense 3x3", high),
            costs.at("convolution", "dense 3x3", low),
        )
    return _slower(
        "At equal MACs, fewer pixels with more channels take less time.",
        compared("twice the pixels a side and half the channels, dense 3x3", pairs),
        "At equal MACs, twice the pixels a side with half the channels takes {} times as long.",
    )


def _layers(costs: Costs) -> Finding:
    pairs = {}
    for channels, pixels in costs.places("convolution"):
        thin = costs.at("convolution", "dense 3x3", (channels, pixels))
        wide = costs.at("convolution", "dense 3x3", (2 * channels, pixels))
        pairs[_label((channels, pixels))] = ((4 * thin[0], thin[1]) if thin else None, wide)
    return _slower(
        "Few wide layers take less time than many thin ones.",
        compared("four layers over one of twice the channels", pairs),
        "Four layers take {} times as long as one of twice the channels, with as many MACs.",
    )


def crossing(costs: Costs, pixels: int) -> tuple[float | None, list[tuple[int, float, float]]]:
    """The channels from which on fused MBConv is slower than unfused, and (channels, ratio, standard error) of each.

    None where there is no such place, or more than one.
    """
    rows = []
    for place in sorted(costs.places("fusion")):
        fused, unfused = (costs.at("fusion", f"{name} MBConv", place) for name in ("fused", "unfused"))
        if place[1] == pixels and fused is not None and unfused is not None:
            rows.append((place[0], fused[0] / unfused[0], float(np.hypot(fused[1], unfused[1]))))
    faster = [ratio <= 1 for _, ratio, _ in rows]
    count = sum(faster)
    if not 0 < count < len(rows) or not all(faster[:count]):
        return None, rows
    (before, low, _), (after, high, _) = rows[count - 1 : count + 1]
    share = np.log(1 / low) / np.log(high / low)
    return float(before * (after / before) ** share), rows


def _fusion(costs: Costs) -> Finding:
    guideline = f"Fused MBConv is faster below {FUSE_BELOW} channels, unfused from there on."
    sizes = sorted({place[1] for place in costs.places("fusion")}, reverse=True)
    known = [(size, *crossing(costs, size)) for size in sizes]
    known = [(size, at, rows) for size, at, rows in known if rows]
    if not known:
        return Finding(guideline, "not measured", "Not measured here.")
    parts, sure = [], []
    for size, at, rows in known:
        sure += [(channels, np.log(ratio) / max(error, 1e-3)) for channels, ratio, error in rows]
        fused = [channels for channels, ratio, _ in rows if ratio <= 1]
        if at is not None:
            parts.append(f"up to {at:.0f} channels at {size} pixels")
        elif 0 < len(fused) < len(rows):
            parts.append(f"at {', '.join(map(str, fused))} channels at {size} pixels")
        elif fused:
            parts.append(f"at all of {rows[0][0]} to {rows[-1][0]} channels at {size} pixels")
        else:
            parts.append(f"at none of {rows[0][0]} to {rows[-1][0]} channels at {size} pixels")
    against = [c for c, z in sure if (z > 2 and c < FUSE_BELOW) or (z < -2 and c >= FUSE_BELOW)]
    pays = [c for c, z in sure if z < -2 and c < FUSE_BELOW]  # what one fuses for
    verdict: Verdict = "does not hold" if not pays else "depends" if against else "holds"
    comparison = costs.over("fusion", "fused MBConv", "unfused MBConv")
    text = f"Fused MBConv is the faster one {'; '.join(parts)}."
    ratios = {channels: ratio for _, _, rows in known for channels, ratio, _ in rows}
    if min(ratios.values()) > 1:
        slower = [ratio for _, _, rows in known for _, ratio, _ in rows]
        text = "Fused MBConv is nowhere the faster one: "
        text += (
            f"it takes {min(slower):.1f} to {max(slower):.1f} times as long at {min(ratios)} to {max(ratios)} channels."
        )
    return Finding(guideline, verdict, text, () if comparison is None else (comparison,))


_BASE = "Lowtention, stride 2, 0.5, transposed"
_RULES: tuple[Callable[[Costs], Finding], ...] = (
    _Rule(
        "A depthwise convolution takes more time per MAC than a dense one.",
        "convolution",
        "depthwise 3x3",
        "dense 3x3",
        "Per MAC, a depthwise 3x3 convolution takes {} times as long as a dense one.",
        per_mac=True,
    ),
    _Rule(
        "A grouped convolution takes more time per MAC than a dense one.",
        "convolution",
        "3x3 in 4 groups",
        "dense 3x3",
        "Per MAC, a 3x3 convolution in 4 groups takes {} times as long as a dense one.",
        per_mac=True,
    ),
    _Rule(
        "Two groups save time (CPUBone).",
        "convolution",
        "3x3 in 2 groups",
        "dense 3x3",
        "In 2 groups, with half the MACs, a 3x3 convolution takes {} times as long as a dense one.",
        expects=-1,
    ),
    _Rule(
        "2x2 kernels save time (CPUBone).",
        "convolution",
        "dense 2x2",
        "dense 3x3",
        "A dense 2x2 convolution, with 4/9 of the MACs, takes {} times as long as a 3x3 one.",
        expects=-1,
    ),
    _resolution,
    _layers,
    _fusion,
    _Rule(
        "Attention at half the resolution takes less time.",
        "attention",
        "Lowtention, stride 1, 0.5, transposed",
        _BASE,
        "Lowtention at full resolution takes {} times as long as at half of it.",
    ),
    _Rule(
        "Attention with half the channels takes less time.",
        "attention",
        "Lowtention, stride 2, 1, transposed",
        _BASE,
        "Lowtention with all channels takes {} times as long as with half of them.",
    ),
    _Rule(
        "Lowtention takes less time than multi-head attention at full resolution.",
        "attention",
        "multi-head attention",
        _BASE,
        "Multi-head attention at full resolution takes {} times as long as Lowtention.",
    ),
    _Rule(
        "Lowtention takes less time than ReLU linear attention.",
        "attention",
        "ReLU linear attention",
        _BASE,
        "ReLU linear attention takes {} times as long as Lowtention.",
    ),
    _Rule(
        "A 1x1 convolution and nearest upsampling take less time than a transposed convolution (CPUBone).",
        "attention",
        "Lowtention, stride 2, 0.5, nearest",
        _BASE,
        "Lowtention with nearest upsampling takes {} times as long as with a transposed convolution.",
        expects=-1,
    ),
    _Rule(
        "Attention and MLP take more time per MAC than the block's convolutions (the E series leaves them out).",
        "block",
        "with attention and MLP",
        "convolutions alone",
        "Per MAC, a block with attention and MLP takes {} times as long as its convolutions alone.",
        per_mac=True,
    ),
)


def _macs_of_networks(networks: Sequence[NetworkCost]) -> Finding:
    guideline = "MACs predict execution time badly (well on a CPU)."
    known = [(each.macs, each.ms) for each in networks if each.macs and each.ms]
    if len(known) < 5:
        return Finding(guideline, "not measured", "Fewer than five whole networks were measured here.")
    macs, ms = (np.array(values, float) for values in zip(*known, strict=True))
    rank = float(spearmanr(macs, ms).statistic)
    errors = np.exp(np.abs(np.log(ms / np.exp(np.polyval(np.polyfit(np.log(macs), np.log(ms), 1), np.log(macs)))))) - 1
    text = (
        f"Of {len(known)} whole networks, MACs have a rank correlation of {rank:.2f} with time; the best law in MACs "
    )
    text += f"is off by {100 * float(np.median(errors)):.0f} % (median) and {100 * float(errors.max()):.0f} % at most."
    return Finding(guideline, "holds" if rank < 0.9 else "does not hold", text)


def of_settings(costs: Sequence[ElementCost]) -> Iterator[tuple[str, list[ElementCost]]]:
    """The costs of each setting, in the order in which they were measured."""
    for name in dict.fromkeys(str(cost.setting) for cost in costs):
        yield name, [cost for cost in costs if str(cost.setting) == name]


def between_settings(costs: Sequence[ElementCost]) -> list[Comparison]:
    """How long elements take in each further setting over the first one, per MAC, by topic."""
    groups = list(of_settings(costs))
    found = []
    for name, mine in groups[1:]:
        first = {cost.element.key: cost for cost in groups[0][1]}
        for topic in dict.fromkeys(cost.element.topic for cost in mine):
            pairs = {}
            for cost in (each for each in mine if each.element.topic == topic):
                base = first.get(cost.element.key)
                if base is not None and base.ns_per_mac and cost.ns_per_mac:
                    pairs[cost.element.key] = ((cost.ns_per_mac, cost.error), (base.ns_per_mac, base.error))
            if (comparison := compared(f"{topic}: {name} over {groups[0][0]}, per MAC", pairs)) is not None:
                found.append(comparison)
    return found
