"""Measures how well a calibrated `cpu` target predicts other people's networks: timm's efficient models, as ONNX files.

    python experiments/latency/cpu_timm.py export --models FOLDER      # needs timm, torch, onnx, onnxscript
    python experiments/latency/cpu_timm.py read --models FOLDER        # needs those and lownas: are files read right
    python experiments/latency/cpu_timm.py measure --models FOLDER --rows ROWS.jsonl     # resumable; half an hour
    python experiments/latency/cpu_timm.py compare --models FOLDER [--rows ROWS.jsonl]   # writes cpu_timm.json

`export` writes the files (random weights, nothing is downloaded); `read` compares their graphs with those traced from
torch; `measure` times LowFormer configs, probes (`search_space.probes`) and the files, appending to ROWS; `compare`
fits on the first two and predicts the third.

No file here is measured for fitting. Fusion rules, kernel classes and probes were chosen while looking at `DEVELOPMENT`
alone; the figure is that of `TEST`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lownas.predictors.latency.fitting.samples import Probe, Sample
    from lownas.search_space import LowFormerConfig
    from lownas.search_space.graph import OpGraph

os.environ.setdefault("OMP_NUM_THREADS", "1")


HERE = Path(__file__).parent
CONFIGS = 40
LIMIT_MACS = 2.0**31


@dataclass(frozen=True)
class Export:
    """How one model becomes a file: by torch's newer exporter (`dynamo`) or the older one, and at which opset."""

    name: str
    dynamo: bool
    opset: int
    symbolic: bool = False

    @property
    def file(self) -> str:
        return f"{self.name}.onnx"


