"""How folders are walked: files, their order and what is followed are those of `Path.rglob`, at fewer calls."""

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lownas.evaluators.data.loading import load_data
from lownas.evaluators.data.records import DataRequest, ImageFiles
from lownas.evaluators.data.sources.imagefolder import ImageFolder

REQUEST = DataRequest(16, 0)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def by_rglob(folder: Path) -> list[Path]:
    children = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    return [
        path
        for child in children
        for path in sorted(p for p in child.rglob("*") if p.suffix.lower() in (".png", ".jpeg") and p.is_file())
    ]


def test_nested_hidden_and_linked_files_are_found_as_they_always_were(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for name in (
        "cat/b.png",
        "cat/a/2.png",
        "cat/a-1.PNG",
        "cat/a/1.png",
        "cat/.hidden/3.png",
        "cat/.png",
        "cat/x.txt",
    ):
        touch(root / name)
    for name in ("dog/ä ö.jpeg", "dog/1.png", ".git/4.png", "empty/notes.txt", "5.png"):
        touch(root / name)
    (root / "dog" / "folder.png").mkdir()
    touch(root / "dog" / "folder.png" / "6.png")
    touch(elsewhere / "birds" / "7.png")
    (root / "owl").symlink_to(elsewhere / "birds")  # a class
    (root / "cat" / "birds").symlink_to(elsewhere / "birds")  # inside one
    (root / "cat" / "8.png").symlink_to(elsewhere / "birds" / "7.png")
    (root / "cat" / "9.png").symlink_to(elsewhere / "nothing")
    (root / "dog" / "round").symlink_to(root)

    found = ImageFolder(str(root)).read(REQUEST)
    assert isinstance(found.train.images, ImageFiles)
    paths = [found.train.images[i] for i in range(len(found.train))]
    assert paths == by_rglob(root)
    assert found.classes == ("cat", "dog", "owl")
    assert [found.classes[label] for label in found.train.labels] == [path.relative_to(root).parts[0] for path in paths]


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    for name in (b"cat/\xff.png", b"dog/1.png"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path))
        Path(os.fsdecode(path)).touch()
    images = ImageFolder(str(tmp_path)).read(REQUEST).train.images
    assert images[0] == tmp_path / os.fsdecode(b"cat/\xff.png") and Path(images[0]).exists()  # type: ignore[arg-type]


def test_names_are_kept_in_one_block_however_they_are_taken(tmp_path: Path) -> None:
    names = [f"class/{i}.png" for i in range(1000)]
    files = ImageFiles.of(tmp_path, names)
    some = files.take(np.array([999, 3, 3]))
    assert [some[i] for i in range(3)] == [tmp_path / names[i] for i in (999, 3, 3)]
    assert some.take(np.array([1]))[0] == tmp_path / names[3] and some.names is files.names
    assert pickle.loads(pickle.dumps(some))[0] == tmp_path / names[999]
    assert len(pickle.dumps(files)) < 40 * len(names)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/1.png", "a/shut/2.png", "b/1.png"):
        touch(tmp_path / name)
    (tmp_path / "a" / "shut").chmod(0)
    try:
        assert len(ImageFolder(str(tmp_path)).read(REQUEST).train) == 2
    finally:
        (tmp_path / "a" / "shut").chmod(0o700)
    assert "cannot be read and is left out" in caplog.text


def test_listing_is_linear_and_asks_for_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(classes: int) -> float:
        root = tmp_path / str(classes)
        for label in range(classes):
            (root / str(label)).mkdir(parents=True)
            for i in range(100):
                (root / str(label) / f"{i}.png").touch()
        asked: list[object] = []
        for name in ("stat", "lstat"):
            real = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *given, real=real, **more: asked.append(given) or real(*given, **more))
        began = time.process_time()
        assert len(ImageFolder(str(root)).read(REQUEST).train) == 100 * classes
        took = time.process_time() - began
        monkeypatch.undo()
        assert len(asked) <= 2 * classes + 20
        return took

    small, large = seconds(20), seconds(200)
    assert large < 40 * small, (small, large)


def test_every_format_that_pillow_reads_counts_and_others_are_counted(tmp_path: Path) -> None:
    for number, name in enumerate(("a.jfif", "b.jp2", "c.avif", "d.tga", "e.PNG")):
        for label in ("cat", "dog"):
            (tmp_path / label).mkdir(exist_ok=True)
            kind = {"jfif": "JPEG", "jp2": "JPEG2000", "avif": "AVIF", "tga": "TGA", "PNG": "PNG"}[name.split(".")[1]]
            Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / label / name, kind)
    for name in ("cat/x.heic", "dog/y.HEIC", "dog/z.cr2", "dog/notes.txt", "cat/._a.png", "cat/._b.heic"):
        touch(tmp_path / name)
    found = ImageFolder(str(tmp_path)).read(REQUEST)
    assert len(found.train) == 10 and found.card["not_read"] == {".heic": 2, ".cr2": 1}
    images = load_data(f"imagefolder:{tmp_path}", 16)
    assert images.card["skipped"] == 0 and images.card["not_read"] == {".heic": 2, ".cr2": 1}


def test_a_folder_of_what_is_not_read_says_so(tmp_path: Path) -> None:
    touch(tmp_path / "cat" / "x.heic")
    with pytest.raises(ValueError, match=r"no images \(found 1 \.heic, which this Pillow does not read\)"):
        ImageFolder(str(tmp_path)).read(REQUEST)
