"""Checkpoints against golden outputs that timm itself computed (see goldens/make_goldens.py)."""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import math
import pathlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lownas.search_space import PRESETS, build_model, export_state_dict, load_checkpoint
from lownas.search_space.checkpoints import HEAD, infer_config, lacks_head, read_state_dict, timm_arguments
from lownas.search_space.config import LowFormerConfig

GOLDENS: dict[str, Any] = json.loads(gzip.decompress((Path(__file__).parent / "goldens/goldens.json.gz").read_bytes()))


def random_tensor(key: str, shape: list[int]) -> torch.Tensor:
    """The value of one state-dict entry; `make_goldens.py` has the same function on purpose."""
    rng = np.random.default_rng([GOLDENS["seed"], zlib.crc32(key.encode())])
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if key.endswith("running_var"):
        return torch.from_numpy(rng.uniform(0.5, 1.5, shape).astype(np.float32))
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return torch.from_numpy(values * np.float32(0.1) + np.float32(key.endswith("weight")))
    return torch.from_numpy(values / np.float32(math.sqrt(math.prod(shape[1:]))))


def random_state(golden: str) -> dict[str, torch.Tensor]:
    return {key: random_tensor(key, shape) for key, shape in GOLDENS["models"][golden]["keys"].items()}


@pytest.mark.parametrize("golden", GOLDENS["models"])
def test_a_loaded_model_computes_what_the_original_computes(golden: str) -> None:
    config = PRESETS[golden.partition("/")[0]]
    model = load_checkpoint(config, random_state(golden)).eval()
    for output in GOLDENS["models"][golden]["outputs"]:
        height, width = output["size"]
        rng = np.random.default_rng([GOLDENS["seed"], height, width])
        x = torch.from_numpy(rng.standard_normal((1, 3, height, width), dtype=np.float32))
        with torch.no_grad():
            _, maps = model.forward_intermediates(x)
            logits = model(x)
        kept = len(output["logits"])
        assert np.abs(logits[0, :kept].numpy() - np.array(output["logits"])).max() < 1e-4
        for ours, theirs in zip(maps, output["maps"], strict=True):
            assert list(ours.shape) == theirs["shape"]
            values = ours.flatten()[:: max(1, ours.numel() // kept)][:kept].numpy()
            expected = np.array(theirs["values"])
            assert np.abs(values - expected).max() < 1e-4 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_export_to_timms_keys(name: str) -> None:
    with torch.device("meta"):
        state = export_state_dict(build_model(PRESETS[name]))
    assert {key: list(value.shape) for key, value in state.items()} == GOLDENS["models"][f"{name}/timm"]["keys"]


def test_what_timm_cannot_express_is_refused_with_the_reason() -> None:
    config = PRESETS["lowformer_b1"].to_dict()
    config["stages"][2]["attention"]["stride"] = 4
    with pytest.raises(ValueError, match="stage 3 has attention of stride 4"):
        timm_arguments(LowFormerConfig.from_dict(config))


def test_wrapped_and_prefixed_state_dicts_load() -> None:
    state = random_state("lowformer_b0/official")
    as_scripted = {key.replace("head.op_list.", "head.opseq."): value for key, value in state.items()}
    plain = load_checkpoint(PRESETS["lowformer_b0"], state)
    for other in ({"state_dict": state}, {"module." + key: value for key, value in state.items()}, as_scripted):
        loaded = load_checkpoint(PRESETS["lowformer_b0"], other)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), loaded.parameters(), strict=True))


