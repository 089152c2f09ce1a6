"""The test part of every source stays shut until a network is judged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lownas.evaluators.data.loading import MOST_VALIDATION_IMAGES, find_parts, load_data
from lownas.evaluators.data.records import LabelledImages
from lownas.evaluators.data.sources import ArraySource, source, source_names

from ..test_loading import folder_of
from .conftest import arrays, save_npy
from .test_fashion_mnist import fashion_of
from .test_sources import write_cifar

# What each kind of source keeps its test part in.
TEST_FILES = {
    "imagefolder": ["test"],
    "fashion-mnist": ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
    "scenes": ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
    "cifar10": ["cifar-10-batches-py/test_batch"],
    "cifar100": ["cifar-100-python/test"],
    "arrays": ["test_images.npy", "test_labels.npy"],
    "csv": ["test"],
    "squash": ["test"],
    "pad": ["test"],
}


def spec_of(kind: str, folder: Path) -> str:
    if kind == "imagefolder":
        folder_of(folder / "train", {"cat": 10, "dog": 20})
        folder_of(folder / "test", {"cat": 3, "dog": 4})
    elif kind == "csv":
        spec_of("imagefolder", folder)
        files = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
        lines = ["file,label,split", *(f"{path},{path.parts[1]},{path.parts[0]}" for path in files)]
        (folder / "list.csv").write_text("\n".join(lines))
        return f"csv:{folder / 'list.csv'}"
    elif kind in ("squash", "pad"):
        return f"{kind}:{spec_of('imagefolder', folder)}"
    elif kind in ("fashion-mnist", "scenes"):
        folder.mkdir()
        fashion_of(folder)
    elif kind == "cifar10":
        files = {**{f"data_batch_{i}": 20 for i in range(1, 6)}, "test_batch": 20}
        write_cifar(folder / "cifar-10-batches-py", files, "labels", "batches.meta", "label_names", 10)
    elif kind == "cifar100":
        files = {"train": 200, "test": 100}
        write_cifar(folder / "cifar-100-python", files, "fine_labels", "meta", "fine_label_names", 100)
    else:
        test = arrays(12)
        save_npy(folder, {**arrays(), "test_images": 255 - test["images"], "test_labels": test["labels"]})
    return f"{kind}:{folder}"


def test_every_source_with_files_is_looked_at() -> None:
    assert {*TEST_FILES, "hf", "digits", "formula"} == set(source_names())


@pytest.mark.parametrize("kind", TEST_FILES)
def test_no_file_of_the_test_part_is_opened_to_search(kind: str, tmp_path: Path) -> None:
    spec = spec_of(kind, tmp_path / "data")
    code = f"""