def _spread(names: str) -> list[Export]:
    """Every third model by the newer exporter; opsets in turn; every fifth file with a symbolic batch."""
    result = []
    for index, name in enumerate(names.split()):
        dynamo = index % 3 == 0
        opset = (18, 20, 21, 22, 23, 24)[index // 3 % 6] if dynamo else (13, 14, 15, 16, 17, 18, 19, 20)[index % 8]
        result.append(Export(name, dynamo, opset, symbolic=index % 5 == 0))
    return result


DEVELOPMENT = _spread(
    "mobilenetv2_100 efficientnet_b0 convnext_atto deit_tiny_patch16_224 ghostnet_100 regnety_004 mobilevit_s "
    "edgenext_x_small poolformer_s12 xcit_nano_12_p16_224 levit_128s mobilenetv4_hybrid_medium"
)
TEST = _spread(
    # convolutional
    "mobilenetv1_100 mobilenetv3_large_100 mobilenetv3_small_100 mobilenetv4_conv_small efficientnet_lite0 "
    "tf_efficientnetv2_b0 mnasnet_100 semnasnet_100 spnasnet_100 fbnetc_100 fbnetv3_b hardcorenas_a lcnet_100 "
    "tinynet_c mixnet_s regnetx_004 regnety_008 rexnet_100 repvgg_a0 repghostnet_100 mobileone_s0 starnet_s1 resnet18 "
    "resnet26d dla34 hgnetv2_b0 inception_next_atto convnextv2_atto convnext_femto convnext_pico_ols ese_vovnet19b_dw "
    "gernet_s mambaout_femto ghostnetv2_100 efficientnet_es res2net50_26w_4s densenet121 "
    # with attention
    "edgenext_small mobilevit_xs mobilevitv2_100 efficientvit_b1 efficientvit_m2 efficientformer_l1 "
    "efficientformerv2_s0 fastvit_t8 repvit_m1_0 levit_128 shvit_s1 swiftformer_xs tiny_vit_5m_224 pvt_v2_b0 "
    "coat_lite_tiny visformer_tiny vit_tiny_patch16_224 pit_ti_224 cait_xxs24_224 crossvit_9_240 "
    # of tokens alone
    "mixer_s32_224 resmlp_12_224 gmlp_ti16_224"
)
UNSEEN = _spread(
    # Drawn after all else was made: timm's source files in random order, of each a random model of at most 60 million
    # parameters, 6 GMACs and 256 pixels; the first 40 that could be exported.
    "efficientvit_l1 resnest50d_1s4x24d ghostnetv3_130 mambaout_kobe vitamin_small_224 mobilevitv2_150_in22ft1k "
    "lambda_resnet26t rdnet_tiny regnetx_032 rexnet_150 convmixer_1024_20_ks9_p14 swinv2_tiny_window8_256 "
    "deit3_small_patch16_224_in21ft1k starnet_s150 tnt_s_patch16_224 ese_vovnet19b_slim_dw davit_tiny nfnet_l0 "
    "twins_svt_small mvitv2_tiny maxxvit_rmlp_nano_rw_256 pit_xs_224 swin_s3_tiny_224 vit_relpos_small_patch16_224 "
    "tiny_vit_21m_224 visformer_small focalnet_tiny_srf hiera_tiny_224 selecsls84 repvit_m1_5 seresnet33ts dpn68 "
    "swiftformer_l3 efficientformer_l3 hgnetv2_b3 fastvit_s12 pvt_v2_b1 test_vit3 coat_tiny shvit_s4 edgenext_xx_small "
    "lowformer_e1 hrnet_w18_small_v2 nextvit_small gmixer_12_224 jx_nest_tiny"
)


# --- export ----------------------------------------------------------------------------------------------------------


def export(folder: Path) -> None:
    """Writes what `folder` lacks, and prints what could not be exported."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in [*DEVELOPMENT, *TEST, *UNSEEN]:
        path = folder / entry.file
        if path.exists():
            continue
        begin = time.monotonic()
        try:
            export_one(entry, path)
        except Exception as error:  # exporters raise all kinds; a model that they cannot export is reported
            print(f"{entry.name}: {type(error).__name__}: {str(error).splitlines()[0]:.160}", flush=True)
            continue
        kind = "newer" if entry.dynamo else "older"
        print(f"{entry.name}: {kind} exporter, opset {entry.opset}, {time.monotonic() - begin:.1f} s", flush=True)


def export_one(entry: Export, path: Path) -> None:
    """Writes the model of `entry` in inference mode, at its own input size, with random weights."""
    import timm
    import torch

    torch.manual_seed(0)
    exportable = not entry.dynamo
    model = timm.create_model(entry.name, pretrained=False, exportable=exportable).eval()
    for parameter in [*model.parameters(), *model.buffers()]:
        if parameter.dim() == 1 and parameter.is_floating_point():
            # Norms and scales start as 0 or 1, which an optimizer would take out.
            parameter.data.add_(0.1 * torch.rand_like(parameter))
    size = model.pretrained_cfg["input_size"]
    image = torch.randn(1, *size)
    partial = path.with_name(f"{path.stem}.partial.onnx")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if entry.dynamo:
            shapes = ({0: torch.export.Dim.DYNAMIC},) if entry.symbolic else None
            torch.onnx.export(
                model,
                (image.repeat(2, 1, 1, 1) if entry.symbolic else image,),
                partial,
                dynamo=True,
                opset_version=entry.opset,
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
            )
        else:
            torch.onnx.export(
                model,
                (image,),
                partial,
                dynamo=False,
                opset_version=entry.opset,
                input_names=["image"],
                dynamic_axes={"image": {0: "batch"}} if entry.symbolic else None,
            )
    partial.rename(path)


# --- read ------------------------------------------------------------------------------------------------------------


def read(folder: Path) -> list[dict]:
    """MACs of every file beside those of the traced module and of torch's own counter."""
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lownas.search_space import op_graph_from_onnx, op_graph_from_torch

    rows = []
    for entry in [*DEVELOPMENT, *TEST]:
        with torch.device("meta"):
            model = timm.create_model(entry.name, pretrained=False).eval().requires_grad_(False)
        size = model.pretrained_cfg["input_size"]
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(torch.empty(1, *size, device="meta"))
        begin = time.perf_counter()
        file = op_graph_from_onnx(folder / entry.file)
        seconds = time.perf_counter() - begin
        traced = op_graph_from_torch(model, tuple(size))
        row = {
            "model": entry.name,
            "exporter": "newer" if entry.dynamo else "older",
            "opset": entry.opset,
            "symbolic_batch": entry.symbolic,
            "file_macs": file.macs,
            "traced_macs": traced.macs,
            "torch_macs": counter.get_total_flops() // 2,
            "seconds": round(seconds, 3),
            "kinds_that_differ": {
                kind: [file.kinds.count(kind), traced.kinds.count(kind)]
                for kind in sorted({*file.kinds, *traced.kinds})
                if kind != "move" and file.kinds.count(kind) != traced.kinds.count(kind)
            },
            "other": file.kinds.count("other"),
        }
        rows.append(row)
        equal = "" if row["file_macs"] == row["traced_macs"] == row["torch_macs"] else "MACs differ"
        print(entry.name, equal, {k: v for k, v in row.items() if k not in ("model",)}, flush=True)
    return rows


# --- measure and compare ---------------------------------------------------------------------------------------------


def measure(models: Path, rows_file: Path, rounds: int = 2) -> list[dict]:
    """Measures the calibration's configs and probes, and the files, each `rounds` times in a shuffled order.

    Every measurement is one line of `rows_file`; what it holds already is not measured again.
    """
    from lownas.evaluators.device.measure import measure_latency
    from lownas.predictors import Target
    from lownas.predictors.latency.sampling import spread_sample
    from lownas.search_space import SearchSpace
    from lownas.search_space.probes import probe_graphs

    target = Target.parse("cpu")
    configs = spread_sample(SearchSpace.load("default"), CONFIGS, 0, LIMIT_MACS, leaning=0)
    tasks: dict[str, LowFormerConfig | OpGraph | Path] = {f"config:{config.id}": config for config in configs}
    tasks |= {f"probe:{name}": graph for name, graph in probe_graphs().items()}
    tasks |= {f"model:{entry.name}": models / entry.file for entry in [*DEVELOPMENT, *TEST]}
    rows = _read_rows(rows_file)
    done = {(row["what"], row["round"]) for row in rows}
    for number in range(rounds):
        order = list(tasks)
        random.Random(number).shuffle(order)
        for what in order:
            item = tasks[what]
            if (what, number) in done or (isinstance(item, Path) and not item.exists()):
                continue
            kernels = not isinstance(item, Path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                measured = measure_latency(item, target, time_limit_s=4.0, min_runs=15, kernels=kernels)
            row = {
                "what": what,
                "round": number,
                "median_ms": round(measured.median_ms, 5),
                "undisturbed_ms": round(measured.undisturbed_ms, 5),
                "iqr_ms": round(measured.iqr_ms, 5),
                "runs": measured.runs,
                "busy_cores": round(measured.busy_cores, 2),
                "versions": dict(measured.versions),
                "host": dict(measured.host),
            }
            if measured.kernel_ms is not None:
                row["kernel_ms"] = {name: round(ms, 5) for name, ms in measured.kernel_ms.items()}
            rows.append(row)
            with rows_file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row, separators=(",", ":")) + "\n")
            print(f"{what} {measured.median_ms:.3f} ms, undisturbed {measured.undisturbed_ms:.3f}", flush=True)
    return rows


