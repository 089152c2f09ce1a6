"""Two workers beside one process: what both learn from the same batches, step by step and in the end.

    OMP_NUM_THREADS=1 python experiments/final_training/workers.py      # 20 minutes of two cores

Steps: the losses of 40 optimizer steps at the same batch of 64 images (32 for each worker), without augmentation, of a
small convolutional network without BatchNorm, and of a LowFormer, whose BatchNorm looks at each worker's images alone.

In the end: a random network of the `tiny` space, trained with the recipe as it settles by itself, BatchNorm and
augmentation included, from three seeds each way: on the digits, whose 287 validation images tell nothing finer than
0.35 points, and on 6,000 of Fashion-MNIST's training images, judged by 4,000 others of them. The test part is not
touched. Means are held against the standard deviation between seeds, pooled over the two ways compared. BatchNorm sees
half of a batch in each of two workers; one process whose batches go through in two halves does the same alone.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lownas.evaluators.data.loading import find_parts
from lownas.evaluators.data.sources import Data
from lownas.evaluators.training.final.records import FinalSettings
from lownas.evaluators.training.final.store import LocalStore
from lownas.evaluators.training.final.training import train_network
from lownas.search.final.distributed import train_distributed
from lownas.search_space import LowFormerConfig, SearchSpace

RESULTS = Path(__file__).with_name("workers.json")
SEEDS = (0, 1, 2)
DIGITS_EPOCHS, FASHION_EPOCHS, STEPS, BATCH = 12, 8, 40, 64
TRAIN, VALIDATION = 6_000, 4_000
PLAIN = {"mixup": 0, "cutmix": 0, "max_shift": 0, "flip": False, "crop": 1, "erasing": 0, "randaugment_layers": 0}
PLAIN |= {"drop_path": 0, "agreement": 0, "batch_size": BATCH}


def convolutions(side: int) -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GELU()]
    return nn.Sequential(*stem, nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 10))


def fashion() -> Data:
    """Images and labels to train on and to validate by, all of Fashion-MNIST's training part."""
    part = find_parts("fashion-mnist", resolution=28).train
    order = np.random.default_rng(0).permutation(len(part))[: TRAIN + VALIDATION]
    train, validation = part.take(order[:TRAIN]), part.take(order[TRAIN:])
    return train.images, train.labels, validation.images, validation.labels


def trained(network: Any, data: Data, side: int, settings: FinalSettings, workers: int) -> tuple[list[float], float]:
    """The loss of every step, and the accuracy on the validation part."""
    losses: dict[int, float] = {}

    def on_step(step: int, loss: float) -> None:
        losses[step] = loss

    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        if workers == 1:
            found = train_network(network, data, store, settings, resolution=side, on_step=on_step)
        else:
            found = train_distributed(network, data, store, settings, workers=workers, resolution=side, on_step=on_step)
    assert found.validation_accuracy is not None
    return [losses[step] for step in sorted(losses)], found.validation_accuracy


def steps(network: Any, side: int) -> dict[str, Any]:
    """How far the losses of one process and of two workers are apart."""
    settings = FinalSettings(epochs=3, choices=PLAIN)
    one, two = (trained(network, "digits", side, settings, workers)[0][:STEPS] for workers in (1, 2))
    apart = [abs(a - b) for a, b in zip(one, two, strict=True)]
    return {
        "steps": len(one),
        "largest_of_20": max(apart[:20]),
        "largest": max(apart),
        "first": one[0],
        "last": one[-1],
    }


WAYS = {"one process": (1, 1), "one process, batches in halves": (1, 2), "two workers": (2, 1)}
"""Processes, and parts that each one's images of a step go through in."""


def finals(config: LowFormerConfig, data: Data, epochs: int) -> dict[str, Any]:
    """Accuracies by seed, each way."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in SEEDS:
        for way, (workers, parts) in WAYS.items():
            settings = FinalSettings(epochs=epochs, seed=seed, choices={"accumulation": parts})
            found[way].append(trained(config, data, config.resolution, settings, workers)[1])
        print(seed, {way: values[-1] for way, values in found.items()}, flush=True)
    return {"epochs": epochs, "validation_accuracy": found, **summary(found)}


def summary(found: dict[str, list[float]]) -> dict[str, Any]:
    """Means and deviations, and how far two workers are from either way of one process."""
    mean = {way: statistics.mean(values) for way, values in found.items()}
    deviation = {way: statistics.stdev(values) for way, values in found.items()}
    apart = {}
    for way in list(WAYS)[:2]:
        pooled = math.sqrt((deviation[way] ** 2 + deviation["two workers"] ** 2) / 2)
        points = 100 * (mean["two workers"] - mean[way])
        apart[way] = {"points": points, "pooled_standard_deviations": points / 100 / pooled if pooled else None}
    return {"mean": mean, "standard_deviation": deviation, "two_workers_apart_from": apart}


def main() -> None:
    torch.set_num_threads(1)
    config = SearchSpace.load("tiny").sample(np.random.default_rng(3))
    rows = {
        "without BatchNorm": steps(convolutions(16), 16),
        "LowFormer, BatchNorm by worker": steps(config, config.resolution),
    }
    print(json.dumps(rows), flush=True)
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads_of_a_worker": 1, "batch": BATCH}
    result = {**about, "network": config.to_dict(), "steps on digits": rows, "finals": {}}
    for name, data, epochs in (("digits", "digits", DIGITS_EPOCHS), ("Fashion-MNIST", fashion(), FASHION_EPOCHS)):
        result["finals"][name] = finals(config, data, epochs)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
