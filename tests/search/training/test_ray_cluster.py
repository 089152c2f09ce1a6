"""Clusters of others: which are refused, and what travels to them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from lownas.search.training import ray_cluster
from lownas.search.training.ray_cluster import RayCluster, check_address, copy_package


def refuse(**_):
    raise ConnectionError("refused")


def test_a_remote_cluster_needs_authentication(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for address in ("ray://10.0.0.7:10001", "10.0.0.7:6379", "head.example.org:6379", "127.example.org:6379"):
        with pytest.raises(ValueError, match=f"--ray-address {address}: without authentication"):
            check_address(address, insecure=False)
        check_address(address, insecure=True)
    for address in ("auto", "127.0.0.1:6379", "ray://localhost:10001", "[::1]:6379"):
        check_address(address, insecure=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")  # what "auto" then means to Ray
    with pytest.raises(ValueError, match=r"--ray-address 10\.0\.0\.7:6379: without authentication"):
        check_address("auto", insecure=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    check_address("10.0.0.7:6379", insecure=False)


def test_the_package_travels_whole(tmp_path: Path) -> None:
    copy = copy_package(tmp_path)
    assert copy.name == "lownas" and (copy / "search_space" / "spaces" / "tiny.yaml").is_file()
    assert list(copy.glob("predictors/latency/profiles/*.json")) and not (copy / "tests").exists()
    paths = [str(tmp_path), *sys.path]
    code = f"import sys; sys.path[:] = {paths!r}; import lownas.search.training.proxy as e; print(e.__file__)"
    found = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert found.stdout.startswith(str(tmp_path))


def test_ray_client_is_warned_of_and_what_auto_stands_for_too(monkeypatch) -> None:
    """Nothing listens there: the warning comes before the line that says so."""
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray_cluster, "_said", set())
    monkeypatch.setattr("lownas.search.training.ray_cluster.copy_package", lambda folder: folder)
    ray = SimpleNamespace(init=refuse, is_initialized=lambda: False, exceptions=SimpleNamespace(RayError=Exception))
    monkeypatch.setitem(sys.modules, "ray", ray)
    for address, set_to in (("ray://localhost:10001", None), ("auto", "ray://localhost:10001")):
        if set_to is not None:
            monkeypatch.setenv("RAY_ADDRESS", set_to)
        ray_cluster._said.clear()
        with (
            pytest.warns(UserWarning, match=r"ray://localhost:10001: Ray Client is hardly maintained .* --ray-address"),
            pytest.raises(ValueError, match="no cluster answers there: ConnectionError: refused"),
        ):
            RayCluster(1, address)
    monkeypatch.delenv("RAY_ADDRESS")
    for address in ("ray://localhost:10001", "127.0.0.1:6379"):  # it was said before; there is nothing to say
        with warnings.catch_warnings(), pytest.raises(ValueError, match="no cluster answers there"):
            warnings.simplefilter("error")
            RayCluster(1, address)


def test_another_version_of_ray_is_no_missing_cluster(monkeypatch) -> None:
    """Ray itself compares its own version and Python's when it connects."""

    def mismatch(**_):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.7\n")

    monkeypatch.setattr("lownas.search.training.ray_cluster.copy_package", lambda folder: folder)
    ray = SimpleNamespace(init=mismatch, is_initialized=lambda: False, exceptions=SimpleNamespace(RayError=Exception))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(
        ValueError, match=r"^--ray-address 127\.0\.0\.1:6379: RuntimeError: Version mismatch: .*2\.59\.0"
    ):
        RayCluster(1, "127.0.0.1:6379")
