"""A search on a Ray cluster that was there before, two nodes on this machine, one of which is lost in the middle."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest

SCRIPT = """
import os, sys, threading, time
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ.pop("RAY_AUTH_MODE", None)
sys.path.insert(0, sys.argv[1])
from ray.cluster_utils import Cluster
from lownas.search.run_search import Parts, run_search
from lownas.search.settings import SearchSettings
from lownas.search.training.task import Evaluation
from lownas.search_space import SearchSpace
from tests.search.conftest import StubPredictor, stub_plan

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
lost = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
nodes = set()

def evaluate(task):
    import ray
    time.sleep(0.7)
    accuracy = 0.5 + task.config.stem_width / 100
    return Evaluation(accuracy, details={"node": ray.get_runtime_context().get_node_id()})

def progress(status):
    if status.done >= 6 and not nodes:
        nodes.add(1)
        threading.Thread(target=cluster.remove_node, args=(lost,), kwargs={"allow_graceful": False}).start()

settings = SearchSettings.from_dict({"target": "stub/none/fp32/b1/t1", "latency_budget_ms": 0.8, "space": "tiny",
    "data": "digits", "rungs": 1, "strategy": "random", "trials": 20, "repeats": 0, "evaluations": 800,
    "run": sys.argv[2], "workers": 2, "ray_address": cluster.address})
parts = Parts(StubPredictor(), SearchSpace.load("tiny"), evaluate=evaluate, plan=stub_plan, progress=progress)
outcome = run_search(settings, parts)
assert nodes and outcome.answer is not None
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_lost_node_costs_no_trial(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root), str(run)], capture_output=True, text=True, cwd=tmp_path, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert Counter(result["status"] for result in results) == {"complete": 20}
    assert len({result["details"]["node"] for result in results}) == 2
    study = optuna.load_study(study_name="lownas", storage=f"sqlite:///{run}/study.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 20
