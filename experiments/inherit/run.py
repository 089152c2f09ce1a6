"""What a proxy training gains from inherited weights: same candidates, images and steps, from fresh weights and not.

    OMP_NUM_THREADS=1 python experiments/inherit/run.py --seeds 1 2      # 40 minutes of one core

One large network of the `tiny` space is trained on Fashion-MNIST; random candidates of the space then train briefly on
the same images, from fresh weights and from those of the large one. A longer training from fresh weights, with a seed
of its own, is the reference for how candidates rank. What the large one cost to train is reported beside.
The figures in results.json were judged on 4,000 images of t10k, Fashion-MNIST's test part, which was the validation
part when they were made; a new run validates on images split off from the training part.
Writes results.json beside this file after every training; finished trainings are not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from lownas.evaluators.data.loading import data_identity
from lownas.evaluators.data.records import ImageData
from lownas.evaluators.tasks import task
from lownas.evaluators.training.batches import ImageBatches
from lownas.evaluators.training.inherit import Source, inherit, load_source, save_source
from lownas.evaluators.training.proxy import load_proxy_data, prepared_model, train_proxy
from lownas.evaluators.training.settings import ProxySettings
from lownas.evaluators.training.trainer import (
    Training,
    evaluate,
    recompute_batch_norm,
    seeded,
    torch_threads,
)
from lownas.search_space import Attention, LowFormerConfig, SearchSpace, StageConfig, op_graph

HERE = Path(__file__).parent
RESOLUTION = 28  # pixels, the data's own, for every network: what differs is the network
CANDIDATES_SEED = 0
REFERENCE_SEED = 100
SETTINGS = ProxySettings(
    data="fashion-mnist",
    classes=10,
    resolution_scale=1.0,
    epochs=3,
    train_images=3200,
    validation_images=4000,
    max_shift=0.05,
)
SOURCE_EPOCHS = 15
REFERENCE_EPOCHS = 12
SOURCE = LowFormerConfig(
    resolution=RESOLUTION,
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


def train_source(data: ImageData, settings: ProxySettings, path: Path) -> dict[str, Any]:
    """Trains `SOURCE` and writes its weights to `path`; gives what it cost and how good it is."""
    begin = time.perf_counter()
    with torch_threads(1), seeded(0, "cpu"):
        model = prepared_model(SOURCE, "cpu")
        train, validation = ImageBatches(data, "train", "cpu"), ImageBatches(data, "validation", "cpu")
        training = Training(model, settings, len(train), "cpu")
        for record in training.run(train, task("classification").augmentation(settings, RESOLUTION), training.steps):
            print("source", record, flush=True)
        recompute_batch_norm(model, train, 0)
        accuracy, loss = evaluate(model, validation)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_source(model, path)
    return {
        "config": SOURCE.to_dict(),
        "macs": op_graph(SOURCE).macs,
        "epochs": settings.epochs,
        "accuracy": accuracy,
        "loss": loss,
        "seconds": time.perf_counter() - begin,
    }


def shared(config: LowFormerConfig, source: Source) -> dict[str, Any]:
    """What a candidate inherits."""
    report = inherit(prepared_model(config.replace(classes=source.config.classes), "cpu"), source)
    return {"share": round(report.share, 4), **vars(report)}


def summary(trainings: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the candidates that all arms have trained with all seeds: accuracies (0 to 1), the gain, and how they rank."""
    by_arm: dict[str, dict[tuple[str, int], float]] = {"fresh": {}, "inherited": {}, "reference": {}}
    for training in trainings:
        if training["status"] == "complete":
            by_arm[training["arm"]][training["candidate"], training["seed"]] = training["accuracy"]
    seeds = sorted({seed for arm in ("fresh", "inherited") for _, seed in by_arm[arm]})
    candidates = sorted(
        {candidate for candidate, _ in by_arm["fresh"]}
        & {c for c, _ in by_arm["inherited"] if all((c, s) in by_arm[a] for s in seeds for a in ("fresh", "inherited"))}
    )
    if len(candidates) < 2:
        return {"candidates": len(candidates)}
    accuracy = {
        arm: np.array([[by_arm[arm][c, s] for s in seeds] for c in candidates]) for arm in ("fresh", "inherited")
    }
    gain = (accuracy["inherited"] - accuracy["fresh"]).mean(axis=1)
    result: dict[str, Any] = {
        "candidates": len(candidates),
        "seeds": seeds,
        "mean_accuracy": {arm: round(float(values.mean()), 4) for arm, values in accuracy.items()},
        "mean_gain": round(float(gain.mean()), 4),
        "standard_error_of_gain": round(float(gain.std(ddof=1) / np.sqrt(len(gain))), 4),
        "candidates_that_gain": int((gain > 0).sum()),
    }
    if len(seeds) > 1:
        result["kendall_tau_between_first_seeds"] = {
            arm: _tau(values[:, 0], values[:, 1]) for arm, values in accuracy.items()
        }
    reference = [by_arm["reference"].get((c, REFERENCE_SEED)) for c in candidates]
    if None not in reference:
        result["mean_accuracy"]["reference"] = round(float(np.mean(np.array(reference, dtype=float))), 4)
        result["kendall_tau_with_reference_by_seed"] = {
            arm: [_tau(column, reference) for column in values.T] for arm, values in accuracy.items()
        }
        means = {arm: values.mean(axis=1) for arm, values in accuracy.items()}
        macs = {training["candidate"]: training["macs"] for training in trainings}
        ranked_by = {**means, "macs": np.array([macs[c] for c in candidates])}
        result["kendall_tau_with_reference"] = {name: _tau(values, reference) for name, values in ranked_by.items()}
        result["kendall_tau_with_macs"] = {arm: _tau(values, ranked_by["macs"]) for arm, values in means.items()}
        result["difference_of_taus_90_percent"] = _interval(means["inherited"], means["fresh"], np.array(reference))
    return result


