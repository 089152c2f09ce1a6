"""Published models scaled, and what a space has of them."""

import numpy as np
import pytest

from lownas.search_space import PRESETS, SearchSpace, op_graph
from lownas.search_space.scaling import FAMILIES, published_scaled, scaled


def test_widths_and_depths_are_scaled() -> None:
    b0 = PRESETS["lowformer_b0"]
    assert scaled(b0) == b0
    half = scaled(b0, width=0.5, depth=0.5, resolution=96)
    assert half.resolution == 96
    assert [stage.width for stage in half.stages] == [8 * round(stage.width / 16) for stage in b0.stages]
    assert half.head_widths == (768, 800)
    assert all(one.depth <= whole.depth for one, whole in zip(half.stages, b0.stages, strict=True))
    assert half.stages[3].depth >= 1
    assert op_graph(half.replace(resolution=b0.resolution)).macs < 0.4 * op_graph(b0).macs


@pytest.mark.parametrize("name", ["default", "tiny"])
def test_all_scaled_models_are_of_the_space(name: str) -> None:
    space = SearchSpace.load(name)
    found = published_scaled(space)
    assert tuple(found) == FAMILIES
    for configs in found.values():
        assert len({config.id for config in configs}) == len(configs) > 20
        assert all(config in space for config in configs)


def test_the_default_space_has_the_published_models_themselves() -> None:
    space = SearchSpace.load("default")
    known = {config.id for configs in published_scaled(space).values() for config in configs}
    for preset in PRESETS.values():
        assert space.nearest(preset) == preset
        if preset.resolution in space.choices.resolution:
            assert preset.id in known


def test_what_is_in_the_space_is_its_own_nearest() -> None:
    rng = np.random.default_rng(0)
    for name in ("default", "tiny"):
        space = SearchSpace.load(name)
        for _ in range(50):
            config = space.sample(rng)
            assert space.nearest(config) == config


def test_what_a_space_lacks_becomes_the_nearest_it_has() -> None:
    space = SearchSpace.load("tiny")
    nearest = space.nearest(PRESETS["lowformer_b1"])
    assert nearest in space
    assert nearest.resolution == 64 and nearest.head_widths == (512, 640)
    assert [stage.width for stage in nearest.stages] == [32, 64, 128, 192]
