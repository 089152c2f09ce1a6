"""What every runtime must hold, those of the package and one from outside; and that such a one needs no other edit."""

import textwrap
from dataclasses import dataclass, field

import numpy as np
import pytest

from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.latency.calibration import calibrate
from lownas.predictors.latency.fitting.cross_validation import fit_samples
from lownas.predictors.latency.fitting.samples import Sample
from lownas.predictors.latency.fusion import fuse, fuse_config
from lownas.predictors.latency.kernel_model import KernelModel
from lownas.predictors.latency.kernel_terms import COEFFICIENTS
from lownas.predictors.latency.kernels import KERNEL_CLASS, KERNEL_CLASSES
from lownas.predictors.latency.runtimes import (
    RUNTIMES,
    STANDARD_PRECISIONS,
    Runtime,
    fusion_names,
    register_runtime,
    runtime,
    runtime_of_fusion,
)
from lownas.predictors.latency.sampling import spread_sample
from lownas.search_space import PRESETS, OpGraph, SearchSpace, op_graph

FUSIONS = [*fusion_names(), "toy"]


def sampled(count: int, seed: int):
    space, rng = SearchSpace.load("default"), np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count)]


@pytest.fixture
def with_toy(registry, toy):
    register_runtime(toy)
    return toy


# --- the contract ---


@pytest.mark.parametrize("name", [*RUNTIMES, "toy"])
def test_a_runtime_says_what_it_has(with_toy, name):
    known = runtime(name)
    assert known.name == name and known.library
    assert known.precisions and known.name in known.fusions
    for precision in known.precisions:
        target = Target.parse(f"box/{name}/{precision}/b1/t1")
        assert target.fusion in known.fusions
        assert runtime_of_fusion(target.fusion) is known
        assert Target.parse(f"cpu/{name}/{precision}/b1/t1").fingerprint().keys() == {"cpu", known.library}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_units_fuse_as_their_whole_graph(with_toy, fusion):
    for config in [*sampled(25, seed=1), *PRESETS.values()]:
        for block in runtime_of_fusion(fusion).block_sizes(fusion):
            whole = fuse(op_graph(config), fusion, block).table
            parts = fuse_config(config, fusion, block).table
            assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, parts.tolist()))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_keeps_macs_and_weights(with_toy, fusion):
    for config in sampled(5, seed=2):
        graph = op_graph(config)
        kernels = fuse(graph, fusion)
        assert kernels.column("macs").sum() == graph.macs
        extra = 2 * sum(
            row[5] for row in kernels.table.tolist() if row[0] == KERNEL_CLASS["batch_norm"]
        )  # eager torch's own scale and shift
        assert kernels.column("weights").sum() - extra == graph.column("weights").sum()


# --- the registry ---


def test_names_are_in_order():
    assert list(RUNTIMES) == [
        "onnxruntime",
        "onnxruntime-cuda",
        "onnxruntime-tensorrt",
        "tensorrt",
        "torch",
        "torch-graph",
        "torch-compile",
    ]
    assert fusion_names()[:3] == ("onnxruntime", "onnxruntime-int8", "onnxruntime-cuda")
    assert fusion_names()[5:7] == ("torch", "torch-amp")
    assert STANDARD_PRECISIONS == ("fp32", "fp16", "bf16", "amp", "int8")


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown runtime 'tvm'; known are onnxruntime, onnxruntime-int8, .*tensorrt"):
        fuse(op_graph(PRESETS["lowformer_b0"]), "tvm")
    with pytest.raises(ValueError, match=r"target runtime: known are onnxruntime, onnxruntime-cuda, .*, given 'tvm'"):
        runtime("tvm")


def test_a_name_is_given_once(with_toy):
    register_runtime(with_toy)  # the same one again changes nothing
    with pytest.raises(ValueError, match="'toy' is registered already"):
        register_runtime(type(with_toy)())


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [("name", "a/b", "lower-case"), ("name", "Toy", "lower-case"), ("precisions", (), "no precision")],
)
def test_impossible_runtimes_are_refused(registry, toy, attribute, value, says):
    setattr(toy, attribute, value)
    with pytest.raises(ValueError, match=says):
        register_runtime(toy)


# --- a runtime from outside ---


def test_a_target_of_it_is_known_while_it_is_registered(registry, toy):
    with pytest.raises(ValueError, match="known are onnxruntime"):
        Target.parse("toybox/toy/fp32/b1/t1")
    register_runtime(toy)
    assert Target.parse("toybox/toy/fp32/b1/t1").fusion == "toy"
    with pytest.raises(ValueError, match="target precision: known are fp32, given 'int8'"):
        Target.parse("toybox/toy/int8/b1/t1")
    assert len(fuse(op_graph(PRESETS["lowformer_b1"]), "toy")) == len(op_graph(PRESETS["lowformer_b1"]))


@dataclass
class Reading:
    median_ms: float
    undisturbed_ms: float
    kernel_ms: dict[str, float] | None
    host: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


def made_up_model() -> KernelModel:
    coefficients = np.zeros((len(KERNEL_CLASSES), len(COEFFICIENTS)))
    for term, value in {"launch": 0.003, "macs": 0.02, "inputs": 0.1, "outputs": 0.1}.items():
        coefficients[:, COEFFICIENTS.index(term)] = value
    return KernelModel("toy", 0, coefficients)


def test_it_is_fitted(with_toy):
    model = made_up_model()
    configs = spread_sample(SearchSpace.load("default"), 12, seed=0)
    samples = [Sample(config, model.graph_ms(fuse(op_graph(config), "toy", 0)), 0.0, None) for config in configs]
    fit = fit_samples(samples, "toy", 0)
    assert fit.model.fusion == "toy" and fit.held_out_error < 0.05


@pytest.mark.parametrize("with_kernels", [True, False])
def test_it_is_calibrated_and_predicted(with_toy, tmp_path, with_kernels):
    model = made_up_model()

    def measure(network, target):
        kernels = fuse(network if isinstance(network, OpGraph) else op_graph(network), target.fusion, 0)
        times = model.kernel_ms(kernels)
        named = {f"{row}:{role}": float(ms) for (row, role), ms in zip(kernels.keys, times, strict=True)}
        return Reading(float(times.sum()), float(times.sum()), named if with_kernels else None)

    calibrate("toybox/toy/fp32/b1/t1", measure, samples=10, profiles=tmp_path)
    predictor = LatencyPredictor.load("toybox/toy/fp32/b1/t1", tmp_path)
    configs = list(PRESETS.values())
    truth = np.array([model.graph_ms(fuse(op_graph(config), "toy", 0)) for config in configs])
    assert np.abs(predictor.latency_ms(configs) / truth - 1).mean() < (0.03 if with_kernels else 0.3)
    assert predictor.latency_ms(configs) == pytest.approx([p.latency_ms for p in predictor.predict(configs)])
    assert "toybox with toy" in predictor.source


def test_the_guide_says_what_works(registry):
    """The example in the docstring of `Runtime`, run as it stands there."""
    text = Runtime.__doc__ or ""
    exec(textwrap.dedent(text[text.index("        from lownas") : text.index("    After that")]), {})
    assert Target.parse("box/toy/fp32/b1/t1").fusion == "toy"
