"""Trainings on several workers: they learn what one process learns, and lose only time where a worker is lost."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from lownas.evaluators.training.final.records import FinalSettings, TrainingStatus
from lownas.evaluators.training.final.store import LocalStore
from lownas.evaluators.training.final.training import TrainingFailed, train_network
from lownas.search.final import distributed
from lownas.search.final.distributed import Driver, run_workers, train_distributed
from lownas.search.training.ray_cluster import RayCluster

PLAIN = {"mixup": 0, "cutmix": 0, "max_shift": 0, "flip": False, "crop": 1, "erasing": 0, "randaugment_layers": 0}
PLAIN |= {"drop_path": 0, "agreement": 0, "batch_size": 64}
RESOLUTION = 16


def network() -> nn.Module:
    """Without BatchNorm, whose statistics are each worker's own."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GELU()]
    return nn.Sequential(*stem, nn.Flatten(), nn.Linear(32 * (RESOLUTION // 4) ** 2, 10))


def settings(**choices: Any) -> FinalSettings:
    return FinalSettings(epochs=2, choices={**PLAIN, **choices})


# --- what needs no Ray


def test_what_it_needs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    wanted = r"--workers 2: Ray Train needs pandas and pyarrow: pip install 'lownas\[distributed\]'"
    with pytest.raises(ValueError, match=wanted):
        train_distributed(network(), "digits", LocalStore(tmp_path), settings(), workers=2, resolution=RESOLUTION)
    with pytest.raises(ValueError, match="workers: at least 1, given 0"):
        train_distributed(network(), "digits", LocalStore(tmp_path), settings(), workers=0, resolution=RESOLUTION)


@pytest.mark.parametrize(
    ("found", "device", "complaint"),
    [
        ({"CPU": 3.0}, "cpu", "--workers 2: 4 CPUs are needed, and the cluster has 3"),
        ({"CPU": 4.0, "GPU": 1.0}, "cuda", "--workers 2: each needs a CUDA device, and there are 1"),
        ({"CPU": 4.0}, "mps", "--workers 2: they train on cpu or cuda, not on mps"),
    ],
)
def test_too_little_of_something(found: dict[str, float], device: str, complaint: str) -> None:
    ray = SimpleNamespace(cluster_resources=lambda: found)
    with pytest.raises(ValueError, match=complaint):
        distributed._check_resources(ray, 2, 2, device, local=False)


def test_enough_of_everything() -> None:
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0, "GPU": 2.0})
    assert not distributed._check_resources(ray, 2, 2, "cpu", local=False)
    assert distributed._check_resources(ray, 2, 2, "cuda", local=False)


def test_errors_of_the_request_end_a_training_and_others_begin_it_anew() -> None:
    for fatal in (ValueError("x"), OSError("disk full"), TrainingFailed("not finite"), TypeError("x")):
        assert not distributed._may_be_another_workers(fatal)
    for passing in (RuntimeError("connection closed by peer"), ConnectionResetError(), MemoryError(), TimeoutError()):
        assert distributed._may_be_another_workers(passing)


def test_the_mailbox() -> None:
    async def scene() -> None:
        mailbox = distributed._Mailbox()
        assert await mailbox.take(0.01) == []
        await mailbox.put("call", "report", (1,))
        asking = asyncio.create_task(mailbox.ask("read", ("log.csv",)))
        await asyncio.sleep(0)
        first, (number, *question) = await mailbox.take(1)
        assert first == (None, "call", ("report", 1)) and question == ["read", ("log.csv",)]
        assert number is not None and not asking.done()
        await mailbox.answer(number, b"x", None)
        assert await asking == (b"x", None)
        waiting = asyncio.create_task(mailbox.take(60))
        await asyncio.sleep(0)
        await mailbox.put("log", "", ("late",))
        assert await waiting == [(None, "log", ("", "late"))]

    asyncio.run(scene())


def test_a_training_travels() -> None:
    asked = distributed._Training(network(), "digits", settings(), "classification", RESOLUTION, False, True)
    assert pickle.loads(pickle.dumps(asked)).settings == asked.settings


# --- with Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    started = RayCluster(2)
    yield started
    started.close()


class Full(LocalStore):
    def write(self, name: str, content: bytes) -> None:
        if name == "more":
            raise OSError("cannot write more: No space left on device")
        super().write(name, content)


def work(what: str) -> Callable[[Driver], Any]:
    """A function of its own, so that it travels to a worker by value."""

    def each(driver: Driver) -> Any:
        import logging

        import torch.distributed as dist

        rank = dist.get_rank()
        tries = int(driver.read("tries") or b"0")
        driver.tell("told", rank, tries, driver.has_written)
        logging.getLogger("lownas.evaluators").warning("a worker warns")
        dist.barrier()
        if rank == 0:
            driver.write("tries", str(tries + 1).encode())
        dist.barrier()
        if rank == 1 and what == "value":
            raise ValueError("this is wrong")
        if rank == 1 and what == "die" and tries == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 0 and what == "disk":
            driver.write("more", b"")
        dist.barrier()
        return dist.get_world_size(), os.getcwd(), torch.get_num_threads()

    return each


@pytest.mark.slow
@pytest.mark.parametrize("what", ["nothing", "die", "value", "disk", "callback"])
def test_what_may_happen(what: str, cluster: RayCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[Any, ...]] = []

    def tell(*values: Any) -> None:
        told.append(values)
        if what == "callback":
            raise ValueError("no such tracker")

    def run() -> Any:
        return run_workers(work(what), Full(tmp_path), workers=2, callbacks={"told": tell})

    if what == "value":
        with pytest.raises(ValueError, match=r"^this is wrong$"):
            run()
    elif what == "callback":
        with pytest.raises(ValueError, match=r"^no such tracker$"):
            run()
    elif what == "disk":
        with pytest.raises(OSError, match=r"^cannot write more: No space left on device$"):
            run()
    else:
        assert run() == (2, os.getcwd(), 1)
    assert told == [(0, 0, False), (0, 1, True)][: 2 if what == "die" else 1]
    assert what == "callback" or caplog.messages == ["a worker warns"]
    assert cluster.ray.is_initialized()  # it was in use before


def kill_a_worker() -> None:
    started = psutil.Process().children(recursive=True)
    next(child for child in started if "RayTrainWorker" in " ".join(child.cmdline())).kill()


@pytest.mark.slow
def test_two_workers_learn_what_one_process_learns_also_if_one_is_killed(tmp_path: Path) -> None:
    alone: dict[int, float] = {}
    told: list[tuple[int, float]] = []
    statuses: list[TrainingStatus] = []
    one = train_network(
        network(),
        "digits",
        LocalStore(tmp_path / "one"),
        settings(),
        resolution=RESOLUTION,
        on_step=lambda step, loss: alone.__setitem__(step, loss),
    )

    def on_step(step: int, loss: float) -> None:
        if step == 21 and not any(other == 21 for other, _ in told):
            kill_a_worker()
        told.append((step, loss))

    two = train_distributed(
        network(),
        "digits",
        LocalStore(tmp_path / "two"),
        settings(),
        workers=2,
        resolution=RESOLUTION,
        on_step=on_step,
        report=statuses.append,
    )
    steps = [step for step, _ in told]
    assert steps.count(0) == 2 and steps[-1] == max(alone) > 20
    for step, loss in told:
        assert abs(loss - alone[step]) < 1e-4
    assert two.validation_accuracy == pytest.approx(one.validation_accuracy, abs=0.01)
    for name, value in two.model.state_dict().items():
        torch.testing.assert_close(value, one.model.state_dict()[name], atol=1e-4, rtol=1e-3)
    assert [status.row["epoch"] for status in statuses if status.row][-2:] == [1, 2]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )


