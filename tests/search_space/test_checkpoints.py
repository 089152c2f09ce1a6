"""Checkpoints against golden outputs that timm itself computed (see goldens/make_goldens.py)."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lownas.search_space import PRESETS, build_model, export_state_dict, load_checkpoint
from lownas.search_space.checkpoints import read_state_dict, timm_arguments
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
