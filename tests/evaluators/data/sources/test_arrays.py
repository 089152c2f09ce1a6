import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lownas.evaluators.data.loading import load_data

from ...conftest import Evil
from .conftest import arrays, save_npy


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


def test_missing_and_cut_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        load_data(f"arrays:{tmp_path / 'nothing.safetensors'}", 16)
    folder = save_npy(tmp_path / "a", arrays())
    images = folder / "images.npy"
    images.write_bytes(images.read_bytes()[:-50])
    with pytest.raises(ValueError, match="not a plain array"):
        load_data(f"arrays:{folder}", 16)
