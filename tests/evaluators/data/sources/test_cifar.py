"""CIFAR's archives, made here in the form that Python 2 gave them."""

import io
import pickle
import pickletools
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lownas.evaluators.data.loading import find_parts, load_data
from lownas.evaluators.data.plain_pickle import MOST_INSTRUCTIONS, plain_pickle
from lownas.evaluators.data.sources.cifar import LARGEST_FILE, read_cifar

from ...conftest import Evil

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def old_text(text: bytes) -> bytes:
    """A string as Python 2 pickles it: SHORT_BINSTRING or BINSTRING."""
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def old_array(array: np.ndarray) -> bytes:
    """A byte array as numpy pickles it under Python 2, protocol 2."""
    shape = b"".join(b"J" + struct.pack("<i", size) for size in array.shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85"
        + old_text(b"b")
        + b"\x87Rq\x03(K\x01("
        + shape
        + b"tcnumpy\ndtype\nq\x04"
        + old_text(b"u1")
        + b"K\x00K\x01\x87Rq\x05(K\x03"
        + old_text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + old_text(array.tobytes())
        + b"tb"
    )


def old_list(values: list[Any]) -> bytes:
    entries = [old_text(v) if isinstance(v, bytes) else b"J" + struct.pack("<i", v) for v in values]
    return b"](" + b"".join(entries) + b"e"


def old_pickle(entries: dict[bytes, bytes]) -> bytes:
    return b"\x80\x02}q\x00(" + b"".join(old_text(key) + value for key, value in entries.items()) + b"u."


def batch(rng: np.random.Generator, count: int, label_key: bytes = b"labels", classes: int = 10) -> bytes:
    images = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    labels = [i % classes for i in range(count)]
    return old_pickle({b"batch_label": old_text(b"batch"), label_key: old_list(labels), b"data": old_array(images)})


def cifar10(root: Path, **changes: bytes) -> Path:
    """The folder cifar-10-batches-py with 40 images for training and 20 for testing."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = {f"data_batch_{i}": batch(rng, 40) for i in range(1, 6)}
    files["test_batch"] = batch(rng, 20)
    files["batches.meta"] = old_pickle({b"label_names": old_list([name.encode() for name in TEN])})
    for name, content in {**files, **changes}.items():
        (folder / name.replace("batches_meta", "batches.meta")).write_bytes(content)
    return folder


def packed(folder: Path) -> Path:
    path = folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def test_our_imitation_is_a_pickle_and_read_as_what_was_written() -> None:
    content = batch(np.random.default_rng(1), 12)
    pickletools.dis(content, io.StringIO())  # raises where the stack or the memo does not fit
    ours = plain_pickle(content, "batch")
    assert ours["labels"] == [i % 10 for i in range(12)]
    assert np.array_equal(ours["data"], np.random.default_rng(1).integers(0, 256, (12, 3072), dtype=np.uint8))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_writes_today_is_read_too(protocol: int) -> None:
    images = np.random.default_rng(2).integers(0, 256, (4, 3072), dtype=np.uint8)
    content = pickle.dumps({b"data": images, "labels": [3, 1, 2, 0], "names": ["a", "b"]}, protocol)
    value = plain_pickle(content, "x")
    assert np.array_equal(value["data"], images) and value["labels"] == [3, 1, 2, 0] and value["names"] == ["a", "b"]


@pytest.mark.parametrize("form", ["folder", "parent", "archive"])
def test_cifar10_in_all_its_forms(form: str, tmp_path: Path) -> None:
    folder = cifar10(tmp_path)
    path = {"folder": folder, "parent": tmp_path}.get(form) or packed(folder)
    data = load_data(f"cifar10:{path}", 32)
    assert data.train_images.shape == (160, 32, 32, 3) and data.validation_images.shape == (40, 32, 32, 3)
    assert data.classes == tuple(TEN)
    assert data.card["source"] == "cifar10" and "test batch" in data.card["parts"]["test"]
    parts = find_parts(f"cifar10:{path}", test=True)
    assert (len(parts.train), len(parts.validation)) == (160, 40)
    assert parts.test is not None and len(parts.test) == 20
    first = plain_pickle((folder / "test_batch").read_bytes(), "x")["data"][0]
    pixel = parts.test.images[0][0, 1]
    assert pixel.tolist() == [first[1], first[1024 + 1], first[2048 + 1]], "planes to pixels"


def test_cifar100(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [f"class{i}".encode() for i in range(100)]
    (folder / "train").write_bytes(batch(rng, 200, b"fine_labels", 100))
    (folder / "test").write_bytes(batch(rng, 100, b"fine_labels", 100))
    (folder / "meta").write_bytes(old_pickle({b"fine_label_names": old_list(names)}))
    data = load_data(f"cifar100:{tmp_path}", 24)
    assert len(data.classes) == 100 and data.train_images.shape == (100, 24, 24, 3)
    test = find_parts(f"cifar100:{tmp_path}", test=True).test
    assert test is not None and sorted(test.labels) == list(range(100))


def test_what_python_2_wrote_as_text_is_read_too() -> None:
    content = b"(dp0\nS'num_vis'\np1\nI3072\nsS'label_names'\np2\n(lp3\nS'airplane'\np4\naS'ship'\np5\nas."
    assert plain_pickle(content, "meta") == {"num_vis": 3072, "label_names": ["airplane", "ship"]}


def nested(depth: int, twice: bool) -> bytes:
    """A number in a tuple in a tuple and so on; if `twice`, each holds the one before two times."""
    if not twice:
        return b"K\x01" + b"\x85" * depth
    return b"K\x01q\x00" + b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(depth))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"}(" + nested(200_000, twice=False) + b"K\x01u.", "a key that is no text"),
        (b"}(" + nested(60, twice=True) + b"K\x01u.", "a key that is no text"),
        (b"}" + nested(60, twice=True) + b"h\x3c\x93.", "str expected, found tuple"),
        (b"}" + b"0" * 3, "the instruction POP"),
        (b"}" + b"]" * MOST_INSTRUCTIONS, f"more than {MOST_INSTRUCTIONS} instructions"),
        (
            b"}c_codecs\nencode\nq\x00X\x64\x00\x00\x00" + b"a" * 100 + b"\x85q\x01R" + b"h\x00h\x01R" * 50 + b".",
            "more bytes than the file has",
        ),
    ],
)
def test_pickles_made_to_hang_or_grow(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^x: not plain data, or cut short: {message}"):
        plain_pickle(b"\x80\x02" + content, "x")


def test_code_in_a_batch_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    folder = cifar10(tmp_path / "a", data_batch_3=pickle.dumps({b"data": Evil(trap), b"labels": []}, 2))
    for path in (folder, packed(folder)):
        with pytest.raises(ValueError, match=r"data_batch_3: not plain data.*calls (io|_io)\.open") as caught:
            read_cifar(path, 10)
        assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_no_name_of_a_pickle_is_ever_looked_up(tmp_path: Path) -> None:
    folder = cifar10(tmp_path)
    code = f"""
