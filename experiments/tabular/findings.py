"""What the table shows: accuracy against latency and MACs, its fronts, and what choices are worth at equal latency.

    pip install matplotlib
    python experiments/tabular/findings.py          # seconds; writes findings.json and findings.svg

An accuracy is the mean over seeds of the short trainings, of the 15,000 validation and test images together, in
percent; "long" of the long ones. "At equal latency" is a linear regression on ln(latency), its square, and the choices;
intervals are 2.5 and 97.5 % quantiles over 1,000 bootstrap samples of the networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from lownas.experiments.tabular import Network, Table
from lownas.search_space import PRESETS, LowFormerConfig
from lownas.search_space.config import blocks_after_downsampler

HERE = Path(__file__).parent
NEAR = 0.2  # points under the front that count as on it: about the noise of a mean over two seeds
SAMPLES = 1000
TICKS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 4, 6, 8)  # of the figure's costs

Floats = NDArray[np.float64]


def accuracy(network: Network, schedule: str = "short") -> float:
    """Percent, over seeds and images."""
    return 100 * float(np.mean([training.accuracy for training in network.of(schedule)]))


def _blocks(config: LowFormerConfig) -> list[tuple[bool, bool, bool]]:
    """For each block behind the downsamplers whether it is fused, attends, has an MLP."""
    return [
        (stage.local == "fused", bool(attends), stage.mlp_ratio > 0)
        for number, stage in enumerate(config.stages, start=1)
        for attends in _attending(stage, blocks_after_downsampler(number, stage))
    ]


def _attending(stage: Any, blocks: int) -> tuple[bool, ...]:
    return stage.attention.attends(blocks) if stage.attention else (False,) * blocks


def _share(place: int) -> Callable[[LowFormerConfig], float]:
    return lambda config: float(np.mean([block[place] for block in _blocks(config)] or [False]))


CHOICES: dict[str, Callable[[LowFormerConfig], float]] = {
    "blocks that attend (share)": _share(1),
    "fused blocks (share)": _share(0),
    "blocks with an MLP (share)": _share(2),
    "resolution (ln)": lambda config: float(np.log(config.resolution)),
    "blocks": lambda config: float(len(_blocks(config)) + config.stem_depth),
    "last width (ln)": lambda config: float(np.log(config.stages[-1].width)),
    "groups of 2": lambda config: float(config.stages[0].groups > 1),
}


def front(cost: Floats, score: Floats) -> NDArray[np.bool_]:
    """(n,) which are on the front or at most `NEAR` below it."""
    best_so_far = np.array([score[cost <= own].max() for own in cost])
    return score >= best_so_far - NEAR


def worth(cost: Floats, score: Floats, choices: Floats) -> Floats:
    """(k,) points for going from the lower to the upper quartile of each choice, at equal cost."""
    steps = np.quantile(choices, 0.75, axis=0) - np.quantile(choices, 0.25, axis=0)
    steps = np.where(steps > 0, steps, np.ptp(choices, axis=0))
    centred = np.log(cost) - np.log(cost).mean()
    design = np.column_stack([np.ones_like(cost), centred, centred**2, choices])
    return np.asarray(np.linalg.lstsq(design, score, rcond=None)[0][3:] * steps, dtype=np.float64)


def with_interval(cost: Floats, score: Floats, choices: Floats) -> dict[str, list[float]]:
    rng, n = np.random.default_rng(0), len(cost)
    drawn = [
        worth(cost[index], score[index], choices[index]) for index in (rng.integers(n, size=n) for _ in range(SAMPLES))
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    values = zip(worth(cost, score, choices), low, high, strict=True)
    return {name: [round(float(x), 3) for x in row] for name, row in zip(CHOICES, values, strict=True)}


def draw(networks: list[Network], score: Floats, costs: dict[str, Floats], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lownas"  # the same figure is the same file
    from matplotlib import pyplot

    attends = np.array([CHOICES["blocks that attend (share)"](network.config) > 0 for network in networks])
    figure, axes = pyplot.subplots(1, len(costs), figsize=(11, 4.2), sharey=True, layout="constrained")
    for axis, (name, cost) in zip(axes, costs.items(), strict=True):
        for group, colour, label in ((~attends, "#4477aa", "no attention"), (attends, "#ee6677", "Lowtention")):
            axis.scatter(cost[group], score[group], s=14, color=colour, label=label, alpha=0.8, linewidths=0)
        order = np.argsort(cost)
        best = np.maximum.accumulate(score[order])
        axis.step(cost[order], best, where="post", color="black", linewidth=1, label="front")
        axis.set_xscale("log")
        axis.set_xticks([tick for tick in TICKS if cost.min() < tick < cost.max()])
        axis.minorticks_off()
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel(name)
    axes[0].set_ylabel("accuracy, % (mean of two seeds)")
    axes[0].legend(loc="lower right", frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    table = Table.load()
    networks = [network for network in table.networks if network.role not in PRESETS]
    score = np.array([accuracy(network) for network in networks])
    costs = {
        "latency, ms": np.array([network.latency_ms for network in networks]),
        "MMACs": np.array([network.macs / 1e6 for network in networks]),
    }
    choices = np.array([[of(network.config) for of in CHOICES.values()] for network in networks])
    logs = {name: np.log(cost) for name, cost in costs.items()}
    slope = np.polyfit(logs["MMACs"], logs["latency, ms"], 1)
    residual = logs["latency, ms"] - np.polyval(slope, logs["MMACs"])
    near = front(costs["latency, ms"], score)
    found = {
        "networks": len(networks),
        "of planned": table.card["planned"],
        "Kendall's tau": {
            "accuracy and latency": float(kendalltau(score, costs["latency, ms"]).statistic),
            "accuracy and MACs": float(kendalltau(score, costs["MMACs"]).statistic),
            "latency and MACs": float(kendalltau(costs["latency, ms"], costs["MMACs"]).statistic),
        },
        "latency at equal MACs: fastest and slowest tenth, times the middle": [
            float(np.exp(x)) for x in np.quantile(residual, [0.1, 0.9])
        ],
        f"on the front of latency or at most {NEAR} points below": {
            "networks": int(near.sum()),
            "means there": dict(zip(CHOICES, choices[near].mean(axis=0).tolist(), strict=True)),
            "means of the others": dict(zip(CHOICES, choices[~near].mean(axis=0).tolist(), strict=True)),
            "of them also near the front of MACs": int((near & front(costs["MMACs"], score)).sum()),
        },
        "points from lower to upper quartile (value, interval)": {
            f"at equal {name}": with_interval(cost, score, choices) for name, cost in costs.items()
        },
    }
    long = np.array([("long", 0) in network.trainings for network in networks])
    trained_long = np.array(
        [accuracy(network, "long") for network, chosen in zip(networks, long, strict=True) if chosen]
    )
    found["trained long"] = {
        "networks": len(trained_long),
        "mean gain over the short training": float(np.mean(trained_long - score[long])),
        "Kendall's tau of the accuracy with the short training's, MACs, latency": [
            float(kendalltau(trained_long, other[long]).statistic)
            for other in (score, costs["MMACs"], costs["latency, ms"])
        ],
        "points from lower to upper quartile, at equal latency": {
            name: with_interval(costs["latency, ms"][long], values, choices[long])
            for name, values in (("short", score[long]), ("long", trained_long), ("gain", trained_long - score[long]))
        },
    }
    rounded = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 3))
    (HERE / "findings.json").write_text(json.dumps(rounded, indent=1) + "\n")
    draw(networks, score, costs, HERE / "findings.svg")
    print(json.dumps(rounded, indent=1))


if __name__ == "__main__":
    main()
