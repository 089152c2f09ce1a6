"""Clusters of others: which are refused, and what travels to them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lownas.search.training.ray_cluster import check_address, copy_package


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
