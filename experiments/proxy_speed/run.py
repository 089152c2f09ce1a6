"""How much slower the proxy training is than a bare loop on the same network, data and batch size.

    OMP_NUM_THREADS=1 python experiments/proxy_speed/run.py           # some 10 minutes; writes results.json

The bare loop is what a first PyTorch tutorial has: shuffle, index, normalize, forward, cross-entropy, backward, AdamW
(fused, one parameter group, constant rate), channels-last. The proxy training adds augmentation, label smoothing,
rates by fan-in, a schedule, clipping and the count of correct answers. Both take turns on one machine; the ratio of
each pair of rounds is kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lownas.evaluators.data.loading import load_data
from lownas.evaluators.tasks import task
from lownas.evaluators.training.batches import ImageBatches
from lownas.evaluators.training.proxy import prepared_model
from lownas.evaluators.training.settings import ProxySettings
from lownas.evaluators.training.trainer import Training, seeded, torch_threads
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, op_graph

RESULTS = Path(__file__).with_name("results.json")
ROUND_S = 1.5
STEPS = 8  # between two looks at the clock; an epoch of the proxy training has some such number


def networks() -> dict[str, tuple[LowFormerConfig, int]]:
    """By name a network and the side that it trains at: the extremes of the presets, and the tiny space at its own."""
    chosen = {name: (PRESETS[name], 32) for name in ("cpubone_nano", "lowformer_b0", "lowformer_b1", "lowformer_b3")}
    space, rng = SearchSpace.load("tiny"), np.random.default_rng(0)
    drawn = sorted((space.sample(rng) for _ in range(200)), key=lambda config: op_graph(config).macs)
    for share in (0.05, 0.25, 0.5, 0.75):
        config = drawn[int(share * len(drawn))]
        chosen[f"tiny, quantile {share}"] = (config, config.resolution)
    return chosen


def bare_steps(model: nn.Module, images: ImageBatches, size: int) -> Callable[[], None]:
    """`STEPS` steps of the bare loop a call."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    order = torch.randperm(len(images))
    place = 0

    def steps() -> None:
        nonlocal place, order
        for _ in range(STEPS):
            if place + size > len(order):
                order, place = torch.randperm(len(images)), 0
            index = order[place : place + size]
            place += size
            batch = (images.images[index].float() - images.mean) * images.scale
            loss = F.cross_entropy(model(batch.contiguous(memory_format=torch.channels_last)), images.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def proxy_steps(model: nn.Module, images: ImageBatches, settings: ProxySettings, side: int) -> Callable[[], None]:
    """`STEPS` steps of the proxy training a call, by its own loop."""
    training = Training(model, settings, len(images), "cpu")
    augment = task("classification").augmentation(settings, side)

    def steps() -> None:
        list(training.run(images, augment, training.done + STEPS))

    return steps


def seconds_per_step(steps: Callable[[], None], budget_s: float) -> float:
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < budget_s:
        steps()
        count += STEPS
    return (time.perf_counter() - begin) / count


def compare(config: LowFormerConfig, side: int, size: int, rounds: int) -> dict[str, object]:
    data = load_data("digits", side, train_images=1024, validation_images=64)
    # Long enough that no epoch of the schedule ends it; the rate of the last steps is not measured apart.
    settings = ProxySettings(batch_size=size, epochs=100_000, max_shift=1 / 16)
    with torch_threads(1), seeded(0, "cpu"):
        images = ImageBatches(data, "train", "cpu")
        config = config.replace(classes=len(data.classes))
        steps = [
            bare_steps(prepared_model(config, "cpu"), images, size),
            proxy_steps(prepared_model(config, "cpu"), images, settings, side),
        ]
        for warm_up in steps:
            warm_up()
        pairs = []
        for number in range(rounds):
            taken = {which: seconds_per_step(steps[which], ROUND_S) for which in ((0, 1) if number % 2 else (1, 0))}
            pairs.append((taken[0], taken[1]))
    bare, proxy = np.array(pairs).T
    return {
        "resolution": side,
        "macs": op_graph(config.replace(resolution=side)).macs,
        "batch_size": size,
        "bare_images_per_second": round(float(size / np.median(bare)), 1),
        "proxy_images_per_second": round(float(size / np.median(proxy)), 1),
        "speed_over_bare": round(float(np.median(bare / proxy)), 3),
        "speed_over_bare_by_round": [round(float(ratio), 3) for ratio in bare / proxy],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rows = []
    for name, (config, side) in networks().items():
        for size in (64, 128):
            rows.append({"network": name, **compare(config, side, size, rounds)})
            print(json.dumps(rows[-1]), flush=True)
    document = {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": 1,
        "median_speed_over_bare": round(float(np.median([row["speed_over_bare"] for row in rows])), 3),
        "slowest": min(row["speed_over_bare"] for row in rows),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(f"median {document['median_speed_over_bare']}, slowest {document['slowest']}")


if __name__ == "__main__":
    main()
