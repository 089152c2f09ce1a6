"""Costs of many configurations against those of their operator graphs."""

from lownas.predictors.costs import total_macs, total_params
from lownas.search_space import PRESETS, op_graph


def test_costs_equal_those_of_the_operator_graph() -> None:
    configs = list(PRESETS.values())
    assert total_macs(configs).tolist() == [op_graph(config).macs for config in configs]
    assert total_params(configs).tolist() == [op_graph(config).params for config in configs]
    assert total_macs([]).shape == (0,)