def compare(models: Path, rows: list[dict]) -> dict[str, Any]:
    """Fits on the configs and probes of `rows` alone, and compares the predictions with the measured files."""
    import numpy as np

    from lownas.predictors import LatencyPredictor, Target
    from lownas.predictors.latency.fitting.cross_validation import fit_samples
    from lownas.predictors.latency.fitting.measured_networks import FORMS, MeasuredNetworks
    from lownas.predictors.latency.fitting.samples import block_size
    from lownas.predictors.latency.fusion import fuse
    from lownas.predictors.latency.uncertainty import LogErrors
    from lownas.search_space import op_graph, op_graph_from_onnx

    measurements: dict[str, list[dict]] = {}
    for row in rows:
        measurements.setdefault(row["what"], []).append(row)
    samples, probes = _samples(measurements), _probes(measurements)
    block = block_size(samples)
    host = rows[0]["host"]

    def predictor(known: list[Probe]) -> LatencyPredictor:
        fit = fit_samples(samples, "onnxruntime", block, probes=known)
        return LatencyPredictor(Target.parse("cpu"), fit.model, LogErrors.from_errors(fit.log_errors), {}, host)

    full, bare = predictor(probes), predictor([])
    line = np.polyfit(
        np.log([op_graph(sample.config).macs for sample in samples]), np.log([s.latency_ms for s in samples]), 1
    )
    table, graphs = [], {}
    for entry in [*DEVELOPMENT, *TEST]:
        mine = measurements.get(f"model:{entry.name}")
        if not mine:
            continue
        graph = graphs[entry.name] = op_graph_from_onnx(models / entry.file)
        (found,), (without,) = full.predict([graph]), bare.predict([graph])
        measured = float(np.median([row["undisturbed_ms"] for row in mine]))
        table.append(
            {
                "model": entry.name,
                "set": "development" if entry in DEVELOPMENT else "test",
                "measured_ms": round(measured, 4),
                "measured_spread": round(max(row["undisturbed_ms"] for row in mine) / measured - 1, 4),
                "predicted_ms": round(found.latency_ms, 4),
                "low_ms": round(found.low_ms, 4),
                "high_ms": round(found.high_ms, 4),
                "error": round(found.latency_ms / measured - 1, 4),
                "without_probes": round(without.latency_ms / measured - 1, 4),
                "macs_only": round(float(np.exp(np.polyval(line, np.log(graph.macs)))) / measured - 1, 4),
                "outside": list(found.outside),
            }
        )
    result: dict[str, Any] = {
        "target": "cpu",
        "host": host,
        "versions": rows[0]["versions"],
        "configs": len(samples),
        "probes": len(probes),
    }
    for name in ("development", "test"):
        result[name] = _summary([row for row in table if row["set"] == name])
    data = MeasuredNetworks.of(samples, "onnxruntime", block, probes)
    result["by_form"] = {}
    for form in FORMS:
        model = data.fit(np.arange(len(samples)), form)
        predicted = [model.graph_ms(fuse(graph, "onnxruntime", block)) for graph in graphs.values()]
        errors = np.array(predicted) / np.array([row["measured_ms"] for row in table]) - 1
        result["by_form"][form] = _figures(errors.tolist(), np.array([row["measured_ms"] for row in table]))
    return result | {"table": table}


