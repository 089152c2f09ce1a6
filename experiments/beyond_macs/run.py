"""What design elements cost on this machine, beside the papers' guidelines and published latencies of other devices.

    python experiments/beyond_macs/run.py export --models FOLDER      # timm's networks as ONNX files; needs timm
    python experiments/beyond_macs/run.py measure NAME --models FOLDER --work WORK     # `lownas elements`, 20 minutes
    python experiments/beyond_macs/run.py agree NAME OTHER            # two runs: agree.json
    python experiments/beyond_macs/run.py networks NAME               # whole networks on devices: networks.json
    python experiments/beyond_macs/run.py emit NAME                   # the smaller space, from elements.csv: space.yaml
    python experiments/beyond_macs/run.py space NAME --work WORK      # searches in the smaller space: space.json

NAME is a folder here, for CPU and day. `published.csv` has top-1 and speeds that others published: of LowFormers
and CPUBones from their papers, of the others timm's benchmark results (huggingface/pytorch-image-models, results/).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

HERE = Path(__file__).parent
TIMM = (
    "mobilenetv3_small_100", "mobilenetv3_large_100", "mobilenetv2_100", "mnasnet_100", "efficientnet_lite0",
    "efficientnet_b0", "lcnet_100", "regnety_004", "mobilevitv2_100", "resnet18", "convnext_femto",
    "deit_tiny_patch16_224", "starnet_s1", "ghostnetv2_100",
)  # fmt: skip
KEPT = ("elements.csv", "networks.csv", "findings.json")
BUDGETS_MS, SEEDS, EVALUATIONS = (3.0, 10.0, 30.0), range(10), 20_000
ELSEWHERE = "rtx3090"
"""Target of the searches in the smaller space: one that is not at hand, so that nothing is measured."""


def export(models: Path) -> None:
    """Writes timm's networks as ONNX files, by torch's older exporter."""
    from lownas.experiments.latency.cpu_timm import Export, export_one

    models.mkdir(parents=True, exist_ok=True)
    for name in TIMM:
        if not (path := models / f"{name}.onnx").exists():
            export_one(Export(name, dynamo=False, opset=17), path)
            print(path)


def measure(models: Path, work: Path, name: str) -> None:
    """Runs `lownas elements`, and keeps its tables and figures here."""
    out, kept = work / name, HERE / name
    files = [part for network in TIMM for part in ("--onnx", str(models / f"{network}.onnx"))]
    space = ("--emit-space", str(work / name / "space.yaml"))
    begin = time.monotonic()
    command = [sys.executable, "-m", "lownas.nas", "elements", "--target", "cpu", "--out", str(out), *files, *space]
    subprocess.run(command, check=True)
    kept.mkdir(exist_ok=True)
    for file in (*KEPT, "space.yaml"):
        shutil.copy(out / file, kept / file)
    shutil.copytree(out / "figures", kept / "figures", dirs_exist_ok=True)
    about = json.loads((out / "looks.jsonl").read_text().splitlines()[0])
    about |= {"minutes": round((time.monotonic() - begin) / 60, 1), "day": time.strftime("%Y-%m-%d")}
    (kept / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def costs(name: str) -> dict[tuple[str, ...], float]:
    """ns per MAC by setting, topic, element and place."""
    with (HERE / name / "elements.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["ns_per_mac"]]
    key = ("setting", "topic", "element", "channels", "pixels")
    return {tuple(row[part] for part in key): float(row["ns_per_mac"]) for row in rows}


def verdicts(name: str) -> dict[str, str]:
    """What was found about each guideline."""
    found = json.loads((HERE / name / "findings.json").read_text())["findings"]
    return {each["guideline"]: each["verdict"] for each in found}


def agree(name: str, other: str) -> dict[str, Any]:
    """How far the ratios between elements of a topic, in one setting, agree in two runs; findings that turned round."""
    first, second = costs(name), costs(other)
    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for key in first:
        if key in second:
            groups.setdefault(key[:2], []).append(key)
    apart = {
        " ".join(group): [abs(np.log(first[a] / first[b] * second[b] / second[a])) for a, b in combinations(keys, 2)]
        for group, keys in groups.items()
    }
    before, after = verdicts(name), verdicts(other)
    changed = {key: [said, after.get(key)] for key, said in before.items() if said != after.get(key)}
    everything = [value for values in apart.values() for value in values]
    return {
        "ratios, median difference": round(float(np.expm1(np.median(everything))), 4),
        "by topic": {group: round(float(np.expm1(np.median(values))), 4) for group, values in apart.items() if values},
        "findings that differ": changed,
        "turned round": [key for key, pair in changed.items() if set(pair) == {"holds", "does not hold"}],
    }


def networks(name: str) -> dict[str, Any]:
    """Rank agreement between this machine, MACs, the profile, accuracy, and what others published of other devices."""
    from scipy.stats import spearmanr

    with (HERE / name / "networks.csv").open() as lines:
        here = {row["network"]: row for row in csv.DictReader(lines)}
    with (HERE / "published.csv").open() as lines:
        published = {row["network"]: row for row in csv.DictReader(lines)}
    table: dict[str, dict[str, float]] = {}
    for network, row in here.items():
        known = {column: row.get(column) for column in ("ms", "macs", "predicted_ms")} | published.get(network, {})
        numbers = {column: float(value) for column, value in known.items() if value and column != "network"}
        speeds = [column for column in numbers if column.endswith("_images_s")]
        numbers |= {column.replace("images_s", "ms"): 1e3 / numbers.pop(column) for column in speeds}
        table[network] = numbers
    columns = sorted({column for row in table.values() for column in row})
    ranks = {}
    for a, b in combinations(columns, 2):
        both = [(row[a], row[b]) for row in table.values() if a in row and b in row]
        if len(both) >= 4:
            ranks[f"{a}, {b}"] = [round(float(spearmanr(*zip(*both, strict=True)).statistic), 3), len(both)]
    return {"networks": table, "rank correlation, networks": ranks}


def emit(name: str) -> None:
    """Writes the smaller space by what was measured, as `lownas elements --emit-space` did."""
    from lownas.search.elements.costs import read_csv
    from lownas.search.elements.smaller_space import smaller_space, smaller_space_yaml
    from lownas.search_space import SearchSpace

    costs = read_csv(HERE / name / "elements.csv")
    first = [cost for cost in costs if cost.setting == costs[0].setting]
    content, left_out = smaller_space(SearchSpace.load("default"), first)
    (HERE / name / "space.yaml").write_text(smaller_space_yaml(content, left_out, costs[0].setting))


def space(work: Path, name: str) -> dict[str, Any]:
    """Searches without trainings in the whole space and the smaller one: what they reach by the same estimates."""
    from lownas.predictors import LatencyPredictor
    from lownas.predictors.latency.calibration import calibrate
    from lownas.search import search

    profiles = work / "profiles"
    try:
        predictor = LatencyPredictor.load("cpu", profiles)
    except ValueError:
        predictor = calibrate("cpu", profiles=profiles)
    rows = []
    for budget in BUDGETS_MS:
        for which, spec in (("default", "default"), ("smaller", str(HERE / name / "space.yaml"))):
            for seed in SEEDS:
                begin = time.monotonic()
                found = search(
                    ELSEWHERE, f"{budget}ms", space=spec, seed=seed, evaluations=EVALUATIONS, predictor=predictor,
                    run=work / "space" / f"{which}-{budget:g}-{seed}",
                )  # fmt: skip
                assert found.answer is not None
                row = {"budget_ms": budget, "space": which, "seed": seed, "estimate": found.answer.objective}
                rows.append(row | {"seconds": round(time.monotonic() - begin, 2)})
                print(rows[-1], flush=True)
    result: dict[str, Any] = {}
    for budget in BUDGETS_MS:
        for which in ("default", "smaller"):
            mine = [row for row in rows if (row["budget_ms"], row["space"]) == (budget, which)]
            estimates = np.array([row["estimate"] for row in mine])
            about = {"mean": round(float(estimates.mean()), 3), "sd": round(float(estimates.std(ddof=1)), 3)}
            result[f"{budget:g} ms, {which}"] = about | {"seconds": float(np.median([row["seconds"] for row in mine]))}
    return {"summary": result, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("export", "measure", "agree", "networks", "emit", "space"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--models", type=Path, default=HERE / "models")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    given = parser.parse_args()
    work = given.work.resolve()
    if given.step == "export":
        export(given.models)
    elif given.step == "measure":
        measure(given.models.resolve(), work, *given.names)
    elif given.step == "emit":
        emit(*given.names)
    else:
        steps = {"agree": lambda: agree(*given.names), "networks": lambda: networks(*given.names)}
        result = space(work, *given.names) if given.step == "space" else steps[given.step]()
        (HERE / f"{given.step}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps({key: value for key, value in result.items() if key not in ("rows", "networks")}, indent=1))


if __name__ == "__main__":
    main()
