import numpy as np
import pytest

from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_terms import COMPUTE_TERMS, physical_terms
from lownas.predictors.latency.kernels import KERNEL_CLASS
from lownas.search_space import PRESETS, op_graph

BLOCK = 16


def test_padding_to_blocks_costs():
    kernels = fuse(op_graph(PRESETS["lowformer_e1"].replace(stem_width=24)), "onnxruntime", BLOCK)
    first = kernels.column("class") == KERNEL_CLASS["conv_first"]
    blocked, plain = (physical_terms(kernels, block)[0][first, 0] for block in (BLOCK, 0))
    assert blocked / plain == pytest.approx(32 / 24)


def test_padding_by_class_costs():
    kernels = fuse(op_graph(PRESETS["lowformer_e1"].replace(stem_width=24)), "torch-compile")
    plain, padded = (physical_terms(kernels, pads=pads)[0][:, 0] for pads in (None, {"conv_first": 16}))
    first = kernels.column("class") == KERNEL_CLASS["conv_first"]
    assert padded[first] / plain[first] == pytest.approx(16 / 3 * 32 / 24)
    assert (padded[~first] == plain[~first]).all()


def test_what_a_cache_does_not_hold_spills():
    kernels = fuse(op_graph(PRESETS["lowformer_e1"]), "torch-compile")
    moved = kernels.column("inputs") + kernels.column("outputs")
    compute, memory = physical_terms(kernels, cache=100_000)
    assert np.allclose(memory[:, -1] * 1e6, np.maximum(moved - 100_000, 0)) and memory[:, -1].any()
    pixels = np.maximum(kernels.column("hout") * kernels.column("wout"), 1)
    assert np.allclose(compute[:, -1] * 1e6, kernels.column("macs") / pixels)
    without = physical_terms(kernels)
    assert not without[0][:, -1].any() and not without[1][:, -1].any()


def test_macs_per_output_counts_only_where_a_tile_is_given() -> None:
    kernels = fuse(op_graph(PRESETS["lowformer_b0"]), "tensorrt")
    without, _ = physical_terms(kernels)
    with_tile, _ = physical_terms(kernels, tile=1024)
    column = COMPUTE_TERMS.index("macs_per_output")
    assert (without[:, column] == 0).all()
    macs, outputs = kernels.column("macs"), kernels.column("outputs")
    np.testing.assert_allclose(with_tile[:, column] * 1e6, macs / np.maximum(outputs, 1024))
    others = np.arange(len(COMPUTE_TERMS)) != column
    np.testing.assert_array_equal(without[:, others], with_tile[:, others])
