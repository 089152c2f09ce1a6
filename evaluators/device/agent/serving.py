"""Answers requests on the standard input, each a line of JSON and a compressed ONNX model, by lines of JSON."""

from __future__ import annotations

import json
import os
import platform
import queue
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .machine_state import machine_state, nvidia_gpu
from .models import Job, load_onnxruntime, time_model

MARK = "lownas-agent-1"
"""Begins the first line of an agent's answers; a shell may have printed others before."""
GIVE_UP_S = 10.0
"""How long a run of a model may go on once nobody waits for it."""
IDLE_S = 600.0
"""How long an agent waits for a request before it ends; whoever needs it again starts another."""
BEAT_S = 10.0
"""Whoever waits for an answer sends an empty line so often."""
SILENCE_S = 60
"""How long an agent measures on without such a line: a broken connection may not tell of its end for hours."""


def _hello() -> dict[str, Any]:
    onnxruntime = load_onnxruntime()
    providers = onnxruntime.get_available_providers()
    return {
        "cpu": _cpu_name(),
        "gpu": _gpu_name(),
        "cores": _cores(),
        "providers": providers,
        "settings": machine_state(gpu=providers != ["CPUExecutionProvider"]).settings,
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
    return nvidia_gpu() or _board() or "none"


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
