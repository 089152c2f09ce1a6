"""A configuration as a torch module, with timm's conventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .blocks import ConvLayer, LowFormerBlock, global_average, init_weights, local_block
from .config import LowFormerConfig
from .units import AttentionUnit, Head, LocalUnit, MlpUnit, Stem, op_graph, units


class LowFormer(nn.Module):
    """The network of `config`. Takes (N, 3, H, W) images, any H and W from 16 up; gives (N, classes) logits.

    Attributes:
        config: what it was built from.
        feature_info: for each stage its channels (`num_chs`), its stride (`reduction`) and its module's name.
        num_features, head_hidden_size: channels of the last map, and of what the classifier sees.
    """

    def __init__(self, config: LowFormerConfig, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.classes
        network = units(config)
        blocks = sum(isinstance(unit, LocalUnit) for unit in network)
        rates = iter(drop_path_rate * i / max(1, blocks - 1) for i in range(blocks))

        stem: list[nn.Module] = []
        stages: list[list[nn.Module]] = []
        attention: AttentionUnit | None = None
        mlp: MlpUnit | None = None
        for unit in network:
            if isinstance(unit, Stem):
                stem.append(ConvLayer(3, unit.width, 3, stride=2))
            elif isinstance(unit, AttentionUnit):
                attention = unit
            elif isinstance(unit, MlpUnit):
                mlp = unit
            elif isinstance(unit, LocalUnit):
                if unit.stride == 2:
                    stages.append([])
                block = (
                    LowFormerBlock(attention, mlp, unit, next(rates))
                    if unit.in_block
                    else local_block(unit, next(rates))
                )
                (stages[-1] if stages else stem).append(block)
                attention = mlp = None
        head = network[-1]
        assert isinstance(head, Head)

        self.stem = nn.Sequential(*stem)
        self.stages = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))
        self.feature_info = [
            {"num_chs": stage.width, "reduction": 4 * 2**i, "module": f"stages.{i}"}
            for i, stage in enumerate(config.stages)
        ]
        self.num_features = head.cin
        self.head_hidden_size = head.widths[1]
        self.in_conv = ConvLayer(head.cin, head.widths[0])
        self.pre_classifier = nn.Sequential(
            nn.Linear(*head.widths, bias=False), nn.LayerNorm(head.widths[1]), nn.Hardswish()
        )
        self.classifier: nn.Module = nn.Linear(head.widths[1], head.classes)
        self.apply(init_weights)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for `num_classes`; 0 leaves none, and `forward` then gives the (N, head_hidden_size) input
        that it would have had. `global_pool` may be None or "avg".
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, given {num_classes}")
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: only 'avg' is supported, given {global_pool!r}")
        self.num_classes = num_classes
        old = next(self.in_conv.parameters())
        if num_classes:
            self.classifier = nn.Linear(self.head_hidden_size, num_classes).to(device=old.device, dtype=old.dtype)
            init_weights(self.classifier)
            self.config = self.config.replace(classes=num_classes)
        else:
            self.classifier = nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> the last map (N, num_features, H / 32, W / 32), sizes rounded up."""
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
        """The maps at strides 4, 8, 16 and 32, as timm's models give them.

        Args:
            x: (N, 3, H, W) images.
            indices: the last n stages if an int, those stages if a sequence (negative ones count from the end), all if
                None.
            norm: without effect (there is no final norm).
            stop_early: skip the stages after the last one asked for.
            output_fmt: "NCHW" only.
            intermediates_only: give only the list of maps, not (last map, list).
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
        x = self.pre_classifier(global_average(self.in_conv(x)))
        return x if pre_logits else cast(Tensor, self.classifier(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def extra_repr(self) -> str:
        return f"id={self.config.id}, resolution={self.config.resolution}"


def build_model(config: LowFormerConfig, drop_path_rate: float = 0.0) -> LowFormer:
    """The torch module of `config`, with fresh weights; `drop_path_rate` is that of the last block (linear ramp)."""
    return LowFormer(config, drop_path_rate)


def folded_weights(model: LowFormer) -> list[list[NDArray[np.float32]]]:
    """The constants of each operator of `op_graph(model.config)`, BatchNorm folded, as `write_onnx` takes them."""
    modules = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm)
    ]  # registered in the order in which they run
    constants: list[list[NDArray[np.float32]]] = []
    for module in modules:
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
    constants.reverse()
    graph = op_graph(model.config)
    weights = [constants.pop() if elements else [] for elements in graph.column("weights").tolist()]
    assert not constants, "every constant belongs to an operator"
    return weights
