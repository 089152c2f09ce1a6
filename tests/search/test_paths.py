"""Files and folders that people name."""

from __future__ import annotations

from pathlib import Path

import pytest

from lownas.search.paths import absolute, absolute_data, check_writable, new_folder


def test_what_is_there_is_named_absolutely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "a.pth").write_text("")
    assert absolute("a.pth") == str(tmp_path / "a.pth") and absolute("timm:b0") == "timm:b0"
    assert absolute_data("imagefolder:pictures") == f"imagefolder:{tmp_path / 'pictures'}"
    assert absolute_data("hf:pictures:small") == f"hf:{tmp_path / 'pictures'}:small"
    assert absolute_data("digits") == "digits" and absolute_data("formula:4") == "formula:4"


def test_what_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^cannot write the thing .*: .*file is not a folder$"):
        check_writable(tmp_path / "file" / "deep" / "down", "the thing")
    check_writable(tmp_path / "new" / "folder", "the thing")


def test_new_folders_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "a-1").mkdir()
    assert new_folder(tmp_path, "a") == tmp_path / "a-2"
