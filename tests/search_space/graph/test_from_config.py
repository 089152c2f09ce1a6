from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lownas.search_space import PRESETS, PUBLISHED, LowFormerConfig, SearchSpace, build_model, op_graph


def torch_counts(config: LowFormerConfig) -> tuple[int, int]:
    """(MACs, parameters) as torch counts them."""
    with torch.device("meta"):
        model = build_model(config).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, config.resolution, config.resolution))
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_cost_what_was_published(name: str) -> None:
    graph = op_graph(PRESETS[name])
    assert graph.params == PUBLISHED[name].params
    assert round(graph.macs / 1e6, 3) == round(PUBLISHED[name].macs / 1e6, 3)


@pytest.mark.parametrize("space", ["default", "tiny"])
def test_costs_equal_torchs_own_counts(space: str) -> None:
    """200 configurations were compared by experiments/space/check.py; here a few, because torch takes its time."""
    rng = np.random.default_rng(1)
    choices = SearchSpace.load(space)
    for _ in range(12):
        config = choices.sample(rng)
        graph = op_graph(config)
        assert (graph.macs, graph.params) == torch_counts(config), config.to_json()


@pytest.mark.parametrize("resolution", [28, 97, 150, 231])
def test_odd_sizes_too(resolution: int) -> None:
    for name in ("lowformer_b0", "cpubone_nano"):
        config = PRESETS[name].replace(resolution=resolution)
        assert op_graph(config).macs == torch_counts(config)[0]


def test_edges_join_operators_of_matching_shape() -> None:
    graph = op_graph(PRESETS["lowformer_b3"])
    sources = graph.inputs_of()
    outputs = graph.column("outputs")
    for row, kind in enumerate(graph.kinds):
        assert sources[row], "every operator has an input"
        assert max(sources[row]) < row
        if kind in ("add", "hardswish", "gelu", "group_norm", "softmax"):
            assert all(outputs[source] == outputs[row] for source in sources[row] if source >= 0)
    assert set(range(len(graph) - 1)) == {s for row in sources for s in row} - {-1}, "all but the last are used"


def test_graphs_are_built_in_bulk() -> None:
    """5,000 a second and more on an idle core (experiments/space); here only that it stays in reach of that."""
    space = SearchSpace.load("default")
    rng = np.random.default_rng(0)
    configs = [space.sample(rng) for _ in range(1000)]
    start = time.process_time()
    for config in configs:
        op_graph(config)
    assert 1000 / (time.process_time() - start) > 500
