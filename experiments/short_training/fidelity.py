"""How well short trainings order networks of the table as long ones do: the recipe of a search now and before.

    OMP_NUM_THREADS=1 python experiments/short_training/fidelity.py FOLDER   # of pictures.py; goes on where it stopped

40 networks of `experiments/tabular/`, the first by their names of the 48 that were trained long. Each recipe has the
same core-seconds for all of them together: the former one makes 3 epochs of 4,800 pictures, the present one as many
steps as take as long; steps of both are timed in turn. Every network is judged at the rungs of a search too, a ninth
and a third of the training, by 1,000 pictures. Kendall's tau with the long training is given with the interval (95 %,
bootstrap over networks) of the difference between the two.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau

from lownas.evaluators.tasks import task
from lownas.evaluators.training.budget import MATRIX_RATE
from lownas.evaluators.training.proxy import load_proxy_data, prepared_model, train_proxy
from lownas.evaluators.training.settings import ProxySettings
from lownas.evaluators.training.trainer import Training, seeded, torch_threads
from lownas.experiments.tabular.table import Network, Table
from lownas.search_space import LowFormerConfig

RESULTS = Path(__file__).with_name("fidelity.json")
ROWS = Path(__file__).with_name("fidelity.jsonl")
NETWORKS = 40
EPOCHS, IMAGES, BATCH = 3, 4800, 64
SHARES = (1 / 9, 1 / 3, 1.0)
TIMED_STEPS = 4
SEED = 0
RESAMPLES = 10_000


def former(folder: str) -> ProxySettings:
    return ProxySettings(
        data=f"imagefolder:{folder}",
        resolution_scale=1.0,
        epochs=EPOCHS,
        train_images=IMAGES,
        batch_size=BATCH,
        max_shift=1 / 16,
    )


def present(folder: str, cost: float) -> ProxySettings:
    """The present recipe; a step of it costs `cost` times as much as one of the former recipe."""
    images = min(IMAGES, round(IMAGES / cost / BATCH) * BATCH)
    return replace(former(folder), max_shift=0.0, matrix_rate=MATRIX_RATE, train_images=images)


def networks() -> list[Network]:
    long = [network for network in Table.load().networks if network.of("long")]
    return sorted(long, key=lambda network: network.config.id)[:NETWORKS]


def step_seconds(config: LowFormerConfig, recipes: list[ProxySettings]) -> list[float]:
    """Core-seconds of a step by each recipe, augmentation included: the median of a few, in turn."""
    side = config.resolution
    images = torch.randn(BATCH, 3, side, side).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 10
    trainings = [Training(prepared_model(config, "cpu"), recipe, IMAGES, "cpu") for recipe in recipes]
    augments = [task("classification").augmentation(recipe, side) for recipe in recipes]
    seconds: list[list[float]] = [[] for _ in recipes]
    for _ in range(TIMED_STEPS + 2):
        for training, augment, times in zip(trainings, augments, seconds, strict=True):
            begin = time.process_time()
            varied, truth = augment(images, labels)
            training.step(varied.contiguous(memory_format=torch.channels_last), truth)
            times.append(time.process_time() - begin)
    return [float(np.mean(sorted(times[2:])[:TIMED_STEPS])) for times in seconds]


def accuracies(config: LowFormerConfig, settings: ProxySettings) -> tuple[list[float], float]:
    """Accuracy at each of `SHARES`, and core-seconds."""
    data = load_proxy_data(settings, config.resolution)
    begin, found = time.process_time(), []
    with tempfile.TemporaryDirectory() as folder:
        for share in SHARES:
            result = train_proxy(config, data, settings, SEED, until=share, state=Path(folder) / "state")
            assert result.accuracy is not None, result.reason
            found.append(result.accuracy)
    return found, time.process_time() - begin


def trained(folder: str) -> list[dict[str, object]]:
    """A row for each network, kept in `ROWS`."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    chosen = networks()
    if not rows:
        with torch_threads(1), seeded(0, "cpu"):
            recipes = [former(folder), present(folder, 1.0)]
            seconds = [step_seconds(network.config, recipes) for network in chosen]
        before, now = np.array(seconds).sum(axis=0)
        rows = [{"cost": now / before}]
        ROWS.write_text(json.dumps(rows[0]) + "\n")
    cost = float(rows[0]["cost"])
    for network in chosen[len(rows) - 1 :]:
        row: dict[str, object] = {
            "id": network.config.id,
            "long": float(np.mean([training.accuracy for training in network.of("long")])),
        }
        for name, settings in (("former", former(folder)), ("present", present(folder, cost))):
            row[name], row[f"{name}_s"] = accuracies(network.config, settings)
        rows.append(row)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(len(rows) - 1, row, flush=True)
    return rows


def summary(rows: list[dict[str, object]]) -> dict[str, object]:
    """Taus by recipe and share, and the interval of their difference."""
    networks_ = rows[1:]
    long = np.array([row["long"] for row in networks_])
    found: dict[str, object] = {"networks": len(networks_), "cost_of_a_step": rows[0]["cost"]}
    draws = np.random.default_rng(0).integers(0, len(long), (RESAMPLES, len(long)))
    for place, share in enumerate(SHARES):
        values = {name: np.array([row[name][place] for row in networks_]) for name in ("former", "present")}  # type: ignore[index]
        tau = {name: float(kendalltau(long, value).statistic) for name, value in values.items()}
        difference = [
            kendalltau(long[draw], values["present"][draw]).statistic
            - kendalltau(long[draw], values["former"][draw]).statistic
            for draw in draws
        ]
        low, high = np.nanquantile(difference, (0.025, 0.975))
        found[f"share {share:.2f}"] = {
            "tau": tau,
            "difference": tau["present"] - tau["former"],
            "interval": [float(low), float(high)],
            "mean_accuracy": {name: float(value.mean()) for name, value in values.items()},
        }
    found["core_seconds"] = {
        name: float(sum(float(str(row[f"{name}_s"])) for row in networks_)) for name in ("former", "present")
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="of pictures, see pictures.py")
    found = summary(trained(str(parser.parse_args().folder.resolve())))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
