"""The final trainer's speed beside a bare loop's, on the same model, images and recipe.

    python experiments/final_training/speed.py

The bare loop is what one writes by hand for a fixed-length run: resident images, AdamW, cross-entropy, clipping; it
averages no weights, looks at no loss, writes no file. Both make the same steps on one thread, in turns; each turn is
timed alone, and the medians over turns are compared. Augmentation is off in both, then flips and shifts are on in both.
Both step by AdamW; then the trainer makes the orthogonalized steps that it chooses where they are cheap, which
take longer and learn more, beside the same bare loop.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from lownas.evaluators import tasks
from lownas.evaluators.training.final.recipe import TrainingRecipe
from lownas.evaluators.training.final.records import FinalSettings
from lownas.evaluators.training.final.store import LocalStore
from lownas.evaluators.training.final.training import train_network
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, build_model

RESULTS = Path(__file__).with_name("speed.json")
IMAGES, TURNS = 1280, 5


def bare(config: LowFormerConfig, images: torch.Tensor, labels: torch.Tensor, recipe: TrainingRecipe) -> float:
    """Seconds of one epoch."""
    model = build_model(config).to(memory_format=torch.channels_last).train()
    decayed = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    augment = tasks.task("classification").augmentation(recipe, config.resolution)
    mean, spread = images.float().mean((0, 2, 3), keepdim=True) / 255, images.float().std((0, 2, 3), keepdim=True) / 255
    steps = len(labels) // recipe.batch_size

    def epoch() -> None:
        for step, index in enumerate(torch.randperm(len(labels)).split(recipe.batch_size)[:steps]):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
            varied, wanted = augment(images[index].float() / 255, labels[index])
            batch = ((varied - mean) / spread).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(batch), wanted, label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()

    epoch()
    start = time.perf_counter()
    epoch()
    return time.perf_counter() - start


def ours(config: LowFormerConfig, data: tuple[np.ndarray, np.ndarray], recipe: dict[str, object]) -> float:
    """Seconds of one epoch's steps, by the rows of the log; validation is one image in five, and is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        settings = FinalSettings(epochs=2, choices=recipe)
        network = train_network(config, data, LocalStore(folder), settings)
    return IMAGES / float(network.history[-1]["images_per_second"])


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    networks = {
        "tiny, 28 pixels": SearchSpace.load("tiny").sample(np.random.default_rng(3)),
        "lowformer_b0, 96 pixels": PRESETS["lowformer_b0"].replace(resolution=96, classes=10),
    }
    rows = []
    for name, config in networks.items():
        side, count = config.resolution, IMAGES if config.resolution < 64 else IMAGES // 4
        total = count * 5 // 4
        data = (rng.integers(0, 256, (total, side, side, 3), dtype=np.uint8), np.arange(total) % 10)
        images = torch.from_numpy(data[0][:count]).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(data[1][:count])
        for varied, orthogonal in ((False, False), (True, False), (True, True)):
            choices = {"batch_size": 64, "flip": varied, "max_shift": 1 / 16 if varied else 0.0}
            choices |= {} if orthogonal else {"matrix_rate": 0.0}
            choices |= {"sides": [1.0], "crop": 1.0, "batch_norm_images": 64}
            recipe = TrainingRecipe.from_dict(choices)
            pairs = [
                (bare(config, images, labels, recipe), ours(config, data, choices) * count / IMAGES)
                for _ in range(TURNS)
            ]
            loop, trainer = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
            ratios = [one / other for one, other in pairs]
            row = {"network": name, "flips and shifts": varied, "orthogonalized steps": orthogonal}
            row |= {"images_per_second": round(count / trainer, 1)}
            row |= {"bare_images_per_second": round(count / loop, 1), "share": round(statistics.median(ratios), 3)}
            rows.append(row)
            print(row, flush=True)
    RESULTS.write_text(json.dumps({"torch": torch.__version__, "threads": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
