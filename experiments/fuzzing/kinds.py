"""What is fuzzed: for each kind of file some good ones, how they are mutated, and how users have them read."""

from __future__ import annotations

import io
import json
import random
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lownas.experiments.fuzzing.mutations import mutated_bytes, mutated_json, mutated_lines, mutated_model
from lownas.search_space import PRESETS, SearchSpace

LARGEST = 200_000
"""Bytes of the largest file that is mutated: larger ones take their time to be written."""


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        seeds: makes good files, each by names to contents.
        mutate: one such file changed.
        read: reads what lies in a folder, as users have it read; raises ValueError or OSError of one line, or nothing.
        parses: whether what lies in a folder gets past the first stage: protocol buffers, JSON, a header.
    """

    seeds: Callable[[], list[Mapping[str, bytes]]]
    mutate: Callable[[Mapping[str, bytes], random.Random], Mapping[str, bytes]]
    read: Callable[[Path], object]
    parses: Callable[[Path], bool]


def one_file(change: Callable[[bytes, random.Random], bytes]) -> Callable[..., Mapping[str, bytes]]:
    """Changes one of the files."""

    def mutate(files: Mapping[str, bytes], rng: random.Random) -> Mapping[str, bytes]:
        name = rng.choice(sorted(files))
        return {**files, name: change(files[name], rng)}

    return mutate


def parsed_by(read: Callable[[Path], object]) -> Callable[[Path], bool]:
    def parses(folder: Path) -> bool:
        try:
            return bool(read(folder))
        except Exception:  # whatever a parser raises
            return False

    return parses


# --- ONNX ------------------------------------------------------------------------------------------------------------


def onnx_seeds(models: Path | None = None) -> list[Mapping[str, bytes]]:
    """Networks of the space `tiny`, probes, and small files of packages (`experiments/files/packages.py fetch`)."""
    from lownas.search_space.graph.onnx_writer import onnx_model
    from lownas.search_space.probes import probe_graphs

    space, rng = SearchSpace.load("tiny"), np.random.default_rng(0)
    graphs: list[Any] = [space.sample(rng) for _ in range(8)]
    graphs += [graph for name, graph in probe_graphs().items() if not name.startswith(("deep", "chain"))][::4]
    found = [onnx_model(graph).SerializeToString() for graph in graphs]
    found += [path.read_bytes() for path in sorted(models.glob("*.onnx"))] if models else []
    return [{"model.onnx": _without_weights(content)} for content in found if len(_without_weights(content)) <= LARGEST]


def _without_weights(content: bytes) -> bytes:
    """A model whose large constants are kept beside it, in a file that is not there."""
    import onnx

    model = onnx.ModelProto.FromString(content)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 1024:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            del tensor.external_data[:]
            tensor.external_data.add(key="location", value="weights.bin")
    return bytes(model.SerializeToString())


def read_onnx(folder: Path) -> object:
    from lownas.predictors import LatencyPredictor
    from lownas.search_space import OnnxFile

    global _predictor
    if _predictor is None:
        _predictor = LatencyPredictor.load("rtx3090")
    sizes = {"": (1, 3, 64, 64)}
    return _predictor.predict([OnnxFile(folder / "model.onnx", sizes if (folder / "sized").exists() else {})])


_predictor: Any = None


def mutate_onnx(files: Mapping[str, bytes], rng: random.Random) -> Mapping[str, bytes]:
    changed = {"model.onnx": mutated_model(files["model.onnx"], rng)}
    return {**changed, "sized": b""} if rng.random() < 0.2 else changed


def parses_onnx(folder: Path) -> object:
    import onnx

    return onnx.load(folder / "model.onnx", load_external_data=False).graph.node


# --- models of ours, with a checksum ---------------------------------------------------------------------------------


def signed_json(files: Mapping[str, bytes], rng: random.Random) -> Mapping[str, bytes]:
    """A changed JSON file with a checksum that fits, mostly."""
    from lownas.predictors.model_files import checksum

    content = json.loads(files["model.json"])
    if rng.random() < 0.1:
        return {"model.json": mutated_bytes(files["model.json"], rng)}
    content.pop("checksum")
    content = mutated_json(content, rng)
    if isinstance(content, dict):
        content["checksum"] = checksum(content)
    return {"model.json": json.dumps(content).encode()}


def parses_signed(folder: Path) -> object:
    from lownas.predictors.model_files import checksum

    content = json.loads((folder / "model.json").read_bytes())
    return content.pop("checksum") == checksum(content)


def profile_seeds() -> list[Mapping[str, bytes]]:
    from lownas.predictors.latency.target import shipped_profiles

    return [{"model.json": path.read_bytes()} for path in sorted(shipped_profiles().glob("*.json"))]


def read_profile(folder: Path) -> object:
    from lownas.predictors import LatencyPredictor

    predictor = LatencyPredictor.read(folder / "model.json", check_host=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return predictor.predict([PRESETS["lowformer_b0"]])


def prior_seeds() -> list[Mapping[str, bytes]]:
    from lownas.predictors import accuracy

    return [{"model.json": path.read_bytes()} for path in sorted(Path(accuracy.__path__[0]).glob("*.json"))]


def read_prior(folder: Path) -> object:
    from lownas.predictors.accuracy.prior import AccuracyPrior

    return AccuracyPrior.load(folder / "model.json").predict([PRESETS["lowformer_b0"]])


# --- configurations, spaces, runs ------------------------------------------------------------------------------------


def config_seeds() -> list[Mapping[str, bytes]]:
    return [{"config.json": config.to_json().encode()} for config in PRESETS.values()]


def json_file(name: str) -> Callable[[Mapping[str, bytes], random.Random], Mapping[str, bytes]]:
    def mutate(files: Mapping[str, bytes], rng: random.Random) -> Mapping[str, bytes]:
        if rng.random() < 0.1:
            return {**files, name: mutated_bytes(files[name], rng)}
        return {**files, name: json.dumps(mutated_json(json.loads(files[name]), rng)).encode()}

    return mutate


def read_config(folder: Path) -> object:
    from lownas.search.devices import read_config as read
    from lownas.search_space import op_graph

    return op_graph(read(folder / "config.json")).macs


def parses_config(folder: Path) -> object:
    return isinstance(json.loads((folder / "config.json").read_bytes()), dict)


def run_seeds() -> list[Mapping[str, bytes]]:
    """A search without trainings, and what is left of it."""
    import tempfile

    from lownas.search import search

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        search("rtx3090", "1ms", run=run, evaluations=2000, trials=6)
        names = ("run.json", "results.jsonl", "best.json", "outcome.json")
        return [{name: (run / name).read_bytes() for name in names if (run / name).exists()}]


def mutate_run(files: Mapping[str, bytes], rng: random.Random) -> Mapping[str, bytes]:
    name = rng.choice(sorted(files))
    if rng.random() < 0.05:
        return {other: content for other, content in files.items() if other != name}
    if name.endswith(".jsonl"):
        return {**files, name: mutated_lines(files[name], rng)}
    return json_file(name)(files, rng)


def read_run(folder: Path) -> object:
    """As exporting from a run, replaying and resuming it read it; one in twenty is planned anew, as a dry run says."""
    from lownas.search import api
    from lownas.search.results.files import exportable
    from lownas.search.trials.run_folder import RunFolder

    def replayed() -> object:
        return api._prepare(api._Asked({}, None, None, None, False, None, earlier=folder), calibrate=False)

    found = []
    planned = zlib.crc32((folder / "run.json").read_bytes()) % 20 == 0 if (folder / "run.json").exists() else True
    again = (lambda: api.dry_run({}, earlier=folder)) if planned else replayed
    for read in (lambda: exportable(folder), again, lambda: exportable(folder, 1)):
        try:
            found.append(read())
        except ValueError as error:
            check_line(error)
    with RunFolder.open(folder, resume=True) as run:
        found += [run.settings, run.load_results()]
    return found


def parses_run(folder: Path) -> object:
    return isinstance(json.loads((folder / "run.json").read_bytes()), dict)


# --- data ------------------------------------------------------------------------------------------------------------


def picture(kind: str, number: int) -> bytes:
    from PIL import ExifTags, Image

    pixels = np.random.default_rng(number).integers(0, 256, (20, 28, 3), dtype=np.uint8)
    out, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = 1 + number % 8
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    Image.fromarray(pixels).convert("P" if kind == "BLP" else "RGB").save(out, kind, **options)
    return out.getvalue()


def data_seeds() -> list[Mapping[str, bytes]]:
    from PIL import Image

    Image.init()
    kinds = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "gif": "GIF", "bmp": "BMP", "jp2": "JPEG2000"}
    kinds |= {name: name.upper() for name in ("avif", "blp", "dds", "ico", "pcx", "ppm", "sgi", "tga")}
    kinds = {ending: kind for ending, kind in kinds.items() if kind in Image.SAVE}
    good = {f"{label}/{n}.png": picture("PNG", n) for label in ("cat", "dog") for n in range(3)}
    return [{**good, f"cat/x.{ending}": picture(kind, n)} for n, (ending, kind) in enumerate(kinds.items())]


def mutate_data(files: Mapping[str, bytes], rng: random.Random) -> Mapping[str, bytes]:
    name = next(name for name in files if "/x." in name)
    content = mutated_bytes(files[name], rng)
    if rng.random() < 0.1:  # another place or name
        name = rng.choice(
            ("cat/._x.png", "cat/\u2028.png", "bird/x.png", "train/cat/x.png", "cat/" + "y" * 200 + ".png")
        )
    return {**{other: kept for other, kept in files.items() if "/x." not in other}, name: content}


def read_data(folder: Path) -> object:
    from lownas.evaluators.data.feeding import Batch, StreamedFeed
    from lownas.evaluators.data.loading import find_parts, load_data

    spec = f"imagefolder:{folder}"
    load_data(spec, 16)
    part = find_parts(spec).train
    batch = Batch(np.arange(len(part)), 16, seed=0, crop=(0.2, 1.0))
    return list(StreamedFeed(part).batches([batch]))


def parses_picture(folder: Path) -> object:
    from PIL import Image

    path = next(path for path in folder.rglob("*") if path.is_file() and not path.stem.isdigit())
    with Image.open(path) as image:
        return image.size


def csv_seeds() -> list[Mapping[str, bytes]]:
    good = {f"{n}.png": picture("PNG", n) for n in range(6)}
    tables = (
        "file,label\n" + "".join(f"{n}.png,{'cat' if n % 2 else 'dog'}\n" for n in range(6)),
        "Path;Class;Split\r\n" + "".join(f"{n}.png;{n % 2};{'train' if n < 4 else 'test'}\r\n" for n in range(6)),
        "\ufefffilename\ttarget\n" + "".join(f'"{n}.png"\t{n // 3}\n' for n in range(6)),
    )
    return [{**good, "list.csv": text.encode(code)} for text in tables for code in ("utf-8", "utf-16")]


def mutate_csv(files: Mapping[str, bytes], rng: random.Random) -> Mapping[str, bytes]:
    content = files["list.csv"]
    cut = content.find(b"\n") + 1 if rng.random() < 0.7 else 0  # the header stays, mostly
    return {**files, "list.csv": content[:cut] + mutated_bytes(content[cut:], rng)}


def read_csv(folder: Path) -> object:
    from lownas.evaluators.data.loading import load_data

    return load_data(f"csv:{folder / 'list.csv'}", 16)


def parses_csv(folder: Path) -> object:
    content = (folder / "list.csv").read_bytes()
    code = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return any(word in content.decode(code).splitlines()[0].lower() for word in ("label", "class", "target"))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint_seeds() -> list[Mapping[str, bytes]]:
    """A tiny network's weights as torch and as safetensors have them, alone and as training code leaves them."""
    import argparse

    import torch
    from safetensors.torch import save

    from lownas.search_space import build_model

    config = SearchSpace.load("tiny").sample(np.random.default_rng(1))
    state = {
        name: torch.zeros(value.shape, dtype=value.dtype) for name, value in build_model(config).state_dict().items()
    }
    wrapped = {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}
    averaged = {**wrapped, "state_dict_ema": state, "args": argparse.Namespace(lr=0.1), "best": np.float64(1)}
    found: list[Mapping[str, bytes]] = [{"model.safetensors": save(state)}]
    for content in (state, wrapped, averaged):
        for zipped in (True, False):
            out = io.BytesIO()
            torch.save(content, out, _use_new_zipfile_serialization=zipped)
            found.append({"model.pt": out.getvalue()})
    return found