import sys
from pathlib import Path
from lownas.evaluators.data.sources.cifar import read_cifar
def watch(event, arguments):
    if event.startswith("pickle."):
        raise SystemExit(f"{{event}} {{arguments}}")
sys.addaudithook(watch)
print(len(read_cifar(Path({str(folder)!r}), 10).labels))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("200", 0), done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_batch_2": batch(np.random.default_rng(0), 40)[:-500]}, "data_batch_2: not plain data, or cut short"),
        ({"data_batch_5": b""}, "data_batch_5: not plain data, or cut short"),
        ({"data_batch_5": pickle.dumps([1, 2])}, "a dictionary is expected, not list"),
        ({"data_batch_5": pickle.dumps({"data": 1, "labels": []})}, "no images of 32 x 32"),
        ({"data_batch_5": old_pickle({b"data": old_array(np.zeros((3, 3072), np.uint8))})}, "no 'labels'"),
        (
            {"data_batch_5": old_pickle({b"data": old_array(np.zeros((3, 3072), np.uint8)), b"labels": old_list([1])})},
            "3 images but 1 labels",
        ),
        (
            {
                "data_batch_5": old_pickle(
                    {b"data": old_array(np.zeros((1, 3072), np.uint8)), b"labels": old_list([10])}
                )
            },
            "label 10, allowed are 0 to 9",
        ),
        (
            {"data_batch_5": pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [2**100]}, 2)},
            "no 'labels'",
        ),
        ({"batches_meta": old_pickle({b"label_names": old_list([b"cat"])})}, "does not name 10 classes"),
    ],
)
def test_bad_batches_are_one_clear_line(change: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_data(f"cifar10:{cifar10(tmp_path, **change)}", 32)
    assert "\n" not in str(caught.value)


def test_a_bad_test_batch_is_found_when_it_is_read(tmp_path: Path) -> None:
    spec = f"cifar10:{cifar10(tmp_path, test_batch=b'')}"
    assert len(load_data(spec, 32).train_labels) == 160
    with pytest.raises(ValueError, match="test_batch: not plain data, or cut short"):
        find_parts(spec, test=True)


def test_bad_archives_are_one_clear_line(tmp_path: Path) -> None:
    archive = packed(cifar10(tmp_path))
    content = archive.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) * 9 // 10):
        archive.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"cut short, or no archive|in it \(expected"):
            read_cifar(archive, 10)
    with pytest.raises(ValueError, match="no such file or folder"):
        read_cifar(tmp_path / "nothing", 10)
    with pytest.raises(ValueError, match="no data_batch_1 there"):
        read_cifar(tmp_path.parent, 10)
    with tarfile.open(archive, "w:gz") as empty:
        empty.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    with pytest.raises(ValueError, match="no data_batch_1 in it"):
        read_cifar(archive, 10)


def test_files_of_a_size_that_cannot_be(tmp_path: Path) -> None:
    folder = cifar10(tmp_path)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("cifar-10-batches-py/readme.html")
        member.size = LARGEST_FILE + 1
        archive.fileobj.write(member.tobuf())  # type: ignore[union-attr]
    with (folder / "data_batch_2").open("r+b") as file:
        file.truncate(LARGEST_FILE + 1)
    for path in (tmp_path / "a.tar", folder):
        with pytest.raises(ValueError, match=f"is said to have {LARGEST_FILE + 1} bytes"):
            read_cifar(path, 10)


def test_damaged_bytes_give_a_line_or_data(tmp_path: Path) -> None:
    content = bytearray(batch(np.random.default_rng(0), 3))
    rng = np.random.default_rng(3)
    head = len(content) - 3 * 3072
    for _ in range(400):
        damaged = bytearray(content)
        damaged[int(rng.integers(min(head, 200)))] = int(rng.integers(256))
        try:
            plain_pickle(bytes(damaged), "x")
        except ValueError as error:
            assert "\n" not in str(error)
