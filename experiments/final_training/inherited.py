"""What inherited weights and a teacher are worth in a final training: three networks, two seeds each.

    OMP_NUM_THREADS=1 python experiments/final_training/inherited.py      # 40 minutes of one core

A large network of the space is trained on 12,000 of Fashion-MNIST's training images; 4,000 others validate.
The test part is not touched. Three random networks of the `tiny` space at its resolution then train on the same images:
8 epochs from fresh weights; from the large one's weights for 2, 4 and 8 epochs; with the large one as a teacher, from
fresh weights for 8 epochs; and both for 4. Each length is a training of its own, with its own schedule. Rows go to
inherited.json as they come; what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lownas.evaluators.data.loading import find_parts
from lownas.evaluators.training.final.records import FinalSettings
from lownas.evaluators.training.final.store import LocalStore
from lownas.evaluators.training.final.training import train_network
from lownas.search_space import Attention, LowFormerConfig, SearchSpace, StageConfig, op_graph

RESULTS = Path(__file__).with_name("inherited.json")
TRAIN, VALIDATION = 12_000, 4_000
LARGE_EPOCHS = 12
FRESH = 8
LARGE = LowFormerConfig(
    resolution=28,
    stem_width=24,
    stages=(
        StageConfig(width=40, depth=2, down_expansion=4),
        StageConfig(width=64, depth=2, down_expansion=4),
        StageConfig(width=96, depth=3, down_expansion=4, attention=Attention(stride=2), mlp_ratio=4),
        StageConfig(width=128, depth=3, down_expansion=4, attention=Attention(stride=1), mlp_ratio=4),
    ),
    head_widths=(512, 640),
    classes=10,
)
WAYS: tuple[tuple[str, int, bool, bool], ...] = (
    ("fresh", FRESH, False, False),
    ("inherited", 2, True, False),
    ("inherited", 4, True, False),
    ("inherited", FRESH, True, False),
    ("teacher", FRESH, False, True),
    ("inherited and teacher", 4, True, True),
)


def images() -> tuple[Any, Any, Any, Any]:
    """Parts of Fashion-MNIST's training images, as arrays."""
    part = find_parts("fashion-mnist").train
    order = np.random.default_rng(0).permutation(len(part))
    train, validation = order[:TRAIN], order[TRAIN : TRAIN + VALIDATION]
    assert isinstance(part.images, np.ndarray)
    return part.images[train], part.labels[train], part.images[validation], part.labels[validation]


def networks() -> list[LowFormerConfig]:
    """Three random networks of the space, at the large one's resolution."""
    space, rng = SearchSpace.load("tiny"), np.random.default_rng(7)
    return [space.sample(rng).replace(resolution=LARGE.resolution) for _ in range(3)]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy by way, in percent, and whether the fresh one's was reached in half of its epochs."""

    def accuracy(network: int, seed: int, way: str, epochs: int) -> float | None:
        found = [r for r in rows if (r["network"], r["seed"], r["way"], r["epochs"]) == (network, seed, way, epochs)]
        return found[0]["validation_accuracy"] if found else None

    pairs = [(network, seed) for network in range(3) for seed in range(2)]
    means, gains = {}, {}
    for way, epochs, _, _ in WAYS:
        values = [(accuracy(*pair, way, epochs), accuracy(*pair, "fresh", FRESH)) for pair in pairs]
        known = [(one, fresh) for one, fresh in values if one is not None and fresh is not None]
        if known:
            name = f"{way}, {epochs} epochs"
            means[name] = round(100 * float(np.mean([one for one, _ in known])), 2)
            gains[name] = [round(100 * (one - fresh), 2) for one, fresh in known]
    reached = {}
    for network, seed in pairs:
        fresh = accuracy(network, seed, "fresh", FRESH)
        lengths = [
            e
            for w, e, _, _ in WAYS
            if w == "inherited" and (a := accuracy(network, seed, w, e)) and fresh and a >= fresh
        ]
        reached[f"network {network}, seed {seed}"] = min(lengths) if lengths else None
    return {"mean_accuracy": means, "points_above_fresh": gains, "epochs_until_the_fresh_accuracy": reached}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    rows, data = found["rows"], images()
    done = {(row["network"], row["seed"], row["way"], row["epochs"]) for row in rows}
    kept = RESULTS.parent / "work" / "large"
    large = train_network(LARGE, data, LocalStore(kept), FinalSettings(epochs=LARGE_EPOCHS), resume=True)
    found["large"] = {"epochs": LARGE_EPOCHS, "validation_accuracy": large.validation_accuracy}
    for number, config in enumerate(networks()):
        for seed in range(2):
            for way, epochs, inherits, taught in WAYS:
                if (number, seed, way, epochs) in done:
                    continue
                settings = FinalSettings(
                    epochs=epochs,
                    seed=seed,
                    init_from=str(kept) if inherits else None,
                    teacher=str(kept) if taught else None,
                )
                with tempfile.TemporaryDirectory() as folder:
                    network = train_network(config, data, LocalStore(folder), settings)
                row = {"network": number, "config": config.id, "macs": op_graph(config).macs, "seed": seed, "way": way}
                row |= {"epochs": epochs, "validation_accuracy": network.validation_accuracy}
                rows.append(row | {"seconds": round(network.seconds, 1)})
                RESULTS.write_text(json.dumps({**found, "summary": summary(rows)}, indent=1) + "\n")
                print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