def mutate_checkpoint(files: Mapping[str, bytes], rng: random.Random) -> Mapping[str, bytes]:
    """Bytes of a header, or of anything; in zip files those of the stored pickle with a checksum that fits."""
    import zipfile

    ((name, content),) = files.items()
    if name == "model.pt" and content[:2] == b"PK" and rng.random() < 0.8:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as given, zipfile.ZipFile(out, "w") as made:
            for info in given.infolist():
                part = given.read(info)
                stored = info.filename.endswith("data.pkl")
                made.writestr(info.filename, mutated_bytes(part, rng, 2) if stored else part)
        return {name: out.getvalue()}
    if name == "model.safetensors" and rng.random() < 0.8:
        length = int.from_bytes(content[:8], "little")
        header = json.dumps(mutated_json(json.loads(content[8 : 8 + length]), rng)).encode()
        return {name: len(header).to_bytes(8, "little") + header + content[8 + length :]}
    head = min(len(content), 4096)
    return {name: mutated_bytes(content[:head], rng) + content[head:]}


def read_checkpoint(folder: Path) -> object:
    from lownas.evaluators.training.final.weights import load_weights

    return load_weights(next(folder.iterdir()))


def parses_checkpoint(folder: Path) -> object:
    import zipfile

    path = next(folder.iterdir())
    if path.suffix == ".pt":
        content = path.read_bytes()
        return zipfile.is_zipfile(path) or content[:1] == b"\x80"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return isinstance(json.loads(content[8 : 8 + length]), dict)


