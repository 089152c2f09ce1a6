"""Arrays and Hugging Face data sets as sources; the others are tested where their files are made."""

import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lownas.evaluators.data.loading import ImageData, load_data

from ..conftest import Evil


def arrays(count: int = 40, classes: int = 4, shape: tuple[int, ...] = (20, 28)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return {"images": images, "labels": np.arange(count) % classes}


def save_npy(folder: Path, content: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in content.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.fixture(params=["safetensors", "npy"])
def saved(request: pytest.FixtureRequest, tmp_path: Path):
    def save(content: dict[str, np.ndarray]) -> Path:
        if request.param == "npy":
            return save_npy(tmp_path / "arrays", content)
        save_file({name: np.ascontiguousarray(array) for name, array in content.items()}, tmp_path / "a.safetensors")
        return tmp_path / "a.safetensors"

    return save


def test_arrays_without_a_validation_part_are_split_by_class(saved) -> None:
    data = load_data(f"arrays:{saved(arrays())}", 16)
    assert data.train_images.shape == (32, 16, 16, 3) and data.validation_images.shape == (8, 16, 16, 3)
    assert np.bincount(data.validation_labels).tolist() == [2, 2, 2, 2]
    assert data.classes == ("0", "1", "2", "3") and data.card["sizes"] == "20 to 28 pixels"
    again = load_data(f"arrays:{data.spec.partition(':')[2]}", 16)
    assert np.array_equal(data.train_images, again.train_images)


def test_arrays_with_two_parts_and_any_labels(saved) -> None:
    train, held_out = arrays(), arrays(12)
    content = {f"train_{name}": array for name, array in train.items()}
    content |= {f"validation_{name}": array for name, array in held_out.items()}
    content["train_labels"] = 10 * train["labels"] + 5
    content["validation_labels"] = (10 * held_out["labels"] + 5).astype(np.int32)
    data = load_data(f"arrays:{saved(content)}", 28)
    assert len(data.train_labels) == 40 and len(data.validation_labels) == 12
    assert data.classes == ("5", "15", "25", "35") and data.validation_labels.tolist() == held_out["labels"].tolist()


@pytest.mark.parametrize(
    ("shape", "pick"),
    [
        ((16, 16, 1), lambda images: np.repeat(images, 3, axis=-1)),
        ((16, 16, 3), lambda images: images),
        ((16, 16, 4), lambda images: images[..., :3]),
        ((3, 16, 16), lambda images: images.transpose(0, 2, 3, 1)),
        ((1, 16, 16), lambda images: np.repeat(images.transpose(0, 2, 3, 1), 3, axis=-1)),
    ],
)
def test_channels_may_stand_where_they_like(shape: tuple[int, ...], pick: Any, tmp_path: Path) -> None:
    content = arrays(16, 2, shape)
    folder = save_npy(
        tmp_path, {**content, "validation_images": content["images"], "validation_labels": content["labels"]}
    )
    data = load_data(f"arrays:{folder}", 16)
    assert np.array_equal(data.train_images, pick(content["images"]))


def test_floats_of_0_to_1_are_scaled(tmp_path: Path) -> None:
    content = arrays(16, 2, (16, 16))
    bytes_, floats = (tmp_path / name for name in ("bytes", "floats"))
    save_npy(bytes_, content)
    save_npy(floats, {**content, "images": (content["images"] / 255).astype(np.float32)})
    first, second = (load_data(f"arrays:{folder}", 16) for folder in (bytes_, floats))
    assert np.array_equal(first.train_images, second.train_images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(39) % 4}, "40 images but 39 labels"),
        ({"labels": np.zeros(40, dtype=np.int64)}, "at least 2 classes are needed, found 1"),
        ({"labels": np.array([*([0] * 39), 1])}, "at least 2 images of each class"),
        ({"labels": np.ones(40) / 2}, "expected are integers"),
        ({"images": np.ones((40, 20, 28), np.float32) * 3}, "expected are 0 to 1"),
        ({"images": np.full((40, 20, 28), np.nan, np.float32)}, "expected are 0 to 1"),
        ({"images": np.ones((40, 20, 28), np.int32)}, "expected are bytes"),
        ({"images": np.ones((40, 20), np.uint8)}, r"expected is \(N, H, W\)"),
        ({"images": np.ones((40, 20, 28, 7), np.uint8)}, r"expected is \(N, H, W\)"),
        ({"images": None}, "expected are images and labels, or train_images and train_labels; found labels"),
        ({"validation_images": np.ones((4, 20, 28), np.uint8)}, "validation_images alone"),
        ({"validation_labels": np.arange(4)}, "validation_labels alone"),
        ({"images": np.ones((0, 20, 28), np.uint8), "labels": np.ones(0, np.int64)}, "no images in images"),
        (
            {"validation_images": np.ones((4, 20, 28), np.uint8), "validation_labels": np.arange(4) + 1},
            "validation_labels has 4, which no training image has",
        ),
    ],
)
def test_bad_arrays_are_one_clear_line(change: dict[str, Any], message: str, saved) -> None:
    content = {name: array for name, array in {**arrays(), **change}.items() if array is not None}
    with pytest.raises(ValueError, match=message) as caught:
        load_data(f"arrays:{saved(content)}", 16)
    assert "\n" not in str(caught.value)


