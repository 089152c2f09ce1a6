"""Ray on this machine or on a cluster that others started, for as long as something of this package uses it."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from .pool import RETRIES, describe_error

OBJECT_STORE_BYTES = 512 * 1024**2  # what does not fit goes to disk
PACKAGES = ("evaluators", "predictors", "search", "search_space")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # the environment of workers


class RayCluster:
    """Ray, started or connected to; `close` ends that again.

    Without an address Ray is started on this machine, on the loopback interface, with a token that only this process
    knows and without dashboard, and stopped by `close`.

    With an address ("auto", "ray://HOST:PORT", "HOST:PORT") it is a cluster that others started. This package goes
    there by itself; what it depends on must be installed there.

    Where this process uses Ray already, its cluster is used, and goes on running after `close`; its workers must be
    able to import this package.

    Attributes:
        ray: the module.
        owned: whether `close` ends anything.

    Args:
        cpus: that a Ray which is started here has.
        env: environment variables of the workers.

    Raises:
        ValueError: an address that cannot be used.
    """

    def __init__(
        self, cpus: int, address: str | None = None, *, insecure: bool = False, env: Mapping[str, str] = ONE_THREAD
    ) -> None:
        self.owned = not _in_use()
        if self.owned and address is not None:
            check_address(address, insecure=insecure)
        self._sigterm = signal.getsignal(signal.SIGTERM)
        with environment(_ray_variables(local=address is None)):
            import ray

            self.ray: Any = ray
            if self.owned:
                self._start(cpus, address, env)

    def _start(self, cpus: int, address: str | None, env: Mapping[str, str]) -> None:
        """Starts Ray on this machine, or connects to the cluster at the address."""
        runtime_env: dict[str, Any] = {"env_vars": dict(env)}
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address is None:
            # Workers of this machine import the installed package; the working directory is not shipped.
            self.ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                configure_logging=False,
                object_store_memory=OBJECT_STORE_BYTES,
                runtime_env=runtime_env,
                **quiet,
            )
            return
        self._package = tempfile.TemporaryDirectory(prefix="lownas-")
        runtime_env["py_modules"] = [str(copy_package(Path(self._package.name)))]
        try:
            self.ray.init(address=address, runtime_env=runtime_env, **quiet)
        except (ConnectionError, RuntimeError, OSError) as error:
            _handle_sigterm(self._sigterm)
            raise ValueError(f"--ray-address {address}: no cluster answers there: {describe_error(error)}") from None

    def beside_driver(self, *, soft: bool = True) -> Any:
        """A scheduling strategy: on the driver's node, not on one that may be lost under it while others still work.

        Args:
            soft: whether another node will do where that one cannot take it at once.
        """
        return self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self.ray.get_runtime_context().get_node_id(), soft=soft
        )

    def close(self) -> None:
        """May be called twice."""
        if self.owned and self.ray.is_initialized():
            self.ray.shutdown()
            _handle_sigterm(self._sigterm)


def _in_use() -> bool:
    """Whether this process has started Ray, or is connected to a cluster."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@cache
def _token() -> str:
    """The secret of the clusters that this process starts; one for all, since Ray remembers the first it is told."""
    return secrets.token_hex(32)


def _ray_variables(*, local: bool) -> dict[str, str]:
    """Environment variables that Ray reads when it is imported or its processes start; those that are set stay."""
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_task_oom_retries": str(RETRIES),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if local:
        # Loopback only, which Ray does by itself on Windows and macOS alone.
        wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if "RAY_AUTH_MODE" not in os.environ:
            wanted |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token()}
    return {name: value for name, value in wanted.items() if name not in os.environ}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for as long as this lasts; then all are as before, also those that Ray has set."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _handle_sigterm(handler: Any) -> None:
    """Handles SIGTERM as before Ray took that over, which it does in the main thread alone."""
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def check_address(address: str, *, insecure: bool) -> None:
    """Raises ValueError for a remote cluster without token authentication, where anyone who reaches it can run code."""
    meant = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address  # as Ray takes it
    if meant in ("auto", "local") or _is_loopback(meant.removeprefix("ray://").rpartition(":")[0].strip("[]") or meant):
        return
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    has_token = bool(named) or (Path.home() / ".ray" / "auth_token").is_file()
    if not insecure and not (os.environ.get("RAY_AUTH_MODE") == "token" and has_token):
        raise ValueError(
            f"--ray-address {meant}: without authentication anyone who reaches that cluster can run code there and "
            "here; start it with RAY_AUTH_MODE=token and set that and RAY_AUTH_TOKEN here too, or say --insecure"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def copy_package(folder: Path) -> Path:
    """This package as a folder `lownas` that a cluster can import, wherever it is installed from."""
    root = Path(__file__).resolve().parents[2]
    copy = folder / "lownas"
    parts = [path for path in root.iterdir() if path.is_dir() and path.name in PACKAGES]
    for part in parts:
        shutil.copytree(part, copy / part.name, ignore=shutil.ignore_patterns("__pycache__", "work"))
    for file in root.glob("*.py"):
        shutil.copy2(file, copy / file.name)
    return copy
