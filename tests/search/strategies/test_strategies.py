"""The contract of all strategies, on equal terms, with stand-ins for predictor and training."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lownas.search.strategies import make_strategy, strategy_names
from lownas.search.trials.run_folder import read_results

from ..conftest import facts, load_study


@pytest.mark.parametrize("strategy", strategy_names())
def test_each_strategy_fills_a_run_and_goes_on_where_it_was_cut_off(
    run_on_data, evaluate, predictor, tmp_path, strategy: str
) -> None:
    trials = 6 if strategy == "gp" else 12  # 1 s a candidate
    whole = run_on_data(strategy=strategy, trials=trials, run=str(tmp_path / "whole"))
    results = read_results(whole.run)
    trained = [result for result in results if result.status == "complete"]
    distinct = {result.config_id for result in trained if result.role != "repeat"}
    assert len(distinct) == trials and sum(result.role == "repeat" for result in trained) == 2
    assert all(result.quantile_ms <= 0.8 for result in trained)
    if (role := make_strategy(strategy).role) == "sampled":
        assert Counter(result.role for result in trained) == {role: trials, "repeat": 2}
    asked = []

    def interrupted(task):
        asked.append(task.trial)
        if len(asked) in (3, 5):
            raise KeyboardInterrupt
        return evaluate(task)

    outcome = run_on_data(strategy=strategy, trials=trials, evaluate=interrupted)
    while outcome.interrupted:
        outcome = run_on_data(strategy=strategy, trials=trials, evaluate=interrupted, resume=True)
    assert facts(outcome.run) == facts(whole.run)
    assert outcome.answer == whole.answer
    study = load_study(outcome.run)
    assert study.best_value == max(trial.value for trial in study.trials if trial.value is not None)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["surrogate", "tpe", "nsga2"])
def test_with_rungs_and_workers(run_on_data, strategy: str) -> None:
    outcome = run_on_data(strategy=strategy, trials=18, rungs=3, workers=2)
    status = Counter(result.status for result in read_results(outcome.run))
    assert status["complete"] == 3 + 2 and status["pruned"] == 15


def test_an_unknown_strategy_is_refused_in_one_line(tmp_path: Path) -> None:
    command = [
        "-m",
        "lownas.nas",
        "search",
        "--target",
        "rtx3090",
        "--latency-budget",
        "2ms",
        "--strategy",
        "annealing",
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "annealing" in done.stderr and "surrogate" in done.stderr
