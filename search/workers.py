"""Where candidates are evaluated: in this process, or in Ray workers. The only file that imports Ray.

A task is a plain mapping with at least "trial" (its number); an evaluation maps it to a plain mapping. Whatever an
evaluation raises becomes a failed outcome of that trial alone. Workers are stateless and know nothing of the study.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..evaluators.agent import training

Task = Mapping[str, Any]
Evaluate = Callable[[Task], Mapping[str, Any]]

RETRIES = 2  # a trial whose worker died is tried again at most this often

logger = logging.getLogger("lownas.search")


@dataclass(frozen=True)
class Outcome:
    """What came of a task: `value` as the evaluation returned it, or None and the `error`, in one line."""

    trial: int
    value: Mapping[str, Any] | None
    error: str = ""


class Pool(Protocol):
    """Evaluates tasks; `size` at once."""

    size: int

    @property
    def pending(self) -> int:
        """How many submitted tasks have no outcome yet."""

    def submit(self, task: Task) -> None: ...

    def wait(self, timeout_s: float | None = None) -> list[Outcome]:
        """The outcomes that are there once there is one, or none after `timeout_s`."""

    def close(self) -> None:
        """Gives up what is pending and frees everything. May be called twice."""


def open_pool(evaluate: Evaluate, workers: int, gpu_fraction: float | None = None) -> Pool:
    """A pool of `workers` processes, or of this one for 0; each has `gpu_fraction` of a GPU, None shares evenly."""
    return RayPool(evaluate, workers, gpu_fraction) if workers else InProcessPool(evaluate)


def describe_error(error: BaseException) -> str:
    """An exception as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__


class InProcessPool:
    """Evaluates one task at a time, here."""

    size = 1

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._tasks: list[Task] = []

    @property
    def pending(self) -> int:
        return len(self._tasks)

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self, timeout_s: float | None = None) -> list[Outcome]:
        """One outcome. An evaluation here cannot be given up, so the timeout has no effect."""
        if not self._tasks:
            return []
        task = self._tasks[0]
        outcome = _evaluate_safely(self._evaluate, task)
        self._tasks.pop(0)
        return [outcome]

    def close(self) -> None:
        self._tasks.clear()


class RayPool:
    """Evaluates tasks in Ray workers on this machine, each with one CPU and one torch thread.

    Ray is started locally, on the loopback interface, without dashboard, and stopped by `close`. If CUDA devices are
    there, the workers share them evenly, or each has `gpu_fraction` of one and no more train at once than that allows.
    Raises ValueError for a fraction of what is not there.
    """

    def __init__(self, evaluate: Evaluate, workers: int, gpu_fraction: float | None = None) -> None:
        if workers < 1:
            raise ValueError(f"workers: at least 1, given {workers}")
        # Read when Ray is imported or its processes start.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Loopback only, which Ray does by itself on Windows and macOS alone, and a token that only this run knows.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        import ray

        self.size = workers
        self._ray = ray
        self._futures: dict[Any, int] = {}
        if ray.is_initialized():
            raise RuntimeError("Ray is already in use in this process; a search starts and stops its own")
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=256 * 1024**2,
            # Workers import the installed package; the working directory is not shipped.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}},
        )
        gpus = ray.cluster_resources().get("GPU", 0.0)
        share = math.floor(gpus / workers * 100) / 100 if gpus < workers else 1.0
        if gpu_fraction is not None:
            if not gpus:
                ray.shutdown()
                raise ValueError(f"--gpu-fraction {gpu_fraction:g}: this machine has no CUDA device")
            share = gpu_fraction
        self._evaluate = ray.put(evaluate)
        self._remote = ray.remote(num_cpus=1, num_gpus=share, max_retries=RETRIES, retry_exceptions=False)(_in_worker)

    @property
    def pending(self) -> int:
        return len(self._futures)

    def submit(self, task: Task) -> None:
        self._futures[self._remote.remote(self._evaluate, dict(task))] = int(task["trial"])

    def wait(self, timeout_s: float | None = None) -> list[Outcome]:
        if not self._futures:
            return []
        ready, _ = self._ray.wait(list(self._futures), num_returns=1, timeout=timeout_s)
        outcomes = []
        for future in ready:
            trial = self._futures.pop(future)
            try:
                outcomes.append(self._ray.get(future))
            except self._ray.exceptions.WorkerCrashedError:
                outcomes.append(Outcome(trial, None, f"its worker process died, {RETRIES + 1} times"))
            except self._ray.exceptions.OutOfMemoryError:
                outcomes.append(Outcome(trial, None, "out of memory: Ray stopped its worker to save the machine"))
            except self._ray.exceptions.RayError as error:
                outcomes.append(Outcome(trial, None, describe_error(error)))
        return outcomes

    def close(self) -> None:
        self._futures.clear()
        if self._ray.is_initialized():
            self._ray.shutdown()


def _evaluate_safely(evaluate: Evaluate, task: Task) -> Outcome:
    try:
        with training():
            return Outcome(int(task["trial"]), evaluate(task))
    except MemoryError as error:
        return Outcome(int(task["trial"]), None, f"out of memory: {describe_error(error)}")
    # Any exception of a candidate is that candidate's failure: the one place where all of them are caught.
    except Exception as error:
        logger.info("trial %s failed", task["trial"], exc_info=True)
        return Outcome(int(task["trial"]), None, describe_error(error))


def _in_worker(evaluate: Evaluate, task: Task) -> Outcome:
    import torch

    torch.set_num_threads(1)
    return _evaluate_safely(evaluate, task)
