"""Clusters as people start them, `ray start` by `ray start`, here on the loopback interface with a token."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RAY = "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; main()"


class RayNodes:
    """Nodes of one cluster, each with one CPU and an address of its own; a context manager, at whose end they end.

    Attributes:
        environment: of who connects from the head node.
        address: HOST:PORT of the head node.
        dashboard: where it takes jobs, if there is a dashboard.
    """

    def __init__(self, *, dashboard: bool = False) -> None:
        # Short, as sockets lie in there; and nobody else's, so that "auto" means this cluster.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        unset = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in unset},
            "HOME": str(self.folder),
            "RAY_TMPDIR": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        token = self.folder / ".ray" / "auth_token"
        token.parent.mkdir()
        token.write_text(secrets.token_hex(32))
        host = self._host(0)
        self.address = f"{host}:{_free_port(host)}"
        self.dashboard = f"http://{host}:{_free_port(host)}" if dashboard else None
        self._started: list[subprocess.Popen[bytes]] = []

    @staticmethod
    def _host(number: int) -> str:
        """Not 127.0.0.1, which Ray takes for the machine's address on its network."""
        return f"127.0.0.{number + 2}"

    def __enter__(self) -> RayNodes:
        return self

    def start(self, *options: str, **variables: str) -> str:
        """Starts another node, the first one as the head; gives its address once it is there."""
        host = self._host(len(self._started))
        head = ["--head", "--port", self.address.partition(":")[2], "--include-dashboard", str(bool(self.dashboard))]
        if self.dashboard is not None:
            head += ["--dashboard-host", host, "--dashboard-port", self.dashboard.rpartition(":")[2]]
        command = [
            *(sys.executable, "-c", RAY, "start", "--block", "--node-ip-address", host, "--num-cpus", "1"),
            *("--min-worker-port", "0", "--max-worker-port", "0", "--object-store-memory", "80000000"),
            *(["--address", self.address] if self._started else head),
            *options,
        ]
        log = self.folder / f"{host}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env={**self.environment, **variables}, stdout=output, stderr=output, cwd=self.folder
            )
        self._started.append(process)
        until = time.monotonic() + 90
        while b"Ray runtime started" not in (said := log.read_bytes()):
            assert process.poll() is None and time.monotonic() < until, said.decode()
            time.sleep(0.2)
        return host

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as on the head node."""
        environment = {**self.environment, **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=self.folder, timeout=400)

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._started):
            process.terminate()
        for process in self._started:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_port(host: str) -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])
