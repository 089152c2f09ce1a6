"""Each unit costs what its torch module costs, and a block may have units of new kinds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lownas.search_space import PRESETS, SearchSpace
from lownas.search_space.blocks import MODULES, LowFormerBlock, block_module, unit_module
from lownas.search_space.graph import GRAPH_INPUT, GraphBuilder
from lownas.search_space.graph.from_config import units
from lownas.search_space.units import LocalUnit, MlpUnit, Unit, backbone, unit_graph

SPACE, RNG = SearchSpace.load("tiny"), np.random.default_rng(5)
CONFIGS = [*PRESETS.values(), *(SPACE.sample(RNG) for _ in range(20))]


@pytest.mark.parametrize("kind", MODULES)
def test_a_units_graph_costs_what_its_module_costs(kind: type[Unit]) -> None:
    found = dict.fromkeys(unit for config in CONFIGS for unit in units(config) if type(unit) is kind)
    assert found
    for unit in list(found)[:12]:
        graph = unit_graph(unit)
        shape = [int(graph.column(name)[0]) for name in ("cin", "hin", "win")]
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            module = unit_module(unit, 0.0).eval()
            module(torch.zeros(1, *shape))
        assert graph.macs == counter.get_total_flops() // 2, unit
        assert graph.params == sum(parameter.numel() for parameter in module.parameters()), unit


def test_graphs_of_units_are_shared_and_cannot_be_changed() -> None:
    unit = MlpUnit(8, 4, 2)
    assert unit_graph(unit) is unit_graph(MlpUnit(8, 4, 2))
    with pytest.raises(ValueError, match="read-only"):
        unit_graph(unit).table[0] = 0


def test_sections_are_the_stem_and_the_stages() -> None:
    config = PRESETS["lowformer_b3"]
    sections = backbone(config)
    assert [len(section.blocks) for section in sections] == [2, 2, 3, 7, 7]
    assert [section.width for section in sections] == [config.stem_width, *(stage.width for stage in config.stages)]
    assert [section.size for section in sections] == [112, 56, 28, 14, 7]
    flat = [unit for section in sections for block in section.blocks for unit in block]
    assert units(config)[: len(flat)] == flat == [unit for section in sections for unit in section.units]


class ScaleUnit(NamedTuple):
    """A learned factor for each channel."""

    width: int
    size: int
    kind: str = "scale"

    def graph(self, build: GraphBuilder) -> None:
        shape = (self.width, self.size, self.size)
        build.add_op("mul", [GRAPH_INPUT], shape_in=shape, shape_out=shape, weights=self.width, params=self.width)


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width, 1, 1), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_a_block_runs_units_of_a_new_kind_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, ScaleUnit, lambda unit, drop_path: Scale(unit.width))
    local = LocalUnit(8, 4, 8, 1, 2, 3, 1, True, True, True)
    torch.manual_seed(0)
    plain = block_module((MlpUnit(8, 4, 2), local), 0.0).eval()
    torch.manual_seed(0)
    block = block_module((ScaleUnit(8, 4), MlpUnit(8, 4, 2), local), 0.0).eval()
    assert isinstance(block, LowFormerBlock) and isinstance(block.scale, Scale)
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), plain(2 * x))
