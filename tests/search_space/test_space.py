from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, build_model, op_graph

SPACES = {name: SearchSpace.load(name) for name in ("default", "tiny")}
seeds = st.integers(0, 2**32 - 1)
names = st.sampled_from(sorted(SPACES))


@pytest.mark.parametrize("name", PRESETS)
def test_default_contains_all_presets(name: str) -> None:
    assert PRESETS[name] in SPACES["default"]


@settings(max_examples=60, deadline=None)
@given(name=names, seed=seeds)
def test_samples_mutants_and_children_are_points_of_the_space(name: str, seed: int) -> None:
    space, rng = SPACES[name], np.random.default_rng(seed)
    a, b = space.sample(rng), space.sample(rng)
    mutant = space.mutate(a, rng)
    for config in (a, mutant, space.crossover(a, b, rng)):
        assert config in space
        assert space.from_params(space.to_params(config)) == config
        assert LowFormerConfig.from_json(config.to_json()).id == config.id
        code = space.encode(config)
        assert code.shape == (len(space.parameters),) and code.min() >= 0 and code.max() <= 1
        assert op_graph(config).macs > 0
    assert mutant != a


@settings(max_examples=12, deadline=None)
@given(name=names, seed=seeds)
def test_every_sample_is_a_model_that_runs_and_trains(name: str, seed: int) -> None:
    config = SPACES[name].sample(np.random.default_rng(seed)).replace(resolution=33, classes=3)
    model = build_model(config)
    with torch.no_grad():
        model.eval()
        features, maps = model.forward_intermediates(torch.zeros(1, 3, 33, 33))
        assert [m.shape[-1] for m in maps] == [9, 5, 3, 2]
        assert torch.equal(features, maps[-1])
        assert model(torch.zeros(2, 3, 33, 47)).shape == (2, 3)


def test_one_seed_one_sample() -> None:
    space = SPACES["default"]
    assert space.sample(np.random.default_rng(5)) == space.sample(np.random.default_rng(5))


def test_optuna_draws_the_static_set_of_parameters() -> None:
    space = SPACES["tiny"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    config = space.sample(np.random.default_rng(0))
    study.enqueue_trial(space.to_params(config))
    first, second = study.ask(), study.ask()
    assert space.suggest(first) == config
    assert space.suggest(second) in space
    assert list(first.params) == list(second.params) == list(space.parameters)


def test_resolution_is_fixed_on_demand() -> None:
    space = SearchSpace.load("default", resolution=200)
    assert space.sample(np.random.default_rng(0)).resolution == 200
    with pytest.raises(ValueError, match="resolution"):
        SearchSpace.load("default", resolution=2)


def test_a_users_own_file(tmp_path: Path) -> None:
    stage = "{width: [16], depth: [1, 2]}"
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nresolution: [64]\nstem_width: [8]\nstages: [{stage}, {stage}, {stage}, {stage}]\n")
    space = SearchSpace.load(path)
    assert space.size == 16
    assert space.sample(np.random.default_rng(0)).resolution == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "broken YAML"),
        ("- 1", "mapping"),
        ("name: a\nresolution: [64]", "stem_width: missing"),
        ("name: a\nresolution: [64]\nstem_width: [8]\nwidths: 1\nstages: []", "widths: unknown key"),
        ("name: a\nresolution: []\nstem_width: [8]\nstages: [{width: [8], depth: [1]}]", "stages"),
        (
            "name: a\nresolution: [64]\nstem_width: [8]\ngroups: [3]\nstages: ["
            + ", ".join(["{width: [16], depth: [2]}"] * 4)
            + "]",
            "groups: must divide",
        ),
    ],
)
def test_broken_spaces_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        SearchSpace.load(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'default'"):
        SearchSpace.load("defalt")
