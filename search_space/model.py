"""The torch module of a configuration, with timm's conventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .blocks import ConvLayer, block_module, init_weights
from .config import LowFormerConfig
from .graph.from_config import op_graph
from .graph.operators import KINDS
from .heads import head
from .units import backbone


class LowFormer(nn.Module):
    """The network of `config`. Takes (N, 3, H, W) images with H and W from 16 up; gives the output of its head.

    The classification head gives (N, classes) logits.

    Attributes:
        config: what the network was built from.
        stem, stages: the backbone.
        feature_info: for each stage its channels (`num_chs`), its stride (`reduction`) and its module's name.
        num_features: channels of the last feature map.
        head_hidden_size: features that the head's last layer reads (channels where it is no linear layer).
        num_classes: outputs of the head's last layer; 0 where it was taken away.
        in_conv, pre_classifier, classifier: layers of the classification head; other heads have layers of their own.
    """

    in_conv: ConvLayer
    pre_classifier: nn.Sequential
    classifier: nn.Module

    def __init__(self, config: LowFormerConfig, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.classes
        stem, *stages = backbone(config)
        # The rate of stochastic depth rises from block to block; the stem's first convolution has none.
        blocks = len(stem.blocks) - 1 + sum(len(stage.blocks) for stage in stages)
        rates = iter([0.0, *(drop_path_rate * i / max(1, blocks - 1) for i in range(blocks))])
        self.stem, *sequences = (
            nn.Sequential(*(block_module(block, next(rates)) for block in section.blocks))
            for section in (stem, *stages)
        )
        self.stages = nn.Sequential(*sequences)
        self.feature_info = [
            {"num_chs": stage.width, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, stage in enumerate(stages)
        ]
        self.num_features = stages[-1].width
        layers = head(config.head).layers(config, self.num_features)
        if taken := sorted(name for name in layers if hasattr(self, name)):
            raise ValueError(f"head {config.head!r}: a network has other things called {', '.join(taken)}")
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._head_layers = tuple(layers)
        self.head_hidden_size = int(getattr(self.get_classifier(), "in_features", self.num_features))
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        """Gives the head's last layer, whatever the head."""
        return cast(nn.Module, getattr(self, self._head_layers[-1]))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a fresh last layer with `num_classes` outputs into the head.

        0 leaves none, and `forward` then gives what the last layer would have been given, (N, head_hidden_size) for
        classification. `global_pool` may be None or "avg".
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, given {num_classes}")
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: only 'avg' is supported, given {global_pool!r}")
        self.num_classes = num_classes
        name = self._head_layers[-1]
        layer: nn.Module = nn.Identity()
        if num_classes:
            self.config = self.config.replace(classes=num_classes)
            layer = head(self.config.head).layers(self.config, self.num_features)[name]
            layer.apply(init_weights)
            like = next(self.stem.parameters())
            layer.to(device=like.device, dtype=like.dtype)
        setattr(self, name, layer)

    def forward_features(self, x: Tensor) -> Tensor:
        """Gives the last feature map: (N, 3, H, W) -> (N, num_features, H / 32, W / 32), sizes rounded up."""
        return cast(Tensor, self.stages(self.stem(x)))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Gives the feature maps at strides 4, 8, 16 and 32, as timm's models do.

        Args:
            x: (N, 3, H, W) images.
            indices: which stages: the last n if an int, those listed if a sequence (negative ones count from the end),
                all if None.
            norm: has no effect, because there is no final norm.
            stop_early: whether to skip the stages after the last one asked for.
            output_fmt: only "NCHW" is supported.
            intermediates_only: whether to give only the list of maps, not (last map, list).
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: only 'NCHW' is supported, given {output_fmt!r}")
        count = len(self.stages)
        if indices is None:
            wanted = set(range(count))
        elif isinstance(indices, int):
            if not 1 <= indices <= count:
                raise ValueError(f"indices: 1 to {count} stages can be taken, given {indices}")
            wanted = set(range(count - indices, count))
        else:
            if any(not -count <= i < count for i in indices):
                raise ValueError(f"indices: stages are 0 to {count - 1}, given {list(indices)}")
            wanted = {i % count for i in indices}
        maps = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            if stop_early and i > max(wanted):
                break
            x = stage(x)
            if i in wanted:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Gives the head's output for the last feature map; with `pre_logits` what its last layer would be given."""
        *hidden, last = self._head_layers
        for name in hidden:
            x = getattr(self, name)(x)
        return x if pre_logits else cast(Tensor, getattr(self, last)(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def extra_repr(self) -> str:
        return f"id={self.config.id}, resolution={self.config.resolution}"


def build_model(config: LowFormerConfig, drop_path_rate: float = 0.0) -> LowFormer:
    """Builds the torch module of a configuration, with fresh weights.

    The rate of stochastic depth rises linearly from 0 in the first block to `drop_path_rate` in the last one.

    Raises ValueError if the configuration's head is not registered.
    """
    return LowFormer(config, drop_path_rate)


def folded_weights(model: LowFormer) -> list[list[NDArray[np.float32]]]:
    """Gives the constants of each operator of `op_graph(model.config)`, BatchNorm folded, as `write_onnx` takes them.

    Raises ValueError if the modules are not those of the graph's operators, in their order.
    """
    constants = _constants_in_order(model)
    constants.reverse()
    graph = op_graph(model.config)
    weights: list[list[NDArray[np.float32]]] = []
    for kind, elements in zip(graph.column("kind").tolist(), graph.column("weights").tolist(), strict=True):
        weights.append(constants.pop() if elements and constants else [])
        if sum(value.size for value in weights[-1]) != elements:
            raise ValueError(
                f"the network's modules do not match its operators: operator {len(weights) - 1} ({KINDS[kind]}) has "
                f"{elements} constants, the module in its place {sum(value.size for value in weights[-1])}"
            )
    if constants:
        raise ValueError(f"{len(constants)} of the network's modules belong to none of its operators")
    return weights


def _constants_in_order(model: nn.Module) -> list[list[NDArray[np.float32]]]:
    """Weight and bias of all layers in the order of registration, in which they run; BatchNorm folded."""
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm
    constants: list[list[NDArray[np.float32]]] = []
    for module in (module for module in model.modules() if isinstance(module, kinds)):
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None and module.running_mean is not None
            weight, *rest = constants.pop()
            bias = rest[0] if rest else np.zeros(len(weight), np.float32)
            scale = (module.weight / torch.sqrt(module.running_var + module.eps)).detach().cpu().float().numpy()
            shift = module.bias.detach().cpu().float().numpy()
            mean = module.running_mean.cpu().float().numpy()
            constants.append([weight * scale.reshape(-1, 1, 1, 1), (bias - mean) * scale + shift])
        else:
            constants.append(
                [value.detach().cpu().float().numpy() for value in (module.weight, module.bias) if value is not None]
            )
    return constants
