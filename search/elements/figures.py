"""Figures of what elements cost: each as a PNG file, and as SVG for the page."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .costs import ElementCost, NetworkCost
from .findings import FUSE_BELOW, Comparison, Costs, between_settings, crossing, of_settings, per_mac

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.ticker import Locator

DOTS_PER_INCH = 150


def draw_figures(costs: Sequence[ElementCost], networks: Sequence[NetworkCost], folder: Path) -> dict[str, str]:
    """Writes the figures for which there are costs as PNG files into a folder; gives each as SVG by its title."""
    first = next((mine for _, mine in of_settings(costs)), [])
    known = Costs(first)
    drawings: dict[str, tuple[str, Callable[[Axes], bool]]] = {
        "per-mac": ("Time per MAC over that of a dense 3x3 convolution", lambda axis: _bars(axis, per_mac(known))),
        "fusion": ("Fused over unfused MBConv", lambda axis: _fusion(axis, known)),
        "attention": ("Attention", lambda axis: _topic(axis, known, "attention")),
        "blocks": ("A block with and without attention and MLP", lambda axis: _topic(axis, known, "block")),
        "pointwise": ("A 1x1 convolution, and what follows it", lambda axis: _topic(axis, known, "pointwise")),
        "settings": ("Other settings, time per MAC", lambda axis: _bars(axis, between_settings(costs))),
        "networks": ("Whole networks", lambda axis: _networks(axis, networks)),
    }
    found = {}
    for name, (title, draw) in drawings.items():
        if (text := _drawn(folder / f"{name}.png", title, draw)) is not None:
            found[title] = text
    return found


def _drawn(path: Path, title: str, draw: Callable[[Axes], bool]) -> str | None:
    """Draws one figure; None if there is nothing to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    if not draw(axis):
        return None
    axis.set_title(title)
    axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=DOTS_PER_INCH)
    partial.rename(path)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue().partition("<svg")[1] + out.getvalue().partition("<svg")[2]


def _bars(axis: Axes, comparisons: Sequence[Comparison]) -> bool:
    """Ratios with their intervals, on a log scale."""
    from matplotlib.ticker import MaxNLocator

    for place, each in enumerate(reversed(comparisons)):
        color = "0.6" if each.differs == 0 else "C0"
        axis.barh(place, each.ratio - 1, left=1, color=color)
        axis.plot([each.low, each.high], [place, place], color="black", linewidth=1)
    axis.set_yticks(range(len(comparisons)), [_short(each.name) for each in reversed(comparisons)], fontsize=7)
    axis.set_xscale("log")
    ends = [1.0, *(each.low for each in comparisons), *(each.high for each in comparisons)]
    doublings = [t for t in _RATIOS if min(ends) / 1.4 <= t <= 1.4 * max(ends)]
    if len(doublings) > 2:
        _plain_ticks(axis, doublings)
    else:
        _plain(axis.xaxis, MaxNLocator(6))
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xlabel("ratio, with its 95 % interval over places; grey: equal within the noise")
    return bool(comparisons)


_RATIOS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def _plain_ticks(axis: Axes, values: Sequence[float]) -> None:
    """Numbers along a log axis as people write them, and no others."""
    axis.minorticks_off()
    axis.set_xticks(values, [f"{value:g}" for value in values])


def _plain(axis: Axis, places: Locator | None = None) -> None:
    """Numbers as people write them along a log axis, by default 1, 2, 5, 10, ..."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(places or LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def _short(name: str) -> str:
    return name.replace(" over dense 3x3", "").replace(", per MAC", "").replace("onnxruntime/", "")


def _fusion(axis: Axes, costs: Costs) -> bool:
    """Ratios over channels, a line for each size of the map."""
    sizes = sorted({place[1] for place in costs.places("fusion")}, reverse=True)
    for number, size in enumerate(sizes):
        _, rows = crossing(costs, size)
        channels, ratios, errors = ([row[i] for row in rows] for i in range(3))
        bars = [2 * ratio * error for ratio, error in zip(ratios, errors, strict=True)]
        axis.errorbar(channels, ratios, bars, marker="o", color=f"C{number}", label=f"{size} pixels", capsize=2)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.axvline(FUSE_BELOW, color="0.5", linestyle=":", label="the papers' limit")
    axis.set(xscale="log", xlabel="channels", ylabel="fused over unfused")
    _plain_ticks(axis, sorted({channels for channels, _ in costs.places("fusion")}))
    if sizes:
        axis.legend(fontsize=8)
    return bool(sizes)


def _topic(axis: Axes, costs: Costs, topic: str) -> bool:
    """Times of all elements of a topic over places."""
    names, places = costs.names(topic), costs.places(topic)
    for number, name in enumerate(names):
        known: list[tuple[int, Any]] = [(i, costs.at(topic, name, place)) for i, place in enumerate(places)]
        shown = [(i, cost) for i, cost in known if cost is not None]
        offset = 0.7 * (number / max(len(names) - 1, 1) - 0.5)
        axis.errorbar(
            [i + offset for i, _ in shown],
            [cost[0] for _, cost in shown],
            [2 * cost[0] * cost[1] for _, cost in shown],
            fmt="o",
            markersize=4,
            color=f"C{number}",
            label=name,
        )
    axis.set_xticks(range(len(places)), [f"{c} ch\n{p} px" for c, p in places], fontsize=8)
    axis.set(yscale="log", ylabel="ms")
    _plain(axis.yaxis)
    if names:
        axis.legend(fontsize=6)
    return bool(names)


def _networks(axis: Axes, networks: Sequence[NetworkCost]) -> bool:
    """Latency over MACs."""
    known = [each for each in networks if each.ms and each.macs]
    for each in known:
        macs, ms = (each.macs or 0) / 1e6, each.ms or 0.0
        axis.plot(macs, ms, "o", color="C0", markersize=4)
        axis.annotate(each.name, (macs, ms), fontsize=6, xytext=(3, 2), textcoords="offset points")
    axis.set(xscale="log", yscale="log", xlabel="MACs, millions", ylabel="latency, ms")
    _plain(axis.xaxis)
    _plain(axis.yaxis)
    return bool(known)
