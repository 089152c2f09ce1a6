"""One contract for both pools: in this process, and in Ray workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from lownas.search.workers import Outcome, Pool, RayPool, describe_error, open_pool


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
        import torch

        return {"accuracy": task["trial"] / 10, "threads": torch.get_num_threads(), "pid": os.getpid()}

    return evaluate


@pytest.fixture(scope="module", params=[0, 2], ids=["in process", "ray"])
def pool(request, tmp_path_factory) -> Iterator[Pool]:
    folder = tmp_path_factory.mktemp("pool")
    pool = open_pool(make_evaluate(str(folder)), request.param)
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


def test_errors_are_one_line() -> None:
    assert describe_error(ValueError("a\n b")) == "ValueError: a b"
    assert describe_error(MemoryError()) == "MemoryError"


def test_no_workers_is_no_ray_pool() -> None:
    with pytest.raises(ValueError, match="at least 1, given 0"):
        RayPool(make_evaluate("."), 0)
