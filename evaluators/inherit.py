"""Candidates that start from the weights of another LowFormer: sliced, padded, matched by depth.

Blocks are paired by their place in the stage, counted from its downsampler. Of the channels of a stage the first are
taken, so that all its blocks agree; of a local block's inner channels the most important ones, by what the projection
after them weighs (Cai et al., Once-for-All, arXiv 1908.09791). What the source does not have stays as it is, and what
it has does not listen to it: new inner channels weigh nothing at first, new blocks are the identity (after Chen et al.,
Net2Net, arXiv 1511.05641). So the source's own architecture computes what the source computes, and so does one that is
only deeper or has wider inner layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..search_space import LowFormerConfig
from ..search_space.blocks import ConvLayer, FusedMBConv, LowFormerBlock, Lowtention, MBConv, Residual
from ..search_space.checkpoints import infer_config, load_checkpoint, read_state_dict
from ..search_space.graph import same_padding
from ..search_space.lowformer import LowFormer

NEW = -1  # in an index of source channels: the source has none for this one


@dataclass(frozen=True)
class Source:
    """A network to inherit from, and twelve hexadecimal digits of its file's SHA-256."""

    model: LowFormer
    identity: str

    @property
    def config(self) -> LowFormerConfig:
        return self.model.config


@dataclass(frozen=True)
class Inherited:
    """How many of a network's blocks, downsamplers included, took weights from the source."""

    blocks: int
    of_blocks: int


