"""Some of the broken files of `experiments/fuzzing`: each is read or refused in one line; half get past parsing."""

from __future__ import annotations

import logging
import sys

import pytest

from lownas.experiments.fuzzing import run
from lownas.experiments.fuzzing.kinds import kinds

INPUTS = {"run": 8, "data": 30}
OTHERS = 120


@pytest.fixture(scope="module", autouse=True)
def quiet():
    sys.addaudithook(run._audit)
    logging.getLogger("lownas").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("lownas").setLevel(logging.NOTSET)


@pytest.mark.parametrize("name", kinds())
@pytest.mark.filterwarnings("ignore")
def test_broken_files_are_read_or_refused_in_one_line(name: str) -> None:
    found = run.fuzz(name, kinds()[name], INPUTS.get(name, OTHERS), first=1_000_000)
    assert found["first bad"] == []
    assert found["past the first stage"] >= 0.5 and not found["over the memory"]
    assert found["read"] and (found["refused"] or name == "data")


def test_what_is_executed_is_seen(tmp_path) -> None:
    import pickle
    import subprocess

    class Evil:
        def __init__(self, read) -> None:
            self.read = read

    (tmp_path / "x").write_bytes(pickle.dumps(print))
    for wrong in (
        lambda folder: subprocess.run(["true"], check=True),
        lambda folder: pickle.loads((folder / "x").read_bytes()),
    ):
        assert run.outcome(Evil(wrong), tmp_path).startswith("BAD it runs")  # type: ignore[arg-type]
    assert run.outcome(Evil(lambda folder: 1 / 0), tmp_path).startswith("BAD ZeroDivisionError")  # type: ignore[arg-type]

    def two_lines(folder) -> None:
        raise ValueError("a\nb")

    assert run.outcome(Evil(two_lines), tmp_path).startswith("BAD not one line")  # type: ignore[arg-type]
