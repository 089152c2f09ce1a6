"""Searches on a cluster of three nodes that were started one by one, as README tells it: from its head node."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from .ray_nodes import RAY, RayNodes

pytestmark = pytest.mark.slow
SEARCH = ("-m", "lownas.nas", "--target", "rtx3090", "--latency-budget", "1ms", "--space", "tiny", "--data", "digits")
SMALL = ("--proxy-epochs", "1", "--trials", "6", "--repeats", "0", "--rungs", "1", "--workers", "3")
# As the command, but that each training says on which node it was.
SAYS_WHERE = """
import sys
from dataclasses import replace
import lownas.search.run_search as module
from lownas.search.training.proxy import train_candidate

def where(task):
    import ray
    found = train_candidate(task)
    return replace(found, details={**found.details, "node": ray.get_runtime_context().get_node_id()})

real = module.run_search
def run_search(settings, parts, **options):
    return real(settings, replace(parts, evaluate=where), **options)

import lownas.search.api
lownas.search.api.run_search = run_search
from lownas.nas import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with RayNodes() as started:
        for _ in range(3):
            started.start()
        yield started


def test_a_search_from_the_head_node_trains_on_all_nodes(nodes: RayNodes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = nodes.run(sys.executable, "-c", SAYS_WHERE, *SEARCH[2:], *SMALL, "--ray-address", "auto", "--run", str(run))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stderr
    results = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert Counter(result["status"] for result in results)["complete"] == len(results) == 6
    assert len({result["details"]["node"] for result in results}) >= 2
    assert "--ray-address auto: 3 nodes with python" in (run / "log.txt").read_text()
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{run}/study.db")
    assert study.best_trial.user_attrs["status"] == "complete"


def test_without_the_token_nothing_is_begun(nodes: RayNodes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = nodes.run(
        *(sys.executable, *SEARCH, *SMALL, "--ray-address", "auto", "--run", str(run)), RAY_AUTH_TOKEN="0" * 64
    )
    assert done.returncode == 2 and not run.exists()
    assert done.stderr.splitlines()[-1].endswith("RAY_AUTH_TOKEN or ~/.ray/auth_token to its own"), done.stderr
    assert "Traceback" not in done.stderr  # before that line Ray itself may say of each of its tries that it failed


def test_a_node_with_another_torch_is_one_line_and_nothing_is_lost(nodes: RayNodes, tmp_path: Path) -> None:
    """What its metadata say comes first on its path."""
    run = tmp_path / "run"
    command = (sys.executable, *SEARCH, *SMALL, "--ray-address", "auto", "--run", str(run))
    meta = tmp_path / "site" / "torch-2.9.1.dist-info" / "METADATA"
    meta.parent.mkdir(parents=True)
    meta.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.1\n")
    path = nodes.environment.get("PYTHONPATH", "")
    host = nodes.start(PYTHONPATH=f"{tmp_path / 'site'}:{path}")
    done = nodes.run(*command)
    assert done.returncode == 2, done.stderr[-3000:]
    line = done.stderr.splitlines()[-1]
    assert f"--ray-address auto: what is installed on its nodes does not fit: torch is 2.9.1 on {host}, but" in line
    assert not run.exists()


def test_a_search_that_is_submitted_as_a_job(tmp_path: Path) -> None:
    """What takes jobs is Ray's dashboard, which needs more than Ray (`ray[default]`)."""
    for name in ("aiohttp_cors", "opencensus", "opentelemetry.exporter.prometheus"):
        pytest.importorskip(name)
    run = tmp_path / "run"
    with RayNodes(dashboard=True) as nodes:
        for _ in range(2):
            nodes.start()
        assert nodes.dashboard is not None
        submit = ("job", "submit", "--address", nodes.dashboard, "--", sys.executable, *SEARCH, *SMALL)
        for _ in range(20):
            done = nodes.run(sys.executable, "-c", RAY, *submit, "--ray-address", "auto", "--run", str(run))
            if "No available agent" not in done.stderr:  # Ray takes jobs some seconds after it says that it runs
                break
            time.sleep(3)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    results = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [result["status"] for result in results] == ["complete"] * 6
    assert "--ray-address auto: 2 nodes with python" in (run / "log.txt").read_text()
