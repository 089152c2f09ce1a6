"""Limits beside the latency budget: parameters, MACs, memory, further targets."""

import numpy as np
import pytest

from lownas.predictors.costs import total_params
from lownas.predictors.memory import peak_memory_bytes
from lownas.search.feasible_pool import FeasiblePool, evolve
from lownas.search.latency.limits import BudgetUse, Limits
from lownas.search.objectives.goal import ParetoFront
from lownas.search.run_search import describe_search
from lownas.search.trials.run_folder import read_results
from lownas.search_space import op_graph

from ..conftest import load_study


class Slower:
    """Another device: deep networks are slow there, MACs cost nothing."""

    def quantile_ms(self, configs, q):
        return np.array([sum(stage.depth for stage in config.stages) for config in configs], float)

    def predict(self, configs):
        raise AssertionError("only quantiles are asked for")


TARGET = "stub/onnxruntime/fp32/b1/t1"
OTHER = "other/none/fp32/b1/t1"


@pytest.mark.parametrize("strategy", ["evolution", "surrogate", "random"])
def test_all_limits_hold_for_every_candidate(run_search, strategy) -> None:
    outcome = run_search(
        others={OTHER: Slower()},
        target=TARGET,
        strategy=strategy,
        data="digits",
        rungs=1,
        trials=10,
        repeats=0,
        max_params=4e5,
        max_macs=6e6,
        max_memory_bytes=1.6e6,
        also={OTHER: 7.0},
    )
    results = read_results(outcome.run)
    trained = [result for result in results if result.status == "complete"]
    assert len(trained) == 10
    for result in trained:
        graph = op_graph(result.config)
        assert graph.params <= 4e5 and graph.macs <= 6e6 and result.quantile_ms <= 0.8
        assert peak_memory_bytes([result.config])[0] <= 1.6e6
        assert sum(stage.depth for stage in result.config.stages) <= 7
        assert set(result.details["limits"]) == {"parameters", "MACs", "memory", f"latency on {OTHER}"}
    study = load_study(outcome.run)
    assert study.trials[trained[0].trial].constraints["MACs"] == pytest.approx(trained[0].macs / 6e6 - 1, abs=1e-4)
    assert any("Its parameters: 0." in note and "at most 0.4 M allowed" in note for note in outcome.notes)


def test_limits_that_nothing_satisfies_are_refused_in_one_line(run_search, settings, parts, tmp_path) -> None:
    expected = (
        r"fits a latency budget of 0.8 ms and parameters <= 0.001 M: the closest .* needs .* times as much of one"
    )
    with pytest.raises(ValueError, match=expected):
        run_search(max_params=1000)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=expected):
        describe_search(settings(max_params=1000), parts)
    with pytest.raises(ValueError, match=f"no latency predictor for {OTHER}"):
        run_search(also={OTHER: 1.0})


def test_what_is_over_is_said(settings, space) -> None:
    config = space.sample(np.random.default_rng(0))
    graph = op_graph(config)
    limits = Limits(settings(max_params=graph.params / 2, max_macs=graph.macs))
    assert limits.used([config])[0] == pytest.approx(2)
    assert limits.excess(config) == pytest.approx({"parameters": 1.0, "MACs": 0.0})
    assert limits.reason(config).startswith(f"parameters of {graph.params / 1e6:.4g} M: over the limit (parameters <= ")
    none = Limits(settings())
    assert not none and none.reason(config) == "" and none.used([config]) == [0]


def test_on_a_front_a_limit_is_no_latency(settings, space, predictor) -> None:
    """With most of the parameters used, a candidate that is fast is still fast."""
    config = space.sample(np.random.default_rng(0))
    params = float(total_params([config])[0])
    asked = settings(latency_budget_ms=100.0, pareto=True, max_params=1.03 * params)
    use = BudgetUse(predictor, Limits(asked), 100.0)
    found = evolve(
        space,
        use,
        lambda configs: np.zeros(len(configs)),
        100.0,
        np.random.default_rng(0),
        evaluations=300,
        latency=use.latency,
    )
    pool = FeasiblePool(space, predictor, use, 100.0, 0.9, lambda: found, found)
    assert pool.quantile_ms([config])[0] > 95 and pool.fits([config])[0]
    assert pool.latency_ms([config])[0] == pytest.approx(float(predictor.latency_ms([config])[0]))
    assert found.latency_quantile_ms == pytest.approx(predictor.quantile_ms(found.configs, 0.9))
    alone = FeasiblePool(space, predictor, predictor, 100.0, 0.9, lambda: found, found)
    known = np.array([1.0]), None, [config], np.array([0.0]), [config]
    assert ParetoFront().improvement(*known, pool) == pytest.approx(ParetoFront().improvement(*known, alone))
