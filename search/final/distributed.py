"""One final training in many processes, through Ray Train: gloo on CPUs, NCCL on GPUs.

The workers keep no files: what they write and read goes through an actor beside the driver, this process, which has the
training's folder. So no storage is shared. Ray Train starts all workers anew where one is lost, and the training goes
on from what was kept last.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..training.pool import describe_error
from ..training.ray_cluster import RayCluster, environment

if TYPE_CHECKING:
    from torch import nn

    from ...evaluators.data.sources import Data
    from ...evaluators.tasks import Task
    from ...evaluators.training.final.planning import Plan
    from ...evaluators.training.final.records import FinalSettings, Report, TrainedNetwork
    from ...evaluators.training.final.store import Store
    from ...search_space import LowFormerConfig

NEEDED = ("pandas", "pyarrow")  # what Ray Train imports beyond what Ray itself needs
RETRIES = 3  # how often all workers are started anew
LISTEN_S = 0.5
GIVE_UP_S = 10.0
# Ray Train's settings: its second version, workers stay in the working directory, no metrics, quick to see an end.
_TRAIN = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}

_logger = logging.getLogger("lownas.search")


def train_distributed(
    network: LowFormerConfig | nn.Module,
    data: Data,
    store: Store,
    settings: FinalSettings,
    *,
    workers: int,
    task: str | Task = "classification",
    resolution: int | None = None,
    resume: bool = False,
    report: Report | None = None,
    announce: Callable[[Plan], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    address: str | None = None,
    insecure: bool = False,
) -> TrainedNetwork:
    """Trains a network as `train_network` does, on several workers that share every batch.

    Each worker has `settings.threads` CPUs, and a GPU where there are any and `settings.device` is not "cpu". Data,
    checkpoint and teacher must be found by every worker under the same names.

    Args:
        workers: how many; the recipe's batch must be a multiple of it.
        address: of a Ray cluster; None starts Ray on this machine (see `RayCluster`).
        insecure: whether a cluster without authentication will do.

    Raises:
        ValueError, OSError, TrainingFailed: as `train_network`.
        ValueError: too few CPUs or GPUs, an address that cannot be used, or Ray Train's needs are not installed.
        RuntimeError: workers were lost again and again; what was kept can be gone on with.
    """
    function = _Training(network, data, settings, task, resolution, resume, on_step is not None)
    announced: list[Plan] = []

    def announce_once(plan: Plan) -> None:  # workers that are started anew announce it again
        if announce is not None and not announced:
            announced.append(plan)
            announce(plan)

    callbacks = {"report": report, "announce": announce_once, "on_step": on_step}
    trained: TrainedNetwork = run_workers(
        function,
        store,
        workers=workers,
        threads=settings.threads,
        device=settings.device,
        callbacks={name: each for name, each in callbacks.items() if each is not None},
        address=address,
        insecure=insecure,
    )
    return trained


@dataclass(frozen=True)
class _Training:
    """What each worker does."""

    network: Any
    data: Any
    settings: FinalSettings
    task: Any
    resolution: int | None
    resume: bool
    tells_steps: bool

    def __call__(self, driver: Driver) -> TrainedNetwork:
        from ...evaluators.training.final.training import train_network

        return train_network(
            self.network,
            self.data,
            driver,
            replace(self.settings, device=driver.device),
            task=self.task,
            resolution=self.resolution,
            resume=self.resume or driver.has_written,
            report=lambda status: driver.tell("report", status),
            announce=lambda plan: driver.tell("announce", plan),
            on_step=(lambda step, loss: driver.tell("on_step", step, loss)) if self.tells_steps else None,
        )


class Driver:
    """What a worker knows of the process that started it: a `Store` there, and callbacks.

    Attributes:
        device: that this worker trains on, as torch calls it.
        has_written: whether something was written to the store before the workers were started anew.
    """

    def __init__(self, ray: Any, mailbox: Any, rank: int, device: str) -> None:
        self._ray, self._mailbox, self._rank = ray, mailbox, rank
        self.device = device
        self.has_written = False

    def write(self, name: str, content: bytes) -> None:
        self.ask("write", name, content)

    def read(self, name: str) -> bytes | None:
        content: bytes | None = self.ask("read", name)
        return content

    def remove(self, name: str) -> None:
        self.ask("remove", name)

    def tell(self, callback: str, *arguments: Any) -> None:
        """Has a callback called there; does not wait. Only the first worker is heard."""
        if self._rank == 0:
            self._mailbox.put.remote("call", callback, arguments)

    def ask(self, what: str, *arguments: Any) -> Any:
        """Waits for the answer; what is raised there is raised here."""
        value, error = self._ray.get(self._mailbox.ask.remote(what, arguments))
        if error is not None:
            raise error
        return value

    def log(self, text: str) -> None:
        self._mailbox.put.remote("log", "", (text,))


class _Mailbox:
    """An actor that keeps what workers say until the driver comes for it. It does not matter where it is."""

    def __init__(self) -> None:
        self._messages: list[tuple[int | None, str, Any]] = []
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._arrived = asyncio.Event()
        self._asked = 0

    async def put(self, what: str, name: str, arguments: tuple[Any, ...]) -> None:
        self._messages.append((None, what, (name, *arguments)))
        self._arrived.set()

    async def ask(self, what: str, arguments: tuple[Any, ...]) -> Any:
        self._asked += 1
        number = self._asked
        self._answers[number] = asyncio.get_running_loop().create_future()
        self._messages.append((number, what, arguments))
        self._arrived.set()
        return await self._answers[number]

    async def take(self, timeout_s: float) -> list[tuple[int | None, str, Any]]:
        """All that has arrived, or nothing after so many seconds."""
        if not self._messages:
            try:
                await asyncio.wait_for(self._arrived.wait(), timeout_s)
            except TimeoutError:
                return []
        self._arrived.clear()
        taken, self._messages = self._messages, []
        return taken

    async def answer(self, number: int, value: Any, error: Exception | None) -> None:
        self._answers.pop(number).set_result((value, error))


def run_workers(
    function: Callable[[Driver], Any],
    store: Store,
    *,
    workers: int,
    threads: int = 1,
    device: str = "cpu",
    callbacks: dict[str, Callable[..., None]] | None = None,
    address: str | None = None,
    insecure: bool = False,
) -> Any:
    """Calls a function in each of several processes that torch.distributed connects; gives what the first one returns.

    The function must be importable or be pickled with all it needs. If a worker is lost, all begin anew.

    Args:
        store: of this process, which the workers reach by their `Driver`.
        callbacks: of this process, by the names that `Driver.tell` calls them by; what they raise ends everything.

    Raises what the function raises, unless it is a RuntimeError of no class of this package, which may come of another
    worker that was lost: all begin anew then, and in the end it is a RuntimeError of one line.
    """
    _check_needs(workers)
    cluster = RayCluster(workers * threads, address, insecure=insecure)
    local = cluster.owned and address is None
    try:
        gpu = _check_resources(cluster.ray, workers, threads, device, local=local)
        folder_of_ray = tempfile.TemporaryDirectory(prefix="lownas-", ignore_cleanup_errors=True)
        with environment(_TRAIN), folder_of_ray as folder:
            mailbox = cluster.ray.remote(num_cpus=0)(_Mailbox)
            mailbox = mailbox.options(scheduling_strategy=cluster.beside_driver(soft=False)).remote()
            trainer = _trainer(function, mailbox, workers, threads, gpu, folder, local)
            return _Session(cluster, mailbox, store, callbacks or {}).run(trainer)
    finally:
        cluster.close()


class _Session:
    """The driver's side: answers workers until Ray Train has ended."""

    def __init__(
        self, cluster: RayCluster, mailbox: Any, store: Store, callbacks: dict[str, Callable[..., None]]
    ) -> None:
        self._cluster, self._ray, self._mailbox = cluster, cluster.ray, mailbox
        self._store, self._callbacks = store, callbacks
        self._said: set[str] = set()
        self._has_written = False
        self._fatal: Exception | None = None
        self._results: list[Any] = []

    def run(self, trainer: Any) -> Any:
        """Runs Ray Train's trainer to its end; gives what the first worker returned."""
        failed: list[Exception] = []

        def fit() -> None:
            try:
                trainer.fit()
            except Exception as error:  # whatever it is, the main thread tells it
                failed.append(error)

        # In a thread of its own Ray Train leaves the handling of Ctrl-C as it is.
        fitting = threading.Thread(target=fit, name="lownas-ray-train", daemon=True)
        fitting.start()
        try:
            self._serve(fitting)
        except self._ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray was lost: {describe_error(error)}") from None
        finally:
            self._ray.kill(self._mailbox)
            if fitting.is_alive():  # this process was interrupted; it must not end while that thread waits for Ray
                self._cluster.close()
                fitting.join(GIVE_UP_S)
        if self._fatal is not None:
            raise self._fatal
        if failed or not self._results:
            why = _described(failed[0]) if failed else "the first one gave no result"
            raise RuntimeError(f"the workers failed, {RETRIES + 1} times: {why}")
        return self._results[0]

    def _serve(self, fitting: threading.Thread) -> None:
        while True:
            over = not fitting.is_alive()
            messages = self._ray.get(self._mailbox.take.remote(0 if over else LISTEN_S))
            for number, what, arguments in messages:
                if number is None:
                    self._hear(what, *arguments)
                else:
                    self._mailbox.answer.remote(number, *self._answer(what, arguments))
            if over and not messages:
                return

    def _hear(self, what: str, name: str, *arguments: Any) -> None:
        """Calls a callback, whose exceptions end everything, or says what a worker warns of, each thing once."""
        if what == "call":
            if (callback := self._callbacks.get(name)) is not None:
                callback(*arguments)
        elif arguments[0] not in self._said:
            self._said.add(arguments[0])
            _logger.warning("%s", arguments[0])

    def _answer(self, what: str, arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
        """What a worker that waits gets: a value, or an exception to raise."""
        if what == "begin":
            return (self._fatal is None and not self._results, self._has_written), None
        if what == "result":
            self._results = [arguments[0]]
            return None, None
        if what == "fatal":
            self._fatal = self._fatal or arguments[0]
            return None, None
        self._has_written |= what == "write"
        try:
            return getattr(self._store, what)(*arguments), None
        except (OSError, ValueError) as error:
            return None, error


def _trainer(
    function: Callable[[Driver], Any],
    mailbox: Any,
    workers: int,
    threads: int,
    gpu: bool,
    folder: str,
    local: bool,
) -> Any:
    import ray.train.torch

    train: Any = ray.train
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if local:  # all traffic stays on the loopback interface
        variables |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    config = {"function": function, "mailbox": mailbox, "threads": threads, "meet_in": folder if local else None}
    return train.torch.TorchTrainer(
        _work,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": threads, **({"GPU": 1} if gpu else {})}
        ),
        run_config=train.RunConfig(
            storage_path=folder,
            failure_config=train.FailureConfig(max_failures=RETRIES, controller_failure_limit=RETRIES),
            worker_runtime_env={"env_vars": variables},
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )


def _work(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker."""
    import ray
    import torch
    from ray.train.torch import get_device

    torch.set_num_threads(config["threads"])
    rank = ray.train.get_context().get_world_rank()
    driver = Driver(ray, config["mailbox"], rank, str(get_device()))
    goes_on, driver.has_written = driver.ask("begin")
    if not goes_on:  # an error that no second try mends, or all is done
        return
    if config["meet_in"] is not None:
        _meet_in_a_file(config["meet_in"], driver.device)
    handler = _Forwarding(driver)
    logging.getLogger("lownas").addHandler(handler)
    try:
        value = config["function"](driver)
    except Exception as error:
        if not _may_be_another_workers(error):
            driver.ask("fatal", error)
        raise
    finally:
        logging.getLogger("lownas").removeHandler(handler)
    if rank == 0:
        driver.ask("result", value)


def _may_be_another_workers(error: Exception) -> bool:
    """Whether an error may come of a worker that was lost: then all begin anew."""
    if isinstance(error, ConnectionError | TimeoutError | MemoryError) or type(error).__module__.startswith("ray."):
        return True
    return isinstance(error, RuntimeError) and not type(error).__module__.startswith("lownas.")


def _meet_in_a_file(folder: str, device: str) -> None:
    """Connects the workers of one machine anew, by a file: Ray Train's way leaves a port open to the whole network."""
    import torch
    import torch.distributed as dist

    number = torch.randint(2**62, (1,), device=device)
    dist.broadcast(number, 0)
    rank, world, backend = dist.get_rank(), dist.get_world_size(), dist.get_backend()
    dist.destroy_process_group()
    dist.init_process_group(backend, init_method=f"file://{folder}/{int(number)}", rank=rank, world_size=world)


class _Forwarding(logging.Handler):
    """Hands a worker's warnings to the driver."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(logging.WARNING)
        self._driver = driver

    def emit(self, record: logging.LogRecord) -> None:
        self._driver.log(record.getMessage())


def _described(error: Exception) -> str:
    """What went wrong in workers, in one line: that of the lowest rank."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        return describe_error(error)
    rank = min(failures)
    return f"worker {rank}: {describe_error(failures[rank])}"


def _check_needs(workers: int) -> None:
    if workers < 1:
        raise ValueError(f"workers: at least 1, given {workers}")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"--workers {workers}: Ray Train needs {' and '.join(missing)}: pip install 'lownas[distributed]'"
        )


def _check_resources(ray: Any, workers: int, threads: int, device: str, *, local: bool) -> bool:
    """Whether each worker has a GPU. Raises ValueError where Ray would wait forever for what there is too little of."""
    found = ray.cluster_resources()
    cpus, gpus = found.get("CPU", 0.0), found.get("GPU", 0.0)
    if not local and cpus < workers * threads:
        raise ValueError(f"--workers {workers}: {workers * threads} CPUs are needed, and the cluster has {cpus:g}")
    if device == "cpu":
        return False
    if not device.startswith("cuda"):
        raise ValueError(f"--workers {workers}: they train on cpu or cuda, not on {device}")
    if gpus < workers:
        raise ValueError(f"--workers {workers}: each needs a CUDA device, and there are {gpus:g}")
    return True