def load_source(path: str | Path) -> Source:
    """Reads a checkpoint: safetensors or torch's format; the authors' names, timm's or ours.

    The architecture is that of the file's metadata ("config", JSON), or what names and shapes tell.

    Raises:
        ValueError: no file, no plain tensors, or no LowFormer, in one line.
    """
    path = Path(path)
    state = read_state_dict(path)
    try:
        config = _declared_config(path) or infer_config(state)
        model = load_checkpoint(config, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
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
        model: as `proxy.prepared_model` leaves it: residual branches end in zeros, and so does the classifier.
    """
    inheritance = _Inheritance()
    old = source.model
    channels = inheritance.conv_layer(_layer(model.stem[0]), _layer(old.stem[0]), _first(3, 3))
    inheritance.blocks(list(model.stem.children())[1:], list(old.stem.children())[1:], channels, channels)
    stages, old_stages = ([list(stage.children()) for stage in network.stages] for network in (model, old))
    for stage, old_stage in zip(stages, old_stages, strict=True):
        before, channels = channels, _first(_width(stage), _width(old_stage))
        inheritance.blocks(stage[:1], old_stage[:1], before, channels)
        inheritance.blocks(stage[1:], old_stage[1:], channels, channels)
    channels = inheritance.conv_layer(model.in_conv, old.in_conv, channels)
    inner = _first(model.head_hidden_size, old.head_hidden_size)
    hidden, old_hidden = model.pre_classifier, old.pre_classifier
    inheritance.take(hidden[0].weight, old_hidden[0].weight, inner, channels)  # type: ignore[arg-type]
    inheritance.norm(hidden[1], old_hidden[1], inner)
    if isinstance(model.classifier, nn.Linear) and isinstance(old.classifier, nn.Linear):
        classes = model.classifier.out_features
        if classes == old.classifier.out_features:
            inheritance.take(model.classifier.weight, old.classifier.weight, _first(classes, classes), inner)
            inheritance.take(model.classifier.bias, old.classifier.bias, _first(classes, classes))
    return Inherited(inheritance.matched, len(model.stem) - 1 + sum(map(len, stages)))


def _first(count: int, available: int) -> Tensor:
    """(count,) the first channels of the source, as far as it has them."""
    index = torch.arange(count)
    return torch.where(index < available, index, NEW)


def _width(stage: Sequence[nn.Module]) -> int:
    downsampler = _local(stage[0])
    assert isinstance(downsampler, FusedMBConv)
    return downsampler.point_conv.conv.out_channels


class _Inheritance:
    """Copies weights and counts the blocks that took some.

    An index (n,) says for each of n channels which one of the source it is, or `NEW`.
    """

    def __init__(self) -> None:
        self.matched = 0

    def take(self, target: Tensor, source: Tensor, out: Tensor, into: Tensor | None = None) -> None:
        """Fills (out,) or (out, in, ...) `target`: known outputs do not listen to new inputs; new outputs stay."""
        known = out != NEW
        values = source[out[known]].clone()
        if into is not None:
            values = values[:, into.clamp(min=0)]
            values[:, into == NEW] = 0
        target[known] = values

    def norm(self, target: nn.Module, source: nn.Module, channels: Tensor) -> None:
        """Scale and shift of a normalization, and BatchNorm's statistics (which are no parameters)."""
        for name in ("weight", "bias"):
            self.take(getattr(target, name), getattr(source, name), channels)
        if isinstance(target, nn.BatchNorm2d):
            for name in ("running_mean", "running_var"):
                known = channels != NEW
                getattr(target, name)[known] = getattr(source, name)[channels[known]]

    def conv(self, target: nn.Conv2d, source: nn.Conv2d, out: Tensor, into: Tensor) -> None:
        """A convolution; kernels are aligned by their centres, groups taken for a dense convolution with zeros."""
        dense = _dense(source)
        if source.kernel_size != target.kernel_size:
            dense = _recentred(dense, target.kernel_size[0])
        wanted = _dense(target)
        self.take(wanted, dense, out, into)
        target.weight.copy_(_grouped(wanted, target.groups))
        if target.bias is not None and source.bias is not None:
            self.take(target.bias, source.bias, out)

    def depthwise(self, target: nn.Conv2d, source: nn.Conv2d, channels: Tensor) -> None:
        self.take(target.weight, _recentred(source.weight, target.kernel_size[0]), channels)
        if target.bias is not None and source.bias is not None:
            self.take(target.bias, source.bias, channels)

    def conv_layer(self, target: ConvLayer, source: ConvLayer, into: Tensor, out: Tensor | None = None) -> Tensor:
        """Convolution and norm; gives the index of the outputs, the first ones unless `out` says otherwise."""
        if out is None:
            out = _first(target.conv.out_channels, source.conv.out_channels)
        self.conv(target.conv, source.conv, out, into)
        if isinstance(target.norm, nn.BatchNorm2d):
            self.norm(target.norm, source.norm, out)
        return out

    def blocks(self, targets: Sequence[nn.Module], sources: Sequence[nn.Module], into: Tensor, out: Tensor) -> None:
        for target, source in zip(targets, sources, strict=False):
            local, old_local = _local(target), _local(source)
            taken = self.local(local, old_local, into, out)
            if isinstance(target, LowFormerBlock) and isinstance(source, LowFormerBlock):
                taken |= self.attention(target.attn, source.attn, out)
                taken |= self.mlp(target.mlp, source.mlp, out)
            self.matched += taken

    def local(self, target: nn.Module, source: nn.Module, into: Tensor, out: Tensor) -> bool:
        """A local block of the same kind (fused or not)."""
        if isinstance(target, FusedMBConv) and isinstance(source, FusedMBConv):
            first, old_first = target.spatial_conv, source.spatial_conv
        elif isinstance(target, MBConv) and isinstance(source, MBConv):
            first, old_first = target.inverted_conv, source.inverted_conv
        else:
            return False
        inner = _inner(first.conv, old_first.conv, source.point_conv.conv.weight[out[out != NEW]])
        self.conv_layer(first, old_first, into, inner)
        if isinstance(target, MBConv) and isinstance(source, MBConv):
            self.depthwise(target.depth_conv.conv, source.depth_conv.conv, inner)
        self.conv_layer(target.point_conv, source.point_conv, inner, out)
        return True

    def attention(self, target: nn.Module, source: nn.Module, channels: Tensor) -> bool:
        """A Lowtention that reduces and upsamples in the same way; heads and their sizes may differ."""
        if not isinstance(target, Residual) or not isinstance(source, Residual):
            return False
        new, old = _attention(target), _attention(source)
        same = (new.stride, new.kernel, type(new.upsampling), type(new.o_proj)) == (
            *(old.stride, old.kernel, type(old.upsampling), type(old.o_proj)),
        )
        if not same:
            return False
        self.group_norm(target.main, source.main, channels)
        self.depthwise(new.conv_proj.conv, old.conv_proj.conv, channels)
        self.norm(new.conv_proj.norm, old.conv_proj.norm, channels)
        head, place = torch.meshgrid(_first(new.heads, old.heads), _first(new.head_dim, old.head_dim), indexing="ij")
        known = (head != NEW) & (place != NEW)
        qkv = torch.stack([head * 3 * old.head_dim + part * old.head_dim + place for part in range(3)], dim=1)
        self.take(new.pwise.weight, old.pwise.weight, torch.where(known[:, None], qkv, NEW).flatten(), channels)
        inner = torch.where(known, head * old.head_dim + place, NEW).flatten()
        if isinstance(new.o_proj, nn.Conv2d) and isinstance(old.o_proj, nn.Conv2d):
            self.conv(new.o_proj, old.o_proj, channels, inner)
        if isinstance(new.upsampling, nn.ConvTranspose2d) and isinstance(old.upsampling, nn.ConvTranspose2d):
            if new.upsampling.groups == 1:  # (in, out, k, k)
                weight = new.upsampling.weight.transpose(0, 1)
                self.take(weight, old.upsampling.weight.transpose(0, 1), channels, inner)
            else:
                self.take(new.upsampling.weight, old.upsampling.weight, channels)
            assert new.upsampling.bias is not None and old.upsampling.bias is not None
            self.take(new.upsampling.bias, old.upsampling.bias, channels)
        return True

    def mlp(self, target: nn.Module, source: nn.Module, channels: Tensor) -> bool:
        if not isinstance(target, Residual) or not isinstance(source, Residual):
            return False
        assert isinstance(target.main, nn.Sequential) and isinstance(source.main, nn.Sequential)
        (first, last), (old_first, old_last) = (
            [module for module in branch.main.children() if isinstance(module, nn.Conv2d)]
            for branch in (target, source)
        )
        self.group_norm(target.main, source.main, channels)
        inner = _inner(first, old_first, old_last.weight[channels[channels != NEW]])
        self.conv(first, old_first, inner, channels)
        self.conv(last, old_last, channels, inner)
        return True

    def group_norm(self, target: nn.Module, source: nn.Module, channels: Tensor) -> None:
        """The norm that a branch begins with, where both do."""
        if isinstance(target, nn.Sequential) and isinstance(source, nn.Sequential):
            self.norm(target[0], source[0], channels)


def _layer(module: nn.Module) -> ConvLayer:
    assert isinstance(module, ConvLayer)
    return module


def _local(block: nn.Module) -> nn.Module:
    branch = block.local if isinstance(block, LowFormerBlock) else block
    assert isinstance(branch, Residual)
    return branch.main


def _attention(branch: Residual) -> Lowtention:
    found = branch.main[-1] if isinstance(branch.main, nn.Sequential) else branch.main
    assert isinstance(found, Lowtention)
    return found


def _inner(target: nn.Conv2d, source: nn.Conv2d, projection: Tensor) -> Tensor:
    """Which inner channels of the source the target's are.

    Args:
        target, source: the convolutions that make them.
        projection: (out, source channels, 1, 1), the weights that read them; the most important ones are kept, in
            their order. Where both are grouped alike, group by group.
    """
    importance = projection.abs().sum(dim=(0, 2, 3))
    groups = target.groups if target.groups == source.groups else 1
    parts = []
    size, available = target.out_channels // groups, source.out_channels // groups
    for group in range(groups):
        mine = importance[group * available : (group + 1) * available]
        kept = torch.sort(torch.topk(mine, min(size, available)).indices).values + group * available
        parts.append(torch.cat([kept, torch.full((size - len(kept),), NEW)]))
    return torch.cat(parts)


def _dense(conv: nn.Conv2d) -> Tensor:
    """(out, in, k, k) of a grouped convolution, zero between groups."""
    if conv.groups == 1:
        return conv.weight.clone()
    size_out, size_in = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    dense = conv.weight.new_zeros(conv.out_channels, conv.in_channels, *conv.kernel_size)
    for group in range(conv.groups):
        rows, columns = (slice(group * size, (group + 1) * size) for size in (size_out, size_in))
        dense[rows, columns] = conv.weight[rows]
    return dense


def _grouped(dense: Tensor, groups: int) -> Tensor:
    """The blocks of (out, in, k, k) that a convolution in `groups` has: (out, in / groups, k, k)."""
    size_in = dense.shape[1] // groups
    parts = dense.chunk(groups)
    return torch.cat([part[:, group * size_in : (group + 1) * size_in] for group, part in enumerate(parts)])


def _recentred(weight: Tensor, kernel: int) -> Tensor:
    """(..., k, k) cut or padded with zeros to (..., kernel, kernel), so that the centres stay on the same pixel."""
    if weight.shape[-1] == kernel:
        return weight
    shift = same_padding(kernel)[0] - same_padding(weight.shape[-1])[0]
    result = weight.new_zeros(*weight.shape[:-2], kernel, kernel)
    size = weight.shape[-1]
    to, since = max(0, shift), max(0, -shift)
    count = min(kernel - to, size - since)
    result[..., to : to + count, to : to + count] = weight[..., since : since + count, since : since + count]
    return result