def check_line(error: BaseException) -> None:
    """Raises AssertionError unless what an error says is one line."""
    text = str(error)
    assert text and "\n" not in text and len(text) < 2000, f"not one line: {text[:300]!r}"
    assert "Traceback" not in text and "cannot be read (" not in text, f"what no check foresaw: {text[:300]!r}"


def kinds(models: Path | None = None) -> dict[str, Kind]:
    """All kinds by name; `models` is a folder of further ONNX files."""
    return {
        "onnx": Kind(lambda: onnx_seeds(models), mutate_onnx, read_onnx, parsed_by(parses_onnx)),
        "profile": Kind(profile_seeds, signed_json, read_profile, parsed_by(parses_signed)),
        "prior": Kind(prior_seeds, signed_json, read_prior, parsed_by(parses_signed)),
        "config": Kind(config_seeds, json_file("config.json"), read_config, parsed_by(parses_config)),
        "run": Kind(run_seeds, mutate_run, read_run, parsed_by(parses_run)),
        "data": Kind(data_seeds, mutate_data, read_data, parsed_by(parses_picture)),
        "csv": Kind(csv_seeds, mutate_csv, read_csv, parsed_by(parses_csv)),
        "checkpoint": Kind(checkpoint_seeds, mutate_checkpoint, read_checkpoint, parsed_by(parses_checkpoint)),
    }
