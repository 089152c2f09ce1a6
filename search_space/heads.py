"""Heads turn the last feature map of a backbone into a network's output; they are found by name.

A configuration names its head (`LowFormerConfig.head`). The operator graph, the torch module, the ONNX file and its
weights all follow from the head registered under that name, so that a head needs no edit anywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .config import DEFAULT_HEAD, LowFormerConfig
from .graph.operators import GRAPH_INPUT, GraphBuilder
from .units import Unit

if TYPE_CHECKING:
    from torch import nn


class Head(Protocol):
    """The part of a network that turns the backbone's last feature map into the output.

    To write another head, give it a name and say the same thing twice: as units, from which costs and ONNX files
    follow, and as torch modules. Then register it. A head that averages the map and ends in one linear layer:

        from lownas.search_space import PRESETS, register_head
        from lownas.search_space.graph import GRAPH_INPUT

        class PooledUnit(NamedTuple):
            channels: int
            size: int
            outputs: int
            kind: str = "pooled"

            def graph(self, build):
                shape = (self.channels, self.size, self.size)
                row = build.add_op("global_pool", [GRAPH_INPUT], shape_in=shape, shape_out=(self.channels, 1, 1))
                build.linear(row, self.channels, self.outputs, bias=True)

        class PooledHead:
            name = "pooled"

            def units(self, config, channels, size):
                return [PooledUnit(channels, size, config.classes)]

            def layers(self, config, channels):
                from torch import nn
                from lownas.search_space.blocks import GlobalAverage
                return {"global_pool": GlobalAverage(), "output": nn.Linear(channels, config.classes)}

        register_head(PooledHead())
        config = PRESETS["lowformer_b1"].replace(head="pooled", classes=3)

    What has to hold:
    - The units' `kind`s are those of no other unit (see `units.Unit`).
    - The modules compute what the units say, with the same convolutions, linear layers and norms in the same order;
      modules that have weights are registered in the order in which they run. A BatchNorm stands right after the
      convolution into which it is folded. `model.folded_weights` raises ValueError where the two do not agree.
    - Images have any size from 16 pixels up while training; `size` is that at `config.resolution`.
    - torch is imported inside `layers`, for costs are computed without it.

    tests/search_space/test_heads.py checks all of this for every registered head.
    """

    @property
    def name(self) -> str:
        """The name under which configurations ask for the head."""

    def units(self, config: LowFormerConfig, channels: int, size: int) -> Sequence[Unit]:
        """Gives the head's units, for a last feature map of `channels` x `size` x `size`.

        The number of outputs is `config.classes`.
        """

    def layers(self, config: LowFormerConfig, channels: int) -> dict[str, nn.Module]:
        """Gives the head's torch modules in the order in which they run, by the names that they get in the network.

        The first one is given the last feature map (N, `channels`, H, W), the last one gives the output. Linear layers
        are initialized afterwards as all others of the network are (`blocks.init_weights`).
        """


HEADS: dict[str, Head] = {}
"""The heads that configurations can name; `register_head` adds to them."""


def register_head(head: Head) -> None:
    """Makes a head available to configurations under its name. Raises ValueError if another one has that name."""
    if HEADS.get(head.name, head) is not head:
        raise ValueError(f"a head named {head.name!r} is registered already")
    HEADS[head.name] = head


def head(name: str) -> Head:
    """Gives the head of that name. Raises ValueError, naming the known ones, if there is none."""
    if name not in HEADS:
        raise ValueError(f"head: one of {sorted(HEADS)}, given {name!r}")
    return HEADS[name]


class ClassificationUnit(NamedTuple):
    """A 1x1 convolution, global pooling, a hidden linear layer with LayerNorm, and the classifier."""

    cin: int
    size: int
    widths: tuple[int, int]
    classes: int
    kind: str = "classification"

    def graph(self, build: GraphBuilder) -> None:
        pooled, hidden = self.widths
        row, shape = build.conv(GRAPH_INPUT, (self.cin, self.size, self.size), pooled, norm=True)
        row = build.pointwise("hardswish", [row], shape)
        row = build.add_op("global_pool", [row], shape_in=shape, shape_out=(pooled, 1, 1))
        row = build.linear(row, pooled, hidden, bias=False)
        row = build.pointwise("layer_norm", [row], (hidden, 1, 1), params=2 * hidden)
        row = build.pointwise("hardswish", [row], (hidden, 1, 1))
        build.linear(row, hidden, self.classes, bias=True)


class ClassificationHead:
    """The head of the published LowFormers: logits of `config.classes` classes."""

    name = DEFAULT_HEAD

    def units(self, config: LowFormerConfig, channels: int, size: int) -> Sequence[Unit]:
        return [ClassificationUnit(channels, size, config.head_widths, config.classes)]

    def layers(self, config: LowFormerConfig, channels: int) -> dict[str, nn.Module]:
        from torch import nn

        from .blocks import ConvLayer, GlobalAverage

        pooled, hidden = config.head_widths
        return {
            "in_conv": ConvLayer(channels, pooled),
            "global_pool": GlobalAverage(),
            "pre_classifier": nn.Sequential(
                nn.Linear(pooled, hidden, bias=False), nn.LayerNorm(hidden), nn.Hardswish()
            ),
            "classifier": nn.Linear(hidden, config.classes),
        }


register_head(ClassificationHead())
