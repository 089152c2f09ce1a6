import numpy as np
import pytest

from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_terms import COMPUTE_TERMS, MEMORY_TERMS, cold_share, physical_terms
from lownas.predictors.latency.kernels import KERNEL_CLASS
from lownas.search_space import PRESETS, op_graph
from lownas.search_space.probes import probe_graphs

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
    per_pixel, beyond = COMPUTE_TERMS.index("macs_per_pixel"), MEMORY_TERMS.index("spilled")
    compute, memory = physical_terms(kernels, cache=100_000)
    assert np.allclose(memory[:, beyond] * 1e6, np.maximum(moved - 100_000, 0)) and memory[:, beyond].any()
    pixels = np.maximum(kernels.column("hout") * kernels.column("wout"), 1)
    assert np.allclose(compute[:, per_pixel] * 1e6, kernels.column("macs") / pixels)
    without = physical_terms(kernels)
    assert not without[0][:, per_pixel].any() and not without[1][:, beyond].any()


def test_weights_beyond_the_caches_are_read_from_memory():
    assert cold_share([1e6, 4e6, 16e6], 4_000_000).tolist() == pytest.approx([0, 0, 1 - 4**-1.5])
    assert not cold_share(1e9, 0).any()  # not told apart
    shares = cold_share(np.geomspace(1e5, 1e9, 50), 1_000_000)
    assert (np.diff(shares) >= 0).all() and shares[-1] > 0.99
    kernels, cold = fuse(op_graph(PRESETS["lowformer_e1"]), "onnxruntime"), MEMORY_TERMS.index("cold")
    assert np.allclose(physical_terms(kernels, cold=0.25)[1][:, cold] * 4e6, kernels.column("weights"))
    assert not physical_terms(kernels)[1][:, cold].any()


def test_softmax_and_layer_norm_go_through_rows():
    kernels = fuse(probe_graphs()["attention192"], "onnxruntime")
    rows = physical_terms(kernels)[0][:, COMPUTE_TERMS.index("rows")] * 1e6
    by_class = {
        name: rows[[i for i, each in enumerate(kernels.classes) if each == name]] for name in set(kernels.classes)
    }
    assert set(by_class.pop("softmax")) == {3 * 196} and set(by_class.pop("layer_norm")) == {196}
    assert not np.concatenate(list(by_class.values())).any()


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
