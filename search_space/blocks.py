"""The torch modules that a LowFormer is made of, and which of them is built for which unit (`MODULES`).

The names of modules follow timm's `lowformer_*`, so that its checkpoints fit. Shapes: N images, C channels, H x W the
size of the feature map, T = h * w attention tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from .graph.operators import same_padding
from .units import (
    AttentionUnit,
    Block,
    LocalUnit,
    MlpUnit,
    StemUnit,
    Unit,
    attention_heads,
    attention_kernel,
    attention_padding,
    upsampling_kernel,
)


class PaddedConv2d(nn.Conv2d):
    """A convolution with an even kernel, which is padded by one pixel less at the top and left than elsewhere."""

    def forward(self, input: Tensor) -> Tensor:
        begin, end = same_padding(self.kernel_size[0])
        return super().forward(F.pad(input, (begin, end, begin, end)))


def convolution(
    cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1, bias: bool = False, *, pad: bool = True
) -> nn.Conv2d:
    """A convolution that keeps the size of a map, but for its stride; torch's own where its padding is even."""
    begin, end = same_padding(kernel) if pad else (0, 0)
    if begin != end:
        return PaddedConv2d(cin, cout, kernel, stride, groups=groups, bias=bias)
    return nn.Conv2d(cin, cout, kernel, stride, begin, groups=groups, bias=bias)


class ConvLayer(nn.Module):
    """A convolution, followed by BatchNorm and Hardswish where asked for."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        norm: bool = True,
        act: bool = True,
        pad: bool = True,
    ) -> None:
        super().__init__()
        self.conv = convolution(cin, cout, kernel, stride, groups, bias, pad=pad)
        self.norm = nn.BatchNorm2d(cout) if norm else nn.Identity()
        self.act = nn.Hardswish() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.act(self.norm(self.conv(x))))


class FusedMBConv(nn.Module):
    """The fused local block: a dense or grouped convolution that expands the channels, then a 1x1 projection.

    `bias` adds a bias to the expanding convolution.
    """

    def __init__(
        self, cin: int, cout: int, kernel: int, *, stride: int, expansion: int, groups: int, bias: bool
    ) -> None:
        super().__init__()
        middle = cin * expansion
        self.spatial_conv = ConvLayer(cin, middle, kernel, stride=stride, groups=groups, bias=bias)
        self.point_conv = ConvLayer(middle, cout, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.point_conv(self.spatial_conv(x)))


class MBConv(nn.Module):
    """The unfused local block: 1x1 expansion, depthwise convolution, 1x1 projection; BatchNorm after the last only.

    `bias` adds a bias to the first two convolutions.
    """

    def __init__(
        self, cin: int, cout: int, kernel: int, *, stride: int, expansion: int, groups: int, bias: bool
    ) -> None:
        super().__init__()
        middle = cin * expansion
        self.inverted_conv = ConvLayer(cin, middle, groups=groups, bias=bias, norm=False)
        self.depth_conv = ConvLayer(middle, middle, kernel, stride=stride, groups=middle, bias=bias, norm=False)
        self.point_conv = ConvLayer(middle, cout, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.point_conv(self.depth_conv(self.inverted_conv(x))))


@torch.fx.wrap
def _padded(x: Tensor, stride: int) -> Tensor:
    """The map as a strided 2x2 convolution needs it."""
    bottom, right = (attention_padding(2, stride, size)[1] for size in x.shape[-2:])
    return F.pad(x, (0, right, 0, bottom)) if right or bottom else x


@torch.fx.wrap  # the branch cannot be traced symbolically, as pruning and quantization tools do
def _tokens(qkv: Tensor, heads: int) -> Tensor:
    """Queries, keys and values of (N, heads * 3 * head_dim, H, W) as (N, heads, H * W, 3 * head_dim)."""
    n, channels, h, w = qkv.shape
    if h * w == 1:  # a transpose of one token has strides that CUDA's attention kernels refuse
        return qkv.reshape(n, heads, 1, channels // heads)
    return qkv.reshape(n, heads, channels // heads, h * w).transpose(2, 3)


class Lowtention(nn.Module):
    """The attention of LowFormer (arXiv 2409.03460, section 3), which works on a reduced feature map.

    A strided depthwise convolution reduces the map, attention runs on a part of the channels, and an upsampling returns
    to (N, C, H, W).
    """

    def __init__(self, unit: AttentionUnit) -> None:
        super().__init__()
        width, stride, upsampling = unit.width, unit.stride, unit.upsampling
        self.heads, self.head_dim = attention_heads(width, unit.reduction)
        self.kernel = attention_kernel(unit.kernel, stride)
        self.stride = stride
        inner = self.heads * self.head_dim
        # A strided 2x2 convolution is padded in `forward`, because its padding depends on the size of its input.
        self.pads = self.kernel == 2 and stride > 1
        self.conv_proj = ConvLayer(width, width, self.kernel, stride=stride, groups=width, act=False, pad=not self.pads)
        self.pwise = nn.Conv2d(width, 3 * inner, 1, bias=False)
        up_kernel, up_pad = upsampling_kernel(stride)
        self.o_proj: nn.Module
        self.upsampling: nn.Module
        if upsampling == "transposed":
            self.o_proj = nn.Identity()
            self.upsampling = nn.ConvTranspose2d(inner, width, up_kernel, stride, up_pad)
        elif upsampling == "separable":
            self.o_proj = nn.Conv2d(inner, width, 1)
            self.upsampling = nn.ConvTranspose2d(width, width, up_kernel, stride, up_pad, groups=width)
        else:
            self.o_proj = nn.Conv2d(inner, width, 1)
            self.upsampling = nn.Upsample(scale_factor=stride, mode="nearest") if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        qkv = self.pwise(self.conv_proj(_padded(x, self.stride) if self.pads else x))
        n, _, h, w = qkv.shape
        q, k, v = _tokens(qkv, self.heads).chunk(3, dim=3)
        out = F.scaled_dot_product_attention(q, k, v)
        out = out.transpose(2, 3).reshape(n, self.heads * self.head_dim, h, w)
        out = self.upsampling(self.o_proj(out))
        return cast(Tensor, out[..., :height, :width])


class DropPath(nn.Module):
    """Stochastic depth: in training, sets whole images of a branch to zero with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)


