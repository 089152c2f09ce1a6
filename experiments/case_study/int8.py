"""The trained networks in int8: what it does to accuracy and latency, and whether their order holds.

    python experiments/case_study/int8.py --work WORK     # after `study.py judge`; adds to rows/int8.jsonl

Static quantization as `lownas` times it (`evaluators/device/quantize.py`), with the ranges that activations have on
`PICTURES` training images. For the best network of each budget, what a search answered, and the best published one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx

from lownas.evaluators.data.feeding import Batch, image_feed
from lownas.evaluators.data.loading import find_parts
from lownas.evaluators.device.quantize import QUANTIZED, quantized
from lownas.evaluators.training.final.judging import OnnxNetwork
from lownas.experiments.case_study import arms, report
from lownas.experiments.case_study.arms import TASKS, Network
from lownas.experiments.case_study.study import Study
from lownas.search.results.exporters import export_config
from lownas.search.results.files import exportable

PICTURES, BATCH = 512, 32
ROUNDS, ROUND_PAUSE_S = 20, 5.0


def export(training: Path, out: Path) -> None:
    """Writes a trained network as an ONNX file."""
    found = exportable(training)
    export_config(found.config, out.with_suffix(""), formats=["onnx"], model=found.model, about=found.about)


class Pictures:
    """Training images as a network takes them, for onnxruntime's calibrators."""

    def __init__(self, file: Path, data: str, side: int) -> None:
        name = onnx.load(str(file)).graph.input[0].name
        self.batches = self._batches(OnnxNetwork(file, threads=1), name, data, side)

    def _batches(self, network: OnnxNetwork, name: str, data: str, side: int) -> Iterator[dict[str, np.ndarray]]:
        feed = image_feed(find_parts(data, 0, resolution=side).train, side, workers=0)
        places = np.random.default_rng(0).permutation(len(feed))[:PICTURES].reshape(-1, BATCH)
        mean, std = (np.array(value, np.float32).reshape(1, 3, 1, 1) for value in (network.mean, network.std))
        for images, _ in feed.batches(Batch(place, side) for place in places):
            for image in images.float().numpy():
                yield {name: (image[None] / 255 - mean) / std}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantize(source: Path, out: Path, data: str, side: int) -> None:
    """Writes `source` in int8, with the ranges of training images."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    model = onnx.load(str(source))
    with tempfile.TemporaryDirectory() as folder:
        augmented = str(Path(folder) / "augmented.onnx")
        calibrator = create_calibrator(
            source, list(QUANTIZED), augmented, CalibrationMethod.Percentile, extra_options={"percentile": 99.99}
        )
        calibrator.collect_data(Pictures(source, data, side))
        result = quantized(model, calibrator.compute_data())
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    onnx.save(result, str(out))


def chosen(study: Study) -> list[Network]:
    """For each budget: what a search answered, and the best and the best published one by the test part."""
    networks, found = study.networks(), report.results(*(study.rows(name) for name in report.KINDS))
    names: dict[str, None] = {}
    for budget_ms in study.task.budgets_ms:
        ours = [each for each in found if each.mean is not None and not networks[each.name].is_module]
        mine = [each for each in ours if each.budget_ms == budget_ms]
        published = [each for each in mine if each.group in ("width", "resolution")]
        for group in (mine, published, [each for each in mine if each.group == "search"]):
            if group:
                names[max(group, key=lambda each: each.mean or 0.0).name] = None
    return [networks[name] for name in names]


def run(study: Study) -> None:
    """Quantizes, judges and times what is missing."""
    from lownas import evaluate

    data, done = study.task.data, {(row["network"], row["seed"]) for row in study.rows("int8")}
    files: dict[str, Path] = {}
    for network in chosen(study):
        for row in study.trainings():
            if row["network"] != network.name:
                continue
            folder = study.work / "int8" / study.training(network.name, row["seed"]).name
            folder.mkdir(parents=True, exist_ok=True)
            source, out = folder / "fp32.onnx", folder / "int8.onnx"
            if not out.exists():
                export(study.training(network.name, row["seed"]) / "run", source)
                quantize(source, out, data, network.resolution)
            files |= {f"{network.name} fp32": source, f"{network.name} int8": out}
            if (network.name, row["seed"]) not in done:
                top1 = {name: evaluate(path, data, threads=1).top1 for name, path in (("fp32", source), ("int8", out))}
                study.add("int8", {"network": network.name, "seed": row["seed"], **top1})

    def tell(name: str, ms: float) -> None:
        network, _, precision = name.rpartition(" ")
        study.add("int8-looks", {"network": network, "precision": precision, "ms": ms})

    arms.look_in_rounds(files, ROUNDS, ROUND_PAUSE_S, tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    run(Study(TASKS["fashion-mnist"], parser.parse_args().work.resolve()))


if __name__ == "__main__":
    main()
