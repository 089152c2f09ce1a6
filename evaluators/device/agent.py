"""Times ONNX models through onnxruntime on the machine that runs them: this one, or another that this file is sent to.

It needs Python 3.8, numpy and onnxruntime, and nothing else of lownas: `runtimes/` imports it, `remote.py` sends this
very file over SSH. There it answers requests on its standard input, each a line of JSON and a compressed ONNX model, by
lines of JSON, until the input ends.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import platform
import queue
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

MARK = "lownas-agent-1"
"""Begins the first line of an agent's answers; a shell may have printed others before."""
PROFILED_RUNS = 10
WAIT_S = 120.0
"""How long to wait for another measurement on this machine to end."""
SAY_AFTER_S = 5.0
"""How long to wait in silence."""
GIVE_UP_S = 10.0
"""How long a run of a model may go on once nobody waits for it."""
IDLE_S = 600.0
"""How long an agent waits for a request before it ends; whoever needs it again starts another."""
BEAT_S = 10.0
"""Whoever waits for an answer sends an empty line so often."""
SILENCE_S = 60
"""How long an agent measures on without such a line: a broken connection may not tell of its end for hours."""
ROOM_BYTES = 2**25
"""What profiling writes to the disk, beside an optimized model of about the size of the given one."""
TURN_S = 2.0  # after so long a training lets a measurement by that waits
LOCK = Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()) / "lownas.lock"
"""Held during every measurement on this machine, whoever's it is."""

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


class Job(NamedTuple):
    """What to do with a model.

    Attributes:
        what: name of the model, for messages.
        target: name of the setting, for messages.
        provider: onnxruntime's execution provider.
        provider_options: its options.
        batch: images at a time, where the model leaves that open.
        threads: computation threads.
        time_limit_s: warm-up and timed runs end by then (one run is always made).
        min_runs: timed runs to make where the limit allows them; more if they are short.
        kernels: also profile the nodes of the optimized model; with the CPU provider alone.
    """

    what: str
    target: str
    provider: str
    provider_options: dict[str, str]
    batch: int
    threads: int
    time_limit_s: float
    min_runs: int
    kernels: bool


class Timed(NamedTuple):
    """Times in ms, in order; see `latency_record.LatencyMeasurement`."""

    times_ms: list[float]
    cpu_times_ms: list[float]
    warmup_runs: int
    busy_cores: float


class Node(NamedTuple):
    """A node of an optimized model, and the lower fifth of its profiled times in ms (None: it never ran)."""

    op_type: str
    name: str
    input: list[str]
    output: list[str]
    ms: float | None


def time_model(model: bytes | str, job: Job, say: Callable[[str], None]) -> tuple[Timed, list[Node] | None]:
    """Times a model, serialized or in a file, and profiles its nodes if the job says so, alone on this machine.

    `say` is told if that means a long wait.

    Raises:
        ValueError: onnxruntime cannot load or run it.
        RuntimeError: another measurement does not end, or the disk is full.
    """
    with alone(say) as folder:
        if job.kernels:
            size = len(model) if isinstance(model, bytes) else os.path.getsize(model)
            free, needed = shutil.disk_usage(folder).free, size + ROOM_BYTES
            if free < needed:
                raise RuntimeError(f"{folder} has room for {free >> 20} MiB, and {job.what} needs {needed >> 20} MiB")
        optimized = folder / "optimized.onnx" if job.kernels else None
        timed, feeds = _time_whole(model, job, optimized)
        return timed, None if optimized is None else _profile(optimized, feeds, job, folder)


def _time_whole(model: bytes | str, job: Job, optimized: Path | None) -> tuple[Timed, dict[str, np.ndarray]]:
    """The times, and the inputs they were taken with. The session ends here: its arena would only crowd the caches."""
    session = _session(model, job, optimized)
    feeds = _random_feeds(session, job)

    def run() -> None:
        session.run(None, feeds)

    try:
        run()
    except Exception as error:  # onnxruntime's own, which share no public base class
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{job.what} does not run in onnxruntime: {reason[:200]}") from None
    one_thread = job.provider == "CPUExecutionProvider" and job.threads == 1
    return time_runs(run, job.time_limit_s, job.min_runs, one_thread=one_thread), feeds


