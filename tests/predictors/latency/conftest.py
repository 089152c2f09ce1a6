"""Made-up devices whose latency model is known, shared by the tests of this folder."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from lownas.predictors.latency.fitting.measured_networks import profiled_nodes
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import KernelModel
from lownas.predictors.latency.kernel_terms import COEFFICIENTS
from lownas.predictors.latency.kernels import KERNEL_CLASSES, Kernels
from lownas.search_space import OpGraph, SearchSpace, op_graph

BLOCK = 16


def made_up_model(sharpness: float = 1.0) -> KernelModel:
    """A made-up device: 50 GMAC/s, less for few channels; 10 G elements/s; 3 us per kernel."""
    coefficients = np.zeros((len(KERNEL_CLASSES), len(COEFFICIENTS)))
    # By class, so that a new one leaves the others as they were.
    factors = np.stack([np.random.default_rng([7, code]).uniform(0.5, 2, 7) for code in range(len(KERNEL_CLASSES))])
    typical = {"launch": 0.003, "macs": 0.02, "macs_per_cin": 0.1, "tail": 0.1, "inputs": 0.1, "outputs": 0.1}
    for number, (term, value) in enumerate({**typical, "weights": 0.1}.items()):
        coefficients[:, COEFFICIENTS.index(term)] = value * factors[:, number]
    return KernelModel("onnxruntime", BLOCK, coefficients, sharpness, overhead_ms=0.1, scale=1.02)


@pytest.fixture(scope="session")
def true_model():
    """The model of the made-up device, by sharpness."""
    return made_up_model


@pytest.fixture(scope="session")
def graphs() -> list[Kernels]:
    space = SearchSpace.load("default")
    rng = np.random.default_rng(0)
    return [fuse(op_graph(space.sample(rng)), "onnxruntime", BLOCK) for _ in range(40)]


@dataclass
class Reading:
    median_ms: float
    undisturbed_ms: float
    kernel_ms: dict[str, float] | None
    host: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: {"device": "made up"})
    settings: dict[str, str] = field(default_factory=dict)


class MadeUpDevice:
    """Measures by a formula; breaks after `breaks_after` measurements."""

    def __init__(self, block=8, kernels=True, noise=0.03, breaks_after=None, profiling_ms=0.0):
        rng = np.random.default_rng(3)
        coefficients = np.zeros((len(KERNEL_CLASSES), len(COEFFICIENTS)))
        for term, value in {"launch": 0.003, "macs": 0.02, "macs_per_cin": 0.05, "inputs": 0.1, "outputs": 0.1}.items():
            coefficients[:, COEFFICIENTS.index(term)] = value * rng.uniform(0.5, 2, len(KERNEL_CLASSES))
        self.model = KernelModel("onnxruntime", block, coefficients)
        self.kernels, self.noise, self.breaks_after, self.profiling_ms = kernels, noise, breaks_after, profiling_ms
        self.rng = np.random.default_rng(4)
        self.measured = []

    def __call__(self, network, target):
        if len(self.measured) == self.breaks_after:
            raise KeyboardInterrupt
        self.measured.append(network)
        graph = network if isinstance(network, OpGraph) else op_graph(network)
        graph = fuse(graph, "onnxruntime", self.model.block)
        disturbance = self.rng.exponential(0.02)  # of the whole measurement, as by other work on the machine
        times = self.model.kernel_ms(graph)
        noisy = times * (1 + disturbance / 2) * np.exp(self.rng.normal(0, self.noise, len(times)))
        noisy += self.profiling_ms * profiled_nodes("onnxruntime")[graph.column("class")]
        named = {f"{row}:{role}": float(t) for (row, role), t in zip(graph.keys, noisy, strict=True)}
        clean = float(times.sum()) * np.exp(self.rng.normal(0, 0.005))
        host = target.fingerprint() if target else {}
        return Reading(clean * (1 + disturbance), clean, named if self.kernels else None, host)


@pytest.fixture(scope="session")
def made_up_device():
    """A device that measures by a formula."""
    return MadeUpDevice


@pytest.fixture(scope="session")
def reading():
    """What such a device gives."""
    return Reading
