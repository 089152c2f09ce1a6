"""Peak memory: by hand, and the units' against the whole graph's."""

import numpy as np
import pytest

from lownas.predictors.latency.target import ALIASES, Target
from lownas.predictors.memory import THROUGHPUT_BATCH, peak_activations, peak_memory_bytes
from lownas.search_space import PRESETS, SearchSpace, op_graph
from lownas.search_space.graph import GRAPH_INPUT, GraphBuilder


def test_a_residual_block_by_hand() -> None:
    build = GraphBuilder()
    shape = (4, 8, 8)  # 256 elements
    row, wide = build.conv(GRAPH_INPUT, shape, 12)
    row = build.pointwise("hardswish", [row], wide)
    row, _ = build.conv(row, wide, 4)
    build.pointwise("add", [row, GRAPH_INPUT], shape)
    # While the second convolution runs: the input for the sum, the wide map and what is written.
    assert peak_activations(build.build()) == 256 + 768 + 256


def test_what_nobody_reads_any_more_is_free() -> None:
    build = GraphBuilder()
    shape = (1, 10, 10)
    row = GRAPH_INPUT
    for _ in range(5):
        row, shape = build.conv(row, shape, 1)
    assert peak_activations(build.build()) == 200


def test_a_network_is_as_large_as_its_largest_unit() -> None:
    rng = np.random.default_rng(0)
    configs = [*PRESETS.values(), *(SearchSpace.load("default").sample(rng) for _ in range(20))]
    found = peak_memory_bytes(configs)
    for config, size in zip(configs, found, strict=True):
        graph = op_graph(config)
        assert size == 4 * (peak_activations(graph) + graph.column("weights").sum())
    assert (peak_memory_bytes(configs, "int8") == found / 4).all()
    weights = np.array([4 * op_graph(config).column("weights").sum() for config in configs])
    assert peak_memory_bytes(configs, batch=8) == pytest.approx(8 * (found - weights) + weights)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision: one of .*'fp16'.*, given 'fp8'"):
        peak_memory_bytes([PRESETS["lowformer_b0"]], "fp8")


def test_mixed_precision_keeps_its_weights_in_fp32_and_throughput_is_of_a_full_batch() -> None:
    configs = list(PRESETS.values())[:4]
    weights = np.array([op_graph(config).column("weights").sum() for config in configs], float)
    activations = peak_memory_bytes(configs, "fp16") / 2 - weights
    assert peak_memory_bytes(configs, "bf16") == pytest.approx(2 * (weights + activations))
    assert peak_memory_bytes(configs, "amp") == pytest.approx(4 * weights + 2 * activations)
    full = peak_memory_bytes(configs, "amp", None)
    assert full == pytest.approx(4 * weights + 2 * THROUGHPUT_BATCH * activations)
    for name in ALIASES:
        target = Target.parse(name)
        assert (peak_memory_bytes(configs, target.precision, target.batch) > 0).all()