# --- alone on this machine -------------------------------------------------------------------------------------------


@contextmanager
def alone(say: Callable[[str], None]) -> Iterator[Path]:
    """Holds the one lock that every measurement on this machine takes; gives an empty folder meanwhile.

    Trainings (`training`) share that lock, so that no measurement runs beside them either. Raises RuntimeError if
    whoever has it keeps it for longer than `WAIT_S`. `say` is told of a long wait.
    """
    base = Path(tempfile.gettempdir()) / f"lownas-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.is_symlink() or not base.is_dir() or base.stat().st_uid != os.getuid():
        raise RuntimeError(f"{base} is not a folder of this user's: remove it")
    begin = time.monotonic()
    with _lock_file() as lock:
        with _lock_file(".turn") as turn:
            _wait_for(turn, lock, say, begin)
            _wait_for(lock, lock, say, begin)  # meanwhile no training begins
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        folder = base / "work"
        shutil.rmtree(folder, ignore_errors=True)  # what a measurement that was killed has left there
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.truncate(0)


class HoldingOff:
    """Holds off measurements while this process works hard; waits for one under way. Others may train meanwhile.

    A measurement that waits is the next one: trainings that begin later, or let it by, wait for it.
    """

    def __enter__(self) -> HoldingOff:
        with _lock_file(".turn") as turn:
            fcntl.flock(turn, fcntl.LOCK_SH)
            self._lock = _lock_file()
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        self._since = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def let_measure(self) -> None:
        """To be called now and then in long work: lets a measurement by that waits, if it is a while since."""
        if time.monotonic() - self._since >= TURN_S:
            self._lock.close()
            self.__enter__()


@contextmanager
def training() -> Iterator[None]:
    """Holds off measurements all the time; see `HoldingOff`."""
    with HoldingOff():
        yield


def _lock_file(suffix: str = "") -> TextIO:
    """The lock's file, open; whoever comes first makes it, and every user of this machine may lock it."""
    path = f"{LOCK}{suffix}"
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            opened = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(opened, 0o666)  # whatever the umask
        except FileExistsError:
            opened = os.open(path, flags)  # not to be made: Linux may forbid that for another user's file
    except OSError as error:
        raise RuntimeError(f"cannot open the lock of measurements {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise RuntimeError(f"{path} is not a plain file: remove it")
    return os.fdopen(opened, "a+")


def _wait_for(wanted: TextIO, lock: TextIO, say: Callable[[str], None], begin: float) -> None:
    said = False
    while not _locked(wanted):
        waited = time.monotonic() - begin
        lock.seek(0)
        holder = lock.read(30)  # of a measurement; trainings, of which there may be several, leave no name
        measures = holder.startswith("process ") and holder[8:].isdigit()
        what = f"another measurement on this machine ({holder})" if measures else "trainings on this machine"
        if waited > WAIT_S:
            raise RuntimeError(f"waited {waited:.0f} s for {what} to end")
        if waited > SAY_AFTER_S and not said:
            said = True
            say(f"waiting for {what} to end")
        time.sleep(0.02)


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- onnxruntime -----------------------------------------------------------------------------------------------------


def load_onnxruntime() -> Any:
    """The module, told to send nothing anywhere: its telemetry has a thread and files of its own."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def _session(model: bytes | str, job: Job, optimized: Path | None) -> Any:
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if job.threads > 1 else "0")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[(job.provider, job.provider_options)])
    except Exception as error:  # onnxruntime's exceptions share no narrower base class than this
        raise ValueError(f"onnxruntime cannot load the model: {str(error).splitlines()[0]:.200}") from None
    if job.provider not in session.get_providers():  # it falls back to the CPU where a driver or library is missing
        raise ValueError(
            f"onnxruntime's {job.provider} does not start here (driver, CUDA, cuDNN or TensorRT missing or of another "
            f"version?): it would run on {', '.join(session.get_providers())}"
        )
    return session


def _random_feeds(session: Any, job: Job, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of the declared shapes; a symbolic first size is the job's batch. Raises ValueError for others."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for node in session.get_inputs():
        if node.type not in _DTYPES:
            raise ValueError(f"input {node.name!r} is {node.type}; measured are {', '.join(_DTYPES)}")
        shape = list(node.shape)
        if shape and not isinstance(shape[0], int):
            shape[0] = job.batch
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"{job.what}: input {node.name!r} has a symbolic size; export with a fixed input size")
        if len(shape) == 4 and shape[0] != job.batch:
            raise ValueError(
                f"{job.target} is of batch {job.batch}, and the model's input {node.name!r} is of batch {shape[0]}"
            )
        feeds[node.name] = rng.standard_normal(shape).astype(_DTYPES[node.type])
    return feeds


def _profile(optimized: Path, feeds: dict[str, np.ndarray], job: Job, folder: Path) -> list[Node]:
    """The nodes of an optimized model, run as it is under onnxruntime's profiler."""
    onnxruntime = load_onnxruntime()
    nodes = list(_nodes(optimized.read_bytes()))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(optimized), options, providers=[job.provider])
    deadline = time.perf_counter() + job.time_limit_s
    for number in range(PROFILED_RUNS + 2):
        if number > 2 and time.perf_counter() > deadline:
            break
        session.run(None, feeds)
    times: list[list[float]] = [[] for _ in nodes]
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event.get("name", "").endswith("_kernel_time"):
            index = int(event["args"]["node_index"])
            if index < len(nodes):  # a shared DequantizeLinear is doubled as onnxruntime loads an optimized model
                times[index].append(event["dur"] / 1e3)
    for index, kept in enumerate(times):
        if kept:
            nodes[index] = nodes[index]._replace(ms=float(np.quantile(kept[2:], 0.2)))
    return nodes


