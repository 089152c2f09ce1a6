"""Weights inherited: what is the same function, what is refused, and that nothing goes wrong in between."""

import itertools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lownas.evaluators.inherit import Source, _recentred, inherit, load_source, save_source
from lownas.evaluators.proxy import prepared_model
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, build_model
from lownas.search_space.checkpoints import export_state_dict, infer_config
from lownas.search_space.lowformer import LowFormer

SPACE = SearchSpace.load("tiny")


def trained(config: LowFormerConfig, seed: int = 0) -> LowFormer:
    """A network as training leaves it: nothing at its initial value, statistics of its own."""
    torch.manual_seed(seed)
    model = build_model(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.1 * torch.randn_like(buffer)
        elif name.endswith("running_var"):
            buffer *= 0.5 + torch.rand_like(buffer)
    return model.eval()


def outputs(model: LowFormer, resolution: int = 40) -> torch.Tensor:
    images = torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return model.eval()(images)


def samples(count: int, seed: int = 0) -> list[LowFormerConfig]:
    rng = np.random.default_rng(seed)
    return [SPACE.sample(rng) for _ in range(count)]


def child_of(source: LowFormer, config: LowFormerConfig) -> tuple[LowFormer, float]:
    """The inheriting network, and the share of its blocks that took weights."""
    torch.manual_seed(1)
    model = prepared_model(config, "cpu")
    report = inherit(model, Source(source, "0"))
    return model, report.blocks / report.of_blocks


@pytest.mark.parametrize(
    "config", [PRESETS[name].replace(classes=7) for name in ("lowformer_b0", "cpubone_nano")] + samples(12)
)
def test_the_same_architecture_is_the_same_function(config: LowFormerConfig) -> None:
    source = trained(config)
    model, share = child_of(source, config)
    assert share == 1
    assert torch.allclose(outputs(model), outputs(source), atol=1e-4, rtol=1e-4)
    for name, value in source.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def grown(config: LowFormerConfig) -> LowFormerConfig:
    """Deeper, and wider in what no other block sees."""
    stages = config.to_dict()["stages"]
    for stage in stages:
        stage["down_expansion"] += 1
        if stage["depth"] > 1 and (stage["attention"] or {"placement": "all"})["placement"] == "all":
            stage["depth"] += 1
            stage["expansion"] += 1
            stage["mlp_ratio"] += bool(stage["mlp_ratio"])
    return config.replace(stages=stages)


@pytest.mark.parametrize("config", samples(12, seed=3))
def test_deeper_and_wider_inside_is_the_same_function(config: LowFormerConfig) -> None:
    source = trained(config)
    larger = grown(config)
    model, share = child_of(source, larger)
    assert larger != config and share > 0.4
    assert torch.allclose(outputs(model), outputs(source), atol=1e-3, rtol=1e-3)


def test_other_classes_start_anew() -> None:
    config = samples(1)[0]
    model, _ = child_of(trained(config), config.replace(classes=5))
    assert not model.classifier.weight.any() and outputs(model).shape == (2, 5)


def test_of_inner_channels_the_important_ones_are_kept() -> None:
    config = next(config for config in samples(50) if config.stages[0].down_expansion == 4)
    source = trained(config)
    layer = source.stages[0][0].main
    weights = layer.point_conv.conv.weight.data
    important = torch.arange(len(weights[0])) % 2 == 1
    weights[:, ~important] *= 1e-3
    stages = config.to_dict()["stages"]
    stages[0]["down_expansion"] = 2
    model, _ = child_of(source, config.replace(stages=stages))
    assert torch.equal(model.stages[0][0].main.point_conv.conv.weight, weights[:, important])


@pytest.mark.parametrize("seed", range(4))
def test_any_two_networks_get_along(seed: int) -> None:
    configs = samples(9, seed=10 + seed) + [PRESETS["lowformer_e1"].replace(classes=10)] * (seed == 0)
    for old, new in itertools.pairwise(configs):
        model, share = child_of(trained(old), new)
        assert 0 < share <= 1
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())
        assert torch.isfinite(outputs(model)).all()


