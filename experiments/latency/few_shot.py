"""A new device from 20 measurements: `lownas.predictors.latency.fitting.transfer` beside a ridge stack and others.

    python few_shot.py --data FOLDER [--results few_shot.json] [--seeds 20]

FOLDER holds `nasbench201.npz` and `ofa.npz` (README.md). Every device of a file is the new one in turn, the file's
other devices are the known ones. Their latencies are used on the pool alone (the first 900 architectures of
NAS-Bench-201, 4,000 of OFA), to fit one predictor per known device, in architecture features. Of the new device nothing
is used but 20 measurements: the 10 reference architectures and 10 random ones of the pool. Tested are the next 1,000
architectures without those measured; "trimmed" as HELP does, to those between the 10 % and 90 % quantile of true
latency.

What the transfer chooses, it chooses on the 20 measurements.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV

from lownas.predictors.latency.fitting.transfer import PENALTIES, Transfer, choose_transfer, fit_transfer
from lownas.predictors.latency.uncertainty import LogErrors, without_stragglers

Array = NDArray[np.float64]
Index = NDArray[np.int64]

MEASURED = 20
RIDGES = np.logspace(-3, 4, 15)
COMPONENTS = 5
AS_GOOD = 0.001
"""Difference of rank correlations up to which two methods are called as good."""
LOOKED_AT = ("samsung_s7", "silver_4210r", "titanx_32")
"""Devices of NAS-Bench-201 that were looked at while the method was made; OFA was looked at as a whole."""
MADE_UP = ((0, 0.05, 1, 9, 0.3), (0, 0.2, 1, 3, 0.5), (0, 0, 1, 1.2, 0.1), (0, 0.02, 1, 9, 0.02))
"""Costs of each operation of NAS-Bench-201 on devices that are linear in them."""
MADE_UP_NOISE = 0.005
PUBLISHED = {
    "HELP, 20 measurements": 0.932,
    "BRP-NAS, 900 measurements": 0.789,
    "FLOPs": 0.787,
    "plain stack, 20 measurements": 0.941,
    "one-hot ridge, 720 measurements": 0.956,
    "note": "means over HELP's six test devices of NAS-Bench-201, which are not in the file",
}


@dataclass(frozen=True)
class Space:
    """One file.

    Attributes:
        latency_ms: (N,) by device.
        onehot, crossed: (N, F) features: choices one-hot, and with what they interact with.
        macs: (N,) multiply-accumulates up to a factor.
        reference, pool, query: rows.
        made_up: (N,) by name, of made-up devices whose latency is linear in the operations, to be the new one.
    """

    name: str
    latency_ms: dict[str, Array]
    onehot: Array
    crossed: Array
    macs: Array
    reference: Index
    pool: Index
    query: Index
    made_up: dict[str, Array]


def nasbench201(folder: Path) -> Space:
    file = np.load(folder / "nasbench201.npz")
    operations = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
    edges = [[operations.index(edge.split("~")[0]) for edge in a.replace("+", "").strip("|").split("|") if edge]
             for a in file["arch"]]  # fmt: skip
    one = np.eye(5)[np.array(edges)]
    pairs = [(one[:, i, :, None] * one[:, j, None, :]).reshape(len(one), -1) for i in range(6) for j in range(i)]
    onehot = one.reshape(len(one), -1)
    macs = 1.0 + one[:, :, 2].sum(axis=1) + 9 * one[:, :, 3].sum(axis=1)
    rng = np.random.default_rng(0)
    made_up = {
        f"linear {number}": (2 + onehot @ np.tile(costs, 6)) * np.exp(rng.normal(0, MADE_UP_NOISE, len(onehot)))
        for number, costs in enumerate(MADE_UP)
    }
    return Space("nasbench201", _latencies(file), onehot, np.hstack([onehot, *pairs]), macs,
                 file["reference_index"], np.arange(900), np.arange(900, 1900), made_up)  # fmt: skip


def ofa(folder: Path) -> Space:
    file = np.load(folder / "ofa.npz")
    kernel, expand, depth, size = (file[key].astype(np.int64) for key in ("ks", "e", "d", "r"))
    active = np.tile(np.arange(4), 5)[None, :] < np.repeat(depth, 4, axis=1)
    choice = (kernel - 3) // 2 * 3 + np.searchsorted([3, 4, 6], expand)
    blocks = (np.eye(9)[choice] * active[:, :, None]).reshape(len(depth), -1)
    area = (size[:, None] / 224.0) ** 2
    onehot = np.hstack([blocks, size[:, None] / 224.0, area])
    # Widths and strides of MobileNetV3-Large, without squeeze-excitation.
    widths, strides = [16, 24, 40, 80, 112, 160], [2, 4, 8, 8, 16]
    macs = np.zeros(len(depth))
    for block in range(20):
        stage, first = block // 4, block % 4 == 0
        cin, cout = widths[stage + (not first)], widths[stage + 1]
        inner = cin * expand[:, block]
        pixels = (size / strides[stage] / 2) ** 2
        macs += active[:, block] * pixels * inner * (cin * (1 if not first else 2) + kernel[:, block] ** 2 + cout)
    return Space("ofa", _latencies(file), onehot, np.hstack([onehot, blocks * area]), macs,
                 file["reference_index"], np.arange(4000), np.arange(4000, 5000), {})  # fmt: skip


def _latencies(file: Any) -> dict[str, Array]:
    prefix = "latency_ms/"
    return {key.removeprefix(prefix): file[key].astype(np.float64) for key in file.files if key.startswith(prefix)}


# --- known devices ---------------------------------------------------------------------------------------------------


def known_predictions(space: Space) -> tuple[dict[str, Array], dict[str, Array]]:
    """By device, (N,) latencies by a ridge on the pool: on one-hot features, and on the features that fit it better."""
    plain, better = {}, {}
    for device, latency in space.latency_ms.items():
        y = latency[space.pool]
        floor = np.quantile(y, 0.01)
        fits = [
            (ridge := RidgeCV(RIDGES).fit(features[space.pool], y), ridge.predict(features))
            for features in (space.onehot, space.crossed)
        ]
        plain[device] = fits[0][1]
        best = max(fits, key=lambda fit: fit[0].best_score_)[1]
        better[device] = np.maximum(best, floor)
    return plain, better


# --- methods: (20,) rows and latencies in, (N,) predictions in ms out ------------------------------------------------


def ridge(features: Array, rows: Index, latency: Array, penalties: Array = RIDGES) -> Array:
    """Ridge on standardized features; the penalty by leaving one out."""
    spread = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return RidgeCV(penalties).fit(scaled[rows], latency).predict(scaled)


def line_in_macs(macs: Array, rows: Index, latency: Array) -> Array:
    return np.exp(np.polyval(np.polyfit(np.log(macs[rows]), np.log(latency), 1), np.log(macs)))


def transfer(sources: dict[str, Array], rows: Index, latency: Array, penalty: float | None = None) -> Array:
    return applied(fit_transfer({k: v[rows] for k, v in sources.items()}, latency, penalty=penalty), sources)


def applied(fitted: Transfer, sources: dict[str, Array]) -> Array:
    latencies = np.full(len(next(iter(sources.values()))), fitted.overhead_ms)
    for name, weight in fitted.weights.items():
        latencies += weight * sources[name]
    return np.maximum(latencies, fitted.least_ms)


def d_optimal(sources: Array, count: int) -> list[int]:
    """Rows that tell most of a linear model in the first principal components of log predictions (N, S), greedily."""
    left, sizes, _ = np.linalg.svd(sources - sources.mean(axis=0), full_matrices=False)
    points = np.hstack([np.ones((len(sources), 1)), left[:, : min(COMPONENTS, len(sizes))] * np.sqrt(len(sources))])
    inverse = np.eye(points.shape[1]) * 100.0
    chosen: list[int] = []
    for _ in range(count):
        gain = np.einsum("ij,jk,ik->i", points, inverse, points)
        gain[chosen] = -1
        chosen.append(int(np.argmax(gain)))
        step = inverse @ points[chosen[-1]]
        inverse -= np.outer(step, step) / (1 + points[chosen[-1]] @ step)
    return chosen


# --- benchmark -------------------------------------------------------------------------------------------------------


def score(predicted: Array, true: Array) -> list[float]:
    """Spearman trimmed, Spearman, mean and median absolute relative error."""
    low, high = np.quantile(true, [0.1, 0.9])
    band = (true >= low) & (true <= high)
    error = np.abs(predicted / true - 1)
    ranks = [spearmanr(p, t).statistic for p, t in ((predicted[band], true[band]), (predicted, true))]
    return [*map(float, ranks), float(error.mean()), float(np.median(error))]


def one_device(
    space: Space, device: str, plain: dict[str, Array], better: dict[str, Array], seeds: int
) -> tuple[dict[str, Array], Array]:
    """By method, (seeds, 4) scores; and by seed coverage, log half-width and median log error of 90 % intervals."""
    latency = (space.latency_ms | space.made_up)[device]
    others = [name for name in plain if name != device]
    elsewhere = [name for name in others if name.rsplit("_", 1)[0] != device.rsplit("_", 1)[0]]
    scores: dict[str, list[list[float]]] = {}
    intervals: list[list[float]] = []
    known = {name: better[name] for name in others}
    simple = {name: np.maximum(plain[name], better[name].min()) for name in others}
    stacked, better_stacked = (np.stack([table[name] for name in others], axis=1) for table in (plain, better))
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        free = np.setdiff1d(space.pool, space.reference)
        sets = {
            "": np.concatenate([space.reference, rng.choice(free, 10, replace=False)]),
            "random: ": rng.choice(free, MEASURED, replace=False),
        }
        candidates = rng.choice(free, 450, replace=False)
        table = np.log(better_stacked[candidates])
        sets["designed: "] = candidates[d_optimal(table, MEASURED)]
        for prefix, rows in sets.items():
            measured = latency[rows]
            query = np.setdiff1d(space.query, rows)

            def note(name: str, predicted: Array, prefix: str = prefix, query: Index = query) -> None:
                scores.setdefault(prefix + name, []).append(score(predicted[query], latency[query]))

            chosen, errors = choose_transfer({name: values[rows] for name, values in known.items()}, measured)
            predicted = applied(chosen, known)
            note("transfer", predicted)
            note("stack", ridge(stacked, rows, measured))
            if prefix:
                continue
            note("transfer without signs", transfer(known, rows, measured))
            true_errors = np.log(latency[query]) - np.log(predicted[query])
            low, high = LogErrors.from_errors(without_stragglers(errors)).interval(0.9)
            inside = float(((true_errors >= low) & (true_errors <= high)).mean())
            intervals.append([inside, (high - low) / 2, float(np.median(np.abs(true_errors)))])
            for penalty in PENALTIES:
                note(f"transfer, penalty {penalty:g}", transfer(known, rows, measured, penalty))
            for name, penalty in (("stack, penalty 1", 1.0), ("stack, penalty 10", 10.0)):
                note(name, ridge(stacked, rows, measured, np.array([penalty])))
            note("stack, our sources", ridge(better_stacked, rows, measured))
            note("stack of logs, our sources", np.exp(ridge(np.log(better_stacked), rows, np.log(measured))))
            note("transfer, one-hot sources", transfer(simple, rows, measured))
            note("one-hot ridge", ridge(space.onehot, rows, measured))
            note("line in MACs", line_in_macs(space.macs, rows, measured))
            mine = [others.index(name) for name in elsewhere]
            note("other hardware: stack", ridge(stacked[:, mine], rows, measured))
            away = {name: known[name] for name in elsewhere}
            note("other hardware: transfer", transfer(away, rows, measured))
    if device in plain:
        scores["one-hot ridge on the whole pool"] = [score(plain[device][space.query], latency[space.query])] * seeds
    return {k: np.array(v) for k, v in scores.items()}, np.array(intervals)


def mean_interval(values: Array, rng: np.random.Generator) -> list[float]:
    """Mean over devices of (devices, seeds) values with its 90 % bootstrap interval; devices and seeds are redrawn."""
    devices, seeds = values.shape
    means = [
        values[rng.integers(devices, size=devices)][:, rng.integers(seeds, size=seeds)].mean() for _ in range(4000)
    ]
    return [round(float(v), 4) for v in (values.mean(), *np.quantile(means, [0.05, 0.95]))]


def report(tables: dict[str, dict[str, Array]], intervals: dict[str, Array]) -> Any:
    """What is written of one file."""
    rng = np.random.default_rng(0)
    devices = list(tables)
    methods: dict[str, Any] = {}
    stacked = {key: np.stack([tables[device][key] for device in devices]) for key in tables[devices[0]]}
    for label, values in stacked.items():
        methods[label] = {
            "spearman_trimmed": mean_interval(values[:, :, 0], rng),
            "spearman": mean_interval(values[:, :, 1], rng),
            "mape": mean_interval(values[:, :, 2], rng),
            "median_error": mean_interval(values[:, :, 3], rng),
            "by_device": {
                d: [round(float(x), 4) for x in v.mean(axis=0)] for d, v in zip(devices, values, strict=True)
            },
        }
    pairs = [
        ("transfer", "stack"),
        ("transfer", "transfer without signs"),
        ("transfer", "stack, penalty 1"),
        ("transfer", "stack, penalty 10"),
        ("transfer", "stack, our sources"),
        ("random: transfer", "random: stack"),
        ("designed: transfer", "designed: stack"),
        ("designed: transfer", "transfer"),
        ("other hardware: transfer", "other hardware: stack"),
    ]
    differences: dict[str, Any] = {}
    for ours, theirs in pairs:
        gain = stacked[ours][:, :, 0] - stacked[theirs][:, :, 0]
        entry = {"spearman_trimmed": mean_interval(gain, rng)}
        entry["devices_better"] = f"{int((gain.mean(axis=1) > 0).sum())} of {len(devices)}"
        entry["devices_as_good"] = f"{int((gain.mean(axis=1) > -AS_GOOD).sum())} of {len(devices)}"
        unseen = [i for i, device in enumerate(devices) if device not in LOOKED_AT]
        if len(unseen) < len(devices):
            entry["without_those_looked_at"] = mean_interval(gain[unseen], rng)
        differences[f"{ours} minus {theirs}"] = entry
    best = np.maximum(*(stacked[name][:, :, 0].mean(axis=1) for name in ("stack", "transfer without signs")))
    as_good = int((stacked["transfer"][:, :, 0].mean(axis=1) > best - AS_GOOD).sum())
    coverage, width, error = (np.stack([intervals[d][:, i] for d in devices]) for i in range(3))
    return {
        "methods": methods,
        "differences": differences,
        "as_good_as_the_better_one": f"{as_good} of {len(devices)}",
        "intervals_90": {
            "predictions": int(coverage.size) * 1000,
            "coverage": mean_interval(coverage, rng),
            "median_log_half_width": round(float(np.median(width)), 4),
            "half_width_over_median_error": round(float(np.median(width / error)), 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("few_shot.json"))
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    loaders: list[Callable[[Path], Space]] = [nasbench201, ofa]
    spaces = [load(options.data) for load in loaders]
    tables: dict[str, dict[str, dict[str, Array]]] = {}
    intervals: dict[str, Any] = {}
    for space in spaces:
        begin = time.monotonic()
        plain, better = known_predictions(space)
        print(f"{space.name}: known devices fitted, {time.monotonic() - begin:.0f} s", flush=True)
        tables[space.name], intervals[space.name] = {}, {}
        for device in (*space.latency_ms, *space.made_up):
            result = one_device(space, device, plain, better, options.seeds)
            tables[space.name][device], intervals[space.name][device] = result
            print(f"{space.name} {device}: {time.monotonic() - begin:.0f} s", flush=True)

    results: dict[str, Any] = {
        "protocol": {
            "measured": "10 references and 10 random ones of the pool; 'random': 20 random; 'designed': D-optimal in "
            f"{COMPONENTS} principal components of the known devices' log predictions, of 450 random ones",
            "seeds": options.seeds,
            "each_mean": "mean over devices, with its 90 % bootstrap interval over devices and seeds",
            "by_device": "Spearman trimmed, Spearman, mean and median absolute relative error",
            "other hardware": "without the other batch sizes of the same chip",
            "looked_at": f"all of OFA, {', '.join(LOOKED_AT)} of NAS-Bench-201",
        },
        "published": PUBLISHED,
    }
    for space in spaces:
        for name, devices in ((space.name, space.latency_ms), (f"{space.name}, made up", space.made_up)):
            if not devices:
                continue
            results[name] = report(
                *({device: each[space.name][device] for device in devices} for each in (tables, intervals))
            )
            for label, entry in results[name]["methods"].items():
                print(f"{name:12} {label:36} {entry['spearman_trimmed']} mape {entry['mape'][0]:.3f}")
            for label, entry in results[name]["differences"].items():
                print(f"{name:12} {label:48} {entry}")
            print(name, results[name]["as_good_as_the_better_one"], results[name]["intervals_90"])
    options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