def _nodes(model: bytes) -> Iterator[Node]:
    """The nodes of a serialized ModelProto, read with no library: of onnx.proto only what is named here."""
    for number, graph in _fields(memoryview(model)):
        if number != 7:  # ModelProto.graph
            continue
        for number, node in _fields(graph):
            if number == 1:  # GraphProto.node
                texts: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: []}  # NodeProto: input, output, name, op_type
                for number, text in _fields(node):
                    if number in texts:
                        texts[number].append(bytes(text).decode())
                yield Node("".join(texts[4]), "".join(texts[3]), texts[1], texts[2], None)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of a protobuf message's fields of variable length; the others are passed over."""
    position = 0

    def varint() -> int:
        nonlocal position
        value, shift = 0, 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while position < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            varint()
        elif kind == 2:
            length = varint()
            yield key >> 3, message[position : position + length]
            position += length
        else:
            position += {1: 8, 5: 4}[kind]


# --- timing ----------------------------------------------------------------------------------------------------------


def _wall_clock(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) * 1e3


def time_runs(
    run: Callable[[], object],
    time_limit_s: float,
    min_runs: int,
    clock: Callable[[Callable[[], object]], float] = _wall_clock,
    one_thread: bool = False,
) -> Timed:
    """Warms up, then times. With `one_thread` the calling thread does all the work, and its CPU time is noted too."""
    deadline = time.perf_counter() + time_limit_s
    warmup = _warm_up(run, clock, time_limit_s / 4)
    busy, own = _busy_s(), sum(os.times()[:2])
    begin = time.perf_counter()
    # Enough runs for a stable median; short ones are repeated for at least a twentieth of the limit.
    least = begin + time_limit_s / 20
    times: list[float] = []
    cpu_times: list[float] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        while not times or (time.perf_counter() < deadline and (len(times) < min_runs or time.perf_counter() < least)):
            cpu_begin = time.thread_time()
            times.append(clock(run))
            cpu_times.append((time.thread_time() - cpu_begin) * 1e3)
    finally:
        if collecting:
            gc.enable()
    elapsed = time.perf_counter() - begin
    others = _busy_s() - busy - (sum(os.times()[:2]) - own)
    busy_cores = max(0.0, others / elapsed) if elapsed > 0.2 else 0.0  # the kernel counts in steps of 10 ms
    return Timed(times, cpu_times if one_thread else [], warmup, busy_cores)