def test_kernels_keep_their_centre() -> None:
    weight = torch.arange(9.0).view(1, 1, 3, 3)
    wide = _recentred(weight, 5)
    assert torch.equal(wide[..., 1:4, 1:4], weight) and wide.sum() == weight.sum()
    assert torch.equal(_recentred(wide, 3), weight)
    assert torch.equal(_recentred(weight, 2), weight[..., :2, :2]), "a 2x2 pads on the top left: its centre is last"
    images = torch.randn(1, 1, 6, 6)
    padded = torch.nn.functional.pad
    small = torch.zeros(1, 1, 2, 2)
    small[..., 1, 1] = 1
    for kernel, pads in ((2, (1, 0, 1, 0)), (3, (1, 1, 1, 1)), (5, (2, 2, 2, 2))):
        assert torch.equal(torch.conv2d(padded(images, pads), _recentred(small, kernel)), images)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ours.safetensors", "timm.safetensors", "plain.pth", "wrapped.pth"])
def test_checkpoints_of_all_forms(form: str, tmp_path: Path) -> None:
    config = PRESETS["cpubone_nano"].replace(classes=10)
    model = trained(config)
    path = tmp_path / form
    if form == "ours.safetensors":
        save_source(model, path)
    elif form == "timm.safetensors":
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in export_state_dict(model).items()}, path)
    else:
        state = model.state_dict()
        torch.save({"state_dict": state, "epoch": torch.tensor(3)} if form == "wrapped.pth" else state, path)
    source = load_source(path)
    assert source.config == config and len(source.identity) == 12
    assert torch.allclose(outputs(source.model), outputs(model), atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == [form]


def test_the_architecture_is_told_by_names_and_shapes() -> None:
    for config in (*PRESETS.values(), *samples(40, seed=5)):
        told = infer_config(build_model(config).state_dict(), config.resolution)
        if all(stage.attention is None or stage.attention.upsampling != "nearest" for stage in config.stages):
            assert told == config  # else the stride is assumed
        build_model(told).load_state_dict(build_model(config).state_dict())


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_bad_checkpoints_are_one_clear_line(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    config = samples(1)[0]
    good = tmp_path / "good.safetensors"
    save_source(build_model(config), good)
    files: dict[str, bytes] = {
        "cut.safetensors": good.read_bytes()[:-100],
        "not.safetensors": b"not a checkpoint",
        "evil.safetensors": pickle.dumps(Evil(trap)),
        "evil.pth": pickle.dumps({"stem.0.conv.weight": Evil(trap)}),
        "text.pth": b"not a checkpoint",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"layer1.0.conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    torch.save({"a": Evil(trap)}, tmp_path / "evil2.pth")
    state = build_model(config).state_dict()
    torch.save({name: value for name, value in state.items() if "in_conv" not in name}, tmp_path / "half.pth")
    wrong = {**state, "stem.0.conv.weight": torch.zeros(5, 3, 3, 3)}
    torch.save(wrong, tmp_path / "odd.pth")
    for name in (*files, "resnet.pth", "evil2.pth", "half.pth", "odd.pth", "missing.pth"):
        with pytest.raises(ValueError, match=name) as caught:
            load_source(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_no_code_of_a_checkpoint_runs_nor_is_torchs_unsafe_loader_used(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"a": Evil(trap)}, tmp_path / "evil.pth")
    code = f"""
import sys, torch
from lownas.evaluators.inherit import load_source
load = torch.load
def watched(*args, **kwargs):
    assert kwargs.get("weights_only") is True, kwargs
    return load(*args, **kwargs)
torch.load = watched
seen = []
sys.addaudithook(lambda event, args: seen.append(args) if event == "open" and args[0] == {str(trap)!r} else None)
try:
    load_source({str(tmp_path / "evil.pth")!r})
except ValueError as error:
    print("refused", len(seen))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "refused 0", done.stderr
    assert not trap.exists()
