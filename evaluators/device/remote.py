"""Measures on another machine over SSH, with the system's OpenSSH client and the user's own configuration of it.

That machine, the box, needs Python 3.8, numpy and onnxruntime. It is sent `agent`, which runs there without being
written to a file, ends with the connection, and holds a lock while it measures; then ONNX models, one for each
measurement. When the connection is lost, it is made again and the measurement that was under way is repeated. An agent
that hears nothing for a minute ends by itself, so that no measurement goes on unseen behind a connection that broke in
silence.

`LOWNAS_SSH` may name another client or options of it (`LOWNAS_SSH="ssh -F file"`), as `GIT_SSH_COMMAND` does for git.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from ...search_space import LowFormerConfig, OnnxFile, OpGraph, op_graph
from . import agent
from .agent import lock, serving
from .agent.models import Job, Node
from .agent.timing import Timed
from .latency_record import LatencyMeasurement, Setting, latency_measurement
from .measure import measure_for_calibration
from .runtimes import Network
from .runtimes.onnxruntime import (
    CPU_PROVIDER,
    ONNX_RUNTIMES,
    check_onnx_provider,
    check_onnx_setting,
    onnx_job,
    onnx_shapes,
    onnx_source,
)

logger = logging.getLogger("lownas.evaluators")

RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Pauses between the attempts to make a lost connection again: enough for a box to start anew."""
LOSSES = 3
"""How often one measurement may lose its connection before it is given up."""
SEND_S = 3600.0
"""How long sending a model may take."""
LONGEST_LINE = 2**26
"""Bytes of one answer, at most; a longer line is none of the agent's."""
START_S = 120.0
"""How long connecting and starting the agent may take; slow storage needs a while for onnxruntime."""
PERIOD = 2048
"""Random weights repeat after so many numbers, so that models travel compressed to a fiftieth."""

_OPTIONS = (
    "-T",
    "-a",
    "-x",
    *("-o", "BatchMode=yes"),  # never ask for a password
    *("-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=10"),
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "ControlMaster=no"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "RemoteCommand=none"),
)
# Has no single quote, so that every shell passes it on as it is.
_START = (
    "import sys; "
    'sys.version_info >= (3, 8) or sys.exit("Python 3.8 is needed, this is " + sys.version.split()[0]); '
    "sys.path = [path for path in sys.path if path]; "  # not the home folder, whatever lies there
    "source = sys.stdin.buffer.read(int(sys.stdin.buffer.readline())); "
    'exec(compile(source, "lownas-agent", "exec"))'
)


class Host(Protocol):
    """How a machine is reached over SSH (`predictors.latency.target.Box` has it)."""

    @property
    def host(self) -> str: ...
    @property
    def python(self) -> str: ...


