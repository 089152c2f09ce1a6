"""Tracing torch modules: the configuration's own graph; torch's own counts for networks outside the space."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lownas.search_space import PRESETS, build_model, op_graph
from lownas.search_space.graph import COLUMNS
from lownas.search_space.graph.torch_tracer import op_graph_from_torch


def torch_macs(module: nn.Module, size: tuple[int, int, int]) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module.to("meta").eval()(torch.empty(1, *size, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ["lowformer_b0", "lowformer_e1", "lowformer_e3", "cpubone_nano", "cpubone_b3"])
def test_a_traced_preset_is_the_graph_of_its_configuration(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        model = build_model(config)
    traced = op_graph_from_torch(model, (3, config.resolution, config.resolution))
    expected = op_graph(config)
    assert traced.kinds == expected.kinds
    for column in COLUMNS:
        np.testing.assert_array_equal(traced.column(column), expected.column(column), err_msg=column)
    np.testing.assert_array_equal(traced.edges, expected.edges)


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU()).train()
    module[2].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    graph = op_graph_from_torch(module, (3, 8, 8))
    assert graph.kinds == ["conv", "relu"]
    assert [child.training for child in module] == [True, True, False, True]
    for name, value in module.state_dict().items():
        assert value.device.type == "cpu"
        torch.testing.assert_close(value, before[name])


class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.reduce = nn.Conv2d(8, 2, 1)
        self.expand = nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.conv(F.pad(x, (0, 1, 0, 1)))), inplace=True)
        scale = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        return x * scale + x


def test_squeeze_excitation_with_padding_folded_and_edges_kept() -> None:
    graph = op_graph_from_torch(SqueezeExcitation(), (3, 15, 15))
    kinds = ["conv", "silu", "global_pool", "conv", "relu", "conv", "sigmoid", "mul", "add"]
    assert graph.kinds == kinds
    assert graph.inputs_of() == [[-1], [0], [1], [2], [3], [4], [5], [1, 6], [7, 1]]
    assert graph.column("pad_begin")[0] == 0 and graph.column("pad_end")[0] == 1
    assert graph.column("hin")[0] == 15 and graph.column("hout")[0] == 7
    assert graph.column("bias")[0] == 1
    assert graph.column("weights")[0] == 3 * 8 * 9 + 8
    assert graph.column("params")[0] == 3 * 8 * 9 + 2 * 8
    assert graph.column("inputs")[7] == 8 * 49 + 8


class Encoder(nn.Module):
    """A ViT block written the way timm writes it, and a token for the class."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.position = nn.Parameter(torch.zeros(1, 65, 16))
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.project = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        q, k, v = self.qkv(self.norm(x)).reshape(1, 65, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        x = x + self.project(out.transpose(1, 2).reshape(1, 65, 16))
        return self.head(x[:, 0])


def test_attention_is_product_softmax_product() -> None:
    module = Encoder()
    graph = op_graph_from_torch(module, (3, 32, 32))
    assert graph.kinds == [
        "conv", "concat", "add", "layer_norm", "linear", "matmul", "softmax", "matmul", "linear", "add", "linear",
    ]  # fmt: skip
    assert graph.params == sum(parameter.numel() for parameter in module.parameters())
    assert graph.macs == torch_macs(module, (3, 32, 32))
    scores = graph.table[graph.kinds.index("matmul")]
    assert dict(zip(COLUMNS, scores.tolist(), strict=True))["macs"] == 2 * 65 * 8 * 65
    assert graph.column("groups")[5] == 2


class Mixed(nn.Module):
    """Grouped, dilated and transposed convolutions, concatenation, resizing, pooling, a branch that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(8, 12, (1, 5), groups=4, padding=(0, 2))
        self.up = nn.ConvTranspose2d(12, 6, 4, stride=2, padding=1, groups=2)
        self.line = nn.Conv1d(9, 4, 3)
        self.unused = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.hardswish(self.first(x))
        self.unused(x)
        y = self.up(self.grouped(F.max_pool2d(x, 2)))
        y = torch.cat([y, F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0)[:, :3]], dim=1)
        return {"map": y, "line": self.line(y.flatten(2)[:, :9] * 0.5)}


class Windows(nn.Module):
    """Attention's windows: a permutation that has to be copied, one that is a view, and a product with one number."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x) * 0.5
        windows = x.reshape(1, 4, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(4, 16, 4)
        return windows.transpose(1, 2)


def test_copies_that_eager_torch_executes() -> None:
    assert op_graph_from_torch(Windows(), (4, 8, 8)).kinds == ["relu"]
    graph = op_graph_from_torch(Windows(), (4, 8, 8), copies=True)
    assert graph.kinds == ["relu", "mul", "move"]
    assert graph.column("outputs").tolist() == [256] * 3
    tokens = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), Transposed(), nn.Flatten(1))
    last = op_graph_from_torch(tokens, (3, 8, 8), copies=True, channels_last=True)
    assert (last.kinds, op_graph_from_torch(tokens, (3, 8, 8), copies=True).kinds) == (["conv"], ["conv", "move"])


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_other_operators_and_dead_branches() -> None:
    module = Mixed()
    graph = op_graph_from_torch(module, (3, 16, 16))
    assert graph.kinds == [
        "conv", "hardswish", "max_pool", "conv", "conv_transpose", "avg_pool", "resize", "concat", "conv",
    ]  # fmt: skip
    unused = 8 * 8 * 16 * 16
    assert graph.macs == torch_macs(module, (3, 16, 16)) - unused


