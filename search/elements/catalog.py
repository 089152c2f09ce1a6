"""The design elements whose cost is measured, and where: each is a block that keeps its input's channels and size.

A block is timed as a chain of copies, each with weights of its own, between two 1x1 convolutions and before the global
mean (`chain`): it stands inside a network, in the layout that the runtime has there. What the frame takes without any
copy is measured once for each shape and taken off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...search_space.graph.from_config import joined
from ...search_space.graph.operators import GRAPH_INPUT, GraphBuilder, OpGraph
from ...search_space.units import AttentionUnit, LocalUnit, MlpUnit, Unit
from . import linear_attention

MOST_COPIES = 12
CHAIN_MACS = 40e6
"""Multiply-accumulates that a chain is about as long as, for a whole batch."""
CHAIN_WEIGHTS = 3e6
"""Weights that a chain has at most, beyond two copies: more would not stay in a CPU's caches."""
Place = tuple[int, int]
"""Channels, and the side of the map in pixels."""
PLACES: tuple[Place, ...] = (
    (32, 56), (64, 56), (64, 28), (128, 28), (128, 14), (256, 14), (256, 7), (512, 7),
)  # fmt: skip
EQUAL_MACS: tuple[Place, ...] = ((32, 56), (64, 28), (128, 14), (256, 7))
"""Places at which a convolution has the same MACs: half the pixels a side, twice the channels."""
FUSION_PLACES: tuple[Place, ...] = (
    (16, 56), (32, 56), (32, 28), (48, 28), (64, 28), (96, 28), (64, 14), (96, 14), (128, 14), (192, 14), (256, 14),
    (320, 14), (128, 7), (192, 7), (256, 7), (384, 7), (512, 7),
)  # fmt: skip
ATTENTION_PLACES: tuple[Place, ...] = ((64, 56), (64, 28), (128, 28), (128, 14), (256, 14), (256, 7))
BLOCK_PLACES: tuple[Place, ...] = ((128, 14), (192, 14), (256, 7), (384, 7))
POINTWISE_PLACES: tuple[Place, ...] = ((64, 28), (128, 14), (256, 7))
QUICK: frozenset[Place] = frozenset({(32, 56), (64, 28), (128, 28), (64, 14), (128, 14), (256, 14), (256, 7), (512, 7)})
"""Places of a quick run."""
LEFT_OUT_QUICK = ("in 8", "5x5", "7x7", "0.25", "separable", "stride 4", "with MLP", "relu", "silu")
"""What the names of elements have that a quick run leaves out."""
LARGE_BATCHES: frozenset[str] = frozenset({"convolution", "fusion"})
"""Topics that are measured at larger batches too."""
HEAD_CHANNELS = 32
"""Channels of a head of plain multi-head attention."""


class Frame(NamedTuple):
    """A 1x1 convolution of the input."""

    width: int
    size: int
    kind: str = "element_frame"

    def graph(self, build: GraphBuilder) -> None:
        row, shape = build.conv(GRAPH_INPUT, (self.width, self.size, self.size), self.width, norm=True)
        build.pointwise("hardswish", [row], shape)


class Mean(NamedTuple):
    """The mean over the map."""

    width: int
    size: int
    kind: str = "element_mean"

    def graph(self, build: GraphBuilder) -> None:
        shape = (self.width, self.size, self.size)
        build.add_op("global_pool", [GRAPH_INPUT], shape_in=shape, shape_out=(self.width, 1, 1))


class Convolution(NamedTuple):
    """A convolution with BatchNorm folded into it, followed by an activation, a norm, or nothing."""

    width: int
    size: int
    kernel: int = 1
    groups: int = 1
    then: str = "hardswish"
    kind: str = "element_conv"

    def graph(self, build: GraphBuilder) -> None:
        shape = (self.width, self.size, self.size)
        row, shape = build.conv(GRAPH_INPUT, shape, self.width, self.kernel, groups=self.groups, norm=True)
        if self.then:
            params = 2 * self.width if self.then in ("group_norm", "layer_norm") else 0
            build.pointwise(self.then, [row], shape, params=params)


