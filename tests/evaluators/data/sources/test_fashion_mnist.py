import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from lownas.evaluators.data.loading import find_parts, load_data
from lownas.evaluators.data.sources.fashion_mnist import FASHION_FOLDER


def write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def fashion_of(root: Path, suffix: str = "") -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        write_idx(root / f"{part}-images-idx3-ubyte{suffix}", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(root / f"{part}-labels-idx1-ubyte{suffix}", (np.arange(count) % 10).astype(np.uint8))
    return root


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist(tmp_path: Path, suffix: str) -> None:
    spec = f"fashion-mnist:{fashion_of(tmp_path, suffix)}"
    data = load_data(spec, 28)
    assert data.train_images.shape == (30, 28, 28, 3) and data.validation_images.shape == (10, 28, 28, 3)
    assert data.classes[9] == "Ankle boot" and data.card["parts"]["test"].startswith("t10k")
    rng = np.random.default_rng(0)
    train, t10k = (rng.integers(0, 256, (count, 28, 28), dtype=np.uint8) for count in (40, 20))
    both = np.concatenate([data.train_images, data.validation_images])[..., 0]
    assert {image.tobytes() for image in both} == {image.tobytes() for image in train}
    test = find_parts(spec, test=True).test
    assert test is not None and np.array_equal(test.images, t10k) and np.bincount(test.labels).tolist() == [2] * 10


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_truncated_idx(tmp_path: Path, suffix: str) -> None:
    path = fashion_of(tmp_path, suffix) / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"truncated|cannot be read") as error:
        load_data(f"fashion-mnist:{tmp_path}", 28)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-labels-idx1-ubyte", np.zeros(39, dtype=np.uint8), "40 images but 39 labels"),
        ("train-labels-idx1-ubyte", np.full(40, 10, dtype=np.uint8), "label 10"),
        ("train-images-idx3-ubyte", np.zeros(40, dtype=np.uint8), "not an IDX file"),
    ],
)
def test_idx_files_that_do_not_fit(tmp_path: Path, name: str, array: np.ndarray, message: str) -> None:
    write_idx(fashion_of(tmp_path) / name, array)
    with pytest.raises(ValueError, match=message):
        load_data(f"fashion-mnist:{tmp_path}", 28)


@pytest.mark.skipif(not Path(FASHION_FOLDER).is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_as_debian_ships_it() -> None:
    data = load_data("fashion-mnist:", 28, train_images=200, validation_images=100)
    assert np.bincount(data.train_labels).tolist() == [20] * 10
    assert data.card["available_train_images"] == 50_000
    assert data.card["available_validation_images"] == 10_000