class RemoteBox:
    """Another machine that measures for this one; it connects when it is first needed. A context manager.

    To be used by one thread at a time.

    Attributes:
        host: as the SSH client takes it.
        python: interpreter on the box.
        settings: what its speed depends on (`agent.machine_state`), as it was when the connection was made.
    """

    def __init__(self, box: Host) -> None:
        self.host = box.host
        self.python = box.python
        self.settings: dict[str, str] = {}
        self._connection: _Connection | None = None
        self._about: dict[str, Any] | None = None
        self._used = time.monotonic()
        self._patient = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, and the agent with it; what is measured next connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def fingerprint(self, target: Setting) -> dict[str, str]:
        """Asks the box what a profile of `target` belongs to: its device model and runtime version.

        Raises:
            ValueError: the box lacks what the target needs.
            OSError: it cannot be reached.
        """
        check_onnx_setting(target)
        self._connected()
        assert self._about is not None
        check_onnx_provider(target, self._about["providers"], self._about["versions"]["onnxruntime"])
        on_cpu = ONNX_RUNTIMES[target.runtime].provider == CPU_PROVIDER
        if on_cpu and target.threads > self._about["cores"]:
            raise ValueError(
                f"{target} asks for {target.threads} threads, and {self.host} has {self._about['cores']} cores"
            )
        part = "cpu" if on_cpu else "gpu"
        return {part: self._about[part], "onnxruntime": self._about["versions"]["onnxruntime"]}

    def measure_latency(
        self,
        network: Network,
        target: Setting,
        *,
        time_limit_s: float = 10.0,
        min_runs: int = 30,
        kernels: bool = False,
    ) -> LatencyMeasurement:
        """Times `network` on the box; see `measure.measure_latency`.

        Raises:
            ValueError: the box cannot measure this target, or cannot load or run this model.
            OSError: it cannot be reached, or the connection is lost again and again.
            RuntimeError: another measurement on it does not end, or it does not answer in time.
        """
        host = self.fingerprint(target)
        if isinstance(network, str | Path | OnnxFile):
            what, model = onnx_source(network, target)
            if isinstance(model, Path):
                model = _whole_file(model)
        else:
            graph = op_graph(network) if isinstance(network, LowFormerConfig) else network
            what, model = onnx_source(network, target, _compressible_weights(graph))
            assert isinstance(model, bytes)
        job = onnx_job(target, what, time_limit_s, min_runs, kernels, onnx_shapes(network, target))
        answer = self._ask(job, zlib.compress(model, 1))
        assert self._about is not None
        try:
            timed = Timed(**answer["timed"])
            nodes = None if answer["nodes"] is None else [Node(*node) for node in answer["nodes"]]
            return latency_measurement(target, what, timed, nodes, host, self._about["versions"])
        except (KeyError, TypeError):
            raise RuntimeError(f"{self.host}: an answer that cannot be read: {_printable(str(answer))}") from None

    def measure_for_calibration(self, network: LowFormerConfig | OpGraph, target: Setting) -> LatencyMeasurement:
        """Makes the short measurements of a calibration on the box; see `measure.measure_for_calibration`."""
        return measure_for_calibration(network, target, self.measure_latency)

    def _ask(self, job: Job, model: bytes) -> dict[str, Any]:
        """Asks the agent to do `job`, again when the connection is lost, and gives its answer."""
        limit_s = lock.WAIT_S + 20 * job.time_limit_s + START_S
        for loss in range(LOSSES + 1):
            connection = self._connected()
            try:
                connection.send({"job": job._asdict(), "bytes": len(model)}, model)
                while "waiting" in (answer := connection.receive(limit_s)):
                    logger.warning("%s: %s", self.host, _printable(answer["waiting"]))
            except TimeoutError:
                self.close()
                raise RuntimeError(f"{self.host}: measuring {job.what} took more than {limit_s:.0f} s") from None
            except _Lost as lost:
                self.close()
                reason = str(lost)
                if loss < LOSSES:
                    logger.warning("%s: connection lost (%s); connecting again", self.host, reason)
                continue
            if "refused" in answer:
                raise ValueError(f"{self.host}: {_printable(answer['refused'])}")
            if "failed" in answer:
                raise RuntimeError(f"{self.host}: {_printable(answer['failed'])}")
            return answer
        raise ConnectionError(f"{self.host}: measuring {job.what} lost the connection {LOSSES + 1} times ({reason})")

    def _connected(self) -> _Connection:
        """The connection, made if there is none.

        A connection that was lost is tried again and again; once that was in vain, a new one is tried only once.
        """
        if time.monotonic() - self._used > serving.IDLE_S / 2:
            self.close()
        self._used = time.monotonic()
        if self._connection is not None:
            return self._connection
        pauses = (0.0, *RETRY_S) if self._patient else (0.0,)
        for number, pause in enumerate(pauses, start=1):
            time.sleep(pause)
            try:
                connection, about = _connect(self.host, self.python)
                break
            except ConnectionError as error:
                if number == len(pauses):
                    self._patient = False
                    raise
                logger.warning("%s (attempt %d of %d)", error, number, len(pauses))
        self.settings = {str(key): str(value) for key, value in about.pop("settings", {}).items()}
        if self._about is not None and self._about != about:
            connection.close()
            raise ConnectionError(f"{self.host} is not the machine that it was before the connection was lost")
        self._connection, self._about, self._patient = connection, about, True
        return connection


class _Lost(Exception):
    """Raised where the connection ended; says why."""


class _Connection:
    """One run of the SSH client, with an agent at its other end."""

    def __init__(self, command: list[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the connection)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is not for the client
            )
        except OSError as error:
            self._errors.close()
            raise ConnectionError(f"cannot run the SSH client {command[0]!r}: {error.strerror}") from None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout

    def write(self, content: bytes) -> None:
        try:
            with self._killed_after(SEND_S):
                self._in.write(content)
                self._in.flush()
        except (BrokenPipeError, ConnectionResetError):
            raise _Lost(self.last_words()) from None

    def send(self, header: Mapping[str, Any], content: bytes) -> None:
        self.write(json.dumps(header).encode() + b"\n" + content)

    def receive(self, limit_s: float, mark: str = "") -> dict[str, Any]:
        """The next answer that begins with `mark`, whatever a shell may have printed before.

        Raises TimeoutError, and ends the client, if there is none in time.
        """
        begin = time.monotonic()
        with self._killed_after(limit_s, beat=True):
            while line := self._out.readline(LONGEST_LINE).decode(errors="replace"):
                if line.startswith(mark):
                    break
        if not line and time.monotonic() - begin >= limit_s:
            raise TimeoutError
        if not line.endswith("\n"):
            raise _Lost(self.last_words())
        try:
            answer = json.loads(line[len(mark) :])
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise _Lost(f"an answer that cannot be read: {_printable(line)}")
        return answer

    @contextmanager
    def _killed_after(self, limit_s: float, beat: bool = False) -> Iterator[None]:
        """Ends the client if the body takes longer; with `beat`, the agent is told meanwhile that it is waited for."""
        done = threading.Event()

        def watch() -> None:
            deadline = time.monotonic() + limit_s
            while (left := deadline - time.monotonic()) > 0:
                if done.wait(min(left, serving.BEAT_S) if beat else left):
                    return
                if beat:
                    with suppress(OSError, ValueError):  # the body will see why
                        self._in.write(b"\n")
                        self._in.flush()
            self._process.kill()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def last_words(self) -> str:
        """Gives the reason why the client ended, in one line."""
        code = self.wait()
        said = [line for line in self.errors().splitlines() if line.strip()]
        if said:
            return _printable(said[-1])
        # What a signal ends on the box, as the system does when memory runs out, looks like this too.
        return f"the SSH client ended with {code} and without a word"

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-5000:].decode(errors="replace")

    def wait(self) -> int:
        """The client's exit code: that of the command on the box, or 255 where SSH itself failed."""
        with suppress(OSError):
            self._in.close()  # which ends the agent, and that the client
        try:
            return self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def close(self) -> None:
        self.wait()
        self._out.close()
        self._errors.close()


