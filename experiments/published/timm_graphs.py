"""Operator graphs of the models that timm's benchmark files name, traced once and kept in a cache folder.

    python timm_graphs.py --published FOLDER --cache FOLDER [--kind KIND] [--limit N]

Needs timm and lownas; nothing is downloaded, no weights are made (meta device). A broken run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lownas.search_space.graph import OpGraph

BENCHMARKS = {
    "rtx3090-amp-nhwc.csv": "nhwc",
    "rtx3090-amp-nchw.csv": "nchw",
    "rtx4090-amp-nhwc.csv": "nhwc",
    "rtx5090-amp-nchw.csv": "nchw",
    "rtxpro6000maxq-amp-nchw.csv": "nchw",
    "rtx4090-amp-compile.csv": "compiled",
    "rtx5090-amp-compile.csv": "compiled",
    "rtxpro6000maxq-amp-compile.csv": "compiled",
    "i7_12700h-fp32-batch1.csv": "compiled",
    "i9_10940x-fp32-batch1.csv": "compiled",
}
"""Files of timm, and what their models ran as."""
KINDS: dict[str, dict[str, bool]] = {
    "compiled": {},
    "nchw": {"copies": True},
    "nhwc": {"copies": True, "channels_last": True},
}
"""How a model is traced: without what compilers remove, or as PyTorch runs it eagerly in either memory format."""
ANCHORS = "rtx3090-tensorrt-fp16-batch1.csv"


@dataclass(frozen=True)
class Model:
    """A timm model at an input size.

    `name:l3` is its first three stages, without the head. `name:pool7` pools the last map to 7 x 7 before the head, as
    torchvision's VGG does at any input size (timm's slides its first linear layer over the whole map instead).
    """

    name: str
    height: int
    width: int

    @property
    def key(self) -> str:
        return f"{self.name.replace(':', '+')}-{self.height}x{self.width}"


def benchmark_rows(path: Path) -> list[tuple[Model, dict[str, float]]]:
    """Rows of one of timm's inference benchmark files, those with a measurement."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["infer_step_time"]]
    return [
        (
            Model(row["model"], int(row["infer_img_size"]), int(row["infer_img_size"])),
            {name: float(value) for name, value in row.items() if name != "model" and value},
        )
        for row in rows
    ]


def anchor_rows(path: Path) -> list[tuple[Model, float, str]]:
    """(model, latency_ms, source) of the batch-1 measurements; VGGs with torchvision's head, which the source timed."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        (
            Model(row["model"] + ":pool7" * row["model"].startswith("vgg"), int(row["height"]), int(row["width"])),
            float(row["latency_ms"]),
            row["source"],
        )
        for row in rows
    ]


def load_graph(model: Model, cache: Path, kind: str) -> OpGraph | None:
    """The cached graph; None where the model could not be traced or was not yet."""
    path = cache / kind / f"{model.key}.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return OpGraph(arrays["table"], arrays["edges"])


def trace(model: Model, kind: str) -> OpGraph:
    """Builds the timm model without weights and traces it, as `KINDS` says."""
    import timm
    import torch

    from lownas.search_space.graph.torch_tracer import op_graph_from_torch

    name, _, part = model.name.partition(":")
    size = (model.height, model.width)
    with torch.device("meta"):
        if part == "l3":
            whole = timm.create_model(name)
            module: torch.nn.Module = torch.nn.Sequential(
                whole.conv1, whole.bn1, whole.act1, whole.maxpool, whole.layer1, whole.layer2, whole.layer3
            )
        elif part == "pool7":
            whole = timm.create_model(name)
            module = torch.nn.Sequential(whole.features, torch.nn.AdaptiveAvgPool2d(7), whole.pre_logits, whole.head)
        elif part:
            raise ValueError(f"{model.name}: only ':l3' and ':pool7' are known, not {part!r}")
        else:
            module = timm.create_model(name)
            default = getattr(module, "pretrained_cfg", {}).get("input_size", (3, *size))[1:]
            if tuple(default) != size:
                with contextlib.suppress(TypeError):  # convolutional models take no image size, and any image
                    module = timm.create_model(name, img_size=size[0] if size[0] == size[1] else size)
    return op_graph_from_torch(module, (3, *size), **KINDS[kind])


def trace_all(models: Iterable[Model], cache: Path, kind: str) -> dict[str, str]:
    """Traces what the cache lacks; returns key -> reason for those that cannot be traced (kept in failed.json)."""
    folder = cache / kind
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "failed.json"
    failed: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    todo = [model for model in dict.fromkeys(models) if model.key not in failed]
    todo = [model for model in todo if not (folder / f"{model.key}.npz").exists()]
    start = time.monotonic()
    for number, model in enumerate(todo, start=1):
        try:
            graph = trace(model, kind)
        except Exception as error:  # someone else's 1,200 models: any of them may fail in any way, and is reported
            failed[model.key] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            record.write_text(json.dumps(failed, indent=1))
            continue
        partial = folder / f"{model.key}.partial.npz"
        np.savez_compressed(partial, table=graph.table, edges=graph.edges)
        partial.rename(folder / f"{model.key}.npz")
        if number % 50 == 0:
            seconds = time.monotonic() - start
            print(f"{kind}: {number}/{len(todo)} traced, {seconds:.0f} s, {len(failed)} failed", file=sys.stderr)
    return failed


def families(models: Iterable[Model]) -> dict[str, str]:
    """Family of every model: the module of timm that defines it; EVA, SAM and the like count as vision transformers."""
    import timm

    entries = timm.models._registry._model_entrypoints
    merged = {"eva": "vision_transformer", "vision_transformer_sam": "vision_transformer", "deit": "vision_transformer"}
    result = {}
    for model in models:
        entry = entries.get(model.name.partition(":")[0])
        family = entry.__module__.rpartition(".")[2] if entry else model.name.partition("_")[0]
        result[model.name] = merged.get(family, family)
    return result


def spread(models: list[Model], limit: int | None) -> list[Model]:
    """At most `limit` of `models`, evenly over the sorted names, so that every family is there."""
    models = sorted(dict.fromkeys(models), key=lambda model: model.key)
    if limit is None or limit >= len(models):
        return models
    return [models[index] for index in np.linspace(0, len(models) - 1, limit).round().astype(int)]


def wanted(published: Path, kind: str, limit: int | None) -> list[Model]:
    """The models of the benchmark files that ran as `kind`; the anchors are compiled ones."""
    anchors = [model for model, _, _ in anchor_rows(published / ANCHORS)] if kind == "compiled" else []
    names = [name for name, ran in BENCHMARKS.items() if ran == kind]
    rows = [model for name in names for model, _ in benchmark_rows(published / name)]
    return list(dict.fromkeys(anchors + spread(rows, limit)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="folder with timm's result files")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the traced graphs")
    parser.add_argument("--limit", type=int, help="trace at most so many models of a kind, spread over the names")
    parser.add_argument("--kind", choices=tuple(KINDS), help="trace only these")
    arguments = parser.parse_args()
    models = {kind: wanted(arguments.published, kind, arguments.limit) for kind in KINDS}
    arguments.cache.mkdir(parents=True, exist_ok=True)
    names = families(model for several in models.values() for model in several)
    (arguments.cache / "families.json").write_text(json.dumps(names, indent=1, sort_keys=True))
    for kind in [arguments.kind] if arguments.kind else KINDS:
        for key, reason in trace_all(models[kind], arguments.cache, kind).items():
            print(f"{kind} {key}: {reason}")
