from pathlib import Path

import psutil
import pytest

from lownas.evaluators.data import memory
from lownas.evaluators.data.memory import available_memory

NAMES = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of control groups in the place of the system's."""
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    return tmp_path


def group(folder: Path, version: int, limit: str, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(NAMES[version], (limit, str(used)), strict=True):
        (folder / name).write_text(f"{content}\n")
    (folder / "memory.stat").write_text(f"anon 1\nactive_file {cache // 2}\ninactive_file {cache - cache // 2}\n")


def test_without_limits_it_is_the_systems() -> None:
    assert 2**20 < available_memory() <= psutil.virtual_memory().total


def test_the_tightest_group_counts_and_cached_files_do_not(system: Path) -> None:
    (system / "own").write_text("0::/jobs/one\n")
    group(system / "groups" / "jobs" / "one", 2, "max", 10)
    assert available_memory() > 2**20
    group(system / "groups" / "jobs", 2, "1000000", 700_000, cache=400_000)
    assert available_memory() == 700_000
    group(system / "groups" / "jobs" / "one", 2, "500000", 100_000)
    assert available_memory() == 400_000
    group(system / "groups" / "jobs" / "one", 2, "500000", 600_000)
    assert available_memory() == 0


def test_groups_of_version_1(system: Path) -> None:
    (system / "own").write_text("4:cpu,cpuacct:/x\n3:memory:/docker/abc\n0::/\n")
    group(system / "groups" / "memory" / "docker" / "abc", 1, "800000", 300_000)
    group(system / "groups" / "memory", 1, "9223372036854771712", 300_000)
    assert available_memory() == 500_000


def test_a_container_that_sees_its_own_group_as_the_root(system: Path) -> None:
    (system / "own").write_text("0::/docker/that/is/not/visible\n")
    group(system / "groups", 2, "900000", 100_000)
    assert available_memory() == 800_000


def test_files_that_say_something_else_are_no_limit(system: Path) -> None:
    (system / "own").write_text("0::/\n")
    group(system / "groups", 2, "unlimited", 3)
    assert available_memory() > 2**20