def _interval(first: Any, second: Any, reference: Any) -> list[float]:
    """Of tau(first, reference) - tau(second, reference), by 2,000 resamples of the networks."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(reference), size=len(reference)) for _ in range(2000)]
    differences = [_tau(first[i], reference[i]) - _tau(second[i], reference[i]) for i in drawn]
    return [round(float(bound), 3) for bound in np.quantile(differences, [0.05, 0.95])]


def _tau(first: Any, second: Any) -> float:
    return round(float(kendalltau(first, second).statistic), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the number of images; less than 1 only tries it out"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    images = max(SETTINGS.batch_size, round(SETTINGS.train_images * arguments.scale))
    settings = replace(
        SETTINGS, train_images=images, validation_images=max(100, round(SETTINGS.validation_images * arguments.scale))
    )
    data = load_proxy_data(settings, RESOLUTION)
    weights = HERE / "work" / f"source-{data_identity(data)[:12]}.safetensors"
    about = {"settings": settings.to_dict(), "data": data_identity(data), "reference_epochs": REFERENCE_EPOCHS}

    document: dict[str, Any] = {**about, "trainings": []}
    if arguments.results.exists():
        document = json.loads(arguments.results.read_text())
        if {name: document[name] for name in about} != about:
            raise SystemExit(f"{arguments.results} holds trainings under other settings or images: remove it first")
    if "source" not in document or not weights.exists():
        if document["trainings"]:
            raise SystemExit(f"{weights} is gone, with which {arguments.results} was begun: remove the latter first")
        document["source"] = train_source(data, replace(settings, epochs=SOURCE_EPOCHS), weights)
    source = load_source(weights)
    if document["source"].setdefault("identity", source.identity) != source.identity:
        raise SystemExit(f"{weights} is not the file that {arguments.results} was begun with: remove both first")

    def write() -> None:
        document["summary"] = summary(document["trainings"])
        document["machine"] = {
            "torch": torch.__version__,
            "threads": 1,
            "processor": platform.machine(),
            "python": platform.python_version(),
        }
        arguments.results.write_text(json.dumps(document, indent=1) + "\n")

    write()
    space, rng = SearchSpace.load("tiny", RESOLUTION), np.random.default_rng(CANDIDATES_SEED)
    candidates = [space.sample(rng) for _ in range(arguments.candidates)]
    arms = [(arm, seed) for seed in arguments.seeds for arm in ("fresh", "inherited")] + [("reference", REFERENCE_SEED)]
    done = {(training["candidate"], training["arm"], training["seed"]) for training in document["trainings"]}
    for arm, seed in arms:
        for config in candidates:
            if (config.id, arm, seed) in done:
                continue
            own = replace(settings, epochs=REFERENCE_EPOCHS) if arm == "reference" else settings
            result = train_proxy(config, data, own, seed, source=source if arm == "inherited" else None)
            row = {"candidate": config.id, "arm": arm, "seed": seed, "macs": op_graph(config).macs, **result.to_dict()}
            if arm == "inherited":
                row["inherited"] = shared(config, source)
            document["trainings"].append(row)
            document.setdefault("candidates", {})[config.id] = config.to_dict()
            write()
            print(config.id, arm, seed, result.status, result.accuracy, f"{result.seconds:.1f} s", flush=True)
    print(json.dumps(document["summary"], indent=1))


if __name__ == "__main__":
    main()
