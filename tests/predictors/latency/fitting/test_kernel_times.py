import numpy as np
import pytest

from lownas.predictors.latency.fitting.kernel_times import fit_kernels
from lownas.predictors.latency.fitting.whole_graphs import fit_scale
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import KernelModel
from lownas.predictors.latency.kernels import Kernels
from lownas.search_space import PRESETS, op_graph

BLOCK = 16


def errors(model: KernelModel, truth: KernelModel, graphs: list[Kernels]) -> np.ndarray:
    return np.array([abs(model.graph_ms(graph) / truth.graph_ms(graph) - 1) for graph in graphs])


def test_kernel_times_recover_the_device(graphs, true_model):
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


def test_more_work_never_costs_less(graphs, true_model):
    rng = np.random.default_rng(2)
    times = [true_model().kernel_ms(graph) * np.exp(rng.normal(0, 0.1, len(graph))) for graph in graphs[:15]]
    model = fit_kernels(graphs[:15], times, "onnxruntime", block=BLOCK)
    for name in ("lowformer_b1", "lowformer_e2", "cpubone_t0"):
        sizes = [160, 192, 224, 256, 320]
        latencies = [
            model.graph_ms(fuse(op_graph(PRESETS[name].replace(resolution=r)), "onnxruntime", BLOCK)) for r in sizes
        ]
        assert (np.diff(latencies) > 0).all()
