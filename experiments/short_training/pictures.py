"""Fashion-MNIST's training part as a folder of pictures, 600 of each class, and what a logistic regression makes of it.

python experiments/short_training/pictures.py FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from lownas.evaluators.data.loading import linear_baseline, load_data
from lownas.evaluators.data.sources.fashion_mnist import FASHION_FOLDER

PICTURES_PER_CLASS = 600
SIDE = 28


def write_pictures(folder: Path) -> None:
    """The first pictures of each class of the training part, as FOLDER/CLASS/NUMBER.png."""
    data = load_data(f"fashion-mnist:{FASHION_FOLDER}", SIDE)
    for label, name in enumerate(data.classes):
        place = folder / name.replace("/", "-")
        place.mkdir(parents=True, exist_ok=True)
        for number in np.flatnonzero(data.train_labels == label)[:PICTURES_PER_CLASS]:
            Image.fromarray(data.train_images[number, ..., 0]).save(place / f"{number:05d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_pictures(folder)
    data = load_data(f"imagefolder:{folder}", SIDE)
    print(f"{len(data.train_labels)} pictures to train on, {len(data.validation_labels)} for validation")
    print(f"logistic regression: {linear_baseline(data):.4f}")


if __name__ == "__main__":
    main()
