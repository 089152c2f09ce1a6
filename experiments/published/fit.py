"""Fits the shipped profiles on measurements that others published.

    python fit.py --published FOLDER --graphs CACHE [--only FILE ...] [--results FILE] [--profiles FOLDER]

FOLDER holds timm's result files and the batch-1 measurements (see README.md), CACHE what `timm_graphs.py` traced.

1. timm's benchmarks (`benchmark_settings.py`, `roofline.py`): a roofline per kernel class, fitted with physical priors
   on all models of a file. On GPUs PyTorch under autocast at large batch, on CPUs torch.compile at batch 1.
2. `rtx3090` (TensorRT, FP16, batch 1; `batch1.py`): few numbers on top of the RTX 3090's roofline, fitted on 47
   measurements of five families.
3. What no measurement covers gets a prior (`unmeasured_kernels.py`), and the profile says so.

Whole families are held out (`held_out.py`); for `rtx3090` from the roofline's fit too, and its variant is chosen again
inside, by folds over the other families. `measurements.py` reads the data, `profiles.py` makes the profiles.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_settings import FITTED_PER_CLASS, SETTINGS, Setting
from held_out import developed_on, report_benchmark, report_kinds, rounded
from measurements import load_anchors, load_benchmark
from profiles import benchmark_profile, fit_and_report_batch1
from roofline import fit_roofline
from timm_graphs import ANCHORS, anchor_rows, benchmark_rows

from lownas.predictors.latency.kernels import KERNEL_CLASSES
from lownas.predictors.latency.predictor import LatencyPredictor
from lownas.search_space import PRESETS

BATCH1_BASE = "rtx3090-amp-nhwc.csv"
"""The file whose roofline the batch-1 model of `rtx3090` is fitted on top of."""
FIRST_FILES = (
    *("rtx3090-amp-nhwc.csv", "rtx3090-amp-nchw.csv", "rtx4090-amp-nhwc.csv", "rtx5090-amp-nchw.csv"),
    *("i7_12700h-fp32-batch1.csv", "i9_10940x-fp32-batch1.csv"),
)
A40_IMAGES_PER_S = {
    "lowformer_b0": 5988,
    "lowformer_b1": 4237,
    "lowformer_b15": 2739,
    "lowformer_b3": 1162,
    "lowformer_e1": 6337,
    "lowformer_e2": 2070,
    "lowformer_e3": 1566,
}
"""Images/s published by LowFormer's authors: TorchScript on an A40, batch 200. They check the order alone."""


def fit_file(
    setting: Setting, published: Path, graphs: Path, families: dict[str, str]
) -> tuple[dict[str, dict[str, Any]], list[LatencyPredictor]]:
    """Fits one benchmark file, and after `BATCH1_BASE` the batch-1 measurements too.

    Returns:
        Reports by file, and the profiles.
    """
    data, left_out = load_benchmark(setting, published, graphs, families)
    report, _ = report_benchmark(setting, data, developed_on(families, measured_first(published)))
    report["kinds"], residual = report_kinds(setting, data)
    report["left_out"] = left_out
    roofline = fit_roofline(setting, data, np.arange(len(data.ms)))
    report["fitted"] = {
        KERNEL_CLASSES[code]: dict(zip(FITTED_PER_CLASS, map(rounded, roofline.values[code]), strict=True))
        for code in np.unique(data.kernels.table[:, 0]).tolist()
    }
    reports = {setting.file: report}
    profiles = [] if setting.check else [benchmark_profile(roofline, data, report, residual)]
    if setting.file == BATCH1_BASE:
        report["lowformer_images_per_s"] = {
            name: {"predicted": round(1000 / float(profiles[0].latency_ms([PRESETS[name]])[0])), "published_a40": a40}
            for name, a40 in A40_IMAGES_PER_S.items()
        }
        anchors = load_anchors(published / ANCHORS, graphs, families)
        reports[ANCHORS], batch1_profile = fit_and_report_batch1(anchors, setting, data, roofline.values)
        profiles.append(batch1_profile)
    return reports, profiles


def measured_first(published: Path) -> set[str]:
    """The models of the files that there were when the form of the rooflines was developed."""
    names = {model.name for model, _, _ in anchor_rows(published / ANCHORS)}
    return names | {model.name for file in FIRST_FILES for model, _ in benchmark_rows(published / file)}


def show(file: str, report: dict[str, Any]) -> None:
    """Prints the main figures of a report."""
    if file == ANCHORS:
        print(json.dumps({key: value for key, value in report.items() if key != "anchors_held_out"}, indent=1))
        return
    shown = ("median_error", "mape", "spearman", "families_developed_on", "other_families", "interval", "kinds")
    print(file, json.dumps({key: report[key] for key in shown}, indent=1), flush=True)


def main() -> None:
    """Fits the files that were asked for, and writes the results and the profiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="folder of the published measurements")
    parser.add_argument("--graphs", type=Path, required=True, help="what timm_graphs.py traced")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.json")
    parser.add_argument("--profiles", type=Path, help="write the profiles there (default: nowhere)")
    parser.add_argument("--only", nargs="+", choices=[setting.file for setting in SETTINGS], help="files to fit")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    families = json.loads((arguments.graphs / "families.json").read_text())
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    profiles: list[LatencyPredictor] = []
    for setting in SETTINGS:
        if arguments.only and setting.file not in arguments.only:
            continue
        reports, fitted = fit_file(setting, arguments.published, arguments.graphs, families)
        profiles += fitted
        for file, report in reports.items():
            results[file] = report
            show(file, report)
    arguments.results.write_text(json.dumps(results, indent=1) + "\n")
    for predictor in profiles if arguments.profiles else ():
        print(predictor.save(arguments.profiles))


if __name__ == "__main__":
    main()
