"""Tables of pictures: columns, line ends and encodings as people have them, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lownas.evaluators.data.loading import find_parts, load_data
from lownas.evaluators.data.sources import Fitted, source
from lownas.search.paths import absolute_data

ROWS = [("a.png", "cat"), ("sub/b.png", "dog"), ("c.png", "cat"), ("d.png", "dog"), ("e.png", "cat"), ("f.png", "dog")]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for number, (name, _) in enumerate(ROWS):
        Image.new("RGB", (24, 16), (10 * number, 0, 0)).save(tmp_path / name)
    return tmp_path


def written(folder: Path, header: str, rows=ROWS, *, encoding: str = "utf-8", ends: str = "\n", extra: str = "") -> str:
    between = max(",;\t", key=header.count)
    lines = [header, *(between.join(row) + extra for row in rows)]
    (folder / "list.csv").write_bytes((ends.join(lines) + ends).encode(encoding))
    return f"csv:{folder / 'list.csv'}"


@pytest.mark.parametrize("header", ["file,label", "Image_Path;Class", "\ufefffilename\ttarget", " path , category "])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_columns_are_found_by_name_whatever_separates_them(pictures: Path, header: str, ends: str) -> None:
    parts = find_parts(written(pictures, header, ends=ends), resolution=16)
    assert parts.classes == ("cat", "dog") and len(parts.train) + len(parts.validation) == 6
    assert load_data(written(pictures, header, ends=ends), 16).card["skipped"] == 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_say_the_encoding(pictures: Path, encoding: str) -> None:
    rows = [(name, {"cat": "Kätzchen", "dog": "Welpe"}[label]) for name, label in ROWS]
    assert find_parts(written(pictures, "file,label", rows, encoding=encoding)).classes == ("Kätzchen", "Welpe")


def test_a_split_column_says_the_parts(pictures: Path) -> None:
    kinds = ["train", "Train", "train", "val", "test", "test"]
    rows = [(*row, kind) for row, kind in zip(ROWS, kinds, strict=True)]
    parts = find_parts(written(pictures, "file,label,split", rows), test=True)
    assert parts.test is not None
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [3, 1, 2]
    assert parts.test.labels.tolist() == [0, 1]


def test_numbers_are_classes_in_their_order(pictures: Path) -> None:
    rows = [(name, str(number)) for (name, _), number in zip(ROWS, (10, 9, 10, 9, 10, 9), strict=True)]
    assert find_parts(written(pictures, "file,label", rows)).classes == ("9", "10")
    for names in (("1", "01"), ("01", "1")):  # of one value: two classes in one order
        rows = [(name, names[number % 2]) for number, (name, _) in enumerate(ROWS)]
        assert find_parts(written(pictures, "file,label", rows)).classes == ("01", "1")
    odd = [(name, ("--5", "9" * 5000)[number % 2]) for number, (name, _) in enumerate(ROWS)]
    assert find_parts(written(pictures, "file,label", odd)).classes == ("--5", "9" * 5000)


def test_backslashes_missing_files_and_quotes(pictures: Path) -> None:
    rows = [("sub\\b.png", "dog"), ('"a.png"', "cat"), *ROWS[2:], ("gone.png", "cat")]
    data = load_data(written(pictures, "file,label", rows), 16)
    assert data.card["skipped"] == 1


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        ("file,size", ROWS, "no column for the label"),
        ("name,label", ROWS, "no column for the file"),
        ("file,label,split", [(*row, "holdout") for row in ROWS], "row 2 is of part 'holdout'; known are train"),
        ("file,label", [("a.png",)], "row 2 has 1 columns"),
        ("file,label", [("", "cat")], "row 2 names no file"),
        ("file,label", [*ROWS, ("a.png", " ")], "row 8 has no label"),
        ('file,"label\nof what"', ROWS, "there are file, label of what"),
        ("file,label", [(name, '"cat\nor dog"') for name, _ in ROWS], "found 1 .cat or dog."),
        ("file,label", [], "no picture to train on"),
        ("file,label,split", [(*ROWS[0], "train"), ("b.png", "cow", "val")], "'cow' is no class"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(pictures: Path, header: str, rows, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        find_parts(written(pictures, header, rows))
    assert "\n" not in str(error.value)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        find_parts(f"csv:{tmp_path / 'no.csv'}")
    (tmp_path / "x.csv").write_bytes(b"file,label\n\xff\xfe\xfa")
    with pytest.raises(ValueError, match="not text in utf-8"):
        find_parts(f"csv:{tmp_path / 'x.csv'}")
    (tmp_path / "x.csv").write_bytes(b"")
    with pytest.raises(ValueError, match="no column for the file"):
        find_parts(f"csv:{tmp_path / 'x.csv'}")


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_any_data_can_be_squashed_or_padded(pictures: Path, fit: str) -> None:
    spec = f"{fit}:{written(pictures, 'file,label')}"
    parts = find_parts(spec, test=True)
    assert parts.train.fit == parts.validation.fit == fit and parts.spec == spec
    assert parts.card["fit"] == fit and parts.card["cut_off"] == 0
    assert find_parts(spec.partition(":")[2]).card["cut_off"] == pytest.approx(1 / 3, abs=1e-3)
    assert isinstance(source(spec), Fitted) and hash(source(spec)) == hash(source(spec))
    with pytest.raises(ValueError, match="squashed or padded once"):
        source(f"pad:{spec}")


def test_a_run_names_data_by_absolute_paths(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(pictures, "file,label")
    monkeypatch.chdir(pictures)
    assert absolute_data("pad:csv:list.csv") == f"pad:csv:{pictures / 'list.csv'}"


def test_one_hot_labels_are_classes() -> None:
    images, labels = np.zeros((6, 16, 16), np.uint8), np.eye(3)[[0, 1, 2, 0, 1, 2]]
    parts = find_parts((images, labels))
    assert parts.classes == ("0", "1", "2") and parts.train.labels.ndim == 1
    with pytest.raises(ValueError, match="rows of zeros with a single one"):
        find_parts((images, np.full((6, 3), 0.5)))
