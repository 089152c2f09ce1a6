"""The tables and the figures of the case study, from the committed rows.

pip install matplotlib
python experiments/case_study/report.py      # writes TASK.json and TASK.svg for each task, prints the tables
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROWS = HERE / "rows"
TASKS = {"fashion-mnist": "Fashion-MNIST", "scenes": "Scenes"}
"""Tasks and what they are called in figures."""
TRUTH_QUANTILE = 0.1
NAMES = {
    "search": "lownas",
    "random": "random search",
    "macs": "search by MACs",
    "no rungs": "without rungs",
    "no surrogate": "without surrogate",
    "width": "published, scaled in width",
    "resolution": "published, larger pictures",
    "timm": "others, scaled in width",
    "fastnas": "LowFormer-B0 pruned by FastNAS",
}
"""Groups of arms and what they are called in the figure."""
EXPECTED = {
    "fashion-mnist": {"search", "random", "macs", "width", "resolution", "timm", "fastnas"},
    "scenes": {"search", "random", "width", "resolution"},
}
"""Groups that every budget of a task should have."""
OTHERS = ("mobilenetv3_small", "efficientnet_lite0", "resnet18")
KINDS = ("networks", "trainings", "looks", "tests")
"""Rows that `results` takes."""
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Result:
    """One network.

    Attributes:
        name, group, budget_ms: what it is.
        latency_ms: undisturbed, by all looks; None without any.
        top1: test accuracy of each seed, in percent.
        mean, error: of them, and the standard error of the mean (by the spread of all networks of few seeds).
        core_minutes: of one training.
    """

    name: str
    group: str
    budget_ms: float
    latency_ms: float | None
    top1: tuple[float, ...]
    mean: float | None
    error: float | None
    core_minutes: float | None


def group_of(name: str) -> str:
    """The group of arms that a network's name ("lowformer_b0/width@0.6") belongs to."""
    arm = name.partition("@")[0]
    if arm.partition("/")[0] in OTHERS:
        return "timm"
    return arm.partition("/")[2] or arm


def results(networks: Rows, trainings: Rows, looks: Rows, tests: Rows) -> list[Result]:
    """What the rows say of each network, in their order."""
    ms, scores, seconds = defaultdict(list), defaultdict(dict), defaultdict(list)
    for row in looks:
        ms[row["network"]].append(row["ms"])
    for row in tests:
        scores[row["network"]][row["seed"]] = 100 * row["top1"]
    for row in trainings:
        seconds[row["network"]].append(row["seconds"])
    spreads = [np.var(list(each.values()), ddof=1) for each in scores.values() if len(each) > 1]
    spread = float(np.sqrt(np.mean(spreads))) if spreads else float("nan")
    found = []
    for row in networks:
        name = row["name"]
        top1 = tuple(round(value, 3) for _, value in sorted(scores[name].items()))
        found.append(
            Result(
                name,
                group_of(name),
                float(name.rpartition("@")[2]),
                round(float(np.quantile(ms[name], TRUTH_QUANTILE)), 4) if ms[name] else None,
                top1,
                round(float(np.mean(top1)), 3) if top1 else None,
                round(spread / np.sqrt(len(top1)), 3) if top1 and spreads else None,
                round(float(np.median(seconds[name])) / 60, 1) if seconds[name] else None,
            )
        )
    return found


def missing(found: Sequence[Result], task: str = "fashion-mnist") -> list[str]:
    """Groups of each budget of which no network was trained and measured."""
    there = {(each.budget_ms, each.group) for each in found if each.top1 and each.latency_ms}
    budgets = sorted({each.budget_ms for each in found})
    return [
        f"{NAMES[group]} at {ms:g} ms"
        for ms in budgets
        for group in NAMES
        if group in EXPECTED[task] - {have for budget, have in there if budget == ms}
    ]


def comparisons(found: Sequence[Result]) -> list[dict[str, Any]]:
    """At each budget the answer of the search against the best of every group: points, and their standard error."""
    rows = []
    for budget in sorted({each.budget_ms for each in found}):
        done = [each for each in found if each.budget_ms == budget and each.mean is not None and each.error is not None]
        answer = next((each for each in done if each.group == "search"), None)
        for group in NAMES:
            best = max((each for each in done if each.group == group), key=lambda each: each.mean, default=None)
            if answer is None or best is None or group == "search":
                continue
            error = float(np.hypot(answer.error, best.error))
            rows.append(
                {"budget_ms": budget, "against": best.name, "points": round(answer.mean - best.mean, 3)}
                | {"standard_error": round(error, 3), "latency_ms": best.latency_ms}
            )
    return rows


def table(found: Sequence[Result]) -> str:
    """All networks, best first, as Markdown."""
    lines = ["| budget | network | ms | test accuracy, % | seeds | core-minutes |", "|---|---|---|---|---|---|"]
    for each in sorted(found, key=lambda each: (each.budget_ms, -(each.mean or 0))):
        accuracy = "" if each.mean is None else f"{each.mean:.2f}" + (f" ± {each.error:.2f}" if each.error else "")
        cells = [f"{each.budget_ms:g} ms", each.name.partition("@")[0], f"{each.latency_ms or 0:.3f}", accuracy]
        lines.append("| " + " | ".join([*cells, str(len(each.top1)), f"{each.core_minutes or 0:g}"]) + " |")
    return "\n".join(lines)


def draw(found: Sequence[Result], path: Path, task: str = "fashion-mnist") -> None:
    """Accuracy against latency: arms as marks, seeds as dots; arms without results are named."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lownas"  # the same figure is the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    from matplotlib import pyplot

    budgets = sorted({each.budget_ms for each in found})
    figure, axes = pyplot.subplots(1, len(budgets), figsize=(5.2 * len(budgets), 4.4), squeeze=False)
    marks = dict(zip(NAMES, "*oXPDs^v<", strict=True))
    for axis, budget in zip(axes[0], budgets, strict=True):
        for number, group in enumerate(NAMES):
            label: str | None = NAMES[group]
            for each in found:
                if each.budget_ms != budget or each.group != group or not each.top1 or not each.latency_ms:
                    continue
                color = f"C{number}"
                axis.plot([each.latency_ms] * len(each.top1), each.top1, ".", color=color, markersize=3, alpha=0.6)
                size = 14 if group == "search" else 7
                axis.plot(each.latency_ms, each.mean, marks[group], color=color, markersize=size, label=label)
                label = None
        axis.axvline(budget, color="0.7", linewidth=1)
        axis.set(title=f"within {budget:g} ms", xlabel="latency, ms (undisturbed, measured)")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"{TASKS[task]} test accuracy, %")
    axes[0][-1].legend(fontsize=7)
    if without := missing(found, task):
        figure.text(0.01, 0.01, "not there: " + ", ".join(without), fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def read(task: str, name: str) -> list[dict[str, Any]]:
    path = ROWS / task / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    for task in TASKS:
        found = results(*(read(task, name) for name in KINDS))
        if not found:
            continue
        content = {"networks": [asdict(each) for each in found], "answer against": comparisons(found)}
        (HERE / f"{task}.json").write_text(json.dumps(content, indent=1) + "\n")
        draw(found, HERE / f"{task}.svg", task)
        print(table(found))
        for row in content["answer against"]:
            print(row)


if __name__ == "__main__":
    main()
