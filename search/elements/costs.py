"""What elements cost: the time of one copy, from the looks at a chain and at its frame, with a standard error."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...predictors import LatencyPredictor, Target
from ...predictors.latency.undisturbed import Look, sentinel_reference, undisturbed, unevenness
from ...search_space import op_graph_from_onnx
from ..trials.run_folder import write_text
from .catalog import Element, EmptyFrame, elements
from .looks_file import ElementLook
from .measuring import Setting

COLUMNS = (
    "setting", "topic", "element", "channels", "pixels", "batch", "precision", "macs", "params", "copies", "ms",
    "relative_error", "ns_per_mac", "looks", "source", "failed",
)  # fmt: skip


@dataclass(frozen=True)
class ElementCost:
    """What one copy of an element takes in one setting.

    Attributes:
        setting: the target.
        element: which.
        ms: undisturbed time of one copy for a whole batch; None where it failed.
        error: its relative standard error over looks; of predictions that of the profile.
        looks: at its chain.
        source: "measured" or "predicted".
        failed: why there is no time.
    """

    setting: Target
    element: Element
    ms: float | None
    error: float
    looks: int
    source: str
    failed: str = ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a copy for a whole batch."""
        return self.element.macs * (self.setting.batch or 1)

    @property
    def ns_per_mac(self) -> float | None:
        return None if self.ms is None else self.ms * 1e6 / self.macs

    def to_row(self) -> dict[str, Any]:
        """A row of elements.csv."""
        element, setting = self.element, self.setting
        values = (
            str(setting), element.topic, element.name, element.channels, element.pixels, setting.batch,
            setting.precision, element.macs, element.params, element.copies(setting.batch or 1), _rounded(self.ms),
            _rounded(self.error), _rounded(self.ns_per_mac), self.looks, self.source, self.failed,
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))


def _rounded(value: float | None) -> float | str:
    return "" if value is None or not np.isfinite(value) else float(f"{value:.5g}")


@dataclass(frozen=True)
class NetworkCost:
    """A whole network, measured.

    Attributes:
        name: as it was given.
        macs: multiply-accumulates for one image; None where they cannot be counted.
        ms, error: undisturbed latency and its relative standard error; None where it failed.
        predicted_ms: what a profile of the target says, if there is one.
    """

    name: str
    macs: int | None
    ms: float | None
    error: float
    predicted_ms: float | None = None


def measured_costs(
    planned: Sequence[Setting], looks: Sequence[ElementLook], known_ms: Mapping[str, float | None]
) -> list[ElementCost]:
    """The costs that looks tell, of every planned element that was looked at."""
    found: list[ElementCost] = []
    for setting in planned:
        name, batch = str(setting.target), setting.target.batch or 1
        latencies, failures = _latencies([look for look in looks if look.setting == name], known_ms.get(name))
        for element in setting.elements:
            frame = latencies.get(EmptyFrame(*element.place).key)
            chain = latencies.get(element.key)
            if reason := failures.get(element.key):
                found.append(ElementCost(setting.target, element, None, float("nan"), 0, "measured", reason))
            elif chain is not None and frame is None:
                reason = f"its frame gave no time: {failures.get(EmptyFrame(*element.place).key, 'not measured')}"
                found.append(ElementCost(setting.target, element, None, float("nan"), chain[2], "measured", reason))
            elif chain is not None and frame is not None:
                found.append(_of_copy(setting.target, element, chain, frame, element.copies(batch)))
    return found


_Latency = tuple[float, float, int]  # ms, relative standard error, looks


def _of_copy(target: Target, element: Element, chain: _Latency, frame: _Latency, copies: int) -> ElementCost:
    ms = (chain[0] - frame[0]) / copies
    error_ms = float(np.hypot(chain[0] * chain[1], frame[0] * frame[1])) / copies
    if ms <= 2 * error_ms:
        return ElementCost(
            target, element, None, float("nan"), chain[2], "measured", "too short to tell from its frame"
        )
    return ElementCost(target, element, ms, error_ms / ms, chain[2], "measured")


