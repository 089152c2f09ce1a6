"""Candidates that start from the weights of another LowFormer: sliced, padded, matched by depth.

Blocks are paired by their place in the stage, counted from its end, as the placement of attention is. Of the channels
of a stage, and of the inner ones of a block, the most important are kept, by what the layer that reads them weighs (Cai
et al., Once-for-All, arXiv 1908.09791); all blocks of a stage agree on theirs. What the source does not have stays as
it is, and what it has does not listen to it: new inner channels weigh nothing at first, new branches are silent (after
Chen et al., Net2Net, arXiv 1511.05641).

So these compute, in eval mode, what the source computes: its own architecture; one that is deeper, with a stem block
more, or with attention in more blocks; with wider inner layers, more attention channels or a larger first head width;
with larger kernels; with dense convolutions instead of grouped ones. A wider stage does so only where no GroupNorm sees
it (no MLP there). A block of another kind (fused or not) and the way back of an attention that reduces or upsamples
differently start anew, silently.
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
from ...search_space.units import attention_padding

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
    """Where a network's parameters come from.

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
        model = load_checkpoint(config, state)
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
    readers = [_expanding(_local(stage[0])).conv for stage in old_stages] + [old.in_conv.conv]
    streams = _streams(model.config, old.config, readers)
    inheritance.conv_layer(_layer(model.stem[0]), _layer(old.stem[0]), _all(3), streams[0])
    inheritance.blocks(list(model.stem)[1:], list(old.stem)[1:], streams[0], streams[0])
    for number, (stage, old_stage) in enumerate(zip(stages, old_stages, strict=True)):
        inheritance.blocks(stage[:1], old_stage[:1], streams[number], streams[number + 1])
        inheritance.blocks(stage[1:], old_stage[1:], streams[number + 1], streams[number + 1])

    linear, norm, _ = model.pre_classifier
    old_linear, old_norm, _ = old.pre_classifier
    assert isinstance(linear, nn.Linear) and isinstance(old_linear, nn.Linear)
    assert isinstance(model.classifier, nn.Linear) and isinstance(old.classifier, nn.Linear)
    pooled = _kept(linear.in_features, _importance(old_linear.weight))
    hidden = _kept(linear.out_features, _importance(old.classifier.weight))
    inheritance.conv_layer(model.in_conv, old.in_conv, streams[-1], pooled)
    inheritance.parameter(linear.weight, old_linear.weight, hidden, pooled)
    inheritance.norm(norm, old_norm, hidden)
    classes = model.classifier.out_features
    if classes == old.classifier.out_features:
        inheritance.parameter(model.classifier.weight, old.classifier.weight, _all(classes), hidden)
        inheritance.parameter(model.classifier.bias, old.classifier.bias, _all(classes))
    return inheritance.report(model)


# --- which channels --------------------------------------------------------------------------------------------------


def _streams(new: LowFormerConfig, old: LowFormerConfig, readers: Sequence[nn.Conv2d]) -> list[Tensor]:
    """The channels of the stem's map and of the four stages'.

    Args:
        readers: the convolutions of the source that read them: four downsamplers, then the head's.
    """
    streams = []
    for number, reader in enumerate(readers):
        stage = max(0, number - 1)  # the stem's channels are grouped by the first downsampler
        width = new.stages[stage].width if number else new.stem_width
        groups, old_groups = new.stages[stage].groups, old.stages[stage].groups
        together = groups != old_groups or width % groups or reader.in_channels % groups
        importance = _importance(_dense(reader.weight, reader.groups))
        streams.append(_kept(width, importance, 1 if together else groups))
    return streams


def _all(count: int) -> Tensor:
    return torch.arange(count)


def _kept(count: int, importance: Tensor, groups: int = 1) -> Tensor:
    """(count,) which channels of the source: the most important ones in their order, then `NEW`, group by group.

    Args:
        importance: (channels of the source,).
        groups: divides both counts. Grouped convolutions read the channels of a group together.
    """
    size, parts = count // groups, []
    for group, part in enumerate(importance.chunk(groups)):
        best = part.topk(min(size, len(part))).indices.sort().values + group * len(part)
        parts.append(nn.functional.pad(best, (0, size - len(best)), value=NEW))
    return torch.cat(parts)


def _importance(reading: Tensor) -> Tensor:
    """(in,) the L1 norm of what each input weighs in (out, in, ...)."""
    return reading.abs().transpose(0, 1).flatten(1).sum(dim=1)


def _taps(target: nn.Conv2d, source: nn.Conv2d) -> Tensor:
    """(k,) for each row of the target's kernel the one of the source's that sees the same pixels; columns are alike."""
    begin, old_begin = (attention_padding(conv.kernel_size[0], conv.stride[0], 0)[0] for conv in (target, source))
    index = torch.arange(target.kernel_size[0]) - begin + old_begin
    return torch.where((index >= 0) & (index < source.kernel_size[0]), index, NEW)


# --- copying ---------------------------------------------------------------------------------------------------------


