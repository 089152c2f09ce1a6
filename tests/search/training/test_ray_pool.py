"""Ray workers: what is refused, and that a search changes nothing in its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lownas.search.training.ray_pool import RayPool

SEARCH = """
import os, sys
sys.path.insert(0, sys.argv[1])
from lownas.search.run_search import Parts, run_search
from lownas.search.settings import SearchSettings
from lownas.search_space import SearchSpace
from tests.search.conftest import StubPredictor, stub_plan

def searched(run):
    settings = SearchSettings.from_dict({"target": "stub/none/fp32/b1/t1", "latency_budget_ms": 0.8, "space": "tiny",
        "trials": 2, "repeats": 0, "evaluations": 200, "run": run, "workers": 1})
    evaluate = lambda task: 0.5 + task.trial / 100
    parts = Parts(StubPredictor(), SearchSpace.load("tiny"), evaluate=evaluate, plan=stub_plan)
    outcome = run_search(settings, parts)
    assert outcome.counts == {"complete": 2}, outcome.notes
"""
# The environment, and how signals and logging are handled, are the same after a search; without what the first says no
# cluster elsewhere is spoken to.
CHANGES_NOTHING = """
import logging, signal

def state():
    handled = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return dict(os.environ), handled, list(logging.getLogger().handlers), logging.getLogger().level

before = state()
for name in ("one", "two"):
    searched(f"{sys.argv[2]}/{name}")
    assert state() == before
import ray
assert not ray.is_initialized()
from lownas.search.training.ray_pool import RayPool
try:
    RayPool(lambda task: 0.5, 1, address="ray://10.0.0.7:10001")
except ValueError as error:
    assert "without authentication" in str(error), error
else:
    raise AssertionError("it was accepted")
"""
RUNS_ALREADY = """
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
import ray
ray.init(num_cpus=1, include_dashboard=False, configure_logging=False, logging_level="ERROR")
nodes = ray.nodes()
searched(f"{sys.argv[2]}/run")
assert ray.is_initialized() and [node["NodeID"] for node in ray.nodes()] == [node["NodeID"] for node in nodes]
assert ray.get(ray.remote(lambda: 7).remote(), timeout=60) == 7
ray.shutdown()
"""


@pytest.mark.parametrize("script", [CHANGES_NOTHING, RUNS_ALREADY], ids=["changes nothing", "Ray runs already"])
def test_a_search_in_a_process_that_does_other_things_too(script: str, tmp_path: Path, monkeypatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", SEARCH + script, str(root), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def test_no_workers_is_no_ray_pool() -> None:
    with pytest.raises(ValueError, match="at least 1, given 0"):
        RayPool(lambda task: 0.5, 0)