def _latencies(looks: Iterable[ElementLook], known_ms: float | None) -> tuple[dict[str, _Latency], dict[str, str]]:
    """Undisturbed latencies by key, and the reasons of those that failed."""
    of_key: dict[str, list[Look]] = defaultdict(list)
    failures: dict[str, str] = {}
    sentinels = []
    for each in looks:
        if each.failed:
            failures[each.key] = each.failed
        elif each.look is not None:
            of_key[each.key].append(each.look)
            if each.sentinel_ms is not None:
                sentinels.append(each.sentinel_ms)
    reference = sentinel_reference(sentinels, known_ms)
    first = {key: undisturbed(mine, reference) for key, mine in of_key.items()}
    uneven = max(1.0, unevenness(list(first.values()))) if first else 1.0
    result = {}
    for key, mine in of_key.items():
        one = undisturbed(mine, reference, uneven)
        result[key] = (one.latency_ms, one.repeatability, one.looks)
    return result, failures


def measured_networks(
    setting: Target,
    looks: Sequence[ElementLook],
    known_ms: float | None,
    macs: Mapping[str, int | None],
    predicted_ms: Mapping[str, float],
    contents: Mapping[str, str],
) -> list[NetworkCost]:
    """Whole networks, by the looks at them; `contents` follow names in the looks' keys."""
    latencies, failures = _latencies([look for look in looks if look.setting == str(setting)], known_ms)
    found = []
    for name, count in macs.items():
        key = f"network/{name}{contents.get(name, '')}"
        known = latencies.get(key)
        if known is not None:
            found.append(NetworkCost(name, count, known[0], known[1], predicted_ms.get(name)))
        elif key in failures:
            found.append(NetworkCost(name, count, None, float("nan"), predicted_ms.get(name)))
    return found


def predicted_costs(setting: Setting, predictor: LatencyPredictor, folder: Path) -> list[ElementCost]:
    """What a profile says of the same chains, where the device is not at hand."""
    batch = setting.target.batch or 1
    found = []
    for element in setting.elements:
        chain = element.chain(batch, folder)
        graph = op_graph_from_onnx(chain) if isinstance(chain, Path) else chain
        whole, frame = predictor.predict([graph, EmptyFrame(*element.place).chain()])
        ms = max((whole.latency_ms - frame.latency_ms) / element.copies(batch), 0.0)
        error = float(np.log(whole.high_ms / whole.low_ms)) / 3.3  # its interval is of 90 %
        found.append(ElementCost(setting.target, element, ms or None, error, 0, "predicted"))
    return found


def write_csv(costs: Sequence[ElementCost], path: Path) -> None:
    """Writes elements.csv."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(cost.to_row() for cost in costs)
    write_text(path, out.getvalue())


def read_csv(path: Path) -> list[ElementCost]:
    """The costs in an elements.csv. Raises ValueError, in one line, for what `write_csv` did not write."""
    known = {(each.topic, each.name, each.place): each for each in elements()}
    found = []
    try:
        with path.open(newline="") as lines:
            for row in csv.DictReader(lines):
                element = known[row["topic"], row["element"], (int(row["channels"]), int(row["pixels"]))]
                ms, error = (float(row[column] or "nan") for column in ("ms", "relative_error"))
                about = int(row["looks"]), row["source"], row["failed"]
                target = Target.parse(row["setting"])
                found.append(ElementCost(target, element, ms if np.isfinite(ms) else None, error, *about))
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no elements.csv of this version: {error!r:.100}") from None
    return found


def write_networks_csv(networks: Sequence[NetworkCost], path: Path) -> None:
    """Writes networks.csv."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["network", "macs", "ms", "relative_error", "predicted_ms"])
    for each in networks:
        writer.writerow(
            [each.name, each.macs or "", _rounded(each.ms), _rounded(each.error), _rounded(each.predicted_ms)]
        )
    write_text(path, out.getvalue())