def test_weights_that_are_computed_are_constants() -> None:
    class Standardized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.gain * (self.weight - self.weight.mean()) / self.weight.std()
            return F.conv2d(x, weight)

    graph = op_graph_from_torch(Standardized(), (3, 8, 8))
    assert graph.kinds == ["conv"]
    assert graph.params == 4 * 27 + 4


def test_a_bias_added_apart_belongs_to_its_linear_layer() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return (x.permute(0, 2, 3, 1) @ self.linear.weight.t()) + self.linear.bias

    graph = op_graph_from_torch(Apart(), (8, 6, 6))
    assert graph.kinds == ["linear"]
    assert graph.column("bias")[0] == 1 and graph.column("weights")[0] == 36 and graph.params == 36
    assert graph.macs == 36 * 32


def test_heads_in_the_batch_count_as_groups() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(x.reshape(3, 4, 8, 8)).reshape(1, 12, 8, 8)

    module = Pooled()
    graph = op_graph_from_torch(module, (12, 8, 8))
    assert graph.column("cin")[0] == graph.column("groups")[0] == 12
    assert graph.macs == torch_macs(module, (12, 8, 8)) == 12 * 9 * 64


class Writes(nn.Module):
    """Writes a product into a part of a map, and scales by a learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 2, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * self.scale
        y = self.second(x)
        x[:, :2] += y
        return F.relu(x)


def test_what_is_written_into_a_view_is_not_lost() -> None:
    module = Writes()
    graph = op_graph_from_torch(module, (3, 8, 8))
    assert graph.kinds == ["conv", "conv", "add", "move", "relu"]
    assert graph.inputs_of() == [[-1], [0], [0, 1], [0, 2], [3]]
    assert graph.params == sum(parameter.numel() for parameter in module.parameters())
    assert graph.macs == torch_macs(module, (3, 8, 8))


def test_data_dependent_control_flow_is_refused_in_one_line() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.mean() > 0 else -x

    with pytest.raises(ValueError, match="Branches cannot be traced") as caught:
        op_graph_from_torch(Branches(), (3, 8, 8))
    assert "\n" not in str(caught.value)


def test_a_wrong_input_size_names_it() -> None:
    with pytest.raises(ValueError, match=r"\(3, 8\)"):
        op_graph_from_torch(nn.ReLU(), (3, 8))  # type: ignore[arg-type]
