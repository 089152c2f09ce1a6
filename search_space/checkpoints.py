"""Reads and writes weights in four formats: the authors', timm's two (`lowformer_*`, `cpubone_*`), and lownas's own.

lownas uses timm's `lowformer_*` names, which can name the weights of every configuration. The other formats are renamed
to it, key by key. What training code wraps around weights (`torch.compile`, Lightning, a detector around a backbone,
averaged weights beside the others, options and counters) is taken off, and what is left out is said.
"""

from __future__ import annotations

import argparse
import logging
import math
import pathlib
import pickle
import re
import struct
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .config import DEFAULT_HEAD, Attention, LowFormerConfig, StageConfig, blocks_after_downsampler
from .model import LowFormer, build_model
from .units import attention_heads

logger = logging.getLogger("lownas.search_space")

WRAPPERS: tuple[str, ...] = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model", "module", "network", "net", "weights"),
)
"""What training code calls the weights in a file, in the order in which they are taken: averaged ones first."""
HEAD: tuple[str, ...] = ("in_conv.", "pre_classifier.", "classifier.")
"""How names of the head's weights begin; a checkpoint may lack them all."""
_FIRST_NAMES: tuple[str, ...] = ("backbone.input_stem.", "stem.0.conv.weight")
"""Of each format, by which a prefix is recognized."""
_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]  # what makes numbers of numpy's again
_SAFE: tuple[Any, ...] = (
    *(argparse.Namespace, types.SimpleNamespace),
    *(pathlib.PurePosixPath, pathlib.PureWindowsPath),
    *((pathlib.PurePosixPath, "pathlib.PosixPath"), (pathlib.PureWindowsPath, "pathlib.WindowsPath")),  # made anywhere
    *(np.dtype, _NUMPY_SCALAR, (_NUMPY_SCALAR, "numpy.core.multiarray.scalar")),  # the latter by numpy 1
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
)
"""What stands beside tensors in many checkpoints and is plain data. torch's unpickler makes it; it is not used."""

# Tables of (pattern, replacement), in the order in which they are applied.
_FROM_AUTHORS = (
    (r"^backbone\.input_stem\.", "stem."),
    (r"^backbone\.stages\.", "stages."),
    (r"^head\.(?:opseq|op_list)\.(?:op_list\.)?0\.", "in_conv."),
    (r"^head\.(?:opseq|op_list)\.(?:op_list\.)?2\.linear\.", "pre_classifier.0."),
    (r"^head\.(?:opseq|op_list)\.(?:op_list\.)?2\.norm\.", "pre_classifier.1."),
    (r"^head\.(?:opseq|op_list)\.(?:op_list\.)?3\.linear\.", "classifier."),
    (r"\.op_list\.", "."),
    (r"\.conv_proj\.0\.", ".conv_proj.conv."),
    (r"\.conv_proj\.1\.", ".conv_proj.norm."),
    (r"\.pwise\.0\.", ".pwise."),
)
_FROM_CPUBONE = (
    (r"^head\.in_conv\.", "in_conv."),
    (r"^head\.pre_classifier\.linear\.", "pre_classifier.0."),
    (r"^head\.pre_classifier\.norm\.", "pre_classifier.1."),
    (r"^head\.classifier\.linear\.", "classifier."),
    (r"\.upsampling\.0\.", ".o_proj."),  # a 1x1 convolution before nearest-neighbour upsampling
    (r"\.conv\.1\.", ".conv."),  # a padding module before a 2x2 convolution
)
_FROM_NESTED_BLOCKS = (
    (r"\.total\.0\.0\.", ".attn."),
    (r"\.total\.0\.1\.", ".mlp."),
    (r"\.total\.0\.", ".attn."),
    (r"\.total\.1\.", ".local."),
)
_TO_CPUBONE = (
    (r"^in_conv\.", "head.in_conv."),
    (r"^pre_classifier\.0\.", "head.pre_classifier.linear."),
    (r"^pre_classifier\.1\.", "head.pre_classifier.norm."),
    (r"^classifier\.", "head.classifier.linear."),
    (r"\.attn\.", ".total.0.0."),
    (r"\.mlp\.", ".total.0.1."),
    (r"\.local\.", ".total.1."),
    (r"\.o_proj\.", ".upsampling.0."),
)