def _warm_up(run: Callable[[], object], clock: Callable[[Callable[[], object]], float], limit_s: float) -> int:
    """Runs until the medians of two successive windows of five agree within 3 %, for at most `limit_s`."""
    window = 5
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < limit_s:
        times.append(clock(run))
        if len(times) >= 2 * window and len(times) % window == 0:
            before, after = np.median(times[-2 * window : -window]), np.median(times[-window:])
            if abs(after / before - 1) < 0.03:
                break
    return len(times)


def _busy_s() -> float:
    """Seconds that all cores of this machine have worked, since it started; 0 where the system does not tell."""
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


# --- on another machine ----------------------------------------------------------------------------------------------


def _hello() -> dict[str, Any]:
    onnxruntime = load_onnxruntime()
    return {
        "cpu": _cpu_name(),
        "gpu": _gpu_name(),
        "cores": _cores(),
        "providers": onnxruntime.get_available_providers(),
        "versions": {
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _cores() -> int:
    """Physical cores, as far as the system tells."""
    try:
        entries = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")
    except OSError:
        entries = []
    cores = set()
    for entry in entries:
        places = [line for line in entry.splitlines() if line.startswith(("physical id", "core id"))]
        if places:
            cores.add(tuple(places))
    return len(cores) or os.cpu_count() or 1


def _cpu_name() -> str:
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    model = fields.get("model name") or _board() or platform.processor() or "unknown"
    details = [
        f"{key} {fields[key]}" for key in ("cpu family", "model", "CPU implementer", "CPU part") if key in fields
    ]
    vectors = [flag for flag in ("avx512f", "avx2", "avx", "asimd") if flag in _flags(fields)][:1]
    return " ".join([model, *details, *vectors, platform.machine()])


def _flags(fields: Mapping[str, str]) -> list[str]:
    return (fields.get("flags") or fields.get("Features") or "").split()


def _board() -> str:
    """Name of a single-board computer."""
    try:
        return Path("/proc/device-tree/model").read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _gpu_name() -> str:
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return _board() or "none"


def _answer_to(job: dict[str, Any], model: bytes, say: Callable[[str], None]) -> dict[str, Any]:
    """The last answer to a request: what was timed, or why that cannot be done."""
    try:
        timed, nodes = time_model(zlib.decompress(model), Job(**job), say)
    except ValueError as error:
        return {"refused": str(error)}
    except RuntimeError as error:
        return {"failed": str(error)}
    except Exception as error:  # whatever it is, whoever asked must learn of it
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"timed": timed._asdict(), "nodes": nodes}


def serve() -> None:
    """Answers requests until the input ends: then whoever asked is gone, and a measurement under way is given up."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not end up among the answers
    ending = (signal.SIGTERM, signal.SIGHUP)

    def end(*_: object) -> None:
        """By way of all that cleans up, which another signal must not break off."""
        for sent in ending:
            signal.signal(sent, signal.SIG_IGN)
        sys.exit(1)

    for sent in ending:
        signal.signal(sent, end)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends this process, whatever it is doing
    requests: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()
    receiving = threading.Event()
    measuring = threading.Event()
    alarm = threading.Lock()  # for "measuring", and the system's clock that goes with it

    def answer(**fields: object) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    def read() -> None:
        try:
            while line := sys.stdin.buffer.readline():
                with alarm:
                    if measuring.is_set():
                        signal.alarm(SILENCE_S)
                if not line.strip():
                    continue
                receiving.set()
                request = json.loads(line)
                model = sys.stdin.buffer.read(request["bytes"])
                if len(model) < request["bytes"]:
                    break
                requests.put((request["job"], model))
                receiving.clear()
        finally:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            time.sleep(GIVE_UP_S)
            os._exit(1)

    answers.write("\n" + MARK + " ")  # on a line of its own, even after a prompt
    answer(**_hello())
    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            try:
                job, model = requests.get(timeout=IDLE_S)
            except queue.Empty:
                if receiving.is_set():
                    continue
                break
            with alarm:
                measuring.set()
                signal.alarm(SILENCE_S)
            last = _answer_to(job, model, lambda text: answer(waiting=text))
            with alarm:
                measuring.clear()
                signal.alarm(0)
            answer(**last)
    except BrokenPipeError:
        pass
    finally:
        os._exit(0)  # a thread that is reading would stand in the way of an ordinary end


if __name__ == "__main__":
    serve()