def _connect(host: str, python: str) -> tuple[_Connection, dict[str, Any]]:
    """Starts an agent on the box; gives the connection to it and what it says of the box.

    Raises ConnectionError and ValueError.
    """
    source = agent.program()
    client = _client()
    interpreter = f"./{python[2:]}" if python.startswith("~/") else python  # commands start in the home folder
    connection = _Connection([*client, *_OPTIONS, "--", host, f"exec {shlex.quote(interpreter)} -c '{_START}'"])
    try:
        connection.write(b"%d\n%s" % (len(source), source))
        about = connection.receive(START_S, serving.MARK)
        _check_about(about)
        return connection, about
    except TimeoutError:
        connection.close()
        raise ConnectionError(f"{host}: no answer within {START_S:.0f} s") from None
    except _Lost as lost:
        code, said, reason = connection.wait(), connection.errors(), str(lost)
        connection.close()
        if code == 255 and "IDENTIFICATION HAS CHANGED" in said:
            raise ConnectionError(f"{host}: its host key has changed: `ssh {host}` says what to do about it") from None
        if code == 255 and "Permission denied" in said:
            raise ConnectionError(f"{host}: {reason}: `ssh {host}` must work without a password") from None
        if code == 255 and "Host key verification failed" in said:
            raise ConnectionError(f"{host}: {reason}: connect once by hand (`ssh {host}`) to accept its key") from None
        if code == 255:
            raise ConnectionError(f"cannot reach {host}: {reason}") from None
        which = f"{host}: python {python!r} there"
        if code in (126, 127):
            raise ValueError(f"{which} cannot be run: name another interpreter (`python:` in its file)") from None
        if missing := re.search(r"No module named '(numpy|onnxruntime)", said):
            raise ValueError(
                f"{which} has no {missing[1]}: run `pip install numpy onnxruntime` with it, "
                "or name another interpreter (`python:` in its file)"
            ) from None
        raise ValueError(f"{which} does not run lownas's agent: {reason}") from None
    except BaseException:
        connection.close()
        raise


def _client() -> list[str]:
    given = os.environ.get("LOWNAS_SSH", "")
    try:
        return shlex.split(given) or ["ssh"]
    except ValueError as error:
        raise ValueError(f"LOWNAS_SSH: a client and its options, given {given!r:.80}: {error}") from None


def _check_about(about: Mapping[str, Any]) -> None:
    try:
        texts = [about["cpu"], about["gpu"], *about["providers"], *about["versions"].values()]
        sound = all(isinstance(text, str) for text in texts) and isinstance(about["cores"], int)
        sound = sound and "onnxruntime" in about["versions"]
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise _Lost(f"an answer that cannot be read: {_printable(str(about))}")


def _compressible_weights(graph: OpGraph) -> list[list[np.ndarray]]:
    """Random weights as `onnx_writer.random_weights` makes them, but repeating; time does not depend on them."""
    from ...search_space.graph.onnx_writer import random_weights

    return [[np.resize(values.ravel()[:PERIOD], values.shape) for values in op] for op in random_weights(graph)]


def _whole_file(path: Path) -> bytes:
    """The model in an ONNX file, with what it keeps in others beside it."""
    import onnx
    from google.protobuf.message import DecodeError, EncodeError

    try:
        return bytes(onnx.load(str(path)).SerializeToString())
    except (DecodeError, EncodeError, ValueError, OSError, onnx.checker.ValidationError) as error:
        raise ValueError(f"{path} cannot be sent: {_printable(str(error))}") from None


def _printable(text: str) -> str:
    """Text from elsewhere as one short line that does nothing to a terminal."""
    return "".join(char if char.isprintable() else " " for char in str(text)).strip()[:300]
