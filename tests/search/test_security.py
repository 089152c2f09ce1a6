"""What others made (run folders, databases, configs, profiles, checkpoints, models) runs no code when it is read."""

import os
import pickle
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lownas.evaluators.training.inherit import load_source
from lownas.predictors import LatencyPredictor, Target
from lownas.search.results.files import run_config
from lownas.search.settings import SearchSettings
from lownas.search_space import LowFormerConfig, SearchSpace
from lownas.search_space.graph.onnx_reader import op_graph_from_onnx

_FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class", "pty.spawn"}
_watching: list[str] | None = None


def _audit(event: str, arguments: tuple) -> None:
    if _watching is not None and event in _FORBIDDEN:
        _watching.append(f"{event} {arguments}"[:200])


sys.addaudithook(_audit)  # cannot be removed; it only looks while `watched`


@contextmanager
def watched() -> Iterator[list[str]]:
    """What Python's audit hooks report of code that runs or pickles that look up names."""
    global _watching
    _watching = found = []
    try:
        yield found
    finally:
        _watching = None


class Evil:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self):
        return os.system, (f"touch '{self.trap}'",)


@pytest.fixture
def trap(tmp_path) -> Path:
    return tmp_path / "trap"


@pytest.fixture(params=range(2, pickle.HIGHEST_PROTOCOL + 1, 3))
def evil(trap, request) -> bytes:
    return pickle.dumps(Evil(trap), request.param)


def test_the_watch_sees_a_pickle(evil, trap) -> None:
    with watched() as found:
        pickle.loads(evil)
    assert trap.exists() and any(line.startswith("pickle.find_class") for line in found)
    assert any(line.startswith("os.system") for line in found)


def refused(read, *arguments, **options) -> str:
    """The one line with which reading is refused, nothing having run."""
    with watched() as found, pytest.raises((ValueError, OSError)) as caught:
        read(*arguments, **options)
    assert not found
    return str(caught.value)


@pytest.mark.parametrize("name", ["run.json", "results.jsonl", "rungs.jsonl", "measured.jsonl", "study.db"])
def test_a_pickle_in_a_run_folder(run_search, tmp_path, evil, trap, name: str) -> None:
    run_search(trials=2, repeats=0)
    for last in (b"", b"\n"):
        (tmp_path / "run" / name).write_bytes(evil + last)
        if name == "study.db":
            for beside in ("study.db-wal", "study.db-shm"):
                (tmp_path / "run" / beside).unlink(missing_ok=True)
        with watched() as found:
            try:
                run_search(trials=2, repeats=0, resume=True)
            except (ValueError, OSError) as error:
                assert name in str(error)
            else:  # a broken last line is set aside, and what was in it is done again
                assert name.endswith(".jsonl") and not last
        assert not found and not trap.exists()


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("trial_user_attributes", "value_json"),
        ("trial_system_attributes", "value_json"),
        ("trial_params", "distribution_json"),
    ],
)
def test_a_pickle_in_a_study_database(run_search, tmp_path, evil, trap, table: str, column: str) -> None:
    run_search(trials=2, repeats=0)
    with sqlite3.connect(tmp_path / "run" / "study.db") as connection:
        changed = connection.execute(f"UPDATE {table} SET {column} = ?", (evil,)).rowcount
    assert changed
    connection.close()
    refused(run_search, trials=3, repeats=0, resume=True)
    assert not trap.exists()


@pytest.mark.parametrize("attribute", ['"../../role"', '"<script>alert(1)</script>"', "[1, 2]"])
def test_hostile_attributes_in_a_study_database(run_search, tmp_path, attribute: str) -> None:
    """A trial enqueued by someone else, with a role that is none."""
    run_search(trials=2, repeats=0)
    with sqlite3.connect(tmp_path / "run" / "study.db") as connection:
        connection.execute("UPDATE trial_user_attributes SET value_json = ? WHERE key = 'role'", (attribute,))
        connection.execute("UPDATE trials SET state = 'WAITING' WHERE number = 1")
    connection.close()
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "results.jsonl").write_text(lines[0])
    assert "role" in refused(run_search, trials=2, repeats=0, resume=True)


def test_a_pickle_for_a_config_a_profile_or_an_answer(run_search, tmp_path, evil, trap) -> None:
    outcome = run_search(trials=2, repeats=0)
    (outcome.run / "best.json").write_bytes(evil)
    refused(run_config, outcome.run)
    profile = tmp_path / "x.json"
    profile.write_bytes(evil)
    refused(LatencyPredictor.read, profile)
    refused(LowFormerConfig.from_json, evil.decode("latin-1"))
    for name in ("x.onnx", "x.onnx.data"):
        (tmp_path / name).write_bytes(evil)
    refused(op_graph_from_onnx, tmp_path / "x.onnx")
    assert not trap.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_pickle_for_a_checkpoint(tmp_path, evil, trap, suffix: str) -> None:
    import torch

    path = tmp_path / f"x{suffix}"
    path.write_bytes(evil)
    refused(load_source, path)
    torch.save({"state_dict": Evil(trap)}, path)  # in a checkpoint that is one otherwise
    refused(load_source, path)
    assert not trap.exists()


@pytest.mark.parametrize("read", [Target.read, SearchSpace.load])
@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['touch {trap}']", "host: !!python/object/apply:os.system ['touch {trap}']"],
)
def test_yaml_that_asks_for_code(tmp_path, trap, read, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text.format(trap=trap))
    refused(read, str(path))
    assert not trap.exists()


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "box;touch x", "box\ntouch x", "../box", "<script>"])
def test_hostile_hosts_of_a_box(tmp_path, host: str) -> None:
    path = tmp_path / "box.yaml"
    lines = {"name": "box", "host": host, "runtime": "onnxruntime", "precision": "fp32", "batch": 1, "threads": 1}
    import yaml

    path.write_text(yaml.safe_dump(lines))
    message = refused(Target.read, path)
    assert "\n" not in message


@pytest.mark.parametrize("name", ["../x", "a/b/c", "a;b", "a\nb", "<script>", "-oProxyCommand=x", "a b", ""])
def test_hostile_names_of_targets(name: str) -> None:
    refused(Target.parse, f"{name}/onnxruntime/fp32/b1/t1")


def test_hostile_settings_in_a_run_from_elsewhere(run_search, tmp_path) -> None:
    """A path in a run's settings is read, not run, and what is no setting is refused."""
    refused(SearchSettings.from_dict, {"target": "a", "latency_budget_ms": 1, "run": "x", "evaluate": "os.system"})
    refused(SearchSpace.load, "../../etc/passwd")
    refused(SearchSpace.load, "x;touch y")
