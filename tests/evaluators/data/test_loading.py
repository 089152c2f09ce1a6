import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lownas.evaluators.data.loading import data_identity, find_parts, linear_baseline, load_data


def save(path: Path, colour: tuple[int, ...] | int, size: tuple[int, int] = (20, 30), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def folder_of(root: Path, counts: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            save(root / name / f"{i:03d}.png", (60 * number + 20, i, 10))
    return root


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_image_folder_is_split_by_class(tmp_path: Path) -> None:
    spec = f"imagefolder:{folder_of(tmp_path, {'cat': 10, 'dog': 20, 'owl': 2})}"
    data = load_data(spec, 16, seed=3)
    assert data.classes == ("cat", "dog", "owl")
    assert np.bincount(data.train_labels).tolist() == [8, 16, 1]
    assert np.bincount(data.validation_labels).tolist() == [2, 4, 1]
    assert data.train_images.shape == (25, 16, 16, 3) and data.train_images.dtype == np.uint8
    # The red channel holds the class, the green one the image: labels fit and no image is in both parts.
    assert ((data.train_images[:, 0, 0, 0] - 20) // 60 == data.train_labels).all()
    pairs = [{tuple(image[0, 0]) for image in part} for part in (data.train_images, data.validation_images)]
    assert not pairs[0] & pairs[1]
    assert (
        data_identity(data) == data_identity(load_data(spec, 16, seed=3)) != data_identity(load_data(spec, 16, seed=4))
    )


def test_the_split_does_not_depend_on_the_resolution(tmp_path: Path) -> None:
    spec = f"imagefolder:{folder_of(tmp_path, {'a': 12, 'b': 12})}"
    small, large = load_data(spec, 8, train_images=9), load_data(spec, 40, train_images=9)
    assert np.array_equal(small.train_images[:, 0, 0], large.train_images[:, 0, 0])


@pytest.mark.parametrize(("train", "validation"), [("train", "val"), ("Training", "VALID"), ("Train", "Validation")])
def test_validation_folder_is_honoured(tmp_path: Path, train: str, validation: str) -> None:
    folder_of(tmp_path / train, {"a": 3, "b": 4})
    folder_of(tmp_path / validation, {"a": 2, "b": 1})
    data = load_data(f"imagefolder:{tmp_path}", 16)
    assert (len(data.train_labels), len(data.validation_labels)) == (7, 3)
    said = {"train": f"the folder {train}/", "validation": f"the folder {validation}/", "test": "none"}
    assert data.card["parts"] == said
    assert find_parts(f"imagefolder:{tmp_path}", test=True).test is None


@pytest.mark.parametrize("name", ["test", "Testing"])
def test_a_test_folder_tests_and_does_not_validate(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path / "train", {"a": 10, "b": 15})
    folder_of(tmp_path / name, {"b": 2, "unknown": 1})
    spec = f"imagefolder:{tmp_path}"
    data, parts = load_data(spec, 16), find_parts(spec, test=True)
    assert (len(data.train_labels), len(data.validation_labels)) == (len(parts.train), len(parts.validation)) == (20, 5)
    assert parts.test is not None and parts.test.labels.tolist() == [1, 1]
    assert data.card["parts"]["test"] == f"the folder {name}/" and "split off" in data.card["parts"]["validation"]


def test_train_folder_alone_is_split(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", {"a": 5, "b": 5})
    data = load_data(f"imagefolder:{tmp_path}", 16)
    assert (len(data.train_labels), len(data.validation_labels)) == (8, 2)


def test_any_mode_and_size_becomes_rgb(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "grey" / f"{i}.png", 90, (7, 50), "L")
        save(tmp_path / "clear" / f"{i}.png", (255, 0, 0, 0), (64, 10), "RGBA")
    save(tmp_path / "grey" / "wide.png", 40_000, (9, 9), "I;16")
    data = load_data(f"imagefolder:{tmp_path}", 12)
    images = np.concatenate([data.train_images, data.validation_images])
    labels = np.concatenate([data.train_labels, data.validation_labels])
    assert images.shape[1:] == (12, 12, 3)
    assert (images[labels == data.classes.index("clear")] == 255).all()
    assert set(np.unique(images[labels == data.classes.index("grey")])) == {90, 40_000 >> 8}


def test_the_middle_is_taken_not_squeezed(tmp_path: Path) -> None:
    picture = np.zeros((30, 90, 3), dtype=np.uint8)
    picture[:, 30:60] = 200
    for name in "ab":
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    data = load_data(f"imagefolder:{tmp_path}", 10)
    assert (data.train_images[:, :, 2:-2] > 190).all()


def test_corrupt_images_are_counted_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder_of(tmp_path, {"a": 10, "b": 10})
    whole = (tmp_path / "a" / "000.png").read_bytes()
    (tmp_path / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "text.jpg").write_text("no picture")
    (tmp_path / "b" / "empty.png").touch()
    with caplog.at_level(logging.WARNING):
        data = load_data(f"imagefolder:{tmp_path}", 16)
    assert data.card["skipped"] == 3
    assert len(data.train_labels) + len(data.validation_labels) == 20
    assert "skipped 3 images" in caplog.text


def test_postscript_is_not_handed_to_its_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, {"a": 3, "b": 3})
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a" / "program.png").write_bytes(program)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("it would run"))
    assert load_data(f"imagefolder:{tmp_path}", 16).card["skipped"] == 1


def test_a_subset_is_balanced_and_at_most_as_large(tmp_path: Path) -> None:
    spec = f"imagefolder:{folder_of(tmp_path, {'a': 40, 'b': 20, 'c': 2})}"
    data = load_data(spec, 8, train_images=12, validation_images=3)
    counts = np.bincount(data.train_labels, minlength=3)
    assert counts.sum() == 12 and counts[2] == 1 and counts[0] in (7, 8)
    assert len(data.validation_labels) == 3
    assert data.card["available_train_images"] == 49


@pytest.mark.parametrize(
    ("counts", "message"),
    [({}, "no images"), ({"a": 5}, "at least 2 classes"), ({"a": 1, "b": 1}, "at least 2 images of each class")],
)
def test_folders_that_cannot_be_used(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_data(f"imagefolder:{folder_of(tmp_path, counts)}", 16)
    assert str(tmp_path) in one_line(error)


def test_a_class_without_readable_images(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a": 5})
    (tmp_path / "b").mkdir()
    for i in range(5):
        (tmp_path / "b" / f"{i}.png").write_text("broken")
    with pytest.raises(ValueError, match="class 'b' has no readable") as error:
        load_data(f"imagefolder:{tmp_path}", 16)
    one_line(error)


@pytest.mark.parametrize(
    "spec",
    [
        *("imagefolder", "imagefolder:", "cifar10", "", "digits:3", "formula:1", "formula:", "formula:x", "formula:-3"),
        *("imagefolder:/no/such/folder", "fashion-mnist:/no/such/folder"),
    ],
)
def test_unknown_specifications(spec: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|takes|no such folder") as error:
        load_data(spec, 16)
    one_line(error)


def test_digits_and_their_linear_baseline() -> None:
    data = load_data("digits", 16, train_images=300, validation_images=100)
    assert len(data.classes) == 10 and data.train_images.max() == 255
    assert linear_baseline(data) > 0.85
