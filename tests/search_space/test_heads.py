"""Every head keeps the contract of `Head`: the registered ones, and two that are registered from outside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, build_model, op_graph, op_graph_from_onnx
from lownas.search_space.blocks import GlobalAverage
from lownas.search_space.checkpoints import timm_arguments
from lownas.search_space.graph import GRAPH_INPUT, GraphBuilder
from lownas.search_space.graph.from_config import units
from lownas.search_space.graph.onnx_writer import write_onnx
from lownas.search_space.graph.torch_tracer import op_graph_from_torch
from lownas.search_space.heads import HEADS, Head, head, register_head
from lownas.search_space.model import LowFormer, folded_weights
from lownas.search_space.units import Unit

from .conftest import randomized


class PooledUnit(NamedTuple):
    channels: int
    size: int
    outputs: int
    kind: str = "pooled"

    def graph(self, build: GraphBuilder) -> None:
        shape = (self.channels, self.size, self.size)
        row = build.add_op("global_pool", [GRAPH_INPUT], shape_in=shape, shape_out=(self.channels, 1, 1))
        build.linear(row, self.channels, self.outputs, bias=True)


class PooledHead:
    """The mean of the last map and one linear layer, as `Head` shows it."""

    name = "pooled"

    def units(self, config: LowFormerConfig, channels: int, size: int) -> Sequence[Unit]:
        return [PooledUnit(channels, size, config.classes)]

    def layers(self, config: LowFormerConfig, channels: int) -> dict[str, nn.Module]:
        return {"global_pool": GlobalAverage(), "output": nn.Linear(channels, config.classes)}


class MapUnit(NamedTuple):
    channels: int
    size: int
    outputs: int
    kind: str = "map"

    def graph(self, build: GraphBuilder) -> None:
        shape = (self.channels, self.size, self.size)
        row, shape = build.conv(GRAPH_INPUT, shape, self.channels, 3, norm=True)
        row = build.pointwise("relu", [row], shape)
        build.conv(row, shape, self.outputs, bias=True)


class MapHead:
    """An output for every place of the last map."""

    name = "map"

    def units(self, config: LowFormerConfig, channels: int, size: int) -> Sequence[Unit]:
        return [MapUnit(channels, size, config.classes)]

    def layers(self, config: LowFormerConfig, channels: int) -> dict[str, nn.Module]:
        hidden = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        return {"hidden": hidden.append(nn.ReLU()), "output": nn.Conv2d(channels, config.classes, 1)}


TOYS: dict[str, Head] = {toy.name: toy for toy in (PooledHead(), MapHead())}


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    for toy in TOYS.values():
        register_head(toy)
    yield
    for name in TOYS:
        del HEADS[name]


def config_of(name: str) -> LowFormerConfig:
    return PRESETS["cpubone_nano"].replace(resolution=64, classes=7, head=name)


def model_of(name: str) -> LowFormer:
    model = randomized(build_model(config_of(name)))
    assert isinstance(model, LowFormer)
    return model


each_head = pytest.mark.parametrize("name", [*HEADS, *TOYS])


@each_head
def test_the_graph_costs_what_the_module_costs(name: str) -> None:
    model, graph = model_of(name), op_graph(config_of(name))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 64, 64))
    assert graph.macs == counter.get_total_flops() // 2
    assert graph.params == sum(parameter.numel() for parameter in model.parameters())
    assert op_graph_from_torch(model, (3, 64, 64)).kinds == graph.kinds


@each_head
def test_the_written_file_computes_what_the_module_computes(name: str, tmp_path: Path) -> None:
    model, path = model_of(name), tmp_path / "model.onnx"
    write_onnx(model.config, path, folded_weights(model), batch="n")
    assert op_graph_from_onnx(path).kinds == op_graph(model.config).kinds
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x).numpy()
    (output,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})
    assert output.shape == expected.shape and output.shape[:2] == (2, 7)
    assert np.abs(output - expected).max() < 1e-4 * max(1.0, np.abs(expected).max())


@each_head
def test_images_of_any_size_train(name: str) -> None:
    model = build_model(config_of(name)).train()
    model(torch.zeros(2, 3, 33, 47)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@each_head
def test_the_last_layer_can_be_renewed(name: str) -> None:
    model, x = model_of(name), torch.zeros(2, 3, 64, 64)
    model.reset_classifier(3)
    assert model(x).shape[1] == 3 and model.config.classes == 3 and model.config.head == name
    model.reset_classifier(0)
    assert model(x).shape[1] == model.head_hidden_size


def test_units_of_different_classes_are_never_equal() -> None:
    parts = [unit for name in [*HEADS] for preset in PRESETS.values() for unit in units(preset.replace(head=name))]
    classes = {type(unit) for unit in parts}
    assert len({unit.kind for unit in parts}) == len(classes) == 7


def test_only_other_heads_than_the_default_are_written_down() -> None:
    plain, pooled = PRESETS["lowformer_b1"], PRESETS["lowformer_b1"].replace(head="pooled")
    assert "head" not in plain.to_dict() and '"head"' not in plain.to_json()
    assert plain == plain.replace(head="classification") and plain.id == "29d06b67606e"
    assert pooled.id != plain.id and json.loads(pooled.to_json())["head"] == pooled.to_dict()["head"] == "pooled"
    assert LowFormerConfig.from_json(pooled.to_json()) == pooled


def test_an_unknown_head_is_named_with_the_known_ones() -> None:
    config = PRESETS["lowformer_b1"].replace(head="nose")
    for build in (op_graph, build_model):
        with pytest.raises(ValueError, match=r"one of \['classification', 'map', 'pooled'\], given 'nose'"):
            build(config)
    with pytest.raises(ValueError, match="head"):
        PRESETS["lowformer_b1"].replace(head="")


def test_a_name_is_taken_once() -> None:
    register_head(head("pooled"))
    with pytest.raises(ValueError, match="'pooled' is registered already"):
        register_head(PooledHead())


def test_layers_do_not_hide_the_network() -> None:
    class Hiding(PooledHead):
        name = "hiding"

        def layers(self, config: LowFormerConfig, channels: int) -> dict[str, nn.Module]:
            return {"stages": GlobalAverage(), "output": nn.Linear(channels, config.classes)}

    register_head(Hiding())
    try:
        with pytest.raises(ValueError, match="other things called stages"):
            build_model(config_of("hiding"))
    finally:
        del HEADS["hiding"]


def test_modules_that_do_not_match_the_graph_are_refused() -> None:
    model = model_of("pooled")
    model.output = nn.Linear(192, 8)
    with pytest.raises(ValueError, match=r"operator \d+ \(linear\) has 1351 constants, the module in its place 1544"):
        folded_weights(model)
    model.output = nn.Sequential(nn.Linear(192, 7), nn.Linear(7, 7))
    with pytest.raises(ValueError, match="1 of the network's modules"):
        folded_weights(model)


def test_a_space_has_one_head() -> None:
    tiny = SearchSpace.load("tiny")
    assert "head" not in tiny.choices.model_dump()
    space = SearchSpace(tiny.choices.model_copy(update={"head": "pooled", "classes": 2}))
    config = space.sample(np.random.default_rng(0))
    assert (config.head, config.classes) == ("pooled", 2)
    assert config in space and space.from_params(space.to_params(config)) == config
    with pytest.raises(ValueError, match="head 'map', not 'pooled'"):
        space.to_params(config.replace(head="map"))


def test_timm_has_no_other_head() -> None:
    with pytest.raises(ValueError, match="head 'pooled'"):
        timm_arguments(PRESETS["lowformer_b1"].replace(head="pooled"))
