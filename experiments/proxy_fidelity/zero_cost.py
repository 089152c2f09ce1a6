"""Zero-cost scores of the table's networks, on Fashion-MNIST at each network's resolution, and what they are worth.

    python experiments/proxy_fidelity/zero_cost.py        # 25 minutes on one busy core; resumes

Appends to zero_cost.jsonl one row for each network and seed: id, seed, scores, seconds (of all scores together, on a
machine that may have been busy). The seed draws the weights and takes its own 64 training images. Then judges them by
the accuracies of the short trainings (mean of two seeds, all images), in zero_cost.json: Kendall's tau of each score
alone; and of a linear model of the ranks of MACs and parameters, with the score and without it, fitted on one half of
the networks and judged on the other, over `HALVES` random halvings; the same with the number of units (blocks, MLPs and
attentions, one by one) beside these two; and beside what the surrogate of one half's trainings says of the other half.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata

from lownas.experiments.proxy_fidelity.scores import zero_cost_scores
from lownas.experiments.proxy_fidelity.study import RUNG_EPOCHS, at_rungs
from lownas.experiments.tabular import Table
from lownas.experiments.tabular.training import normalized, parts
from lownas.search.objectives.run_surrogate import learn
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace
from lownas.search_space.graph.from_config import units

PLAN = Path(__file__).parents[1] / "tabular" / "plan.json"
ROWS = Path(__file__).with_name("zero_cost.jsonl")
SEEDS = (0, 1)
BATCH = 64
RESULTS = Path(__file__).with_name("zero_cost.json")
HALVES = 20

Floats = NDArray[np.float64]


def missing() -> list[tuple[LowFormerConfig, int]]:
    """(network, seed) without a row, by resolution, since images of one resolution take seconds to make."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    done = {(row["id"], row["seed"]) for row in map(json.loads, lines)}
    configs = [LowFormerConfig.from_dict(entry["config"]) for entry in json.loads(PLAN.read_text())]
    jobs = [(config, seed) for config in configs for seed in SEEDS if (config.id, seed) not in done]
    return sorted(jobs, key=lambda job: job[0].resolution)


def main() -> None:
    jobs = missing()
    with ROWS.open("a") as file:
        for number, (config, seed) in enumerate(jobs, start=1):
            train = parts(config.resolution)["train"]
            index = torch.arange(seed * BATCH, (seed + 1) * BATCH)
            begin = time.perf_counter()
            scores = zero_cost_scores(config, normalized(train.images[index]), train.labels[index], seed)
            seconds = time.perf_counter() - begin
            row = {"id": config.id, "seed": seed, "scores": scores, "seconds": round(seconds, 3)}
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{number} of {len(jobs)}", json.dumps(row), flush=True)
    RESULTS.write_text(json.dumps(judged(Table.load()), indent=1) + "\n")


def judged(table: Table) -> dict[str, object]:
    scores: dict[str, list[dict[str, float]]] = {}
    for line in ROWS.read_text().splitlines():
        row = json.loads(line)
        scores.setdefault(row["id"], []).append(row["scores"])
    networks = [n for n in table.networks if n.role not in PRESETS and n.config.id in scores]
    truth = np.array([np.mean([training.accuracy for training in n.of("short")]) for n in networks])
    found: dict[str, Floats] = {
        name: np.array([np.mean([seed[name] for seed in scores[n.config.id]]) for n in networks])
        for name in next(iter(scores.values()))[0]
    }
    macs = np.array([float(network.macs) for network in networks])
    costs = np.stack([macs, np.array([float(network.params) for network in networks])])
    sizes = np.stack([*costs, np.array([float(len(units(network.config))) for network in networks])])
    space = SearchSpace.load("tiny")
    learned = []
    for number in range(HALVES):
        known, unknown = halved(len(networks), number)
        trainings = at_rungs(table, [networks[i] for i in known], (0,))
        surrogate = learn(space, trainings, len(RUNG_EPOCHS), longer=0)
        mean = np.zeros(len(networks))
        mean[unknown] = surrogate.mean([networks[i].config for i in unknown])
        learned.append(mean)
    return {
        "networks": len(networks),
        "R2 of the scores on MACs, parameters, units and resolution": {
            name: round(explained(values, [*sizes, np.array([n.config.resolution for n in networks])]), 3)
            for name, values in found.items()
        },
        "alone": {
            name: round(float(kendalltau(values, truth).statistic), 3)
            for name, values in {"MACs": macs, "parameters": costs[1], **found}.items()
        },
        "beside MACs and parameters": {
            "nothing": gain(costs, [], truth),
            **{name: gain(costs, [values], truth) for name, values in found.items()},
            "all four": gain(costs, list(found.values()), truth),
        },
        "beside MACs, parameters and the number of units": {
            "nothing": gain(sizes, [], truth),
            **{name: gain(sizes, [values], truth) for name, values in found.items()},
            "all four": gain(sizes, list(found.values()), truth),
        },
        "beside the surrogate of the other half's trainings": {
            "nothing": beside(learned, [], truth),
            **{name: beside(learned, [values], truth) for name, values in found.items()},
            "all four": beside(learned, list(found.values()), truth),
        },
    }


def halved(count: int, number: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    order = np.random.default_rng(number).permutation(count)
    return order[: count // 2], order[count // 2 :]


def linear(features: Sequence[Floats], truth: Floats, known: NDArray[np.intp], unknown: NDArray[np.intp]) -> float:
    """tau on `unknown` of the least squares of ranks on `known`."""
    ranks = np.stack([np.ones(len(truth)), *(rankdata(feature) / len(truth) for feature in features)], axis=1)
    weights = np.linalg.lstsq(ranks[known], truth[known], rcond=None)[0]
    return float(kendalltau(ranks[unknown] @ weights, truth[unknown]).statistic)


def explained(values: Floats, features: Sequence[Floats]) -> float:
    """Share of the variance that a linear model of the features' logarithms has."""
    inputs = np.stack([np.ones(len(values)), *(np.log(feature) for feature in features)], axis=1)
    left = values - inputs @ np.linalg.lstsq(inputs, values, rcond=None)[0]
    return float(1 - left.var() / values.var())


def gain(costs: Floats, scores: Sequence[Floats], truth: Floats) -> list[float]:
    """Mean and standard deviation over the halvings."""
    taus = [linear([*costs, *scores], truth, *halved(len(truth), number)) for number in range(HALVES)]
    return [round(float(np.mean(taus)), 3), round(float(np.std(taus)), 3)]


def beside(learned: Sequence[Floats], scores: Sequence[Floats], truth: Floats) -> list[float]:
    """The same on the half that the surrogate has not seen: a quarter fits, a quarter judges."""
    taus = []
    for number, mean in enumerate(learned):
        unknown = halved(len(truth), number)[1]
        here = [mean[unknown], *(score[unknown] for score in scores)]
        taus.append(linear(here, truth[unknown], *halved(len(unknown), number + HALVES)))
    return [round(float(np.mean(taus)), 3), round(float(np.std(taus)), 3)]


if __name__ == "__main__":
    main()
