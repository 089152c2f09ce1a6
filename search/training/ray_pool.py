"""Candidates in Ray workers, on this machine or on a cluster.

Workers are stateless and know nothing of the study, so any of them may die.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

from .pool import DIED, RETRIES, STOPPED, describe_error, evaluate_safely
from .ray_cluster import ONE_THREAD, RayCluster
from .task import Evaluate, SharedInput, TaskOutcome, TrainingTask

_logger = logging.getLogger("lownas.search")


class RayPool:
    """Evaluates tasks in Ray workers, each with one CPU and one torch thread.

    How Ray is found or started is told in `RayCluster`. If CUDA devices are there, the workers share them evenly, or
    each has `gpu_fraction` of one and no more train at once than that allows. What `share` gives goes to the object
    store once.

    Raises ValueError for a fraction of what is not there, an address that cannot be used, or nodes with other versions.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        workers: int,
        gpu_fraction: float | None = None,
        *,
        share: SharedInput | None = None,
        trial_timeout_s: float | None = None,
        address: str | None = None,
        insecure: bool = False,
        log: logging.Logger = _logger,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers: at least 1, given {workers}")
        self._cluster = RayCluster(workers, address, insecure=insecure, log=log)
        ray = self._cluster.ray
        self.size = workers
        self._ray, self._log = ray, log
        self._share = share
        self._shared: dict[Hashable, Any] = {}
        self._timeout_s = trial_timeout_s
        self._futures: dict[Any, _Pending] = {}
        self._submitted = 0
        gpus = ray.cluster_resources().get("GPU", 0.0)
        gpu_share = math.floor(gpus / workers * 100) / 100 if gpus < workers else 1.0
        if gpu_fraction is not None:
            if not gpus:
                self.close()
                raise ValueError(f"--gpu-fraction {gpu_fraction:g}: there is no CUDA device")
            gpu_share = gpu_fraction
        self._evaluate = ray.put(evaluate)
        registry = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Registry)
        self._registry: Any = registry.options(scheduling_strategy=self._cluster.beside_driver()).remote()
        self._remote = ray.remote(
            num_cpus=1,
            num_gpus=gpu_share,
            max_retries=RETRIES,
            retry_exceptions=False,
            runtime_env={"env_vars": ONE_THREAD},
        )(_in_worker)
        self._call = ray.remote(num_cpus=1, num_gpus=gpu_share, runtime_env={"env_vars": ONE_THREAD})(_called)
        self._send = ray.remote(num_cpus=0, max_retries=0)(_send)

    @property
    def pending(self) -> int:
        return len(self._futures)

    def submit(self, task: TrainingTask) -> None:
        shared = None
        if self._share is not None:
            key, load = self._share(task)
            if key not in self._shared:
                self._shared[key] = self._ray.put(load())
            shared = self._shared[key]
        self._submitted += 1
        future = self._remote.remote(self._evaluate, self._registry, self._submitted, task, shared)
        due = time.monotonic() + (self._timeout_s or math.inf)
        self._futures[future] = _Pending(task.trial, self._submitted, due)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function on a worker, and gives its result. Raises RuntimeError, in one line, if that fails."""
        try:
            return self._ray.get(self._call.remote(function, *arguments))
        except self._ray.exceptions.RayError as error:
            raise RuntimeError(f"on a worker: {describe_error(error)}") from None

    def wait(self, timeout_s: float | None = None) -> list[TaskOutcome]:
        give_up = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
        while self._futures:
            now = time.monotonic()
            until = min(give_up, *(pending.due for pending in self._futures.values()))
            left = None if until == math.inf else max(0.0, until - now)
            ready, _ = self._ray.wait(list(self._futures), num_returns=1, timeout=left)
            if ready:
                return [self._outcome(future) for future in ready]
            if overdue := self._overdue():
                return overdue
            if time.monotonic() >= give_up:
                return []
        return []

    def _outcome(self, future: Any) -> TaskOutcome:
        trial = self._futures.pop(future).trial
        errors = self._ray.exceptions
        try:
            outcome: TaskOutcome = self._ray.get(future)
        except errors.OutOfMemoryError:
            return TaskOutcome(trial, None, STOPPED)
        except (errors.WorkerCrashedError, errors.NodeDiedError):
            return TaskOutcome(trial, None, DIED)
        except errors.RayError as error:
            return TaskOutcome(trial, None, describe_error(error))
        return outcome

    def _overdue(self) -> list[TaskOutcome]:
        """Ends the evaluations that take longer than they may, counted from when they really started."""
        now, outcomes = time.monotonic(), []
        for future, pending in list(self._futures.items()):
            if pending.due > now:
                continue
            known = self._ray.get(self._registry.where.remote(pending.number))
            assert self._timeout_s is not None
            # Where its worker is not there, the trial waits for a place, or for another worker: it begins anew.
            been_s = known.seconds if known is not None and self._signal(known, 0) else 0.0
            if known is None or been_s < self._timeout_s:
                self._futures[future] = replace(pending, due=now + self._timeout_s - been_s)
                continue
            del self._futures[future]
            self._ray.cancel(future, force=True)  # so that it is not tried again
            self._signal(known, signal.SIGKILL)
            outcomes.append(
                TaskOutcome(pending.trial, None, f"it took longer than {self._timeout_s:g} s (--trial-timeout)")
            )
        return outcomes

    def _signal(self, place: _Place, number: int) -> bool:
        """Sends a worker a signal, also one that does not answer any more; whether it is there."""
        on_its_node = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place.node, soft=False)
        try:
            remote = self._send.options(scheduling_strategy=on_its_node).remote(place.pid, int(number))
            return bool(self._ray.get(remote, timeout=30))
        except (self._ray.exceptions.RayError, TimeoutError) as error:
            self._log.warning("process %d of an overdue trial: %s", place.pid, describe_error(error))
            return False

    def close(self) -> None:
        self._futures.clear()
        self._shared.clear()
        self._cluster.close()


@dataclass(frozen=True)
class _Pending:
    """What was submitted: the trial, the submission's number, and when it is due at the earliest."""

    trial: int
    number: int
    due: float


@dataclass(frozen=True)
class _Place:
    """Where a submission is evaluated, and for how long it has been."""

    node: str
    pid: int
    seconds: float


class _Registry:
    """A Ray actor that knows which process evaluates what; by submission, since trials come again at their rungs."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[str, int, float]] = {}

    def note(self, number: int, node: str, pid: int) -> None:
        self._places[number] = (node, pid, time.monotonic())

    def where(self, number: int) -> _Place | None:
        if number not in self._places:
            return None
        node, pid, started = self._places[number]
        return _Place(node, pid, time.monotonic() - started)


def _send(pid: int, number: int) -> bool:
    """Sends a signal, 0 for none; whether the process is there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _in_worker(evaluate: Evaluate, registry: Any, number: int, task: TrainingTask, shared: Any) -> TaskOutcome:
    import ray
    import torch

    ray.get(registry.note.remote(number, ray.get_runtime_context().get_node_id(), os.getpid()))
    torch.set_num_threads(1)
    return evaluate_safely(evaluate, task if shared is None else replace(task, shared=shared), _logger)
