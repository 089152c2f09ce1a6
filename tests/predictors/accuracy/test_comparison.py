"""How a network differs from a published one, in words."""

import itertools
import re

import numpy as np
import pytest

from lownas.predictors.accuracy.comparison import describe_difference
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace


def numbers(value: object) -> set[float]:
    """All numbers in plain values."""
    if isinstance(value, dict):
        return set().union(*(numbers(item) for item in value.values()))
    if isinstance(value, list | tuple):
        return set().union(*(numbers(item) for item in value))
    return {float(value)} if isinstance(value, int | float) else set()


def check(said: str, config: LowFormerConfig, reference: LowFormerConfig) -> None:
    """Numbers are those of the networks, of stages and of blocks; what is said to be missing is missing."""
    assert len(said) < 200
    own, old = numbers(config.to_dict()), numbers(reference.to_dict())
    assert said.startswith("NAME")
    for new, before in re.findall(r"([\d.]+) instead of ([\d.]+)", said):
        assert float(new) in own and float(before) in old and new != before
    for channels, stage in re.findall(r"(\d+) instead of \d+ channels in stage (\d)", said):
        assert config.stages[int(stage) - 1].width == int(channels)
    for missing, stage in re.findall(r"no (attention|MLP) in stages? (\d)", said):
        one = config.stages[int(stage) - 1]
        assert one.attention is None if missing == "attention" else one.mlp_ratio == 0
    for factor in re.findall(r"all widths times ([\d.]+)", said):
        for stage, other in zip(config.stages, reference.stages, strict=True):
            assert stage.width / other.width == pytest.approx(float(factor), abs=0.01)


def test_the_same_network_is_its_name_alone() -> None:
    for config in PRESETS.values():
        assert describe_difference(config, config, "NAME") == "NAME"
        assert describe_difference(config.replace(resolution=256), config, "NAME") == "NAME at 256 pixels"


def test_presets_beside_each_other() -> None:
    for config, reference in itertools.permutations(PRESETS.values(), 2):
        said = describe_difference(config, reference, "NAME")
        assert said.startswith("NAME, but ")
        check(said, config, reference)


def test_any_network_beside_a_published_one() -> None:
    rng, space = np.random.default_rng(0), SearchSpace.load("default")
    for _ in range(300):
        config, reference = space.sample(rng), list(PRESETS.values())[int(rng.integers(len(PRESETS)))]
        said = describe_difference(config, reference, "NAME")
        assert "but" in said
        check(said, config, reference)


def test_any_change_is_said() -> None:
    """One step of the search away from another network there is always something to say."""
    rng, space = np.random.default_rng(1), SearchSpace.load("default")
    for _ in range(300):
        reference = space.sample(rng)
        config = space.mutate(reference, rng)
        if config != reference:
            said = describe_difference(config, reference, "NAME")
            assert ", but " in said or config.resolution != reference.resolution
            check(said, config, reference)


def test_a_sentence_as_people_read_it() -> None:
    b3 = PRESETS["lowformer_b3"]
    data = b3.replace(resolution=256).to_dict()
    data["stages"][2] |= {"width": 192, "depth": 8, "attention": None}
    assert describe_difference(LowFormerConfig.from_dict(data), b3, "lowformer_b3") == (
        "lowformer_b3 at 256 pixels, but no attention in stage 3, "
        "stage 3 with 192 instead of 256 channels and 8 instead of 6 blocks"
    )
    assert describe_difference(PRESETS["lowformer_e2"], PRESETS["lowformer_e3"], "lowformer_e3") == (
        "lowformer_e3, but no attention in stages 3 and 4, 4 instead of 6 blocks in stages 3 and 4"
    )
