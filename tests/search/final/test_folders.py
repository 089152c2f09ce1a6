"""The folders of final trainings: one process each, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from lownas.search.final.folders import claimed, training_of


def test_what_a_killed_process_had_half_written_is_removed(tmp_path: Path) -> None:
    for name in ("training.json", ".state.safetensors.123.tmp"):
        (tmp_path / name).write_text("")
    with claimed(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"training.json", "lock"}


def test_what_never_began_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "out"):
        raise KeyboardInterrupt
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_search_is_not_that_of_a_training(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is the folder of a search: train its answer with --run"), claimed(tmp_path):
        pass
    assert training_of(tmp_path) == tmp_path / "training" and not (tmp_path / "lock").exists()
