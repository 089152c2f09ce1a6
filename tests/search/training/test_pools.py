"""One contract for both pools: in this process, and in Ray workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from lownas.search.training.pools import (
    InProcessPool,
    Outcome,
    Pool,
    RayPool,
    check_address,
    copy_package,
    describe_error,
)


def make_evaluate(folder: str):
    """A function of its own, so that it travels to a worker by value."""

    def evaluate(task: Mapping[str, Any]) -> dict[str, Any]:
        if task.get("wait_s"):
            time.sleep(task["wait_s"])
        if task.get("raise"):
            raise RuntimeError(task["raise"])
        if task.get("die"):
            with open(f"{folder}/deaths-{task['trial']}", "a") as file:
                file.write(".")
            if task["die"] > os.path.getsize(f"{folder}/deaths-{task['trial']}") - 1:
                os.kill(os.getpid(), signal.SIGKILL)
        if task.get("stop"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if task.get("grow"):
            import resource

            import torch

            before = resource.getrlimit(resource.RLIMIT_AS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 1024**2, before[1]))
            try:
                held = []
                while True:
                    held.append(torch.ones(8 * 1024**2) if task["grow"] == "torch" else bytearray(32 * 1024**2))
            finally:
                resource.setrlimit(resource.RLIMIT_AS, before)
        if task.get("shared"):
            return {"shared": task["shared"]}
        import torch

        return {"accuracy": task["trial"] / 10, "threads": torch.get_num_threads(), "pid": os.getpid()}

    return evaluate


made: list[str] = []


def share(task: Mapping[str, Any]):
    """Something large that the tasks of one "data" need."""

    def make():
        made.append(task["data"])
        return f"the images of {task['data']}"

    return task.get("data"), make if task.get("data") else (lambda: None)


@pytest.fixture(scope="module", params=[0, 2], ids=["in process", "ray"])
def pool(request, tmp_path_factory) -> Iterator[Pool]:
    folder = tmp_path_factory.mktemp("pool")
    evaluate = make_evaluate(str(folder))
    pool = (
        RayPool(evaluate, request.param, share=share, trial_timeout_s=8) if request.param else InProcessPool(evaluate)
    )
    yield pool
    pool.close()
    pool.close()


def collect(pool: Pool) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}
    while pool.pending:
        for outcome in pool.wait():
            outcomes[outcome.trial] = outcome
    return outcomes


def test_outcomes_belong_to_their_trials(pool: Pool) -> None:
    assert pool.wait() == []
    for trial in range(4):
        pool.submit({"trial": trial})
    assert pool.pending == 4
    outcomes = collect(pool)
    assert {trial: outcome.value["accuracy"] for trial, outcome in outcomes.items()} == {0: 0, 1: 0.1, 2: 0.2, 3: 0.3}


def test_an_exception_is_that_trials_alone(pool: Pool) -> None:
    pool.submit({"trial": 1, "raise": "no\nluck"})
    pool.submit({"trial": 2})
    outcomes = collect(pool)
    assert outcomes[1] == Outcome(1, None, "RuntimeError: no luck")
    assert outcomes[2].error == ""


def test_running_out_of_memory_is_that_trials_alone(pool: Pool) -> None:
    """Really: the process may have 300 MB more, and takes until there are none."""
    pool.submit({"trial": 1, "grow": "torch"})
    pool.submit({"trial": 2, "grow": "python"})
    pool.submit({"trial": 3})
    outcomes = collect(pool)
    assert "memory" in outcomes[1].error and "memory" in outcomes[2].error
    assert outcomes[3].error == ""


def test_workers_use_one_thread_and_a_dead_one_fails_its_trial_alone(pool: Pool, tmp_path: Path) -> None:
    if not isinstance(pool, RayPool):
        pytest.skip("a process cannot outlive its own death")
    pool.submit({"trial": 1, "die": 99})
    pool.submit({"trial": 2, "die": 1})
    pool.submit({"trial": 3})
    outcomes = collect(pool)
    assert outcomes[1] == Outcome(1, None, "its worker process died, 3 times")
    assert outcomes[2].value is not None  # tried again
    assert outcomes[3].value is not None
    assert outcomes[3].value["threads"] == 1
    assert outcomes[3].value["pid"] != os.getpid()


def test_ray_listens_on_loopback_only(pool: Pool) -> None:
    if not isinstance(pool, RayPool):
        pytest.skip("nothing listens")
    addresses = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it may have ended
            connections = process.net_connections("tcp")
            addresses |= {entry.laddr.ip for entry in connections if entry.status == psutil.CONN_LISTEN}
    assert addresses
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


def test_waiting_gives_up_after_its_timeout(pool: Pool) -> None:
    if not isinstance(pool, RayPool):
        pytest.skip("an evaluation in this process cannot be given up")
    pool.submit({"trial": 1, "wait_s": 1.5})
    started = time.monotonic()
    assert pool.wait(0.2) == []
    assert time.monotonic() - started < 1
    assert set(collect(pool)) == {1}


def test_a_hanging_evaluation_fails_alone_and_its_place_is_free_again(pool: Pool) -> None:
    if not isinstance(pool, RayPool):
        pytest.skip("an evaluation in this process cannot be given up")
    pool.submit({"trial": 1, "stop": True})
    pool.submit({"trial": 2, "stop": True})
    outcomes = collect(pool)
    assert {outcome.error for outcome in outcomes.values()} == {"it took longer than 8 s (--trial-timeout)"}
    for trial in (3, 4):
        pool.submit({"trial": trial})
    assert {outcome.error for outcome in collect(pool).values()} == {""}
    stopped = [p for p in psutil.Process().children(recursive=True) if p.status() == psutil.STATUS_STOPPED]
    assert not stopped


def test_a_trial_that_waits_for_a_place_is_not_overdue(pool: Pool) -> None:
    """At its next rung a trial may wait long, and the process of the rung before trains another one meanwhile."""
    if not isinstance(pool, RayPool):
        pytest.skip("nothing waits for a place here")
    pool.submit({"trial": 1})
    pool.submit({"trial": 2})
    collect(pool)
    for trial in (3, 4, 5, 6):
        pool.submit({"trial": trial, "wait_s": 5})
    pool.submit({"trial": 1})
    pool.submit({"trial": 2})
    assert {trial: outcome.error for trial, outcome in collect(pool).items()} == dict.fromkeys(range(1, 7), "")


def test_what_is_shared_is_made_once(pool: Pool) -> None:
    if not isinstance(pool, RayPool):
        pytest.skip("this process keeps its own")
    for trial in range(4):
        pool.submit({"trial": trial, "data": "ab"[trial % 2]})
    outcomes = collect(pool)
    assert outcomes[0].value == outcomes[2].value == {"shared": "the images of a"}
    assert outcomes[1].value == {"shared": "the images of b"}
    assert sorted(made) == ["a", "b"]


def test_a_remote_cluster_needs_authentication(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for address in ("ray://10.0.0.7:10001", "10.0.0.7:6379", "head.example.org:6379", "127.example.org:6379"):
        with pytest.raises(ValueError, match=f"--ray-address {address}: without authentication"):
            check_address(address, insecure=False)
        check_address(address, insecure=True)
    for address in ("auto", "127.0.0.1:6379", "ray://localhost:10001", "[::1]:6379"):
        check_address(address, insecure=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")  # what "auto" then means to Ray
    with pytest.raises(ValueError, match=r"--ray-address 10\.0\.0\.7:6379: without authentication"):
        check_address("auto", insecure=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    check_address("10.0.0.7:6379", insecure=False)


def test_the_package_travels_whole(tmp_path: Path) -> None:
    copy = copy_package(tmp_path)
    assert copy.name == "lownas" and (copy / "search_space" / "spaces" / "tiny.yaml").is_file()
    assert list(copy.glob("predictors/profiles/*.json")) and not (copy / "tests").exists()
    paths = [str(tmp_path), *sys.path]
    code = f"import sys; sys.path[:] = {paths!r}; import lownas.search.training.proxy_task as e; print(e.__file__)"
    found = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert found.stdout.startswith(str(tmp_path))


def test_errors_are_one_line() -> None:
    assert describe_error(ValueError("a\n b")) == "ValueError: a b"
    assert describe_error(MemoryError()) == "MemoryError"


def test_no_workers_is_no_ray_pool() -> None:
    with pytest.raises(ValueError, match="at least 1, given 0"):
        RayPool(make_evaluate("."), 0)
