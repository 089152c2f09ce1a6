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
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from .node_versions import PARTS, check_nodes
from .pool import RETRIES, describe_error

OBJECT_STORE_BYTES = 512 * 1024**2  # what does not fit goes to disk
ROOT = Path(__file__).resolve().parents[2]  # of this package
RAY_CLIENT = "ray://"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # the environment of workers

_logger = logging.getLogger("lownas.search")
_said: set[str] = set()  # warnings that this process has given


class RayCluster:
    """Ray, started or connected to; `close` ends that again.

    Without an address Ray is started on this machine, on the loopback interface, with a token that only this process
    knows and without dashboard, and stopped by `close`.

    With an address it is a cluster that others started: "auto" or "HOST:PORT" from one of its nodes, "ray://HOST:PORT"
    through Ray Client from elsewhere. This package goes there by itself; what it depends on must be installed there,
    which is compared with what is here on all nodes (see `node_versions`).

    Where this process uses Ray already, its cluster is used, and goes on running after `close`; its workers must be
    able to import this package, the same as here.

    Attributes:
        ray: the module.
        owned: whether `close` ends anything.

    Args:
        cpus: that a Ray which is started here has.
        env: environment variables of the workers.
        log: is told what the nodes have installed; what differs and does no harm is a warning.

    Raises:
        ValueError: an address that cannot be used, or nodes with other versions than here.
    """

    def __init__(
        self,
        cpus: int,
        address: str | None = None,
        *,
        insecure: bool = False,
        env: Mapping[str, str] = ONE_THREAD,
        log: logging.Logger = _logger,
    ) -> None:
        self.owned = not _in_use()
        if self.owned and address is not None:
            check_address(address, insecure=insecure)
        self._sigterm = signal.getsignal(signal.SIGTERM)
        self._package: tempfile.TemporaryDirectory[str] | None = None
        with environment(_ray_variables(local=address is None)):
            import ray

            self.ray: Any = ray
            if self.owned:
                self._start(cpus, address, env)
        if address is not None or not self.owned:
            self._check_nodes(f"--ray-address {address}" if self.owned else "the Ray cluster in use", log)

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
        if _meant(address).startswith(RAY_CLIENT):
            _warn_once(
                f"--ray-address {_meant(address)}: Ray Client is hardly maintained any more; search on the head node "
                "with --ray-address auto, or submit the command to the cluster (ray job submit)"
            )
        self._package = tempfile.TemporaryDirectory(prefix="lownas-")
        runtime_env["py_modules"] = [str(copy_package(Path(self._package.name)))]
        try:
            self.ray.init(address=address, runtime_env=runtime_env, **quiet)
        except (ConnectionError, RuntimeError, OSError, self.ray.exceptions.RayError) as error:
            self.close()  # it may have connected before it saw what is wrong
            _handle_sigterm(self._sigterm)
            raise ValueError(f"--ray-address {address}: {_why_not(error)}") from None

    def _check_nodes(self, shown: str, log: logging.Logger) -> None:
        """Compares what the nodes have installed with what is here; Ray is left again where that does not fit."""
        found = None
        try:
            found = check_nodes(self.ray, ROOT, others_only=not self.owned)
        except ValueError as error:
            raise ValueError(f"{shown}: {error}") from None
        finally:
            if found is None:
                self.close()
        alike, harmless = found
        log.info("%s: %s", shown, alike)
        if harmless:
            _warn_once(f"{shown}: {harmless}; what a training gives may depend on its node")

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
        if self._package is not None:
            self._package.cleanup()


def _warn_once(text: str) -> None:
    """Warns as `RayCluster` begins; a search connects to its cluster several times."""
    if text not in _said:
        _said.add(text)
        warnings.warn(text, stacklevel=4)


def _why_not(error: Exception) -> str:
    """Why a cluster cannot be connected to, in one line; what Ray raises has tracebacks in it."""
    said = str(error.__cause__ or error)
    if "AuthToken" in said or "AuthenticationError" in said:
        return (
            "the cluster asks for another token than is here: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "~/.ray/auth_token to its own"
        )
    if "Version mismatch" in said:
        return describe_error(error.__cause__ or error)
    return f"no cluster answers there: {describe_error(error)}"


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
    meant = _meant(address)
    host = meant.removeprefix(RAY_CLIENT).rpartition(":")[0].strip("[]") or meant
    if meant in ("auto", "local") or _is_loopback(host):
        return
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    has_token = bool(named) or (Path.home() / ".ray" / "auth_token").is_file()
    if not insecure and not (os.environ.get("RAY_AUTH_MODE") == "token" and has_token):
        raise ValueError(
            f"--ray-address {meant}: without authentication anyone who reaches that cluster can run code there and "
            "here; start it with RAY_AUTH_MODE=token and set that and RAY_AUTH_TOKEN here too, or say --insecure"
        )


def _meant(address: str) -> str:
    """The address as Ray takes it."""
    return (os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def copy_package(folder: Path) -> Path:
    """This package as a folder `lownas` that a cluster can import, wherever it is installed from."""
    copy = folder / "lownas"
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "work"))
    for file in ROOT.glob("*.py"):
        shutil.copy2(file, copy / file.name)
    return copy
