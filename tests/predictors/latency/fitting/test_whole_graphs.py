from dataclasses import replace

import numpy as np
import pytest

from lownas.predictors.latency.fitting.whole_graphs import fit_graphs, fit_launches, fit_scale
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import KernelModel
from lownas.predictors.latency.kernels import KERNEL_CLASS, Kernels
from lownas.search_space import SearchSpace, op_graph

BLOCK = 16


def errors(model: KernelModel, truth: KernelModel, graphs: list[Kernels]) -> np.ndarray:
    return np.array([abs(model.graph_ms(graph) / truth.graph_ms(graph) - 1) for graph in graphs])


def test_whole_graph_times_suffice(graphs, true_model):
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


def test_prior_carries_few_graphs(graphs, true_model):
    """Six graphs of a device 1.5 times slower than a known one."""
    known = true_model(sharpness=2.0)
    truth = replace(known, coefficients=1.5 * known.coefficients)
    totals = np.array([truth.graph_ms(graph) for graph in graphs[:6]])
    model = fit_graphs(graphs[:6], totals, "onnxruntime", block=BLOCK, prior=known)
    assert errors(model, truth, graphs[30:]).mean() < 0.05


def test_scale_ignores_one_disturbed_measurement(graphs, true_model):
    truth = true_model()
    totals = np.array([truth.graph_ms(graph) for graph in graphs])
    totals[3] *= 2.5
    model = fit_scale(replace(truth, overhead_ms=0.0, scale=1.0), graphs, totals)
    assert model.scale == pytest.approx(1.02, rel=0.02)


def test_whole_graphs_correct_what_a_profiler_adds_to_a_class(true_model):
    """All matrix products of tiny networks were told twenty microseconds too long."""
    truth, space, rng = true_model(), SearchSpace.load("tiny"), np.random.default_rng(0)
    graphs = [fuse(op_graph(space.sample(rng)), "onnxruntime", BLOCK) for _ in range(50)]
    totals = np.array([truth.graph_ms(graph) for graph in graphs])
    told = truth.coefficients.copy()
    told[KERNEL_CLASS["matmul"], 0] += 0.02
    wrong = fit_scale(replace(truth, coefficients=told), graphs[:40], totals[:40])
    model = fit_launches(wrong, graphs[:40], totals[:40])
    assert errors(model, truth, graphs[40:]).mean() < 0.6 * errors(wrong, truth, graphs[40:]).mean()
    assert (model.coefficients >= 0).all()
