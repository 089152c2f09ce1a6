from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch

from lownas.search_space import PRESETS, SearchSpace, build_model
from lownas.search_space.graph.onnx_writer import onnx_model
from lownas.search_space.model import folded_weights

from .conftest import randomized


def test_reset_classifier_and_timms_conventions() -> None:
    model = build_model(PRESETS["cpubone_nano"], drop_path_rate=0.1).eval()
    x = torch.zeros(2, 3, 64, 64)
    assert model(x).shape == (2, 1000)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7) and model.config.classes == 7
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    assert model.forward_features(x).shape == (2, model.num_features, 2, 2)
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]
    maps = model.forward_intermediates(x, indices=[0, -1], intermediates_only=True)
    assert [m.shape[1] for m in maps] == [24, 192]
    with pytest.raises(ValueError, match="given 9"):
        model.forward_intermediates(x, indices=9)


def test_stochastic_depth_drops_in_training_only() -> None:
    torch.manual_seed(0)
    model = build_model(PRESETS["cpubone_nano"], drop_path_rate=0.9)
    x = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("seed", range(6))
def test_the_written_onnx_file_computes_what_the_module_computes(seed: int) -> None:
    space = SearchSpace.load("tiny")
    config = space.sample(np.random.default_rng(seed))
    model = randomized(build_model(config), seed)
    x = torch.randn(2, 3, config.resolution, config.resolution)
    with torch.no_grad():
        expected = model(x).numpy()
    session = ort.InferenceSession(
        onnx_model(config, folded_weights(model), batch="n").SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(None, {"input": x.numpy()})
    assert np.abs(output - expected).max() < 1e-4 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", ["lowformer_b0", "cpubone_nano"])
def test_networks_can_be_traced_symbolically(name: str) -> None:
    model = build_model(PRESETS[name].replace(classes=10)).eval()
    traced = torch.fx.symbolic_trace(model)  # as pruning and quantization tools do
    for size in (64, 72, 32):
        images = torch.rand(2, 3, size, size)
        with torch.no_grad():
            assert torch.equal(traced(images), model(images))