def test_pickles_among_the_arrays_are_not_loaded(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    folder = save_npy(tmp_path / "a", arrays())
    np.save(folder / "labels.npy", np.array([Evil(trap)] * 40, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"labels\.npy: not a plain array"):
        load_data(f"arrays:{folder}", 16)
    (folder / "labels.npy").write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(ValueError, match=r"labels\.npy: not a plain array"):
        load_data(f"arrays:{folder}", 16)
    (tmp_path / "b.safetensors").write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_data(f"arrays:{tmp_path / 'b.safetensors'}", 16)
    assert not trap.exists()


def test_archives_and_damaged_headers_are_no_arrays(tmp_path: Path) -> None:
    folder = save_npy(tmp_path, {**arrays(), "of_something_else": np.array([{}], dtype=object)})
    load_data(f"arrays:{folder}", 16)
    images = folder / "images.npy"
    whole = images.read_bytes()
    with images.open("wb") as file:
        np.savez(file, images=arrays()["images"])
    with pytest.raises(ValueError, match=r"images\.npy: not a plain array"):
        load_data(f"arrays:{folder}", 16)
    for damaged in (whole.replace(b"}", b"{"), whole.replace(b"(40,", b"(-4,"), whole[:20]):
        images.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"images\.npy: not a plain array") as caught:
            load_data(f"arrays:{folder}", 16)
        assert "\n" not in str(caught.value)


def test_numbers_that_numpy_lacks(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    for kind in (torch.bfloat16, torch.float8_e4m3fn):
        save_tensors({"images": torch.zeros(4, 8, 8).to(kind), "labels": torch.arange(4)}, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=r"numbers that numpy lacks|images are bfloat16"):
            load_data(f"arrays:{tmp_path / 'a.safetensors'}", 16)


def refused(specs: list[str], folder: Path) -> None:
    """All of them give one line, and no name in a pickle is looked up."""
    code = f"""
import os, sys
import numpy, PIL.Image, safetensors.numpy
from lownas.evaluators.data import load_data
try:
    import datasets
except ImportError:
    pass
sys.addaudithook(lambda event, arguments: os._exit(3) if event == "pickle.find_class" else None)
for spec in {specs!r}:
    try:
        load_data(spec, 16)
    except ValueError as error:
        assert "\\n" not in str(error), error
    else:
        raise SystemExit(f"{{spec}} was loaded")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"


def test_a_pickle_in_place_of_any_file_is_never_loaded(tmp_path: Path) -> None:
    evil = pickle.dumps(Evil(tmp_path / "trap"))
    batches = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
    for name in (
        *(f"ten/cifar-10-batches-py/{batch}" for batch in (*batches, "batches.meta")),
        *(f"hundred/cifar-100-python/{part}" for part in ("train", "test", "meta")),
        *("cifar.tar.gz", "raw/images.npy", "a.safetensors", "a/1.png", "a/2.png", "b/1.jpg", "b/2.jpg"),
        *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(evil)
    save_npy(tmp_path / "raw", {"labels": arrays()["labels"]})
    save_npy(tmp_path / "objects", {**arrays(), "images": np.array([Evil(tmp_path / "trap")] * 40, dtype=object)})
    with tarfile.open(tmp_path / "ten.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "ten" / "cifar-10-batches-py", "cifar-10-batches-py")
    specs = ["cifar10:ten", "cifar10:ten.tar.gz", "cifar10:cifar.tar.gz", "cifar100:hundred", "arrays:raw"]
    refused([*specs, "arrays:objects", "arrays:a.safetensors", "imagefolder:.", "fashion-mnist:."], tmp_path)
    assert not (tmp_path / "trap").exists()


def test_missing_and_cut_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        load_data(f"arrays:{tmp_path / 'nothing.safetensors'}", 16)
    folder = save_npy(tmp_path / "a", arrays())
    images = folder / "images.npy"
    images.write_bytes(images.read_bytes()[:-50])
    with pytest.raises(ValueError, match="not a plain array"):
        load_data(f"arrays:{folder}", 16)


@pytest.mark.parametrize("spec", ["cifar10", "arrays:", "hf", "digits:3", "imagefolder", "cifar12:x", "", ":"])
def test_unknown_specifications_name_those_allowed(spec: str) -> None:
    with pytest.raises(ValueError, match=r"unknown data .* allowed are imagefolder:DIR, .*hf:NAME"):
        load_data(spec, 16)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def test_without_the_library_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"hf:some/set needs the library `datasets`: pip install 'lownas\[data\]'"):
        load_data("hf:some/set", 16)


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # of subprocesses
    return datasets


def parquet_set(datasets: Any, folder: Path, parts: dict[str, int], *, named: bool = True, broken: int = 0) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    kind = datasets.ClassLabel(names=["cat", "dog"]) if named else datasets.Value("string")
    for part, count in parts.items():
        pictures = [Image.fromarray(rng.integers(0, 256, (30, 24, 3), dtype=np.uint8)) for _ in range(count)]
        labels = [i % 2 if named else ("cat", "dog")[i % 2] for i in range(count)]
        features = datasets.Features({"picture": datasets.Image(), "label": kind})
        table = datasets.Dataset.from_dict({"picture": pictures, "label": labels}, features=features)
        if broken and part == "train":
            raw = table.cast_column("picture", datasets.Image(decode=False))[:]
            for index in range(broken):
                raw["picture"][index] = {"bytes": b"no picture", "path": None}
            table = datasets.Dataset.from_dict(raw, features=features)
        table.to_parquet(str(folder / f"{part}-00000-of-00001.parquet"))
    return folder


@pytest.mark.parametrize("named", [True, False])
def test_a_hugging_face_set_with_a_validation_part(hugging_face: Any, tmp_path: Path, named: bool) -> None:
    folder = parquet_set(hugging_face, tmp_path / "set", {"train": 20, "validation": 8}, named=named)
    data: ImageData = load_data(f"hf:{folder}", 16, train_images=10)
    assert data.train_images.shape == (10, 16, 16, 3) and len(data.validation_labels) == 8
    assert data.classes == ("cat", "dog") and data.card["source"] == "hf"


def test_a_hugging_face_set_without_one_and_with_broken_images(
    hugging_face: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = parquet_set(hugging_face, tmp_path / "set", {"train": 40}, broken=3)
    data = load_data(f"hf:{folder}", 16)
    assert len(data.train_labels) + len(data.validation_labels) == 37
    assert data.card["skipped"] == 3 and "skipped 3 images" in caplog.text


def table_of(datasets: Any, table: dict[str, list[Any]], label: Any) -> Any:
    features = datasets.Features({"image": datasets.Image(), **label})
    return datasets.Dataset.from_dict(table, features=features)


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("hidden_label", [-1, None])
def test_a_test_part_without_labels_is_not_judged_by(
    hugging_face: Any, tmp_path: Path, hidden_label: int | None
) -> None:
    label = {"label": hugging_face.ClassLabel(names=["cat", "unused", "dog"])}
    (tmp_path / "set").mkdir()
    for part, labels in (("train", [0, 2] * 10), ("test", [hidden_label] * 6)):
        table = table_of(hugging_face, {"image": pictures(len(labels)), "label": labels}, label)
        table.to_parquet(str(tmp_path / "set" / f"{part}.parquet"))
    data = load_data(f"hf:{tmp_path / 'set'}", 16)
    assert (len(data.train_labels), len(data.validation_labels)) == (16, 4)
    assert data.classes == ("cat", "unused", "dog") and "split by class" in data.card["origin"]


def test_a_column_of_integers_that_is_called_something_else(hugging_face: Any, tmp_path: Path) -> None:
    columns = {"image": [None, *pictures(19)], "kind": [7, 100] * 10}
    (tmp_path / "set").mkdir()
    table = table_of(hugging_face, columns, {"kind": hugging_face.Value("int16")})
    table.to_parquet(str(tmp_path / "set" / "train.parquet"))
    data = load_data(f"hf:{tmp_path / 'set'}", 16)
    assert data.classes == ("7", "100") and data.card["skipped"] == 1, "a missing image counts as a corrupt one"
    assert "columns 'image' and 'kind'" in data.card["origin"]


def test_a_folder_of_pictures_read_by_the_library(hugging_face: Any, tmp_path: Path) -> None:
    for part, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for index, picture in enumerate(pictures(count)):
                picture.save(tmp_path / "set" / part / name / f"{index}.png")
    data = load_data(f"hf:{tmp_path / 'set'}", 16)
    assert (len(data.train_labels), len(data.validation_labels), data.classes) == (12, 4, ("cat", "dog"))


@pytest.mark.parametrize(
    ("labels", "column", "message"),
    [
        ([0, None, 1, 0], "label", "None in column 'label' is no class; classes are 0, 1"),
        ([0, 0, 0, 0], "label", "at least 2 classes are needed"),
        ([0, 0, 0, 1], "label", "class '1' has 1"),
        ([], "label", "cannot be loaded: .* no data"),
        ([0.5] * 4, "label", "a column of images and one of labels are needed; there are image, label"),
    ],
)
def test_hugging_face_sets_that_cannot_be_used(
    hugging_face: Any, tmp_path: Path, labels: list[Any], column: str, message: str
) -> None:
    kind = hugging_face.Value("float32" if 0.5 in labels else "int64")
    (tmp_path / "set").mkdir()
    table = table_of(hugging_face, {"image": pictures(len(labels)), column: labels}, {column: kind})
    table.to_parquet(str(tmp_path / "set" / "train.parquet"))
    with pytest.raises(ValueError, match=message) as caught:
        load_data(f"hf:{tmp_path / 'set'}", 16)
    assert "\n" not in str(caught.value)


def test_no_pickle_or_script_of_a_hugging_face_set_runs(hugging_face: Any, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    evil = pickle.dumps(Evil(trap))
    for name in (
        "set/train.pkl",
        "set/train.parquet",
        "tarred/train/0.pkl",
        "tarred/train/0.pyd",
        "tarred/train/0.pth",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(evil)
    np.save(tmp_path / "tarred" / "train" / "0.npy", np.array([Evil(trap)], dtype=object), allow_pickle=True)
    with tarfile.open(tmp_path / "tarred" / "train.tar", "w") as archive:
        for member in sorted((tmp_path / "tarred" / "train").iterdir()):
            archive.add(member, member.name)
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text(f"open({str(trap)!r}, 'w')")
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "train.pkl").write_bytes(evil)
    refused(["hf:./set", "hf:./tarred", "hf:./script", "hf:./pickles"], tmp_path)
    refused(["hf:pandas"], tmp_path / "pickles")
    assert not trap.exists()


def test_a_hugging_face_set_that_does_not_exist(
    hugging_face: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for name, message in ((f"{tmp_path / 'nothing'}", "no such folder"), ("lownas-tests/none", "cannot be loaded")):
        with pytest.raises(ValueError, match=message) as caught:
            load_data(f"hf:{name}", 16)
        assert "\n" not in str(caught.value)
