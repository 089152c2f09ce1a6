"""Trains the eight published LowFormers briefly on `formula` and compares the order with their ImageNet accuracy.

    OMP_NUM_THREADS=1 python experiments/proxy_presets/run.py --seeds 1 2

Writes results.json beside this file after every training; finished trainings are not repeated.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau

from lownas.evaluators.data.loading import data_identity, linear_baseline
from lownas.evaluators.training.proxy import load_proxy_data, train_proxy
from lownas.evaluators.training.settings import ProxySettings
from lownas.search_space import PRESETS, PUBLISHED

NAMES = tuple(name for name in PRESETS if name.startswith("lowformer_"))
RESULTS = Path(__file__).with_name("results.json")


def summary(trainings: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy of each model and Kendall's tau with the published order, over all seeds and for each seed."""
    seeds = sorted({training["seed"] for training in trainings})
    accuracy = {
        (training["model"], training["seed"]): training["accuracy"]
        for training in trainings
        if training["status"] == "complete"
    }
    whole = [seed for seed in seeds if all((name, seed) in accuracy for name in NAMES)]
    published = {name: PUBLISHED[name].top1[224] for name in NAMES}
    means = {name: sum(accuracy[name, seed] for seed in whole) / len(whole) for name in NAMES} if whole else {}

    def tau(first: dict[str, float], second: dict[str, float], names: tuple[str, ...] = NAMES) -> float:
        return round(float(kendalltau([first[n] for n in names], [second[n] for n in names]).statistic), 3)

    by_seed = {seed: {name: accuracy[name, seed] for name in NAMES} for seed in whole}
    families = {family: tuple(n for n in NAMES if n.startswith(f"lowformer_{family}")) for family in "be"}
    return {
        "published_top1_percent": published,
        "mean_proxy_accuracy": {name: round(value, 4) for name, value in means.items()},
        "seeds": whole,
        "kendall_tau_published": tau(means, published) if means else None,
        "kendall_tau_published_of_macs_alone": tau({name: PUBLISHED[name].macs for name in NAMES}, published),
        "kendall_tau_published_by_seed": {str(seed): tau(by_seed[seed], published) for seed in whole},
        "kendall_tau_published_within": {
            family: tau(means, published, names) for family, names in families.items() if means
        },
        "kendall_tau_between_seeds": [
            tau(by_seed[first], by_seed[second]) for i, first in enumerate(whole) for second in whole[i + 1 :]
        ],
    }


def _write(document: dict[str, Any]) -> None:
    document["summary"] = summary(document["trainings"])
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    seeds = parser.parse_args().seeds
    document: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"trainings": [], "data": {}}
    done = {(training["model"], training["seed"]) for training in document["trainings"]}
    for seed in seeds:
        settings = ProxySettings(data_seed=seed)
        data = load_proxy_data(settings, 224)
        known = document["data"].get(str(seed), {}).get("identity", data_identity(data))
        if known != data_identity(data):
            raise SystemExit(f"{RESULTS.name} holds trainings on other images of seed {seed}: remove it first")
        if str(seed) not in document["data"]:
            baseline = {"linear_accuracy": linear_baseline(data), "identity": data_identity(data)}
            document["data"][str(seed)] = {**data.card, **baseline}
        for name in NAMES:
            if (name, seed) in done:
                continue
            result = train_proxy(PRESETS[name], data, settings, seed=seed)
            document["trainings"].append({"model": name, "seed": seed, **result.to_dict()})
            document["settings"] = settings.to_dict()
            document["machine"] = {
                "torch": torch.__version__,
                "threads": 1,
                "processor": platform.machine(),
                "python": platform.python_version(),
            }
            _write(document)
            print(name, seed, result.status, result.accuracy, f"{result.seconds:.1f} s", flush=True)
    _write(document)
    print(json.dumps(document["summary"], indent=1))


if __name__ == "__main__":
    main()
