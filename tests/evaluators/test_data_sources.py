"""Arrays and Hugging Face data sets as sources; the others are tested where their files are made."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lownas.evaluators.data import ImageData, load_data


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
        ({"validation_images": np.ones((4, 20, 28), np.uint8)}, "validation_images without validation_labels"),
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


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


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


def test_a_hugging_face_set_that_does_not_exist(hugging_face: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load_data(f"hf:{tmp_path / 'nothing'}", 16)
    assert "\n" not in str(caught.value)