ON_A_CLUSTER = """
import os, sys, threading, time
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ.pop("RAY_AUTH_MODE", None)
from ray.cluster_utils import Cluster
from lownas.evaluators.training.final.store import LocalStore
from lownas.search.final.distributed import run_workers

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
cluster.wait_for_nodes()
tries, gone = [], []

def work(driver):
    import ray, torch
    import torch.distributed as dist
    import lownas
    assert "py_modules" in lownas.__file__, lownas.__file__
    where = [None, None]
    dist.all_gather_object(where, ray.get_runtime_context().get_node_id())
    if dist.get_rank() == 0:
        driver.write("tries", (driver.read("tries") or b"") + b".")
    driver.tell("working", where)
    for _ in range(10):
        time.sleep(0.5)
        dist.barrier()
    return where

def working(where):
    tries.append(where)
    if len(tries) == 1:
        import ray
        here = ray.get_runtime_context().get_node_id()  # of this process; the other one is lost
        lost = next(node for node in nodes if node.node_id in where and node.node_id != here)
        gone.append(lost.node_id)
        threading.Thread(target=cluster.remove_node, args=(lost,), kwargs={"allow_graceful": False}).start()

where = run_workers(work, LocalStore(sys.argv[1]), workers=2, callbacks={"working": working}, address=cluster.address)
assert len(tries) == 2 and where == tries[1] and gone[0] in tries[0] and gone[0] not in where, tries
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_lost_node_of_a_cluster(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_A_CLUSTER, str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "kept" / "tries").read_bytes() == b".."