import json, sys
import numpy, PIL.Image, torch
from lownas.evaluators.data.loading import find_parts, load_data
from lownas.evaluators.data.feeding import image_feed
seen, events = [], ("open", "os.scandir", "os.listdir")
sys.addaudithook(lambda event, given: seen.append(str(given[0])) if event in events else None)
load_data({spec!r}, 16)
image_feed(find_parts({spec!r}).train, 16, workers=0)
before = sorted(set(seen))
seen.clear()
image_feed(find_parts({spec!r}, test=True).test, 16, workers=0)
print(json.dumps([before, sorted(set(seen))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    assert any(path.startswith(str(tmp_path)) for path in before)
    for name in TEST_FILES[kind]:
        path = str(tmp_path / "data" / name)
        assert not [seen for seen in before if seen.startswith(path)]
        assert [seen for seen in after if seen.startswith(path)], "the spy would see it"


@pytest.mark.parametrize("kind", TEST_FILES)
def test_a_search_works_without_the_test_part(kind: str, tmp_path: Path) -> None:
    spec = spec_of(kind, tmp_path / "data")
    with_it = load_data(spec, 16)
    assert with_it.card["parts"]["test"] != "none"
    for name in TEST_FILES[kind]:
        path = tmp_path / "data" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    without = load_data(spec, 16)
    assert np.array_equal(without.train_images, with_it.train_images)
    assert np.array_equal(without.validation_images, with_it.validation_images)


def rows(part: LabelledImages) -> set[tuple[bytes, int]]:
    def content(item: Path | bytes | np.ndarray) -> bytes:
        return str(item).encode() if isinstance(item, Path) else bytes(item)

    return {(content(part.images[i]), int(part.labels[i])) for i in range(len(part))}


@pytest.mark.parametrize("kind", [*TEST_FILES, "digits", "formula"])
def test_parts_do_not_overlap_and_hold_every_class(kind: str, tmp_path: Path) -> None:
    spec = spec_of(kind, tmp_path / "data") if kind in TEST_FILES else kind
    first, second = (find_parts(spec, seed, resolution=16, test=True) for seed in (0, 1))
    assert first.test is not None and second.test is not None
    train, validation, test = (rows(part) for part in (first.train, first.validation, first.test))
    assert train and validation and test
    assert not train & validation and not train & test and not validation & test
    classes = set(range(len(first.classes)))
    assert set(first.train.labels) == set(first.validation.labels) == set(first.test.labels) == classes
    assert set(first.card["parts"]) == {"train", "validation", "test"} and first.card["test_images"] == len(first.test)
    if kind != "formula":  # all of which is drawn from the seed
        assert rows(second.test) == test and rows(second.validation) != validation


@pytest.mark.parametrize("kind", [*TEST_FILES, "digits"])
def test_parts_are_split_as_they_are_for_short_trainings(kind: str, tmp_path: Path) -> None:
    spec = spec_of(kind, tmp_path / "data") if kind in TEST_FILES else kind
    parts, data = find_parts(spec, 5), load_data(spec, 16, 5)
    assert parts.test is None
    assert np.array_equal(parts.train.labels, data.train_labels)
    assert np.array_equal(parts.validation.labels, data.validation_labels)
    assert parts.classes == data.classes and parts.card["parts"] == data.card["parts"]


def test_digits_keep_a_fifth_of_each_class_for_testing() -> None:
    parts = find_parts("digits", test=True)
    assert parts.test is not None
    counts = np.bincount(parts.test.labels)
    assert counts.min() >= 34 and counts.max() <= 37
    assert len(parts.train) + len(parts.validation) + len(parts.test) == 1797


def test_at_most_ten_thousand_images_are_split_off() -> None:
    images = np.zeros((60_000, 1, 1), np.uint8)
    parts = find_parts((images, np.arange(60_000) % 10))
    assert np.bincount(parts.validation.labels).tolist() == [MOST_VALIDATION_IMAGES // 10] * 10
    few = find_parts((images[:500], np.arange(500) % 10))
    assert len(few.validation) == 100


def test_arrays_in_python_may_have_a_test_part(tmp_path: Path) -> None:
    train, held_out, test = arrays(), arrays(12), arrays(8)
    test["labels"] = test["labels"] + 10
    train["labels"], held_out["labels"] = train["labels"] + 10, held_out["labels"] + 10
    six = (*train.values(), *held_out.values(), *test.values())
    parts = find_parts(six, test=True)
    assert (len(parts.train), len(parts.validation)) == (40, 12) and parts.classes == ("10", "11", "12", "13")
    assert parts.test is not None and parts.test.labels.tolist() == [0, 1, 2, 3] * 2
    named = ArraySource(**train, test_images=test["images"], test_labels=test["labels"])
    assert find_parts(named).test is None and len(find_parts(named, test=True).test or ()) == 8
    assert len({named, ArraySource(**train), source(six)}) == 3
    with pytest.raises(ValueError, match="data: test_images alone"):
        ArraySource(**train, test_images=test["images"])
    with pytest.raises(ValueError, match="test_labels has 99, which no training image has"):
        find_parts(ArraySource(**train, test_images=test["images"], test_labels=np.full(8, 99)), test=True)
    content = {**train, **{f"test_{name}": array for name, array in test.items()}}
    save_file({name: np.ascontiguousarray(array) for name, array in content.items()}, tmp_path / "a.safetensors")
    in_file = find_parts(f"arrays:{tmp_path / 'a.safetensors'}", test=True)
    assert in_file.test is not None and in_file.test.labels.tolist() == [0, 1, 2, 3] * 2


def test_a_test_folder_without_the_training_classes(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 5, "b": 5})
    folder_of(tmp_path / "test", {"c": 2})
    assert len(load_data(f"imagefolder:{tmp_path}", 16).classes) == 2
    with pytest.raises(ValueError, match="no images of the training classes in test/"):
        find_parts(f"imagefolder:{tmp_path}", test=True)