class MultiHeadAttention(NamedTuple):
    """x + projection(attention(x)) with GroupNorm before it, over all pixels and all channels."""

    width: int
    size: int
    kind: str = "element_attention"

    def graph(self, build: GraphBuilder) -> None:
        shape = (self.width, self.size, self.size)
        heads, tokens = max(1, self.width // HEAD_CHANNELS), self.size**2
        dim = self.width // heads
        row = build.pointwise("group_norm", [GRAPH_INPUT], shape, params=2 * self.width)
        qkv, _ = build.conv(row, shape, 3 * heads * dim)
        scores = build.matmul(qkv, qkv, heads, tokens, dim, tokens)
        weights = build.pointwise("softmax", [scores], (heads, tokens, tokens))
        row = build.matmul(weights, qkv, heads, tokens, tokens, dim)
        row, _ = build.conv(row, (heads * dim, self.size, self.size), self.width, bias=True)
        build.pointwise("add", [row, GRAPH_INPUT], shape)


@dataclass(frozen=True)
class Element:
    """One design element at one place.

    Attributes:
        topic: what it is compared with: "convolution", "fusion", ...
        name: which of the topic.
        channels, pixels: of its input and output; the side of the map.
        units: its operators; empty for ReLU linear attention, which is written by itself.
    """

    topic: str
    name: str
    channels: int
    pixels: int
    units: tuple[Unit, ...] = ()

    @property
    def key(self) -> str:
        """Its name in files: "convolution/dense 3x3/64x28"."""
        return f"{self.topic}/{self.name}/{self.channels}x{self.pixels}"

    @property
    def is_quick(self) -> bool:
        """Whether a quick run has it."""
        if self.topic == "equal MACs":
            return self.name.startswith("d")
        return self.place in QUICK and not any(part in self.name for part in LEFT_OUT_QUICK)

    @property
    def place(self) -> Place:
        return self.channels, self.pixels

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one copy for one image."""
        if not self.units:
            return linear_attention.macs(self.channels, self.pixels)
        return joined(self.units).macs

    @cached_property
    def params(self) -> int:
        """Parameters of one copy."""
        if not self.units:
            return linear_attention.params(self.channels)
        return joined(self.units).params

    def copies(self, batch: int) -> int:
        """How many copies a chain has."""
        enough = CHAIN_MACS / max(self.macs * batch, 1)
        return int(np.clip(min(round(enough), CHAIN_WEIGHTS // max(self.params, 1)), 2, MOST_COPIES))

    def chain(self, batch: int, folder: Path) -> OpGraph | Path:
        """What is timed: a graph, or an ONNX file in `folder`."""
        if not self.units:
            return linear_attention.write(folder, self.channels, self.pixels, self.copies(batch), batch)
        inside = self.units * self.copies(batch)
        return joined([Frame(*self.place), *inside, Frame(*self.place), Mean(*self.place)])


@dataclass(frozen=True)
class EmptyFrame:
    """What stands around a chain, without any copy."""

    channels: int
    pixels: int

    @property
    def key(self) -> str:
        return f"frame/{self.channels}x{self.pixels}"

    def chain(self) -> OpGraph:
        end = Frame(self.channels, self.pixels)
        return joined([end, end, Mean(self.channels, self.pixels)])


def elements(*, quick: bool = False, large_batch: bool = False) -> list[Element]:
    """All elements.

    Args:
        quick: at few places.
        large_batch: those alone that larger batches are measured of.
    """
    found = [element for element in _all() if not large_batch or element.topic in LARGE_BATCHES]
    return [element for element in found if not quick or element.is_quick]


def frames(chosen: Sequence[Element]) -> list[EmptyFrame]:
    """The frames of elements, each once."""
    return [EmptyFrame(*place) for place in dict.fromkeys(element.place for element in chosen)]


def _all() -> Iterator[Element]:
    for width, size in PLACES:
        yield _conv(width, size, "dense 3x3", 3)
        yield _conv(width, size, "depthwise 3x3", 3, groups=width)
        yield _conv(width, size, "1x1", 1)
        for groups in (2, 4, 8):
            yield _conv(width, size, f"3x3 in {groups} groups", 3, groups=groups)
    yield from _equal_macs()
    for width, size in POINTWISE_PLACES:
        for kernel in (2, 5, 7):
            yield _conv(width, size, f"dense {kernel}x{kernel}", kernel)
            yield _conv(width, size, f"depthwise {kernel}x{kernel}", kernel, groups=width)
    for width, size in FUSION_PLACES:
        for name, fused in (("fused MBConv", True), ("unfused MBConv", False)):
            unit = LocalUnit(width, size, width, 1, 4, 3, 1, fused, residual=True, in_block=True)
            yield Element("fusion", name, width, size, (unit,))
    yield from _attentions()
    yield from _blocks()
    for width, size in POINTWISE_PLACES:
        for then in ("", "relu", "hardswish", "silu", "gelu", "group_norm", "layer_norm"):
            name = f"1x1 and {then.replace('_', ' ')}" if then else "1x1 alone"
            yield Element("pointwise", name, width, size, (Convolution(width, size, then=then),))


def _conv(width: int, size: int, name: str, kernel: int, groups: int = 1) -> Element:
    return Element("convolution", name, width, size, (Convolution(width, size, kernel, groups),))


def _equal_macs() -> Iterator[Element]:
    """Grouped and depthwise convolutions with as many MACs as a dense one: more channels on the same map."""
    for width, size in EQUAL_MACS:
        yield Element("equal MACs", f"dense 3x3 of {width}", width, size, (Convolution(width, size, 3),))
        for groups in (2, 8):
            wide = 8 * groups * max(1, round(width * groups**0.5 / (8 * groups)))
            unit = Convolution(wide, size, 3, groups)
            yield Element("equal MACs", f"3x3 in {groups} groups for {width}", wide, size, (unit,))
    for width, size in ((16, 28), (24, 14), (32, 14)):
        yield Element("equal MACs", f"dense 3x3 of {width}", width, size, (Convolution(width, size, 3),))
        unit = Convolution(width**2, size, 3, width**2)
        yield Element("equal MACs", f"depthwise 3x3 for {width}", width**2, size, (unit,))


def _attentions() -> Iterator[Element]:
    for width, size in ATTENTION_PLACES:
        yield Element("attention", "multi-head attention", width, size, (MultiHeadAttention(width, size),))
        yield Element("attention", "ReLU linear attention", width, size)
        for stride in (1, 2, 4):
            yield _lowtention(width, size, stride, 0.5, "transposed")
        for reduction in (0.25, 1.0):
            yield _lowtention(width, size, 2, reduction, "transposed")
        for upsampling in ("separable", "nearest"):
            yield _lowtention(width, size, 2, 0.5, upsampling)


def _lowtention(width: int, size: int, stride: int, reduction: float, upsampling: str) -> Element:
    unit = AttentionUnit(width, size, 3, stride, reduction, upsampling, norm=True)
    return Element("attention", f"Lowtention, stride {stride}, {reduction:g}, {upsampling}", width, size, (unit,))


def _blocks() -> Iterator[Element]:
    """The block of the stages 3 and 4, with and without attention and MLP: the B series and the E series."""
    for width, size in BLOCK_PLACES:
        attention = AttentionUnit(width, size, 3, 2 if size >= 14 else 1, 0.5, "transposed", norm=True)
        local = LocalUnit(width, size, width, 1, 4, 3, 1, width < 256, residual=True, in_block=True)
        mlp = MlpUnit(width, size, 4)
        yield Element("block", "convolutions alone", width, size, (local,))
        yield Element("block", "with attention", width, size, (attention, local))
        yield Element("block", "with MLP", width, size, (mlp, local))
        yield Element("block", "with attention and MLP", width, size, (attention, mlp, local))
