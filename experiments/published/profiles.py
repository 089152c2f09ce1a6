"""Makes the profiles that ship with lownas from the fitted models, and the report on the batch-1 profile."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
from batch1 import fit_batch1
from benchmark_settings import Setting
from held_out import best_variant, chosen_form, error_distribution, interval_check, report_batch1, rounded
from measurements import Anchors, Array, Benchmark
from roofline import Roofline
from unmeasured_kernels import (
    GROUP_NORM_LAUNCHES,
    TRANSPOSE_FACTOR,
    UNMEASURED,
    UNMEASURED_SPREAD,
    allowed_outside,
    spread_of_priors,
    with_priors,
)

from lownas.predictors.latency.fitting.kernel_times import with_ranges
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import KernelModel
from lownas.predictors.latency.kernels import KERNEL_CLASS, KERNEL_CLASSES, Kernels
from lownas.predictors.latency.predictor import LatencyPredictor
from lownas.predictors.latency.target import Target
from lownas.predictors.latency.uncertainty import LogErrors
from lownas.search_space import PRESETS, op_graph

LARGE_BATCH = 256  # at which the GPU profiles predict
INTERVAL = 0.9  # coverage of the intervals whose form is chosen


def predict_presets(model: KernelModel) -> dict[str, dict[str, Any]]:
    """By preset, its predicted latency, the shares of the kernel classes in it, and what lies outside the ranges."""
    result = {}
    for name, config in PRESETS.items():
        kernels = fuse(op_graph(config), model.fusion)
        times = model.scale * model.kernel_ms(kernels)
        total = model.graph_ms(kernels)
        shares = np.bincount(kernels.column("class"), times, minlength=len(KERNEL_CLASSES)) / total
        result[name] = {
            "ms": rounded(total, 4),
            "kernels": len(kernels),
            "outside": model.outside(kernels),
            "share_by_class": {KERNEL_CLASSES[code]: rounded(shares[code]) for code in np.flatnonzero(shares)},
        }
    return result


def benchmark_profile(roofline: Roofline, data: Benchmark, report: dict[str, Any], residual: Array) -> LatencyPredictor:
    """The profile of one benchmark file, in ms per image; on GPUs at a batch of `LARGE_BATCH`.

    Args:
        roofline: The fitted model.
        data: What it was fitted on.
        report: Held-out errors.
        residual: (models,) those of whole kinds left out, of which the intervals are made.
    """
    setting = roofline.setting
    model = with_ranges(roofline.kernel_model(LARGE_BATCH if setting.is_gpu else 1), [Kernels(data.kernels.table)])
    lowformer = {name for config in PRESETS.values() for name in fuse(op_graph(config), setting.runtime).classes}
    missing = sorted(name for name in lowformer if model.counts[KERNEL_CLASS[name]] == 0)
    # Kernels that only have a prior are taken to be a tenth of the time.
    form = chosen_form(residual, data.kinds, INTERVAL)
    errors = error_distribution(residual, data.kinds, 0.1 * UNMEASURED_SPREAD, form)
    batch = f", batch {LARGE_BATCH}" if setting.is_gpu else ""
    return LatencyPredictor(
        Target.parse(setting.target),
        model,
        LogErrors.from_errors(errors),
        {
            "source": f"timm's published results ({setting.about}); no LowFormer was measured",
            "samples": report["models"],
            "held_out_error": report["mape"]["value"],
            "held_out_median_error": report["median_error"]["value"],
            "macs_only_error": report["macs_alone"]["mape"]["value"],
            "held_out": f"whole families, {report['folds']} folds; mean absolute relative error",
            "held_out_interval": report["interval"],
            "held_out_kinds": {
                "median_error": report["kinds"]["median_error"]["value"],
                "held_out_error": report["kinds"]["mape"]["value"],
                "interval": report["kinds"]["interval"],
            },
            "refers_to": f"ms per image, {setting.about}{batch}",
            "not_covered": missing,
            "lowformer_measured": False,
            "experiment": "experiments/published/fit.py",
        },
        allowed=missing,
    )


def batch1_profile(
    model: KernelModel, anchors: Anchors, report: dict[str, Any], residual: Array, models: int, ratio: float
) -> LatencyPredictor:
    """The `rtx3090` profile: ms of a static TensorRT FP16 engine at batch 1.

    Args:
        model: The fitted model with its priors.
        anchors: What it was fitted on.
        report: Held-out errors of `report_batch1`.
        residual: (anchors,) its held-out residuals.
        models: Number of models behind the throughput model.
        ratio: Predicted latency of LowFormer-E3 over E2.
    """
    spread = spread_of_priors(model)
    return LatencyPredictor(
        Target.parse("rtx3090"),
        model,
        LogErrors.from_errors(error_distribution(residual, anchors.families, spread)),
        {
            "source": "published TensorRT FP16 batch-1 latencies of other networks; no LowFormer was measured",
            "samples": len(anchors.ms),
            "held_out_error": report["mape"],
            "macs_only_error": report["macs_alone"]["mape"],
            "held_out": (
                "whole families, nested; mean absolute relative error. The form of the model was settled with these "
                "measurements in sight, so that the figure is somewhat optimistic"
            ),
            "held_out_error_by_family": {name: entry["mape"] for name, entry in report["by_family"].items()},
            "held_out_interval": report["interval"],
            "measurements": dict(sorted(Counter(anchors.sources).items())),
            "kernel_rates_from": f"{models} of timm's published RTX 3090 results (AMP, channels-last)",
            "refers_to": "GPU compute time of trtexec, engine built for this one input size",
            "not_covered": list(UNMEASURED),
            "priors": (
                f"transposed convolution {TRANSPOSE_FACTOR:g}x a plain one of the same MACs, GroupNorm "
                f"{GROUP_NORM_LAUNCHES:g} launches, small attention unfused; the interval is wider for them "
                f"(log standard deviation {spread:.2f})"
            ),
            "lowformer_measured": False,
            "check": f"E3 / E2 predicted {ratio:.2f}, published 2.4 (TITAN RTX); not used in fitting",
            "experiment": "experiments/published/fit.py",
        },
        allowed=allowed_outside(),
    )


def fit_and_report_batch1(
    anchors: Anchors, setting: Setting, data: Benchmark, base: Array
) -> tuple[dict[str, Any], LatencyPredictor]:
    """The report on `rtx3090` and its profile; `base` has the values of the roofline fitted on all of `data`."""
    report, residual = report_batch1(anchors, setting, data)
    report["interval"] = interval_check(residual, anchors.families)
    everything = np.arange(len(anchors.ms))
    variant = best_variant(base, anchors, everything)
    fitted = fit_batch1(base, anchors, everything, variant)
    model = with_priors(fitted, anchors)
    presets = predict_presets(model)
    ratio = rounded(presets["lowformer_e3"]["ms"] / presets["lowformer_e2"]["ms"])
    profile = batch1_profile(model, anchors, report, residual, len(data.ms), ratio)
    for name, entry in zip(PRESETS, profile.predict(PRESETS.values()), strict=True):
        presets[name]["interval_90_ms"] = [rounded(entry.low_ms), rounded(entry.high_ms)]
    report["final"] = {
        "chosen": asdict(variant),
        "static_over_dynamic_engine": rounded(np.exp(fitted.log_static)),
        "launch_ms": rounded(fitted.kernels.coefficients[KERNEL_CLASS["conv_dense"], 0]),
        "fixed_ms": rounded(fitted.kernels.overhead_ms),
    }
    report["lowformer"] = {
        "predicted_e3_over_e2": ratio,
        "published_e3_over_e2_titan_rtx": 2.4,
        "log_spread_of_priors": rounded(spread_of_priors(model)),
        "presets": presets,
    }
    return report, profile
