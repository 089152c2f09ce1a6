import json
from dataclasses import replace

import numpy as np
import pytest

from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import (
    COEFFICIENTS,
    KernelModel,
    fit_corrections,
    fit_graphs,
    fit_kernels,
    fit_scale,
    physical_terms,
    with_ranges,
)
from lownas.predictors.latency.kernels import KERNEL_CLASS, KERNEL_CLASSES, Kernels
from lownas.search_space import PRESETS, SearchSpace, op_graph

BLOCK = 16


def true_model(sharpness: float = 1.0) -> KernelModel:
    """A made-up device: 50 GMAC/s, less for few channels; 10 G elements/s; 3 us per kernel."""
    coefficients = np.zeros((len(KERNEL_CLASSES), len(COEFFICIENTS)))
    # By class, so that a new one leaves the others as they were.
    factors = np.stack([np.random.default_rng([7, code]).uniform(0.5, 2, 7) for code in range(len(KERNEL_CLASSES))])
    typical = {"launch": 0.003, "macs": 0.02, "macs_per_cin": 0.1, "tail": 0.1, "inputs": 0.1, "outputs": 0.1}
    for number, (term, value) in enumerate({**typical, "weights": 0.1}.items()):
        coefficients[:, COEFFICIENTS.index(term)] = value * factors[:, number]
    return KernelModel("onnxruntime", BLOCK, coefficients, sharpness, overhead_ms=0.1, scale=1.02)


@pytest.fixture(scope="module")
def graphs() -> list[Kernels]:
    space = SearchSpace.load("default")
    rng = np.random.default_rng(0)
    return [fuse(op_graph(space.sample(rng)), "onnxruntime", BLOCK) for _ in range(40)]


def errors(model: KernelModel, truth: KernelModel, graphs: list[Kernels]) -> np.ndarray:
    return np.array([abs(model.graph_ms(graph) / truth.graph_ms(graph) - 1) for graph in graphs])


def test_kernel_times_recover_the_device(graphs):
    """5 % noise on kernels and one in thirty off by a factor of three: the graphs held out are right within 1 %."""
    truth = true_model()
    rng = np.random.default_rng(1)
    times = []
    for graph in graphs[:25]:
        noisy = truth.kernel_ms(graph) * np.exp(rng.normal(0, 0.05, len(graph)))
        times.append(np.where(rng.random(len(graph)) < 1 / 30, 3 * noisy, noisy))
    model = fit_kernels(graphs[:25], times, "onnxruntime", block=BLOCK)
    totals = np.array([truth.graph_ms(graph) for graph in graphs[:25]])
    model = fit_scale(model, graphs[:25], totals)
    assert errors(model, truth, graphs[25:]).mean() < 0.01
    assert (model.coefficients >= 0).all()
    assert model.scale == pytest.approx(1.02, abs=0.03)


def test_whole_graph_times_suffice(graphs):
    truth = true_model(sharpness=2.0)
    totals = np.array([truth.graph_ms(graph) for graph in graphs[:30]])
    model = fit_graphs(graphs[:30], totals, "onnxruntime", block=BLOCK, sharpness=2.0)
    macs = np.array([graph.column("macs").sum() for graph in graphs], dtype=float)
    line = np.polyfit(np.log(macs[:30]), np.log(totals), 1)
    held_out = np.array([truth.graph_ms(graph) for graph in graphs[30:]])
    by_macs = np.abs(np.exp(np.polyval(line, np.log(macs[30:]))) / held_out - 1).mean()
    mine = errors(model, truth, graphs[30:]).mean()
    assert mine < 0.035
    assert mine < 0.8 * by_macs


def test_prior_carries_few_graphs(graphs):
    """Six graphs of a device 1.5 times slower than a known one."""
    known = true_model(sharpness=2.0)
    truth = replace(known, coefficients=1.5 * known.coefficients)
    totals = np.array([truth.graph_ms(graph) for graph in graphs[:6]])
    model = fit_graphs(graphs[:6], totals, "onnxruntime", block=BLOCK, prior=known)
    assert errors(model, truth, graphs[30:]).mean() < 0.05