def _samples(measurements: dict[str, list[dict]]) -> list[Sample]:
    """One sample per measured config, merged from its rounds."""
    from lownas.predictors.latency.fitting.samples import ConfigLook, merged
    from lownas.predictors.latency.sampling import spread_sample
    from lownas.predictors.latency.undisturbed import Look
    from lownas.search_space import SearchSpace

    samples = []
    for config in spread_sample(SearchSpace.load("default"), CONFIGS, 0, LIMIT_MACS, leaning=0):
        rounds = [
            ConfigLook(
                config,
                Look(row["undisturbed_ms"], max(0.0, row["median_ms"] / row["undisturbed_ms"] - 1)),
                row["kernel_ms"],
            )
            for row in measurements[f"config:{config.id}"]
        ]
        samples.append(merged(rounds, None))
    return samples


def _probes(measurements: dict[str, list[dict]]) -> list[Probe]:
    """The measured probes, with the geometric mean of each kernel's times over the rounds."""
    import numpy as np

    from lownas.predictors.latency.fitting.samples import Probe
    from lownas.search_space.probes import probe_graphs

    probes = []
    for name, graph in probe_graphs().items():
        tables = [row["kernel_ms"] for row in measurements.get(f"probe:{name}", [])]
        if not tables:  # a probe that was made later
            continue
        times = {key: float(np.exp(np.mean(np.log([t[key] for t in tables])))) for key in tables[0]}
        probes.append(Probe(graph, times))
    return probes


def _summary(part: list[dict]) -> dict[str, object]:
    """Errors and interval coverage over rows of the table."""
    import numpy as np
    from scipy.stats import binomtest

    measured = np.array([row["measured_ms"] for row in part])
    inside = sum(row["low_ms"] <= row["measured_ms"] <= row["high_ms"] for row in part)
    widths = [(row["high_ms"] - row["low_ms"]) / 2 / row["predicted_ms"] for row in part]
    bounds = binomtest(inside, len(part)).proportion_ci()
    figures = {key: _figures([row[key] for row in part], measured) for key in ("error", "without_probes", "macs_only")}
    return {
        "models": len(part),
        **figures,
        "within_90_percent_interval": round(inside / len(part), 4),
        "binomial_95": [round(bounds.low, 4), round(bounds.high, 4)],
        "median_half_width": round(float(np.median(widths)), 4),
    }


def _figures(errors: list[float], measured_ms: object) -> dict[str, object]:
    """Median and mean absolute error, with 95 % bootstrap intervals over models, and rank correlation."""
    import numpy as np
    from scipy.stats import spearmanr

    signed = np.array(errors)
    size = np.abs(signed)
    again = size[np.random.default_rng(0).integers(0, len(size), (2000, len(size)))]
    result: dict[str, object] = {}
    for name, statistic in (("median", np.median), ("mean", np.mean)):
        low, high = np.quantile(statistic(again, axis=1), [0.025, 0.975])
        result[name] = {"value": round(float(statistic(size)), 4), "low": round(low, 4), "high": round(high, 4)}
    result["spearman"] = round(float(spearmanr((1 + signed) * measured_ms, measured_ms)[0]), 4)
    return result


def _read_rows(file: Path) -> list[dict]:
    if not file.exists():
        return []
    opened = gzip.open(file, "rt") if file.suffix == ".gz" else file.open()  # noqa: SIM115
    rows = []
    for line in opened:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # cut off where a run broke; measured again
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("export", "read", "measure", "compare"))
    parser.add_argument("--models", type=Path, required=True, help="folder of the ONNX files")
    parser.add_argument("--rows", type=Path, default=HERE / "cpu_timm_rows.jsonl.gz", help="the measurements")
    parser.add_argument("--out", type=Path, default=HERE / "cpu_timm.json")
    arguments = parser.parse_args()
    if arguments.step == "export":
        export(arguments.models)
    elif arguments.step == "read":
        read(arguments.models)
    elif arguments.step == "measure":
        measure(arguments.models, arguments.rows)
    else:
        result = compare(arguments.models, _read_rows(arguments.rows))
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        for row in result.pop("table"):
            print(row)
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
