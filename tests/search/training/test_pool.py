"""The contract of both pools: in this process, and in Ray workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from lownas.search.training.pool import InProcessPool, TrainingPool, describe_error
from lownas.search.training.ray_pool import RayPool
from lownas.search.training.task import Evaluation, TaskOutcome, TrainingTask
from lownas.search_space import SearchSpace

CONFIG = SearchSpace.load("tiny").sample(np.random.default_rng(0))


def ask(trial: int, data: str = "", **wanted: Any) -> TrainingTask:
    """A task that says in its plan what its evaluation is to do."""
    return TrainingTask(trial, CONFIG, 0, data, wanted)


def make_evaluate(folder: str):
    """A function of its own, so that it travels to a worker by value."""

    def evaluate(task: TrainingTask) -> Evaluation:
        wanted = task.proxy
        if wanted.get("wait_s"):
            time.sleep(wanted["wait_s"])
        if wanted.get("error"):
            raise RuntimeError(wanted["error"])
        if wanted.get("die"):
            with open(f"{folder}/deaths-{task.trial}", "a") as file:
                file.write(".")
            if wanted["die"] > os.path.getsize(f"{folder}/deaths-{task.trial}") - 1:
                os.kill(os.getpid(), signal.SIGKILL)
        if wanted.get("stop"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if wanted.get("grow"):
            import resource

            import torch

            before = resource.getrlimit(resource.RLIMIT_AS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 1024**2, before[1]))
            try:
                held = []
                while True:
                    held.append(torch.ones(8 * 1024**2) if wanted["grow"] == "torch" else bytearray(32 * 1024**2))
            finally:
                resource.setrlimit(resource.RLIMIT_AS, before)
        import torch

        seen = {"threads": torch.get_num_threads(), "pid": os.getpid(), "shared": task.shared}
        return Evaluation(task.trial / 10, details=seen)

    return evaluate


made: list[str] = []


def share(task: TrainingTask):
    """Something large that the tasks of one "data" need."""

    def make():
        made.append(task.data)
        return f"the images of {task.data}"

    return task.data, make if task.data else (lambda: None)


@pytest.fixture(scope="module", params=[0, 2], ids=["in process", "ray"])
def pool(request, tmp_path_factory) -> Iterator[TrainingPool]:
    folder = tmp_path_factory.mktemp("pool")
    evaluate = make_evaluate(str(folder))
    pool = (
        RayPool(evaluate, request.param, share=share, trial_timeout_s=8) if request.param else InProcessPool(evaluate)
    )
    yield pool
    pool.close()
    pool.close()


def collect(pool: TrainingPool) -> dict[int, TaskOutcome]:
    outcomes: dict[int, TaskOutcome] = {}
    while pool.pending:
        for outcome in pool.wait():
            outcomes[outcome.trial] = outcome
    return outcomes


def test_outcomes_belong_to_their_trials(pool: TrainingPool) -> None:
    assert pool.wait() == []
    for trial in range(4):
        pool.submit(ask(trial))
    assert pool.pending == 4
    outcomes = collect(pool)
    assert {trial: outcome.evaluation.accuracy for trial, outcome in outcomes.items()} == {0: 0, 1: 0.1, 2: 0.2, 3: 0.3}


def test_an_exception_is_that_trials_alone(pool: TrainingPool) -> None:
    pool.submit(ask(1, error="no\nluck"))
    pool.submit(ask(2))
    outcomes = collect(pool)
    assert outcomes[1] == TaskOutcome(1, None, "RuntimeError: no luck")
    assert outcomes[2].error == ""


def test_running_out_of_memory_is_that_trials_alone(pool: TrainingPool) -> None:
    """Really: the process may have 300 MB more, and takes until there are none."""
    pool.submit(ask(1, grow="torch"))
    pool.submit(ask(2, grow="python"))
    pool.submit(ask(3))
    outcomes = collect(pool)
    assert "memory" in outcomes[1].error and "memory" in outcomes[2].error
    assert outcomes[3].error == ""


def test_workers_use_one_thread_and_a_dead_one_fails_its_trial_alone(pool: TrainingPool, tmp_path: Path) -> None:
    if not isinstance(pool, RayPool):
        pytest.skip("a process cannot outlive its own death")
    pool.submit(ask(1, die=99))
    pool.submit(ask(2, die=1))
    pool.submit(ask(3))
    outcomes = collect(pool)
    assert outcomes[1] == TaskOutcome(1, None, "its worker process died, 3 times")
    assert outcomes[2].evaluation is not None  # tried again
    assert outcomes[3].evaluation is not None
    assert outcomes[3].evaluation.details["threads"] == 1
    assert outcomes[3].evaluation.details["pid"] != os.getpid()


def test_ray_listens_on_loopback_only(pool: TrainingPool) -> None:
    if not isinstance(pool, RayPool):
        pytest.skip("nothing listens")
    addresses = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it may have ended
            connections = process.net_connections("tcp")
            addresses |= {entry.laddr.ip for entry in connections if entry.status == psutil.CONN_LISTEN}
    assert addresses
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


def test_waiting_gives_up_after_its_timeout(pool: TrainingPool) -> None:
    if not isinstance(pool, RayPool):
        pytest.skip("an evaluation in this process cannot be given up")
    pool.submit(ask(1, wait_s=1.5))
    assert pool.wait(0.2) == [] and pool.pending == 1
    assert set(collect(pool)) == {1}


def test_a_hanging_evaluation_fails_alone_and_its_place_is_free_again(pool: TrainingPool) -> None:
    if not isinstance(pool, RayPool):
        pytest.skip("an evaluation in this process cannot be given up")
    pool.submit(ask(1, stop=True))
    pool.submit(ask(2, stop=True))
    outcomes = collect(pool)
    assert {outcome.error for outcome in outcomes.values()} == {"it took longer than 8 s (--trial-timeout)"}
    for trial in (3, 4):
        pool.submit(ask(trial))
    assert {outcome.error for outcome in collect(pool).values()} == {""}
    stopped = [p for p in psutil.Process().children(recursive=True) if p.status() == psutil.STATUS_STOPPED]
    assert not stopped


@pytest.mark.slow
def test_a_trial_that_waits_for_a_place_is_not_overdue(pool: TrainingPool) -> None:
    """At its next rung a trial may wait long, and the process of the rung before trains another one meanwhile."""
    if not isinstance(pool, RayPool):
        pytest.skip("nothing waits for a place here")
    pool.submit(ask(1))
    pool.submit(ask(2))
    collect(pool)
    for trial in (3, 4, 5, 6):
        pool.submit(ask(trial, wait_s=5))
    pool.submit(ask(1))
    pool.submit(ask(2))
    assert {trial: outcome.error for trial, outcome in collect(pool).items()} == dict.fromkeys(range(1, 7), "")


def test_what_is_shared_is_made_once(pool: TrainingPool) -> None:
    if not isinstance(pool, RayPool):
        pytest.skip("this process keeps its own")
    for trial in range(4):
        pool.submit(ask(trial, data="ab"[trial % 2]))
    outcomes = collect(pool)
    shared = [outcomes[trial].evaluation.details["shared"] for trial in range(4)]
    assert shared == ["the images of a", "the images of b"] * 2
    assert sorted(made) == ["a", "b"]


def test_errors_are_one_line() -> None:
    assert describe_error(ValueError("a\n b")) == "ValueError: a b"
    assert describe_error(MemoryError()) == "MemoryError"
