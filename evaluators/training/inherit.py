"""Lets candidates start from the weights of another LowFormer: sliced, padded, matched by depth.

Blocks are paired by their place in the stage, counted from its end, as the placement of attention is. Of the channels
of a stage, and of the inner ones of a block, the most important are kept: those to which the layer that reads them
gives the largest weights (Cai et al., Once-for-All, arXiv 1908.09791); all blocks of a stage keep the same ones. What
the source does not have stays as it is, and outputs that the source has give it the weight zero: new inner channels
have no effect at first, and new branches add nothing (after Chen et al., Net2Net, arXiv 1511.05641).

So these compute, in eval mode, what the source computes: its own architecture; one that is deeper, with a stem block
more, or with attention in more blocks; with wider inner layers, more attention channels or a larger first head width;
with larger kernels; with dense convolutions instead of grouped ones. A wider stage does so only where no GroupNorm sees
it (no MLP there). A block of another kind (fused or not) and the projection of an attention that reduces or upsamples
differently start anew, adding nothing at first.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...search_space import LowFormerConfig
from ...search_space.blocks import ConvLayer, FusedMBConv, LowFormerBlock, Lowtention, MBConv, Residual
from ...search_space.checkpoints import infer_config, load_checkpoint, read_state_dict
from ...search_space.model import LowFormer
from .channels import (
    NEW,
    Reading,
    dense_kernel,
    dense_weight,
    every,
    grouped_kernel,
    input_importance,
    kept_channels,
    kernel_taps,
    take,
)


@dataclass(frozen=True)
class Source:
    """A network to inherit from.

    Attributes:
        identity: twelve hexadecimal digits of its file's SHA-256.
    """

    model: LowFormer
    identity: str

    @property
    def config(self) -> LowFormerConfig:
        return self.model.config


@dataclass(frozen=True)
class Inherited:
    """Counts where a network's parameters come from.

    Attributes:
        whole, sliced, padded, fresh: its tensors that are one of the source, a part of one, that have other numbers
            besides the source's, and that have none of the source's.
        numbers: how many of its parameters are the source's.
        of_numbers: how many it has.
    """

    whole: int
    sliced: int
    padded: int
    fresh: int
    numbers: int
    of_numbers: int

    @property
    def share(self) -> float:
        return self.numbers / self.of_numbers


def load_source(path: str | Path, config: LowFormerConfig | None = None) -> Source:
    """Reads a checkpoint: safetensors or torch's format; the authors' names, timm's or ours.

    The architecture is `config`, else that of the file's metadata ("config", JSON), else what names and shapes tell.

    Raises:
        ValueError: no file, no plain tensors, no LowFormer, another one than `config`, or numbers that are not finite;
            in one line.
    """
    path = Path(path)
    state = read_state_dict(path)
    try:
        config = config or _declared_config(path) or infer_config(state)
        model = load_checkpoint(config, state, fresh_head=True)
    except (ValueError, RuntimeError) as error:  # torch's for tensors that cannot be copied (sparse, quantized)
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{path}: {len(broken)} tensors have numbers that are not finite, the first of them {broken[0]}"
        )
    return Source(model.eval(), hashlib.sha256(path.read_bytes()).hexdigest()[:12])


def _declared_config(path: Path) -> LowFormerConfig | None:
    if path.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call, unused-ignore]
        text = (file.metadata() or {}).get("config")
    return None if text is None else LowFormerConfig.from_json(text)


def save_source(model: LowFormer, path: str | Path) -> None:
    """Writes a model so that `load_source` reads it, its configuration among the metadata."""
    from safetensors.torch import save_file

    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, temporary, {"config": json.dumps(model.config.to_dict())})
    temporary.replace(path)


@torch.no_grad()
def inherit(model: LowFormer, source: Source) -> Inherited:
    """Fills `model` from `source` as far as they correspond.

    Args:
        model: on the CPU, as `proxy.prepared_model` makes it: residual branches and the classifier end in zeros.
    """
    inheritance = _Inheritance()
    old = source.model
    stages, old_stages = ([list(stage.children()) for stage in network.stages] for network in (model, old))
    readers: list[Reading | None] = [_expanding(_local(stage[0])).conv for stage in old_stages]
    readers.append(next((layer for layer in _weighted(_head(old)) if isinstance(layer, Reading)), None))
    streams = _streams(model.config, old.config, readers)
    inheritance.conv_layer(_layer(model.stem[0]), _layer(old.stem[0]), every(3), streams[0])
    inheritance.blocks(list(model.stem)[1:], list(old.stem)[1:], streams[0], streams[0])
    for number, (stage, old_stage) in enumerate(zip(stages, old_stages, strict=True)):
        inheritance.blocks(stage[:1], old_stage[:1], streams[number], streams[number + 1])
        inheritance.blocks(stage[1:], old_stage[1:], streams[number + 1], streams[number + 1])

    if model.config.head == old.config.head:
        inheritance.head(_weighted(_head(model)), _weighted(_head(old)), streams[-1])
    return inheritance.report(model)


# --- which channels --------------------------------------------------------------------------------------------------


def _streams(new: LowFormerConfig, old: LowFormerConfig, readers: Sequence[Reading | None]) -> list[Tensor]:
    """Tells which channels of the source the stem's map and the four stages' maps keep.

    Args:
        readers: the layers of the source that read them: four downsamplers, then the head's first layer.
    """
    streams = []
    for number, reader in enumerate(readers):
        stage = max(0, number - 1)  # the stem's channels are grouped by the first downsampler
        width = new.stages[stage].width if number else new.stem_width
        old_width = old.stages[stage].width if number else old.stem_width
        groups, old_groups = new.stages[stage].groups, old.stages[stage].groups
        together = groups != old_groups or width % groups or old_width % groups
        importance = torch.ones(old_width) if reader is None else input_importance(dense_weight(reader))
        if len(importance) != old_width:  # a head that reads something else than the channels of the map
            importance = torch.ones(old_width)
        streams.append(kept_channels(width, importance, 1 if together else groups))
    return streams


# --- copying ---------------------------------------------------------------------------------------------------------


class _Inheritance:
    """Copies weights and counts what was copied.

    Indices `into` (in,) and `out` (out,) say for each input and output channel of a layer which one of the source's it
    is, or `NEW`.
    """

    def __init__(self) -> None:
        self.copied: dict[int, tuple[int, int]] = {}  # id of a parameter: numbers copied, numbers of the source's

    def report(self, model: nn.Module) -> Inherited:
        kinds = dict.fromkeys(("whole", "sliced", "padded", "fresh"), 0)
        numbers = of_numbers = 0
        for parameter in model.parameters():
            count, available = self.copied.get(id(parameter), (0, 0))
            if count == parameter.numel():
                kinds["whole" if count == available else "sliced"] += 1
            else:
                kinds["padded" if count else "fresh"] += 1
            numbers += count
            of_numbers += parameter.numel()
        return Inherited(**kinds, numbers=numbers, of_numbers=of_numbers)

    def parameter(self, target: Tensor, source: Tensor, *indices: Tensor, out: int = 0) -> None:
        self.copied[id(target)] = take(target, source, indices, out), source.numel()

    def norm(self, target: nn.Module, source: nn.Module, channels: Tensor) -> None:
        """Copies scale and shift of a normalization, and BatchNorm's statistics."""
        for name in ("weight", "bias"):
            self.parameter(getattr(target, name), getattr(source, name), channels)
        if isinstance(target, nn.BatchNorm2d):
            for name in ("running_mean", "running_var"):
                take(getattr(target, name), getattr(source, name), [channels])

    def bias(self, target: nn.Conv2d, source: nn.Conv2d, out: Tensor) -> None:
        """Copies the bias; a source without one counts as one of zeros."""
        if target.bias is not None:
            self.parameter(target.bias, torch.zeros(len(source.weight)) if source.bias is None else source.bias, out)

    def conv(self, target: nn.Conv2d, source: nn.Conv2d, into: Tensor, out: Tensor) -> None:
        """Copies a convolution; one in groups counts as a dense one with zeros."""
        taps = kernel_taps(target, source)
        indices = (out, into, taps, taps)
        if target.groups == source.groups == 1:
            self.parameter(target.weight, source.weight, *indices)
        else:
            dense = dense_kernel(target.weight, target.groups)
            copied = torch.zeros_like(dense)
            take(dense, dense_kernel(source.weight, source.groups), indices)
            take(copied, dense_kernel(torch.ones_like(source.weight), source.groups), indices)
            target.weight.copy_(grouped_kernel(dense, target.groups))
            self.copied[id(target.weight)] = int(grouped_kernel(copied, target.groups).sum()), source.weight.numel()
        self.bias(target, source, out)

    def depthwise(self, target: nn.Conv2d, source: nn.Conv2d, channels: Tensor) -> None:
        taps = kernel_taps(target, source)
        self.parameter(target.weight, source.weight, channels, every(1), taps, taps)
        self.bias(target, source, channels)

    def conv_layer(self, target: ConvLayer, source: ConvLayer, into: Tensor, out: Tensor) -> None:
        self.conv(target.conv, source.conv, into, out)
        if isinstance(target.norm, nn.BatchNorm2d) and isinstance(source.norm, nn.BatchNorm2d):
            self.norm(target.norm, source.norm, out)
            mean = source.norm.running_mean
            if target.conv.bias is None and source.conv.bias is not None and mean is not None:
                take(target.norm.running_mean, mean - source.conv.bias, [out])  # type: ignore[arg-type]

    def blocks(self, targets: Sequence[nn.Module], sources: Sequence[nn.Module], into: Tensor, out: Tensor) -> None:
        """Copies blocks that follow each other, paired from the last one on."""
        for target, source in zip(reversed(targets), reversed(sources), strict=False):
            self.local(_local(target), _local(source), into, out)
            if isinstance(target, LowFormerBlock) and isinstance(source, LowFormerBlock):
                self.attention(target.attn, source.attn, out)
                self.mlp(target.mlp, source.mlp, out)

    def local(self, target: nn.Module, source: nn.Module, into: Tensor, out: Tensor) -> None:
        """Copies a local block, if both are of the same kind (fused or not)."""
        if type(target) is not type(source):
            return
        first, old_first = _expanding(target), _expanding(source)
        last, old_last = _projecting(target), _projecting(source)
        groups = first.conv.groups if first.conv.groups == old_first.conv.groups else 1
        importance = input_importance(old_last.conv.weight[out[out != NEW]])
        inner = kept_channels(first.conv.out_channels, importance, groups)
        self.conv_layer(first, old_first, into, inner)
        if isinstance(target, MBConv) and isinstance(source, MBConv):
            self.depthwise(target.depth_conv.conv, source.depth_conv.conv, inner)
        self.conv_layer(last, old_last, inner, out)

    def attention(self, target: nn.Module, source: nn.Module, channels: Tensor) -> None:
        """Copies an attention; its projection back to the map only if it reduces and upsamples in the same way."""
        if not isinstance(target, Residual) or not isinstance(source, Residual):
            return
        if isinstance(target.main, nn.Sequential) and isinstance(source.main, nn.Sequential):
            self.norm(target.main[0], source.main[0], channels)
        new, old = _attention(target), _attention(source)
        self.depthwise(new.conv_proj.conv, old.conv_proj.conv, channels)
        self.norm(new.conv_proj.norm, old.conv_proj.norm, channels)

        heads, dims = min(new.heads, old.heads), min(new.head_dim, old.head_dim)
        place = torch.full((new.heads, 3, new.head_dim), NEW)  # rows of the projection: of each head q, k, v
        place[:heads, :, :dims] = torch.arange(len(old.pwise.weight)).view(old.heads, 3, -1)[:heads, :, :dims]
        self.parameter(new.pwise.weight, old.pwise.weight, place.flatten(), channels)
        # Scores are divided by the root of head_dim: new dimensions add nothing to them, and they stay as large.
        query = new.pwise.weight.view(new.heads, 3, new.head_dim, -1)[:heads, 0]
        query[:, dims:] = 0
        query *= math.sqrt(new.head_dim / old.head_dim)

        if (new.stride, type(new.o_proj), type(new.upsampling)) != (old.stride, type(old.o_proj), type(old.upsampling)):
            return
        inner = torch.full((new.heads, new.head_dim), NEW)
        inner[:heads, :dims] = torch.arange(old.heads * old.head_dim).view(old.heads, -1)[:heads, :dims]
        if isinstance(new.o_proj, nn.Conv2d) and isinstance(old.o_proj, nn.Conv2d):
            self.conv(new.o_proj, old.o_proj, inner.flatten(), channels)
        if isinstance(new.upsampling, nn.ConvTranspose2d) and isinstance(old.upsampling, nn.ConvTranspose2d):
            if new.upsampling.groups == 1:  # (in, out, k, k)
                self.parameter(new.upsampling.weight, old.upsampling.weight, inner.flatten(), channels, out=1)
            else:
                self.parameter(new.upsampling.weight, old.upsampling.weight, channels)
            assert new.upsampling.bias is not None and old.upsampling.bias is not None
            self.parameter(new.upsampling.bias, old.upsampling.bias, channels)

    def head(self, targets: Sequence[nn.Module], sources: Sequence[nn.Module], channels: Tensor) -> None:
        """Copies a head's layers, of which each reads what the one before it gives.

        The last layer is copied if it has as many outputs. Copying ends at the first layer of another kind, and at one
        that reads something else.
        """
        into = channels
        readers = [layer for layer in sources if isinstance(layer, Reading)]
        for target, source in zip(targets, sources, strict=False):
            if type(target) is not type(source):
                return
            if not isinstance(target, Reading) or not isinstance(source, Reading):
                self.norm(target, source, into)
                continue
            if dense_weight(target).shape[1] != len(into):
                return
            readers = readers[1:]
            if readers:
                out = kept_channels(len(target.weight), input_importance(dense_weight(readers[0])))
            elif len(target.weight) == len(source.weight):
                out = every(len(target.weight))
            else:
                return
            if isinstance(target, nn.Conv2d) and isinstance(source, nn.Conv2d):
                self.conv(target, source, into, out)
            else:
                self.parameter(target.weight, source.weight, out, into)
                if target.bias is not None:
                    bias = torch.zeros(len(source.weight)) if source.bias is None else source.bias
                    self.parameter(target.bias, bias, out)
            into = out

    def mlp(self, target: nn.Module, source: nn.Module, channels: Tensor) -> None:
        if not isinstance(target, Residual) or not isinstance(source, Residual):
            return
        norm, first, _, last = target.main.children()
        old_norm, old_first, _, old_last = source.main.children()
        assert isinstance(first, nn.Conv2d) and isinstance(old_first, nn.Conv2d)
        assert isinstance(last, nn.Conv2d) and isinstance(old_last, nn.Conv2d)
        inner = kept_channels(first.out_channels, input_importance(old_last.weight[channels[channels != NEW]]))
        self.norm(norm, old_norm, channels)
        self.conv(first, old_first, channels, inner)
        self.conv(last, old_last, inner, channels)


# --- parts of the network --------------------------------------------------------------------------------------------


def _head(model: LowFormer) -> list[nn.Module]:
    """The layers of a network's head, in the order in which they run."""
    return [layer for name, layer in model.named_children() if name not in ("stem", "stages")]


def _weighted(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The convolutions, linear layers and norms in `layers`, in the order in which they run."""
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    return [module for layer in layers for module in layer.modules() if isinstance(module, kinds)]


def _layer(module: nn.Module) -> ConvLayer:
    assert isinstance(module, ConvLayer)
    return module


def _local(block: nn.Module) -> nn.Module:
    branch = block.local if isinstance(block, LowFormerBlock) else block
    assert isinstance(branch, Residual)
    return branch.main


def _expanding(local: nn.Module) -> ConvLayer:
    if isinstance(local, FusedMBConv):
        return local.spatial_conv
    assert isinstance(local, MBConv)
    return local.inverted_conv


def _projecting(local: nn.Module) -> ConvLayer:
    assert isinstance(local, FusedMBConv | MBConv)
    return local.point_conv


def _attention(branch: Residual) -> Lowtention:
    found = branch.main[-1] if isinstance(branch.main, nn.Sequential) else branch.main
    assert isinstance(found, Lowtention)
    return found