def test_every_mismatch_is_named() -> None:
    config = PRESETS["cpubone_nano"]
    state = random_state("cpubone_nano/timm")
    key = "head.in_conv.norm.bias"
    with pytest.raises(ValueError, match=r"1 missing \(in_conv\.norm\.bias\)"):
        load_checkpoint(config, {name: value for name, value in state.items() if name != key})
    with pytest.raises(ValueError, match=r"1 unknown \(extra\.weight\)"):
        load_checkpoint(config, {**state, "extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 of another shape \(in_conv\.norm\.bias is \[7\], not \[1536\]\)"):
        load_checkpoint(config, {**state, key: torch.zeros(7)})
    with pytest.raises(ValueError, match="unknown format"):
        load_checkpoint(config, {"layer1.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="maps names to tensors"):
        load_checkpoint(config, {"epoch": 3})


def test_a_checkpoint_file_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        read_state_dict(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_state_dict(tmp_path / "cut.safetensors")
    model = build_model(PRESETS["cpubone_nano"])
    torch.save(model.state_dict(), tmp_path / "good.pt")
    loaded = load_checkpoint(PRESETS["cpubone_nano"], read_state_dict(tmp_path / "good.pt"))
    assert torch.equal(loaded.in_conv.conv.weight, model.in_conv.conv.weight)


NANO = PRESETS["cpubone_nano"]


def nano_state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn_like(value.float()).to(value) for name, value in build_model(NANO).state_dict().items()}


def loads(content: Any, tmp_path: Path, state: dict[str, torch.Tensor]) -> str:
    """Saves and reads a checkpoint, compares it with what was meant, and gives the line that was logged."""
    torch.save(content, tmp_path / "checkpoint.pt")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lownas.search_space").addHandler(handler)
    try:
        read = read_state_dict(tmp_path / "checkpoint.pt")
    finally:
        logging.getLogger("lownas.search_space").removeHandler(handler)
    assert infer_config(read, NANO.resolution) == NANO
    loaded = load_checkpoint(NANO, read).state_dict()
    assert all(torch.equal(loaded[name].float(), value.float()) for name, value in state.items())
    assert len(lines) <= 1 and all("\n" not in line for line in lines)
    return "".join(lines)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "model.", "module._orig_mod.", "net.backbone.", "backbone."])
def test_prefixes_of_what_stood_around_the_network_are_taken_off(prefix: str, tmp_path: Path) -> None:
    state = nano_state()
    prefixed = {prefix + name: value for name, value in state.items()}
    assert loads(prefixed, tmp_path, state) == ""
    said = loads({"state_dict": {**prefixed, "criterion.weight": torch.ones(3)}, "epoch": 3}, tmp_path, state)
    assert "without criterion.weight" in said and "state_dict of state_dict, epoch" in said and prefix in said


def test_averaged_weights_come_first_and_what_is_left_is_said(tmp_path: Path) -> None:
    state, other = nano_state(0), nano_state(1)
    content = {
        **{"state_dict": other, "state_dict_ema": state, "epoch": 7, "metric": np.float64(71.5)},
        **{"args": argparse.Namespace(lr=1e-3, out=Path("x"), betas=(0.9, 0.99)), "count": np.int64(3)},
    }
    said = loads(content, tmp_path, state)
    assert f"{len(state)} tensors are taken; state_dict_ema of state_dict_ema, state_dict, epoch and 3 more" in said
    two = {"model." + name: value for name, value in other.items()}
    two |= {"model_ema.module." + name: value for name, value in state.items()}
    assert "with prefix model_ema.module." in loads(two, tmp_path, state)
    teacher = {"teacher." + name: value for name, value in other.items()}
    torch.save({**teacher, **{"student." + name: value for name, value in state.items()}}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match=r"several networks, with prefixes student\., teacher\."):
        read_state_dict(tmp_path / "two.pt")


def test_what_stands_under_a_name_of_weights_without_being_some_is_passed_over(tmp_path: Path) -> None:
    state = nano_state()
    assert "model of model, model_ema" in loads({"model": state, "model_ema": {"config": {"d": 1}}}, tmp_path, state)
    assert "model of model, ema" in loads({"model": nano_state(1), "ema": {"x": 1}}, tmp_path, nano_state(1))
    assert "ema of ema, model" in loads({"model": nano_state(1), "ema": {"module": state, "n": 3}}, tmp_path, state)


def test_a_file_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content["ema"] = content
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="a state dict maps names to tensors"):
        read_state_dict(tmp_path / "x.pt")


def test_paths_of_another_system_are_plain_data(tmp_path: Path) -> None:
    class Saved:
        def __init__(self, name: str) -> None:
            self.name = name

        def __reduce__(self):
            return getattr(pathlib, self.name), ("runs", "1")

    for name in ("PosixPath", "WindowsPath", "PurePosixPath"):
        assert "without out" in loads({**nano_state(), "out": Saved(name)}, tmp_path, nano_state())


def test_a_head_of_ones_own_is_no_backbone_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from lownas.search_space import heads

    from ..evaluators.toys import MeanHead

    monkeypatch.setitem(heads.HEADS, "toy_mean", MeanHead())
    config = NANO.replace(head="toy_mean")
    state = build_model(config).state_dict()
    assert not lacks_head(config, state)
    load_checkpoint(config, state, fresh_head=True)
    with pytest.raises(ValueError, match=r"missing \(output\."):
        without = {name: value for name, value in state.items() if not name.startswith("output.")}
        load_checkpoint(config, without, fresh_head=True)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_read(kind: torch.dtype, tmp_path: Path) -> None:
    half = {name: value.to(kind) if value.is_floating_point() else value for name, value in nano_state().items()}
    assert loads(half, tmp_path, half) == ""


def test_what_is_no_tensor_among_them_is_left(tmp_path: Path) -> None:
    state = nano_state()
    assert "without step, names, which are no tensors" in loads({**state, "step": 5, "names": ["a"]}, tmp_path, state)


def test_a_backbone_alone_has_a_fresh_head(tmp_path: Path) -> None:
    state = {name: value for name, value in nano_state().items() if not name.startswith(HEAD)}
    torch.save({"backbone." + name: value for name, value in state.items()}, tmp_path / "backbone.pt")
    read = read_state_dict(tmp_path / "backbone.pt")
    config = infer_config(read, NANO.resolution)
    assert config == NANO and lacks_head(NANO, read) and not lacks_head(NANO, nano_state())
    with pytest.raises(ValueError, match="missing"):
        load_checkpoint(config, read)
    loaded = load_checkpoint(config, read, fresh_head=True).state_dict()
    assert all(torch.equal(loaded[name].float(), value.float()) for name, value in state.items())


def test_a_classifier_of_other_size_is_part_of_the_architecture(tmp_path: Path) -> None:
    state = nano_state()
    state["classifier.weight"], state["classifier.bias"] = torch.zeros(12, 1600), torch.zeros(12)
    torch.save(state, tmp_path / "twelve.pt")
    assert infer_config(read_state_dict(tmp_path / "twelve.pt"), NANO.resolution) == NANO.replace(classes=12)
