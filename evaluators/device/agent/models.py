"""Times ONNX models through onnxruntime, and single nodes of them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .lock import alone
from .timing import Timed, time_runs

PROFILED_RUNS = 10
ROOM_BYTES = 2**25
"""What profiling writes to the disk, beside an optimized model of about the size of the given one."""

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
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
        input_shapes: of all inputs, by their names; where there are none, as the model declares them.
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
    input_shapes: dict[str, list[int]] = {}  # noqa: RUF012  (never changed; messages carry it as JSON)


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
    gpu = job.provider != "CPUExecutionProvider"
    return time_runs(run, job.time_limit_s, job.min_runs, one_thread=one_thread, gpu=gpu), feeds


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
    """Random inputs of the job's shapes, or the declared ones, where an open first size is the job's batch.

    Whole numbers are 0 or 1, which any table has a row for. Raises ValueError for sizes that are open.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for node in session.get_inputs():
        if node.type not in _DTYPES:
            raise ValueError(f"input {node.name!r} is {node.type}; measured are {', '.join(_DTYPES)}")
        shape = list(job.input_shapes.get(node.name, node.shape))
        if shape and not isinstance(shape[0], int):
            shape[0] = job.batch
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"{job.what}: input {node.name!r} has open sizes: say them (--input-shape)")
        if len(shape) == 4 and shape[0] != job.batch:
            raise ValueError(
                f"{job.target} is of batch {job.batch}, and the model's input {node.name!r} is of batch {shape[0]}"
            )
        kind = np.dtype(_DTYPES[node.type])
        values = rng.standard_normal(shape) if kind.kind == "f" else rng.integers(0, 2, shape)
        feeds[node.name] = np.asarray(values).astype(kind)
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
