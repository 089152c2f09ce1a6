import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lownas.evaluators.data.loading import find_parts, load_data
from lownas.evaluators.data.records import ImageData

from ...conftest import Evil
from .conftest import refused


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


@pytest.mark.parametrize("named", [True, False])
def test_the_test_split_is_read_only_when_it_is_asked_for(hugging_face: Any, tmp_path: Path, named: bool) -> None:
    folder = parquet_set(hugging_face, tmp_path / "set", {"train": 20, "validation": 8, "test": 6}, named=named)
    test_file = folder / "test-00000-of-00001.parquet"
    content = test_file.read_bytes()
    test_file.write_bytes(b"broken")
    data = load_data(f"hf:{folder}", 16)
    assert (len(data.train_labels), len(data.validation_labels)) == (20, 8)
    assert data.card["parts"]["test"].startswith("the split 'test'")
    with pytest.raises(ValueError, match="cannot be loaded"):
        find_parts(f"hf:{folder}", test=True)
    test_file.write_bytes(content)
    test = find_parts(f"hf:{folder}", test=True).test
    assert test is not None and test.labels.tolist() == [0, 1] * 3 and isinstance(test.images[0], bytes)


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
    assert data.classes == ("cat", "unused", "dog") and "split off" in data.card["parts"]["validation"]
    assert find_parts(f"hf:{tmp_path / 'set'}", test=True).test is None


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
    assert (len(data.train_labels), len(data.validation_labels), data.classes) == (10, 2, ("cat", "dog"))
    test = find_parts(f"hf:{tmp_path / 'set'}", test=True).test
    assert test is not None and test.labels.tolist() == [0, 0, 1, 1]


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
