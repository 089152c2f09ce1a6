import json
from dataclasses import replace

import pytest

from lownas.predictors.latency.fitting.corrections import fit_corrections
from lownas.predictors.latency.fitting.kernel_times import fit_kernels, with_ranges
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import KernelModel
from lownas.search_space import PRESETS, op_graph

BLOCK = 16


def test_outside_names_unknown_classes_and_shapes(graphs, true_model):
    e1 = [fuse(op_graph(PRESETS[name]), "onnxruntime", BLOCK) for name in ("lowformer_e1", "lowformer_e2")]
    model = with_ranges(true_model(), e1)
    assert model.outside(e1[0]) == []
    assert "softmax" in model.outside(fuse(op_graph(PRESETS["lowformer_b1"]), "onnxruntime", BLOCK))
    huge = PRESETS["lowformer_e1"].replace(resolution=1024)
    assert "conv_dense (shape)" in model.outside(fuse(op_graph(huge), "onnxruntime", BLOCK))


def test_json_round_trip(graphs, true_model):
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
def test_impossible_models_are_refused(change, says, true_model):
    data = with_ranges(true_model(), [fuse(op_graph(PRESETS["lowformer_e1"]), "onnxruntime", BLOCK)]).to_dict()
    change(data)
    with pytest.raises(ValueError, match=says):
        KernelModel.from_dict(data)


def test_padding_and_caches_are_kept(true_model):
    model = with_ranges(
        replace(true_model(), pads={"linear": 8}, cache=1000, kept=2000),
        [fuse(op_graph(PRESETS["lowformer_e1"]), "torch")],
    )
    again = KernelModel.from_dict(json.loads(json.dumps(model.to_dict())))
    assert (again.pads, again.cache, again.kept) == ({"linear": 8}, 1000, 2000)
    with pytest.raises(ValueError, match="padding of"):
        KernelModel.from_dict({**model.to_dict(), "pads": {"warp": 8}})
