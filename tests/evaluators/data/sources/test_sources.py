"""What holds for all data sources: specifications, and a contract that each of them keeps."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from lownas.evaluators.data.loading import load_data

from ...conftest import Evil
from .conftest import arrays, refused, save_npy


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


@pytest.mark.parametrize("spec", ["cifar10", "arrays:", "hf", "digits:3", "imagefolder", "cifar12:x", "", ":"])
def test_unknown_specifications_name_those_allowed(spec: str) -> None:
    with pytest.raises(ValueError, match=r"unknown data .* allowed are imagefolder:DIR, .*hf:NAME"):
        load_data(spec, 16)