class Residual(nn.Module):
    """A branch with its shortcut, x + drop_path(main(x)); a downsampler has no shortcut and is main(x) alone."""

    def __init__(self, main: nn.Module, *, shortcut: bool = True, drop_path: float = 0.0) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.main(x)
        return cast(Tensor, self.drop_path(out) + x if self.shortcut else out)


class GlobalAverage(nn.Module):
    """The mean over height and width: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.mean(x, dim=(2, 3))


class LowFormerBlock(nn.Module):
    """The branches of one LowFormer block, one after the other, each added to its own input.

    x + Lowtention(GN(x)); x + MLP(GN(x)); x + Local(x). Without an MLP there is no GroupNorm before the attention
    either. `attn` and `mlp` are identities where the block lacks them.
    """

    attn: nn.Module
    mlp: nn.Module
    local: nn.Module

    def __init__(self, units: Block, drop_path: float) -> None:
        super().__init__()
        for unit in units:
            self.add_module(unit.kind, unit_module(unit, drop_path))
        for name in ("attn", "mlp"):
            if name not in self._modules:
                self.add_module(name, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.children():
            x = branch(x)
        return x


def _stem_convolution(unit: StemUnit, drop_path: float) -> ConvLayer:
    return ConvLayer(3, unit.width, 3, stride=2)


def _local_block(unit: LocalUnit, drop_path: float) -> Residual:
    block = FusedMBConv if unit.fused else MBConv
    main = block(
        unit.cin,
        unit.cout,
        unit.kernel,
        stride=unit.stride,
        expansion=unit.expansion,
        groups=unit.groups,
        bias=unit.in_block,
    )
    return Residual(main, shortcut=unit.residual, drop_path=drop_path)


def _attention_branch(unit: AttentionUnit, drop_path: float) -> Residual:
    main: nn.Module = Lowtention(unit)
    if unit.norm:
        main = nn.Sequential(nn.GroupNorm(1, unit.width), main)
    return Residual(main, drop_path=drop_path)


def _mlp_branch(unit: MlpUnit, drop_path: float) -> Residual:
    width, hidden = unit.width, unit.width * unit.ratio
    main = nn.Sequential(nn.GroupNorm(1, width), nn.Conv2d(width, hidden, 1), nn.GELU(), nn.Conv2d(hidden, width, 1))
    return Residual(main, drop_path=drop_path)


MODULES: dict[type[Any], Callable[[Any, float], nn.Module]] = {
    StemUnit: _stem_convolution,
    LocalUnit: _local_block,
    AttentionUnit: _attention_branch,
    MlpUnit: _mlp_branch,
}
"""For each class of the backbone's units, what builds its torch module from (unit, rate of stochastic depth)."""


def unit_module(unit: Unit, drop_path: float) -> nn.Module:
    """Builds the torch module of one unit; its residual branch is dropped at the rate `drop_path` in training."""
    return MODULES[type(unit)](unit, drop_path)


def block_module(units: Block, drop_path: float) -> nn.Module:
    """Builds the torch module of one block: a LowFormer block, or the module of its only unit."""
    last = units[-1]
    if len(units) > 1 or (isinstance(last, LocalUnit) and last.in_block):
        return LowFormerBlock(units, drop_path)
    return unit_module(last, drop_path)


def init_weights(module: nn.Module) -> None:
    """Initializes one module as timm does: linear layers by a truncated normal (0.02), all else as torch does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
