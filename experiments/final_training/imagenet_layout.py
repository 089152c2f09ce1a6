"""The papers' recipe for LowFormer-B1 on data of ImageNet's layout and size in small: the loss falls.

    OMP_NUM_THREADS=1 python experiments/final_training/imagenet_layout.py FOLDER

FOLDER gets train/CLASS/*.jpg (and val/, a fiftieth): pictures of 32 x 32 pixels whose colours tell their class a
little. Listing, the first batch, 50 steps at the recipe's own batch, sizes and precision, and peak memory are measured,
and written to imagenet_layout.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lownas.evaluators.training.final.planning import Plan
from lownas.evaluators.training.final.records import FinalSettings
from lownas.evaluators.training.final.store import LocalStore
from lownas.evaluators.training.final.training import train_network
from lownas.search_space import PRESETS

RESULTS = Path(__file__).with_name("imagenet_layout.json")
STEPS = 50


class Enough(Exception):
    """The steps that were asked for are made."""


def generate(folder: Path, classes: int, images: int) -> None:
    """Writes the pictures; those of a class have its colours and noise."""
    rng = np.random.default_rng(0)
    for part, count in (("train", images // classes), ("val", max(1, images // classes // 50))):
        for number in range(classes):
            home = folder / part / f"n{number:08d}"
            if home.is_dir() and len(list(home.iterdir())) == count:
                continue
            home.mkdir(parents=True, exist_ok=True)
            colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
            for image in range(count):
                pixels = np.clip(colours + rng.normal(0, 40, (32, 32, 1)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(home / f"{image}.jpg", quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    generate(arguments.folder, arguments.classes, arguments.images)
    torch.set_num_threads(1)
    losses: list[float] = []
    times: list[float] = []
    settled: list[Plan] = []

    def on_step(step: int, loss: float) -> None:
        losses.append(round(loss, 5))
        times.append(time.monotonic() - start)
        print(step, losses[-1], round(times[-1], 1), flush=True)
        if step + 1 == arguments.steps:
            raise Enough

    settings = FinalSettings(epochs=1, choices={"base": "papers"}, loaders=1)
    config = PRESETS["lowformer_b1"].replace(classes=arguments.classes)
    start = time.monotonic()
    store = LocalStore(arguments.folder / "training")
    try:
        data = f"imagefolder:{arguments.folder}"
        train_network(config, data, store, settings, on_step=on_step, announce=settled.append)
    except Enough:
        pass
    for name in ("training.json", "state.safetensors", "log.csv"):
        store.remove(name)
    found = {
        "images": arguments.images,
        "classes": arguments.classes,
        "recipe": settled[0].recipe.to_dict(),
        "first_step_after_s": round(times[0], 2),
        "seconds_a_step": round(float(np.median(np.diff(times))), 2),
        "loss_of_the_first_5_steps": round(float(np.mean(losses[:5])), 4),
        "loss_of_the_last_5_steps": round(float(np.mean(losses[-5:])), 4),
        "losses": losses,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name not in ("recipe", "losses")}))


if __name__ == "__main__":
    main()
