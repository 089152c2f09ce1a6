"""How far short trainings, costs and the surrogate rank networks, judged on the table (experiments/tabular/).

    python experiments/proxy_fidelity/study.py      # a minute; writes study.json

All figures are Kendall's tau with the accuracy of a network at the end of the short schedule (validation and test
images together). What was seen of one seed is judged by the other seed, so that no noise is shared. The intervals are
90 % bootstrap intervals over networks. The surrogate learns from one half of the networks (seed 0) and is judged on the
other half, over `HALVES` random halvings.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from lownas.experiments.tabular import Table
from lownas.predictors.surrogate import AccuracySurrogate, Observation
from lownas.search_space import PRESETS, SearchSpace

RESULTS = Path(__file__).with_name("study.json")
RUNG_EPOCHS = (1, 3, 9)
HALVES, BOOTSTRAPS = 20, 1000

Floats = NDArray[np.float64]


def tau(left: Floats, right: Floats) -> float:
    return float(kendalltau(left, right).statistic)


def with_interval(left: Floats, right: Floats) -> list[float]:
    """tau, and the 5 % and 95 % quantiles over networks drawn anew."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(left), size=len(left)) for _ in range(BOOTSTRAPS)]
    low, high = np.quantile([tau(left[draw], right[draw]) for draw in draws], [0.05, 0.95])
    return [round(value, 3) for value in (tau(left, right), float(low), float(high))]


def main() -> None:
    table, space = Table.load(), SearchSpace.load("tiny")
    networks = [network for network in table.networks if network.role not in PRESETS]
    parts = np.array([5_000, 10_000]) / 15_000  # validation and test images

    def seen(seed: int, epoch: int) -> Floats:
        points = [table.query(network.config, epoch, seed) for network in networks]
        return np.array([point.validation_accuracy for point in points])

    def whole(seed: int) -> Floats:
        points = [table.query(network.config, seed=seed) for network in networks]
        return np.array([(point.validation_accuracy, point.test_accuracy) for point in points]) @ parts

    final = [whole(0), whole(1)]
    mean = np.mean(final, axis=0)
    noise = float(np.sqrt(np.mean((final[0] - final[1]) ** 2) / 2))
    costs = {
        "MACs": np.array([network.macs for network in networks], float),
        "parameters": np.array([network.params for network in networks], float),
        "latency": np.array([network.latency_ms for network in networks]),
    }
    found: dict[str, object] = {
        "networks": len(networks),
        "of": table.card["planned"],
        "standard deviation over networks, points": round(100 * float(mean.std(ddof=1)), 3),
        "standard deviation between seeds, points": round(100 * noise, 3),
        "one seed's accuracy on all images, judged by the other": with_interval(final[0], final[1]),
    }
    for epoch in RUNG_EPOCHS:
        pair = [with_interval(seen(seed, epoch), final[1 - seed]) for seed in (0, 1)]
        found[f"validation accuracy after {epoch} of 9 epochs"] = np.mean(pair, axis=0).round(3).tolist()
    for name, cost in costs.items():
        found[name] = with_interval(cost, mean)
    long = [i for i, network in enumerate(networks) if ("long", 0) in network.trainings]
    if len(long) >= 8:
        points = [table.query(networks[i].config, seed=0, schedule="long") for i in long]
        truth = np.array([(point.validation_accuracy, point.test_accuracy) for point in points]) @ parts
        found["networks trained long"] = len(long)
        found["short training (mean of the seeds) against long"] = with_interval(mean[long], truth)
        found["MACs against long"] = with_interval(costs["MACs"][long], truth)
    found["on the half that the surrogate has not seen"] = halves(space, networks, table, seen, final, costs["MACs"])
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def halves(space, networks, table, seen, final, macs) -> dict[str, list[float]]:  # type: ignore[no-untyped-def]
    """Mean and standard deviation over the halvings, all against seed 1."""
    rng = np.random.default_rng(1)
    accuracy = {epoch: seen(0, epoch) for epoch in RUNG_EPOCHS}
    taus: dict[str, list[float]] = {}

    def note(name: str, values: Floats, truth: Floats) -> None:
        taus.setdefault(name, []).append(tau(values, truth))

    for _ in range(HALVES):
        order = rng.permutation(len(networks))
        known, unknown = order[: len(order) // 2], order[len(order) // 2 :]
        truth = final[1][unknown]
        asked = [networks[i].config for i in unknown]
        ends = [Observation(networks[i].config, 0, float(accuracy[9][i])) for i in known]
        note("surrogate, from whole trainings", AccuracySurrogate(space, ends).predict(asked)[0], truth)
        rungs = [
            Observation(networks[i].config, rung, float(accuracy[epoch][i]))
            for i in known
            for rung, epoch in enumerate(RUNG_EPOCHS)
        ]
        note("surrogate, from all rungs", AccuracySurrogate(space, rungs, rungs=3).predict(asked)[0], truth)
        note("MACs", macs[unknown], truth)
        note("training a third of the epochs", accuracy[3][unknown], truth)
        note("training to the end", accuracy[9][unknown], truth)
    return {name: [round(float(np.mean(x)), 3), round(float(np.std(x)), 3)] for name, x in taus.items()}


if __name__ == "__main__":
    main()
