"""What it is worth to expect larger networks to be better before anything is trained (`SIZE_PRIOR`).

    python experiments/proxy_fidelity/size.py      # two minutes; writes size.json

Some of the networks that the table has long trainings of (experiments/tabular/) are drawn; a surrogate of their short
trainings, whose accuracies are those of a validation part of so many images, names the best. Regret is by how many
points of accuracy after the long training that one lies below the best that was drawn. Mean over draws.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.stats import kendalltau

from lownas.experiments.tabular import Network, Table
from lownas.predictors.accuracy import surrogate
from lownas.predictors.accuracy.surrogate import AccuracyObservation
from lownas.search.objectives.run_surrogate import learn
from lownas.search_space import PRESETS, SearchSpace

RESULTS = Path(__file__).with_name("size.json")
RUNG_EPOCHS = (1, 3, 9)
PRIORS = (0.0, 0.2, 0.35, 0.5, 0.8)
SETTINGS = ((12, 400), (12, 1000), (24, 1000), (24, 5000))
"""Networks drawn, and images that judge them."""
DRAWS = 40


def observed(table: Table, network: Network, seed: int, images: int, rng: np.random.Generator) -> list:
    """The rungs of a short training, judged by so many images."""
    found = []
    for rung, epoch in enumerate(RUNG_EPOCHS):
        accuracy = table.query(network.config, epoch, seed).validation_accuracy
        found.append(AccuracyObservation(network.config, rung, float(rng.binomial(images, accuracy)) / images))
    return found


def main() -> None:
    table, space = Table.load(), SearchSpace.load("tiny")
    networks = [each for each in table.networks if each.role not in PRESETS and ("long", 0) in each.trainings]
    long = np.array(
        [np.mean([t.accuracy for (kind, _), t in each.trainings.items() if kind == "long"]) for each in networks]
    )
    macs = np.array([float(each.macs) for each in networks])
    rng = np.random.default_rng(0)
    rows = []
    for count, images in SETTINGS:
        draws = [rng.choice(len(networks), count, replace=False) for _ in range(DRAWS)]
        largest = [100 * (long[draw].max() - long[draw[np.argmax(macs[draw])]]) for draw in draws]
        for prior in PRIORS:
            surrogate.SIZE_PRIOR = prior
            regrets, taus = [], []
            for number, draw in enumerate(draws):
                own = np.random.default_rng(number)
                seen = [each for i in draw for each in observed(table, networks[i], number % 2, images, own)]
                mean = learn(space, seen, len(RUNG_EPOCHS)).mean([networks[i].config for i in draw])
                regrets.append(100 * (long[draw].max() - long[draw[np.argmax(mean)]]))
                taus.append(kendalltau(mean, long[draw]).statistic)
            row = {"networks": count, "images": images, "prior": prior, "regret": round(float(np.mean(regrets)), 3)}
            row |= {"standard_error": round(float(np.std(regrets, ddof=1)) / DRAWS**0.5, 3)}
            rows.append(row | {"tau": round(float(np.mean(taus)), 3), "regret_of_largest": round(np.mean(largest), 3)})
            print(rows[-1], flush=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
