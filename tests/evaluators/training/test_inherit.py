"""Weights inherited: what is the same function, what is refused, and that nothing goes wrong in between."""

import itertools
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lownas.evaluators.training.channels import NEW, kept_channels, kernel_taps
from lownas.evaluators.training.inherit import Inherited, Source, inherit, load_source, save_source
from lownas.evaluators.training.proxy import prepared_model
from lownas.search_space import PRESETS, LowFormerConfig, SearchSpace, build_model, op_graph
from lownas.search_space.blocks import LowFormerBlock, Residual, convolution
from lownas.search_space.checkpoints import export_state_dict, infer_config
from lownas.search_space.model import LowFormer
from lownas.search_space.units import attention_heads

from ..conftest import Evil

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


def samples(count: int, seed: int = 0, space: SearchSpace = SPACE) -> list[LowFormerConfig]:
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count)]


def child_of(source: LowFormer, config: LowFormerConfig) -> tuple[LowFormer, Inherited]:
    """The inheriting network and the report."""
    torch.manual_seed(1)
    model = prepared_model(config, "cpu")
    return model, inherit(model, Source(source, "0"))


@pytest.mark.parametrize(
    "config", [PRESETS[name].replace(classes=7) for name in ("lowformer_b0", "cpubone_nano")] + samples(8)
)
def test_the_same_architecture_is_the_same_function(config: LowFormerConfig) -> None:
    source = trained(config)
    model, report = child_of(source, config)
    assert report.share == 1 and report.whole == len(list(model.parameters()))
    assert torch.allclose(outputs(model), outputs(source), atol=1e-4, rtol=1e-4)
    for name, value in source.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


# --- what else is the same function ----------------------------------------------------------------------------------

Stage = dict[str, Any]


def stages(config: LowFormerConfig, change: Callable[[int, Stage], None]) -> LowFormerConfig:
    """`config` with `change` made to each stage, given its number (1-4) and its values."""
    changed = config.to_dict()["stages"]
    for number, stage in enumerate(changed, start=1):
        change(number, stage)
    return config.replace(stages=changed)


def has_blocks(number: int, stage: Stage) -> bool:
    return stage["depth"] > (number <= 2)


def deeper(config: LowFormerConfig) -> LowFormerConfig:
    def change(number: int, stage: Stage) -> None:
        stage["depth"] += 2 * has_blocks(number, stage)

    return stages(config.replace(stem_depth=config.stem_depth + 1), change)


def wider_inside(config: LowFormerConfig) -> LowFormerConfig:
    def change(number: int, stage: Stage) -> None:
        stage["expansion"] += 1
        stage["down_expansion"] += 1
        stage["mlp_ratio"] += bool(stage["mlp_ratio"])

    wider = stages(config.replace(stem_expansion=config.stem_expansion + 1), change)
    return wider.replace(head_widths=[2 * config.head_widths[0], config.head_widths[1]])


def attending_everywhere(config: LowFormerConfig) -> LowFormerConfig:
    """Also in the stages without; their blocks then have biases."""

    def change(number: int, stage: Stage) -> None:
        if stage["attention"]:
            stage["attention"]["placement"] = "all"
        elif number > 1 and has_blocks(number, stage):
            stage["attention"] = {"placement": "all", "stride": 2, "reduction": 0.5, "upsampling": "separable"}

    return stages(config, change)


def attending_with_more(config: LowFormerConfig) -> LowFormerConfig:
    def change(number: int, stage: Stage) -> None:
        if stage["attention"]:
            before, after = (attention_heads(stage["width"], share) for share in (stage["attention"]["reduction"], 1.0))
            if after[0] >= before[0] and after[1] >= before[1]:
                stage["attention"]["reduction"] = 1.0

    return stages(config, change)


def with_mlps_where_nothing_attends(config: LowFormerConfig) -> LowFormerConfig:
    def change(number: int, stage: Stage) -> None:
        if number > 1 and has_blocks(number, stage) and not stage["attention"] and not stage["mlp_ratio"]:
            stage["mlp_ratio"] = 2

    return stages(config, change)


def with_kernels(size: int) -> Callable[[LowFormerConfig], LowFormerConfig]:
    def change(number: int, stage: Stage) -> None:
        stage["kernel"] = max(size, stage["kernel"]) if has_blocks(number, stage) else stage["kernel"]

    return lambda config: stages(config, change)


def dense(config: LowFormerConfig) -> LowFormerConfig:
    return stages(config.replace(stem_groups=1), lambda number, stage: stage.update(groups=1))


SAME_FUNCTION = {
    "deeper": deeper,
    "wider inside": wider_inside,
    "attending everywhere": attending_everywhere,
    "attending with more channels": attending_with_more,
    "with MLPs": with_mlps_where_nothing_attends,
    "kernels 3": with_kernels(3),
    "kernels 5": with_kernels(5),
    "dense": dense,
    "another resolution": lambda config: config.replace(resolution=config.resolution + 8),
    "all at once": lambda config: dense(with_kernels(5)(attending_with_more(wider_inside(deeper(config))))),
}