def test_correction_learns_what_the_physics_lacks(graphs):
    """Depthwise kernels 40 % slower on maps under 200 pixels: a correction takes a good part of the kernels' error."""
    truth = true_model()

    def measured(graph):
        small = (graph.column("hout") * graph.column("wout") < 200) & (
            graph.column("class") == KERNEL_CLASS["conv_depthwise"]
        )
        return truth.kernel_ms(graph) * np.where(small, 1.4, 1.0)

    train, test = graphs[:25], graphs[25:]
    plain = fit_kernels(train, [measured(g) for g in train], "onnxruntime", block=BLOCK)
    learned = fit_corrections(plain, train, [measured(g) for g in train])
    assert KERNEL_CLASS["conv_depthwise"] in learned.corrections

    def error(model):
        found = [
            np.abs(np.log(model.kernel_ms(g) / measured(g)))[g.column("class") == KERNEL_CLASS["conv_depthwise"]]
            for g in test
        ]
        return np.concatenate(found).mean()

    assert error(learned) < 0.75 * error(plain)


def test_scale_ignores_one_disturbed_measurement(graphs):
    truth = true_model()
    totals = np.array([truth.graph_ms(graph) for graph in graphs])
    totals[3] *= 2.5
    model = fit_scale(replace(truth, overhead_ms=0.0, scale=1.0), graphs, totals)
    assert model.scale == pytest.approx(1.02, rel=0.02)


def test_more_work_never_costs_less(graphs):
    rng = np.random.default_rng(2)
    times = [true_model().kernel_ms(graph) * np.exp(rng.normal(0, 0.1, len(graph))) for graph in graphs[:15]]
    model = fit_kernels(graphs[:15], times, "onnxruntime", block=BLOCK)
    for name in ("lowformer_b1", "lowformer_e2", "cpubone_t0"):
        sizes = [160, 192, 224, 256, 320]
        latencies = [
            model.graph_ms(fuse(op_graph(PRESETS[name].replace(resolution=r)), "onnxruntime", BLOCK)) for r in sizes
        ]
        assert (np.diff(latencies) > 0).all()


def test_outside_names_unknown_classes_and_shapes(graphs):
    e1 = [fuse(op_graph(PRESETS[name]), "onnxruntime", BLOCK) for name in ("lowformer_e1", "lowformer_e2")]
    model = with_ranges(true_model(), e1)
    assert model.outside(e1[0]) == []
    assert "softmax" in model.outside(fuse(op_graph(PRESETS["lowformer_b1"]), "onnxruntime", BLOCK))
    huge = PRESETS["lowformer_e1"].replace(resolution=1024)
    assert "conv_dense (shape)" in model.outside(fuse(op_graph(huge), "onnxruntime", BLOCK))


def test_json_round_trip(graphs):
    truth = true_model()
    times = [truth.kernel_ms(graph) for graph in graphs[:12]]
    model = fit_corrections(fit_kernels(graphs[:12], times, "onnxruntime", block=BLOCK), graphs[:12], times)
    again = KernelModel.from_dict(json.loads(json.dumps(model.to_dict())))
    for graph in graphs:
        assert again.graph_ms(graph) == pytest.approx(model.graph_ms(graph), rel=1e-5)
        assert again.outside(graph) == model.outside(graph)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["classes"].update(warp={"coefficients": {}, "count": 1}), "warp"),
        (lambda d: d["classes"]["linear"]["coefficients"].update(magic=1.0), "magic"),
        (lambda d: d["classes"]["linear"]["coefficients"].update(macs=-1.0), "negative"),
        (lambda d: d.update(scale=float("nan")), "finite"),
    ],
)
def test_impossible_models_are_refused(change, says):
    data = with_ranges(true_model(), [fuse(op_graph(PRESETS["lowformer_e1"]), "onnxruntime", BLOCK)]).to_dict()
    change(data)
    with pytest.raises(ValueError, match=says):
        KernelModel.from_dict(data)


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


def test_padding_and_cache_are_kept():
    model = with_ranges(
        replace(true_model(), pads={"linear": 8}, cache=1000), [fuse(op_graph(PRESETS["lowformer_e1"]), "torch")]
    )
    again = KernelModel.from_dict(json.loads(json.dumps(model.to_dict())))
    assert (again.pads, again.cache) == ({"linear": 8}, 1000)
    with pytest.raises(ValueError, match="padding of"):
        KernelModel.from_dict({**model.to_dict(), "pads": {"warp": 8}})
