"""The published accuracies that the prior is fitted on, with the features of each network.

timm's results on ImageNet (huggingface/pytorch-image-models, Apache-2.0), as one CSV file that is not part of this
repository: columns model, arch, recipe, img_size, top1, in1k_only, distilled. Networks are traced without weights.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lownas.predictors.accuracy.features import KERNEL_POWER, NAMES, graph_features
from lownas.search_space.graph import OpGraph

sys.path.append(str(Path(__file__).resolve().parents[1] / "published"))
from timm_graphs import Model, families, load_graph, trace_all

Floats = NDArray[np.float64]

FILE = "timm-imagenet.csv"
GMACS = 0.08, 18.0
"""Smallest and largest networks that count."""
LEAST = 3
"""Rows of a family and recipe, below which its level would be all that they tell."""
LEFT_OUT = re.compile(r"^test_|_cc_|^lowformer|^cpubone")
"""Networks made for tests; those with experts, of which an image passes few; and the family that is to be predicted."""
PREFIXES = ("tf_", "legacy_", "gluon_")
"""Of ports, whose families are those of the originals."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Published accuracies.

    Attributes:
        y: (n,) ln(100 - top-1 %).
        features: (n, features), in the order of `features.NAMES`.
        plain: (n, 4) ln GMACs, ln of millions of parameters, ln of resolution / 224, ln of layers, of whole networks.
        arch, family, group, module: (n,) names; a module is the file of timm that defines the network, a family has one
            name within a module, a group is a family trained by one recipe. Modules are what is left out: a family may
            have cousins in its module.
    """

    y: Floats
    features: Floats
    plain: Floats
    arch: NDArray[np.str_]
    family: NDArray[np.str_]
    group: NDArray[np.str_]
    module: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> Rows:
        return Rows(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def seen_plainly(self) -> Rows:
        """The same rows with `plain` in the place of the features."""
        return replace(self, features=self.plain)

    @property
    def top1(self) -> Floats:
        return np.asarray(100 - np.exp(self.y))


def family_of(arch: str) -> str:
    """The letters that its name begins with, and a version: "efficientnetv2" of tf_efficientnetv2_b0."""
    for prefix in PREFIXES:
        arch = arch.removeprefix(prefix)
    match = re.match(r"([a-z]+?v\d)(?!\d)|([a-z]+)", arch.partition("_")[0])
    assert match is not None, arch
    return (match.group(1) or match.group(2)).removesuffix("v") if match.group(2) else match.group(1)


def load_rows(published: Path, cache: Path, power: float = KERNEL_POWER) -> Rows:
    """Networks trained on ImageNet-1k alone and without a teacher. Traces what `cache` lacks; that takes five minutes.

    Raises ValueError if the file is not there.
    """
    if not (published / FILE).is_file():
        raise ValueError(f"{published / FILE} is missing: timm's ImageNet results (see experiments/prior/README.md)")
    with (published / FILE).open(newline="") as file:
        table = [row for row in csv.DictReader(file) if row["in1k_only"] == "1" and row["distilled"] == "0"]
    table = [row for row in table if not LEFT_OUT.search(row["arch"])]
    described = _described(
        {Model(row["arch"], int(row["img_size"]), int(row["img_size"])) for row in table}, cache, power
    )
    keys = [f"{row['arch']}@{row['img_size']}" for row in table]
    kept = [(row, described[key]) for row, key in zip(table, keys, strict=True) if key in described]
    kept = [(row, found) for row, found in kept if GMACS[0] <= np.exp(found["plain"][0]) <= GMACS[1]]
    groups = [f"{found['module']}/{family_of(row['arch'])}|{row['recipe']}" for row, found in kept]
    count = Counter(groups)
    chosen = [(row, found, group) for (row, found), group in zip(kept, groups, strict=True) if count[group] >= LEAST]
    return Rows(
        y=np.log(100 - np.array([float(row["top1"]) for row, _, _ in chosen])),
        features=np.array([found["features"] for _, found, _ in chosen]),
        plain=np.array([found["plain"] for _, found, _ in chosen]),
        arch=np.array([row["arch"] for row, _, _ in chosen]),
        family=np.array([group.partition("|")[0] for _, _, group in chosen]),
        group=np.array([group for _, _, group in chosen]),
        module=np.array([found["module"] for _, found, _ in chosen]),
    )


def plain_features(graph: OpGraph, resolution: int) -> list[float]:
    """What one would look at first, as in `Rows.plain`."""
    layers = sum(kind in ("conv", "conv_transpose", "linear") for kind in graph.kinds)
    values = graph.macs / 1e9, graph.params / 1e6, resolution / 224, layers
    return [float(np.log(value)) for value in values]


def _described(models: set[Model], cache: Path, power: float) -> dict[str, dict[str, object]]:
    """Features, plain features and module of each network, by "arch@pixels"; kept in the cache folder."""
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / f"features-{power:g}.json"
    stored = json.loads(file.read_text()) if file.exists() else {}
    known = stored["networks"] if stored.get("names") == list(NAMES) else {}
    missing = sorted((m for m in models if f"{m.name}@{m.height}" not in known), key=lambda model: model.key)
    if missing:
        for key, reason in trace_all(missing, cache, "compiled").items():
            print(f"{key}: {reason}", file=sys.stderr)
        module = families(missing)
        for model in missing:
            if (graph := load_graph(model, cache, "compiled")) is not None:
                known[f"{model.name}@{model.height}"] = {
                    "module": module[model.name],
                    "features": graph_features(graph, model.height, power).tolist(),
                    "plain": plain_features(graph, model.height),
                }
        file.write_text(json.dumps({"names": list(NAMES), "networks": known}))
    return dict(known)