# What torch's unpickler, which checks little, raises for broken files.
_UNPICKLING_ERRORS = (
    *(pickle.UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, LookupError),
    *(TypeError, AttributeError, AssertionError, OverflowError, OSError),
)


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def read_state_dict(path: str | Path, *, as_it_is: bool = False) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint file: safetensors, or torch's format, without what is wrapped around them.

    No code in the file runs: beside tensors it may hold plain data alone (`_SAFE`). What is left out is logged, in one
    line; with `as_it_is` a safetensors file is taken whole. Raises ValueError for a file that is neither, or that holds
    no weights or anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
            return tensors if as_it_is else _taken(tensors, str(path), [])
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about pickle protocols would stand beside the error that follows
        try:
            with torch.serialization.safe_globals(list(_SAFE)):
                content = torch.load(file, map_location="cpu", weights_only=True)
        except _UNPICKLING_ERRORS as error:
            # torch's own message is not passed on, because it advises to load the file unsafely.
            code = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            reason = f"it names {code[1]}; save state_dict() alone" if code else "damaged or of another format"
            raise ValueError(f"{path} is not a checkpoint of plain tensors: {reason}") from None
    try:
        return unwrap(content, str(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def unwrap(content: Any, origin: str = "the checkpoint") -> dict[str, Tensor]:
    """Takes the state dict out of what training code saved: as it is, or under one of `WRAPPERS`, without prefixes.

    `origin` is what it is called in the line that says what was left out, if anything was.

    Raises ValueError if there are no tensors, or those of several networks of which none is an average.
    """
    said: list[str] = []
    for _ in WRAPPERS:
        inside = next((name for name in WRAPPERS if isinstance(content, Mapping) and _has_tensors(content, name)), None)
        if inside is None:
            break
        if beside := [str(name) for name in content if name != inside]:
            said.append(f"{inside} of {_listed([inside, *beside])}")
        content = content[inside]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"a state dict maps names to tensors, given {type(content).__name__}")
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        name = next(iter(content))
        raise ValueError(f"a state dict maps names to tensors, but {name!r} holds {type(content[name]).__name__}")
    if others := [str(name) for name in content if name not in tensors]:
        said.append(f"without {_listed(others)}, which are no tensors")
    return _taken(tensors, origin, said)


def _has_tensors(content: Mapping[Any, Any], name: str, depth: int = 3) -> bool:
    """Whether there are tensors under a name, or some names of `WRAPPERS` deeper; a file may hold itself."""
    inside = content.get(name)
    if not isinstance(inside, Mapping):
        return False
    if any(isinstance(value, Tensor) for value in inside.values()):
        return True
    return depth > 1 and any(_has_tensors(inside, deeper, depth - 1) for deeper in WRAPPERS)


def _taken(tensors: Mapping[str, Tensor], origin: str, said: list[str]) -> dict[str, Tensor]:
    """The tensors of one network, without the prefix that all of them have; says what was left out."""
    prefixes = {
        name[: name.index(first)]
        for name in tensors
        for first in _FIRST_NAMES
        if name.startswith(first) or f".{first}" in name
    }
    averaged = {prefix for prefix in prefixes if "ema" in prefix}
    if len(prefixes) > 1 and len(averaged) != 1:
        names = ", ".join(sorted(prefix or "none" for prefix in prefixes))
        raise ValueError(f"it holds several networks, with prefixes {names:.120}: save the one that is meant alone")
    prefix = next(iter(averaged if len(prefixes) > 1 else prefixes), "")
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    left = [name for name in tensors if not name.startswith(prefix)]
    if left:
        said.append(f"without {_listed(left)}")
    if said:
        about = f" with prefix {prefix}" if prefix else ""
        logger.warning("%s: %d tensors%s are taken; %s", origin, len(found), about, "; ".join(said))
    return found


def _listed(names: Sequence[str]) -> str:
    """Some names: "a, b and 12 more"."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"{name:.40}" for name in names[:3]) + more


def to_native_keys(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the same tensors under lownas's names; the format is detected from the names.

    Raises ValueError if the format is unknown, or if two names become the same.
    """
    names = list(state_dict)
    rules: tuple[tuple[str, str], ...]
    if any(name.startswith("backbone.") for name in names):
        rules = _FROM_AUTHORS + _FROM_NESTED_BLOCKS + _FROM_CPUBONE
    elif "head.in_conv.conv.weight" in names:
        rules = _FROM_NESTED_BLOCKS + _FROM_CPUBONE
    elif "stem.0.conv.weight" in names:
        rules = ()
    else:
        raise ValueError(
            "a checkpoint of an unknown format: known are the authors' (backbone.input_stem...), timm's lowformer and "
            f"cpubone (stem.0.conv.weight, ...) and ours; this one has {sorted(names)[:3]}"
        )
    result: dict[str, Tensor] = {}
    for name, value in zip(names, state_dict.values(), strict=True):
        new = _rename(name, rules)
        if new in result:
            raise ValueError(f"two entries of the checkpoint, one of them {name!r}, both mean {new!r}")
        result[new] = value
    return result


def lacks_head(config: LowFormerConfig, state_dict: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has weights of the backbone alone, and none of the classification head."""
    native = to_native_keys(unwrap(state_dict))
    return config.head == DEFAULT_HEAD and not any(name.startswith(HEAD) for name in native)


def load_checkpoint(config: LowFormerConfig, state_dict: Mapping[str, Any], *, fresh_head: bool = False) -> LowFormer:
    """Builds the model of a configuration with the weights of a checkpoint.

    Args:
        config: the architecture that the weights belong to.
        state_dict: names to tensors, in the authors' format, one of timm's or lownas's, possibly wrapped as `unwrap`
            takes them.
        fresh_head: whether the head keeps its fresh weights where the checkpoint has none of it.

    Raises:
        ValueError: names the first entries that are missing, unknown or of another shape; nothing is skipped, except
            that `num_batches_tracked` may be absent.
    """
    native = to_native_keys(unwrap(state_dict))
    without_head = fresh_head and lacks_head(config, native)
    with torch.device("meta"):  # a configuration may ask for more memory than its checkpoint has numbers
        expected = build_model(config).state_dict()
    absent = [name for name in expected if name not in native and not name.endswith("num_batches_tracked")]
    missing = [name for name in absent if not (without_head and name.startswith(HEAD))]
    unknown = [name for name in native if name not in expected]
    shapes = [
        f"{name} is {list(native[name].shape)}, not {list(expected[name].shape)}"
        for name in expected
        if name in native and native[name].shape != expected[name].shape
    ]
    problems = []
    for what, found in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if found:
            problems.append(f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})")
    if problems:
        raise ValueError(f"the checkpoint is not one of config {config.id}: " + "; ".join(problems))
    model = build_model(config)
    model.load_state_dict({**model.state_dict(), **native})
    return model


def timm_arguments(config: LowFormerConfig) -> tuple[str, dict[str, Any]]:
    """Tells how timm (>= 1.0.31) builds a configuration: the class, "LowFormer" or "CPUBone", and its arguments.

    Raises ValueError, with the reason, if timm cannot express the configuration.
    """

    def refuse(reason: str) -> ValueError:
        return ValueError(f"timm cannot express config {config.id}: {reason}")

    if config.head != DEFAULT_HEAD:
        raise refuse(f"it has head {config.head!r}")
    stages = config.stages
    with_blocks = [(n, stage) for n, stage in enumerate(stages, start=1) if blocks_after_downsampler(n, stage)]
    late = [(n, stage) for n, stage in with_blocks if n >= 3]

    def shared(what: str, values: list[Any], default: Any) -> Any:
        if len(set(values)) > 1:
            raise refuse(f"{what} differs between stages: {values}")
        return values[0] if values else default

    groups = shared("groups", [stage.groups for stage in stages] + [config.stem_groups] * bool(config.stem_depth), 1)
    expansion = shared("expansion", [stage.expansion for _, stage in with_blocks], 4)
    mlp_ratio = shared("mlp_ratio", [stage.mlp_ratio for _, stage in late], 4)
    kernel = shared("kernel", [stage.kernel for _, stage in late], 3)
    attention = shared(
        "attention",
        [stage.attention and (stage.attention.placement, stage.attention.upsampling) for _, stage in late],
        ("all", "transposed"),
    )
    for n, stage in with_blocks:
        if n < 3 and (stage.local != "fused" or stage.kernel != 3 or stage.attention or stage.mlp_ratio):
            raise refuse(f"stage {n} has blocks other than fused 3x3 ones")
    for n, stage in late:
        if stage.local != ("fused" if stage.width < 256 else "unfused"):
            raise refuse(f"stage {n} of width {stage.width} has {stage.local} local blocks (timm fuses below 256)")
        if stage.attention and (stage.attention.stride != (2 if n == 3 else 1) or stage.attention.reduction != 0.5):
            raise refuse(
                f"stage {n} has attention of stride {stage.attention.stride}, reduction {stage.attention.reduction}"
            )
    if attention and (attention[0] != "all" or attention[1] == "separable"):
        raise refuse(f"attention is placed {attention[0]!r} with {attention[1]!r} upsampling")

    arguments: dict[str, Any] = {
        "width_list": [config.stem_width, *(stage.width for stage in stages)],
        "depth_list": [config.stem_depth, *(stage.depth for stage in stages)],
        "head_widths": config.head_widths,
        "num_classes": config.classes,
        "stem_expand_ratio": config.stem_expansion,
        "expand_ratio": expansion,
        "downsample_expand_ratios": tuple(stage.down_expansion for stage in stages),
        "expand_groups": groups,
        "fused_conv": True,
        "attn_mlp_ratio": mlp_ratio or 4,
    }
    unfused = any(stage.local == "unfused" for _, stage in late)
    nearest = bool(attention) and attention[1] == "nearest"
    if kernel == 3 and not nearest and not (groups > 1 and unfused):
        return "LowFormer", {**arguments, "attn": bool(attention), "attn_mlp": bool(mlp_ratio)}
    if kernel not in (2, 3):
        raise refuse(f"kernel {kernel} in stages 3 and 4")
    if not attention or not mlp_ratio:
        raise refuse("its CPUBone always has attention and an MLP")
    return "CPUBone", {
        **arguments,
        "fused_downsample": True,
        "small_kernels": kernel == 2,
        "attn_upsample": "nearest" if nearest else "transpose",
        "proj_drop_rate": 0.0,
    }


def export_state_dict(model: LowFormer, format: str = "timm") -> dict[str, Tensor]:
    """Gives the weights of a model under the names of `format`: "timm" (see `timm_arguments`) or "lownas"."""
    if format not in ("timm", "lownas"):
        raise ValueError(f"format: allowed are 'timm' and 'lownas', not {format!r}")
    native = cast(dict[str, Tensor], model.state_dict())
    if format == "lownas" or timm_arguments(model.config)[0] == "LowFormer":
        return native
    return {_to_cpubone(name, model.config): value for name, value in native.items()}


def _to_cpubone(name: str, config: LowFormerConfig) -> str:
    name = _rename(name, _TO_CPUBONE)
    match = re.match(r"stages\.(\d)\.[1-9]\d*\.total\.", name)
    if not match:
        return name
    stage: StageConfig = config.stages[int(match.group(1))]
    stride_one = stage.attention is not None and stage.attention.stride == 1
    even_kernels = (
        r"\.(spatial_conv|depth_conv|conv_proj)\.conv\." if stride_one else r"\.(spatial_conv|depth_conv)\.conv\."
    )
    return re.sub(even_kernels, r".\1.conv.1.", name) if stage.kernel == 2 else name


def infer_config(state_dict: Mapping[str, Any], resolution: int = 224) -> LowFormerConfig:
    """Infers the architecture from a checkpoint's names and shapes, in any of the formats of `load_checkpoint`.

    These do not tell the resolution. They do not always tell the stride of an attention that upsamples by "nearest":
    if the attention reduces the map by a 2x2 convolution, the stride of the published models is assumed (1 in stage 4,
    else 2), if by a 5x5 convolution, 2.

    Of a backbone alone the head is the usual one, for 1,000 classes.

    Raises ValueError for anything that is no LowFormer.
    """
    shapes = {name: tuple(value.shape) for name, value in to_native_keys(unwrap(state_dict)).items()}
    try:
        return _config_of_shapes(shapes, resolution)
    except KeyError as error:
        raise ValueError(f"the checkpoint is not one of a LowFormer: it has no {error}") from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"the checkpoint is not one of a LowFormer: {error}") from None


def _config_of_shapes(shapes: Mapping[str, tuple[int, ...]], resolution: int) -> LowFormerConfig:
    stem_width = shapes["stem.0.conv.weight"][0]
    width = stem_width
    stem_depth = _count(shapes, "stem.") - 1
    stem = {"stem_depth": stem_depth}
    if stem_depth:
        middle, per_group = shapes["stem.1.main.spatial_conv.conv.weight"][:2]
        stem |= {"stem_expansion": middle // width, "stem_groups": width // per_group}
    stages = []
    for index in range(4):
        prefix = f"stages.{index}."
        blocks = _count(shapes, prefix)
        middle, per_group = shapes[f"{prefix}0.main.spatial_conv.conv.weight"][:2]
        stage: dict[str, Any] = {
            "depth": blocks if index < 2 else blocks - 1,
            "down_expansion": middle // width,
            "groups": width // per_group,
        }
        width = stage["width"] = shapes[f"{prefix}0.main.point_conv.conv.weight"][0]
        if blocks > 1:
            last = f"{prefix}{blocks - 1}."
            local = f"{last}local.main." if f"{last}local.main.point_conv.conv.weight" in shapes else f"{last}main."
            fused = f"{local}spatial_conv.conv.weight" in shapes
            stage["local"] = "fused" if fused else "unfused"
            stage["expansion"] = shapes[f"{local}point_conv.conv.weight"][1] // width
            stage["kernel"] = shapes[f"{local}{'spatial_conv' if fused else 'depth_conv'}.conv.weight"][-1]
            if f"{last}mlp.main.1.weight" in shapes:
                stage["mlp_ratio"] = shapes[f"{last}mlp.main.1.weight"][0] // width
            stage["attention"] = _attention_of_shapes(shapes, prefix, blocks, width, index)
        stages.append(stage)
    config: dict[str, Any] = {"resolution": resolution, "stem_width": stem_width, **stem, "stages": stages}
    if any(name.startswith(HEAD) for name in shapes):
        config["head_widths"] = [shapes["in_conv.conv.weight"][0], shapes["pre_classifier.0.weight"][0]]
        config["classes"] = shapes["classifier.weight"][0]
    return LowFormerConfig.from_dict(config)


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Counts the numbered modules right below `prefix`."""
    numbers = {name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)}
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def _attention_of_shapes(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, blocks: int, width: int, index: int
) -> dict[str, Any] | None:
    """Infers the attention of stage `index` (0-3) with blocks 0 to `blocks` - 1; None if none of them has any."""
    found = {}
    for block in range(1, blocks):
        for main in (f"{prefix}{block}.attn.main.", f"{prefix}{block}.attn.main.1."):
            if f"{main}pwise.weight" in shapes:
                found[block] = main
    if not found:
        return None
    attends = tuple(block in found for block in range(1, blocks))
    names = ("all", *(f"last_{k}" for k in range(1, blocks - 1)), "alternate")
    placement = next((name for name in names if Attention(placement=name).attends(blocks - 1) == attends), None)
    if placement is None:
        raise ValueError(f"stage {index + 1} attends in blocks {sorted(found)}, which is no placement")
    main = found[blocks - 1]
    inner = shapes[f"{main}pwise.weight"][0] // 3
    reduction = next((r for r in (0.5, 1.0, 0.25) if math.prod(attention_heads(width, r)) == inner), None)
    if reduction is None:
        raise ValueError(f"stage {index + 1} attends with {inner} of {width} channels")
    reducing = shapes[f"{main}conv_proj.conv.weight"][-1]  # a 2x2 kernel goes with every stride
    upsampling, stride = "nearest", 1 if reducing == 3 or (reducing == 2 and index == 3) else 2
    if f"{main}upsampling.weight" in shapes:
        kernel = shapes[f"{main}upsampling.weight"][-1]
        upsampling = "separable" if f"{main}o_proj.weight" in shapes else "transposed"
        stride = 1 if kernel == 3 else kernel // 2
    return {"placement": placement, "stride": stride, "reduction": reduction, "upsampling": upsampling}