@pytest.mark.parametrize("change", SAME_FUNCTION)
def test_more_of_it_is_the_same_function(change: str) -> None:
    changed = [(old, new) for old in samples(30, seed=3) if (new := SAME_FUNCTION[change](old)) != old][:4]
    assert len(changed) == 4
    for old, new in changed:
        source = trained(old)
        model, report = child_of(source, new)
        assert report.share > 0.1 and not report.sliced
        assert torch.allclose(outputs(model), outputs(source), atol=1e-4, rtol=1e-4), (old.id, new.id)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_wider_stage_is_the_same_function_where_no_group_norm_sees_it(groups: int) -> None:
    old = next(config for config in samples(50, seed=4) if any(stage.attention for stage in config.stages))
    old = stages(old.replace(stem_groups=1), lambda _, stage: stage.update(mlp_ratio=0, groups=groups))

    def widened(_: int, stage: Stage) -> None:
        stage["width"] *= 2

    source = trained(old)
    model, _ = child_of(source, stages(old.replace(stem_width=2 * old.stem_width), widened))
    assert torch.allclose(outputs(model), outputs(source), atol=1e-4, rtol=1e-4)


# --- what is not, but is chosen well ---------------------------------------------------------------------------------


def test_other_classes_start_anew() -> None:
    config = samples(1)[0]
    model, _ = child_of(trained(config), config.replace(classes=5))
    assert not model.classifier.weight.any() and outputs(model).shape == (2, 5)


def test_of_inner_channels_the_important_ones_arekept_channels() -> None:
    config = next(c for c in samples(50) if c.stages[0].down_expansion == 4 and c.stages[0].groups == 1)
    source = trained(config)
    layer = source.stages[0][0].main
    weights = layer.point_conv.conv.weight.data
    important = torch.arange(len(weights[0])) % 2 == 1
    weights[:, ~important] *= 1e-3
    narrow = stages(config, lambda number, stage: stage.update(down_expansion=2) if number == 1 else None)
    model, report = child_of(source, narrow)
    assert torch.equal(model.stages[0][0].main.point_conv.conv.weight, weights[:, important])
    assert torch.equal(
        model.stages[0][0].main.spatial_conv.norm.running_mean, layer.spatial_conv.norm.running_mean[important]
    )
    assert report.sliced == 4 and report.padded == report.fresh == 0 and report.share == 1


def test_all_blocks_of_a_stage_keep_the_channels_that_are_important_to_the_next() -> None:
    config = next(c for c in samples(50) if c.stages[3].depth == 3 and c.stages[3].groups == 1)
    source = trained(config)
    read = source.in_conv.conv.weight.data
    important = torch.arange(read.shape[1]) % 2 == 1
    read[:, ~important] *= 1e-3
    half = config.stages[3].width // 2
    model, _ = child_of(source, stages(config, lambda number, stage: stage.update(width=half) if number == 4 else None))
    assert torch.equal(model.in_conv.conv.weight, read[:, important])
    last, old_last = (
        next(module for name, module in network.stages[3][-1].named_modules() if name.endswith("point_conv.norm"))
        for network in (model, source)
    )
    assert torch.equal(last.weight, old_last.weight[important])


def test_channels_of_a_group_stay_together() -> None:
    importance = torch.tensor([1.0, 4, 3, 2, 8, 5, 6, 7])
    assert kept_channels(4, importance).tolist() == [4, 5, 6, 7]
    assert kept_channels(4, importance, groups=2).tolist() == [1, 2, 4, 7]
    assert kept_channels(12, importance, groups=2).tolist() == [0, 1, 2, 3, NEW, NEW, 4, 5, 6, 7, NEW, NEW]


def test_attention_that_returns_in_another_way_keeps_its_scores_and_starts_silent() -> None:
    config = next(
        c
        for c in samples(50, seed=6)
        if (a := c.stages[2].attention) and a.upsampling == "transposed" and a.stride == 1
    )

    def change(_: int, stage: Stage) -> None:
        if stage["attention"]:
            stage["attention"]["upsampling"] = "nearest"

    source = trained(config)
    model, _ = child_of(source, stages(config, change))
    block, old_block = model.stages[2][-1], source.stages[2][-1]
    assert isinstance(block, LowFormerBlock) and isinstance(block.attn, Residual)
    names = [name for name, _ in block.attn.named_parameters() if "upsampling" not in name and "o_proj" not in name]
    for name in names:
        assert torch.equal(block.attn.get_parameter(name), old_block.attn.get_parameter(name)), name
    images = torch.randn(1, config.stages[2].width, 5, 5)
    assert torch.equal(block.attn(images), images)