def _take(target: Tensor, source: Tensor, indices: Sequence[Tensor], out: int = 0) -> int:
    """Fills `target`: outputs that the source has do not listen to inputs that it lacks; other outputs stay.

    Args:
        indices: for each of the first axes (n,) which place of the source's axis it is, or `NEW`.
        out: the axis of the outputs; the others with an index are inputs (or a kernel's rows and columns).

    Returns:
        How many numbers of `target` are the source's.
    """
    values = source
    for axis, index in enumerate(indices):
        values = values.index_select(axis, index.clamp(min=0))
        if axis != out:
            values.movedim(axis, 0)[index == NEW] = 0
    known = indices[out] != NEW
    target.movedim(out, 0)[known] = values.movedim(out, 0)[known]
    return math.prod(int((index != NEW).sum()) for index in indices) * math.prod(target.shape[len(indices) :])


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
        self.copied[id(target)] = _take(target, source, indices, out), source.numel()

    def norm(self, target: nn.Module, source: nn.Module, channels: Tensor) -> None:
        """Scale and shift of a normalization, and BatchNorm's statistics."""
        for name in ("weight", "bias"):
            self.parameter(getattr(target, name), getattr(source, name), channels)
        if isinstance(target, nn.BatchNorm2d):
            for name in ("running_mean", "running_var"):
                _take(getattr(target, name), getattr(source, name), [channels])

    def bias(self, target: nn.Conv2d, source: nn.Conv2d, out: Tensor) -> None:
        """Having none is having zeros."""
        if target.bias is not None:
            self.parameter(target.bias, torch.zeros(len(source.weight)) if source.bias is None else source.bias, out)

    def conv(self, target: nn.Conv2d, source: nn.Conv2d, into: Tensor, out: Tensor) -> None:
        """A convolution; one in groups counts as a dense one with zeros."""
        taps = _taps(target, source)
        indices = (out, into, taps, taps)
        if target.groups == source.groups == 1:
            self.parameter(target.weight, source.weight, *indices)
        else:
            dense = _dense(target.weight, target.groups)
            copied = torch.zeros_like(dense)
            _take(dense, _dense(source.weight, source.groups), indices)
            _take(copied, _dense(torch.ones_like(source.weight), source.groups), indices)
            target.weight.copy_(_grouped(dense, target.groups))
            self.copied[id(target.weight)] = int(_grouped(copied, target.groups).sum()), source.weight.numel()
        self.bias(target, source, out)

    def depthwise(self, target: nn.Conv2d, source: nn.Conv2d, channels: Tensor) -> None:
        taps = _taps(target, source)
        self.parameter(target.weight, source.weight, channels, _all(1), taps, taps)
        self.bias(target, source, channels)

    def conv_layer(self, target: ConvLayer, source: ConvLayer, into: Tensor, out: Tensor) -> None:
        self.conv(target.conv, source.conv, into, out)
        if isinstance(target.norm, nn.BatchNorm2d) and isinstance(source.norm, nn.BatchNorm2d):
            self.norm(target.norm, source.norm, out)
            mean = source.norm.running_mean
            if target.conv.bias is None and source.conv.bias is not None and mean is not None:
                _take(target.norm.running_mean, mean - source.conv.bias, [out])  # type: ignore[arg-type]

    def blocks(self, targets: Sequence[nn.Module], sources: Sequence[nn.Module], into: Tensor, out: Tensor) -> None:
        """Blocks that follow each other, the last one paired with the last one."""
        for target, source in zip(reversed(targets), reversed(sources), strict=False):
            self.local(_local(target), _local(source), into, out)
            if isinstance(target, LowFormerBlock) and isinstance(source, LowFormerBlock):
                self.attention(target.attn, source.attn, out)
                self.mlp(target.mlp, source.mlp, out)

    def local(self, target: nn.Module, source: nn.Module, into: Tensor, out: Tensor) -> None:
        """A local block of the same kind (fused or not)."""
        if type(target) is not type(source):
            return
        first, old_first = _expanding(target), _expanding(source)
        last, old_last = _projecting(target), _projecting(source)
        groups = first.conv.groups if first.conv.groups == old_first.conv.groups else 1
        importance = _importance(old_last.conv.weight[out[out != NEW]])
        inner = _kept(first.conv.out_channels, importance, groups)
        self.conv_layer(first, old_first, into, inner)
        if isinstance(target, MBConv) and isinstance(source, MBConv):
            self.depthwise(target.depth_conv.conv, source.depth_conv.conv, inner)
        self.conv_layer(last, old_last, inner, out)

    def attention(self, target: nn.Module, source: nn.Module, channels: Tensor) -> None:
        """Lowtention; its way back only if it reduces and upsamples in the same way."""
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

    def mlp(self, target: nn.Module, source: nn.Module, channels: Tensor) -> None:
        if not isinstance(target, Residual) or not isinstance(source, Residual):
            return
        norm, first, _, last = target.main.children()
        old_norm, old_first, _, old_last = source.main.children()
        assert isinstance(first, nn.Conv2d) and isinstance(old_first, nn.Conv2d)
        assert isinstance(last, nn.Conv2d) and isinstance(old_last, nn.Conv2d)
        inner = _kept(first.out_channels, _importance(old_last.weight[channels[channels != NEW]]))
        self.norm(norm, old_norm, channels)
        self.conv(first, old_first, channels, inner)
        self.conv(last, old_last, inner, channels)


def _dense(weight: Tensor, groups: int) -> Tensor:
    """(out, in, k, k) of a convolution in groups, whose weight is (out, in / groups, k, k); zero between groups."""
    if groups == 1:
        return weight
    size_out, size_in = len(weight) // groups, weight.shape[1]
    dense = weight.new_zeros(len(weight), size_in * groups, *weight.shape[2:])
    for group in range(groups):
        rows, columns = (slice(group * size, (group + 1) * size) for size in (size_out, size_in))
        dense[rows, columns] = weight[rows]
    return dense


def _grouped(dense: Tensor, groups: int) -> Tensor:
    """The weight (out, in / groups, k, k) of a convolution in groups, cut out of (out, in, k, k)."""
    size_in = dense.shape[1] // groups
    parts = dense.chunk(groups)
    return torch.cat([part[:, group * size_in : (group + 1) * size_in] for group, part in enumerate(parts)])


# --- parts of the network --------------------------------------------------------------------------------------------


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
