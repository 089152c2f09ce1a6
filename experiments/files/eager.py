"""The same networks by `--timm` and as ONNX files, predicted for PyTorch's eager mode: eager.json.

    python experiments/files/eager.py --models FOLDER    # needs timm and onnxscript; no GPU, 10 minutes

Exporters fold BatchNorm into convolutions, eager mode runs it by itself. `as_written` counts what the file has; the
reader adds the BatchNorms that names of constants betray. Weights are fresh but for BatchNorm's, which are drawn: the
newer exporter drops a bias of zeros, and with it what betrays the BatchNorm.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

HERE = Path(__file__).parent
TARGET = "rtx3090:throughput"
_NAMES = """
    cspresnet50 convnext_tiny deit_small_patch16_224 densenet121 dla34 edgenext_small efficientformer_l1
    efficientnet_b0 eva02_tiny_patch14_336 fastvit_t8 ghostnet_100 hrnet_w18_small inception_v3 levit_256
    maxvit_tiny_tf_224 mixer_s32_224 mobilenetv3_large_100 mobilenetv4_conv_medium mobilevit_s poolformer_s12
    pvt_v2_b0 regnety_016 repvgg_a0 resnest14d resnet50 resnext50_32x4d swin_tiny_patch4_window7_224
    tf_efficientnetv2_b0 vgg11_bn xception41
"""


def write(name: str, path: Path, *, dynamo: bool) -> None:
    """Exports a model of timm's by torch's newer exporter or by its older one."""
    import timm
    import torch

    timm.layers.set_exportable(True)
    timm.layers.set_fused_attn(False)
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.normal_(module.bias, std=0.1)
    image, kept = torch.randn(1, *model.pretrained_cfg["input_size"]), path.with_suffix(".part")
    torch.onnx.export(
        model, (image,), kept, dynamo=dynamo, verbose=False, **({"external_data": False} if dynamo else {})
    )
    kept.rename(path)


def main() -> None:
    from lownas.predictors import Target
    from lownas.search.devices import load_predictor, timm_graph
    from lownas.search_space import op_graph_from_onnx
    from lownas.search_space.graph import COLUMN

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="where the ONNX files are, or are written")
    models = parser.parse_args().models
    models.mkdir(parents=True, exist_ok=True)
    predictor, rows = load_predictor(Target.load(TARGET), None), []
    for name in _NAMES.split():
        (eager,) = predictor.predict([timm_graph(name, copies=True)])
        for exporter in ("torchscript", "dynamo"):
            path = models / f"{name}.{exporter}.onnx"
            if not path.exists():
                write(name, path, dynamo=exporter == "dynamo")
            graph = op_graph_from_onnx(path)
            bare = graph.table.copy()
            bare[:, COLUMN["params"]] = np.minimum(graph.column("params"), graph.column("weights"))
            found, as_written = predictor.predict([graph, replace(graph, table=bare)])
            row = {"network": name, "exporter": exporter, "eager_ms": eager.latency_ms}
            rows.append({**row, "file_ms": found.latency_ms, "as_written_ms": as_written.latency_ms})
            print(name, exporter, *(f"{rows[-1][k] / eager.latency_ms - 1:+.1%}" for k in ("as_written_ms", "file_ms")))
    summary = {}
    for exporter in ("torchscript", "dynamo"):
        for way in ("file_ms", "as_written_ms"):
            errors = [abs(row[way] / row["eager_ms"] - 1) for row in rows if row["exporter"] == exporter]
            summary[f"{exporter}, {way.removesuffix('_ms')}"] = {
                "median": round(float(np.median(errors)), 4),
                "mean": round(float(np.mean(errors)), 4),
                "within_3_percent": sum(error <= 0.03 for error in errors),
                "networks": len(errors),
            }
    (HERE / "eager.json").write_text(json.dumps({"target": TARGET, "summary": summary, "rows": rows}, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