def test_kernels_see_the_same_pixels() -> None:
    def taps(new: int, old: int, stride: int = 1) -> list[int]:
        layers = [convolution(4, 4, kernel, stride) for kernel in (new, old)]
        return kernel_taps(*layers).tolist()

    assert taps(5, 3) == [NEW, 0, 1, 2, NEW] and taps(3, 5) == [1, 2, 3]
    assert taps(2, 3) == [0, 1] and taps(3, 2) == [0, 1, NEW], "a 2x2 pads on the top left: its centre is last"
    assert taps(5, 2, stride=2) == [NEW, NEW, 0, 1, NEW], "a strided 2x2 pads nothing: its centre is first"


@pytest.mark.parametrize("seed", range(3))
def test_any_two_networks_get_along(seed: int) -> None:
    configs = samples(10, seed=10 + seed)
    for old, new in itertools.pairwise(configs):
        check_pair(old, new)


def test_any_two_networks_of_the_default_space_get_along() -> None:
    drawn = sorted(samples(40, seed=20, space=SearchSpace.load("default")), key=lambda config: op_graph(config).params)
    for old, new in itertools.permutations(drawn[:3], 2):  # the smallest, to be quick
        check_pair(old, new)


def check_pair(old: LowFormerConfig, new: LowFormerConfig) -> None:
    model, report = child_of(trained(old), new)
    assert report.whole + report.sliced + report.padded + report.fresh == len(list(model.parameters()))
    assert 0 < report.numbers <= report.of_numbers == op_graph(new).params
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert torch.isfinite(outputs(model)).all()


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
        with torch.device("meta"):
            state = build_model(config).state_dict()
            told = infer_config(state, config.resolution)
            if all(stage.attention is None or stage.attention.upsampling != "nearest" for stage in config.stages):
                assert told == config  # else the stride is assumed
            build_model(told).load_state_dict(state)


def test_what_shapes_do_not_tell_can_be_said(tmp_path: Path) -> None:
    config = stages(
        PRESETS["cpubone_nano"].replace(classes=10),
        lambda _, stage: stage["attention"] and stage["attention"].update(stride=2),
    )
    torch.save(build_model(config).state_dict(), tmp_path / "nearest.pth")
    assert load_source(tmp_path / "nearest.pth").config != config
    assert load_source(tmp_path / "nearest.pth", config).config == config
    with pytest.raises(ValueError, match=r"nearest\.pth: the checkpoint is not one of config"):
        load_source(tmp_path / "nearest.pth", PRESETS["lowformer_b0"])


def test_bad_checkpoints_are_one_clear_line(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    config = samples(1)[0]
    state = build_model(config).state_dict()
    good = tmp_path / "good.safetensors"
    save_source(build_model(config), good)
    contents: dict[str, bytes] = {
        "cut.safetensors": good.read_bytes()[:-100],
        "not.safetensors": b"not a checkpoint",
        "evil.safetensors": pickle.dumps(Evil(trap)),
        "evil.pth": pickle.dumps({"stem.0.conv.weight": Evil(trap)}),
        "text.pth": b"not a checkpoint",
        "empty.pth": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    saved: dict[str, Any] = {
        "evil2.pth": {"a": Evil(trap)},
        "module.pth": build_model(config),
        "list.pth": [torch.zeros(1)],
        "numbered.pth": {0: torch.zeros(1)},
        "resnet.pth": {"layer1.0.conv1.weight": torch.zeros(3)},
        "half.pth": {name: value for name, value in state.items() if "in_conv" not in name},
        "odd.pth": {**state, "stem.0.conv.weight": torch.zeros(5, 3, 3, 3)},
        "flat.pth": {**state, "stages.0.0.main.spatial_conv.conv.weight": torch.zeros(7)},
        "more.pth": {**state, "stages.3.norm.weight": torch.zeros(7)},
        "sparse.pth": {**state, "classifier.weight": state["classifier.weight"].to_sparse()},
        "nan.pth": {**state, "classifier.bias": state["classifier.bias"] + math.nan},
    }
    for name, value in saved.items():
        torch.save(value, tmp_path / name)
    for name in (*contents, *saved, "missing.pth", "."):
        with pytest.raises(ValueError) as caught:
            load_source(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value), name
    assert not trap.exists()


def test_a_checkpoint_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth"
        state = {
            name: value[:1, :1] for name, value in build_model(samples(1)[0]).state_dict().items() if value.ndim > 1
        }
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        for size in np.linspace(0, len(whole) - 1, 60).astype(int):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
                load_source(path)


def test_a_declared_architecture_is_not_built_before_it_fits(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    huge = stages(PRESETS["lowformer_b3"], lambda _, stage: stage.update(width=4096, depth=64, expansion=16))
    assert op_graph(huge).params > 10**11
    save_file({"stem.0.conv.weight": torch.zeros(1)}, tmp_path / "a.safetensors", {"config": huge.to_json()})
    with pytest.raises(ValueError, match="missing"):
        load_source(tmp_path / "a.safetensors")


def test_no_code_of_a_checkpoint_runs_nor_is_torchs_unsafe_loader_used(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"a": Evil(trap)}, tmp_path / "evil.pth")
    code = f"""
import sys, torch
from lownas.evaluators.training.inherit import load_source
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
