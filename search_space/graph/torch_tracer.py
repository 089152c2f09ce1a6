"""Operator graphs of torch modules, traced on the meta device: no weights are touched and nothing is computed.

A dispatch mode sees every aten operator of one forward pass with its shapes. What depends on parameters only is a
constant; operators that only rearrange data pass on the value they were given; the rest become nodes, which
`torch_nodes` turns into an operator graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .operators import GRAPH_INPUT, OpGraph
from .torch_nodes import Shape, TracedNode, graph_of_nodes

_REARRANGEMENTS = frozenset(
    {
        "_reshape_alias",
        "_reshape_copy",
        "_to_copy",
        "_unsafe_view",
        "alias",
        "as_strided",
        "channel_shuffle",
        "chunk",
        "clone",
        "contiguous",
        "detach",
        "expand",
        "lift_fresh",
        "movedim",
        "permute",
        "pixel_shuffle",
        "pixel_unshuffle",
        "repeat",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsafe_split",
        "unsafe_split_with_sizes",
        "unsqueeze",
        "view",
        "view_as_complex",
        "view_as_real",
    }
)
_COPIES = frozenset(
    {"_reshape_copy", "channel_shuffle", "clone", "contiguous", "pixel_shuffle", "pixel_unshuffle", "repeat"}
)
"""Those of these operators that move data."""
_POINTWISE = {
    "hardswish": "hardswish",
    "gelu": "gelu",
    "relu": "relu",
    "relu6": "relu",
    "hardtanh": "relu",
    "clamp": "relu",
    "clamp_min": "relu",
    "leaky_relu": "relu",
    "elu": "relu",
    "_prelu_kernel": "relu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "hardsigmoid": "hardsigmoid",
    "tanh": "tanh",
}
_BINARY = {"add": "add", "sub": "add", "rsub": "add", "mul": "mul", "div": "mul"}
_MOVES = frozenset({"flip", "gather", "im2col", "index", "index_put", "index_select", "roll", "scatter"})
_REDUCTIONS = frozenset(
    {"amax", "amin", "linalg_vector_norm", "max", "mean", "min", "norm", "std", "sum", "var", "var_mean"}
)


@dataclass(frozen=True)
class _Constant:
    """A tensor computed from parameters alone; `names` are those parameters."""

    names: frozenset[str] = frozenset()


_Value = int | _Constant
"""What a tensor holds: a constant, the network's input (-1) or the output of a node."""


def op_graph_from_torch(
    module: nn.Module, input_size: tuple[int, int, int], *, copies: bool = False, channels_last: bool = False
) -> OpGraph:
    """Gives the operator graph of a module in inference mode, for one image of `input_size` (channels, height, width).

    MACs are those of torch's FlopCounterMode / 2, without what is computed from parameters alone (position tables, for
    example), because a runtime does that once. The module is left as it was; its weights may be on any device, the meta
    device included.

    Args:
        module: any module that takes one image.
        input_size: (channels, height, width).
        copies: whether the graph also has what only an eager runtime executes: copies that rearrange data ("move") and
            products with one number ("mul").
        channels_last: whether convolutions give their output in that memory format, on which the copies depend.

    Raises:
        ValueError: the forward pass cannot be traced without data (for example because it branches on values).
    """
    if len(input_size) != 3 or min(input_size) < 1:
        raise ValueError(f"input_size must be (channels, height, width), all positive, not {input_size!r}")
    state: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        state[name] = torch.empty_like(parameter, device="meta")
        sizes[name] = parameter.numel()
    for name, buffer in module.named_buffers():
        state[name] = torch.empty_like(buffer, device="meta")
    training = [child for child in module.modules() if child.training]
    image = torch.empty(1, *input_size, device="meta")
    known: dict[int, _Value] = {id(tensor): _Constant(frozenset({name})) for name, tensor in state.items()}
    recorder = _Recorder(known, copies=copies, channels_last=channels_last)
    recorder.remember(image, GRAPH_INPUT)
    try:
        module.eval()
        with torch.no_grad(), recorder:
            outputs = torch.func.functional_call(module, state, (image,))
    except (RuntimeError, NotImplementedError, TypeError, AssertionError, IndexError) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{type(module).__name__} cannot be traced at input size {input_size}: {reason[0] if reason else error!r}"
        ) from error
    finally:
        for child in training:
            child.training = True
    ends = [recorder.value(leaf) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return graph_of_nodes(recorder.nodes, [end for end in ends if isinstance(end, int)], sizes)


class _Recorder(TorchDispatchMode):
    """Records one forward pass as a list of nodes."""

    def __init__(self, values: dict[int, _Value], *, copies: bool, channels_last: bool) -> None:
        super().__init__()
        self.copies = copies
        self.channels_last = channels_last
        self.nodes: list[TracedNode] = []
        self._values = values
        # Tensors are told apart by id, so none may be freed, and its id used again, while tracing.
        self._alive: list[Tensor] = []
        self._sharing: dict[int, list[Tensor]] = {}  # storage -> the tensors seen on it, the whole one first

    def remember(self, tensor: Tensor, value: _Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)
        self._sharing.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)

    def value(self, tensor: Tensor) -> _Value:
        return self._values.get(id(tensor), _Constant())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.channels_last and func._schema.name == "aten::convolution" and result.dim() == 4:
            # On the meta device torch does not choose the format that a device would.
            result = result.contiguous(memory_format=torch.channels_last)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not outputs:
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = func._schema.name.removeprefix("aten::")
        in_place = name.endswith("_") and not name.endswith("__")
        value = self._record(name[:-1] if in_place else name, args, inputs, outputs[0])
        for output in outputs:
            self.remember(output, value)
        # `x[...] += y` ends with a copy of the changed part onto itself.
        itself = name == "copy_" and inputs[0].untyped_storage()._cdata == inputs[1].untyped_storage()._cdata
        if in_place and not itself:
            self._write(outputs[0], value)
        return result

    def _write(self, part: Tensor, value: _Value) -> None:
        """Makes the tensor of which `part` is a view, in all its shapes, depend on what was written into the view."""
        sharing = self._sharing[part.untyped_storage()._cdata]
        whole = sharing[0]
        if part.numel() == whole.numel() or isinstance(value, _Constant):
            return
        before = self.value(whole)
        if isinstance(before, int):
            shape = _map_shape(whole)
            self.nodes.append(TracedNode("move", [before, value], shape, shape, whole.numel() + part.numel()))
            value = len(self.nodes) - 1
        for tensor in sharing:
            if tensor.numel() == whole.numel():
                self._values[id(tensor)] = value

    def _record(self, name: str, args: tuple[Any, ...], inputs: list[Tensor], output: Tensor) -> _Value:
        values = [self.value(tensor) for tensor in inputs]
        if name in {"copy", "fill"}:
            return values[1] if len(values) > 1 else _Constant()
        if not any(isinstance(value, int) for value in values) or name.endswith("_like") or name.startswith("new_"):
            return _Constant(_names(values))
        first = next(index for index, value in enumerate(values) if isinstance(value, int))
        if name in _REARRANGEMENTS:
            if name == "slice" and _crops(inputs[0], output):
                return self._crop(values[first], inputs[0], output)
            return self._add("move", inputs, output) if self.copies and name in _COPIES else values[first]
        if name == "convolution":
            return self._convolution(args, output)
        if name in {"mm", "addmm", "bmm", "baddbmm", "addbmm"}:
            return self._product(name, args, output)
        if "scaled_dot_product" in name:
            return self._attention(args, output)
        if "batch_norm" in name:
            return self._norm("batch_norm", args[0], inputs, _channels_first(args[0]))
        if name == "native_group_norm":
            return self._norm("group_norm", args[0], inputs, _channels_first(args[0]), groups=args[6])
        if name in {"native_layer_norm", "_fused_rms_norm", "rms_norm"}:
            return self._norm("layer_norm", args[0], inputs, _last_shape(args[0], prod(args[1])))
        if name in {"_softmax", "_safe_softmax", "_log_softmax"}:
            columns = args[0].shape[args[1]] if args[0].dim() else 1
            rows = args[0].shape[-2] if args[0].dim() > 1 and args[1] in (-1, args[0].dim() - 1) else 1
            shape = (args[0].numel() // (rows * columns), rows, columns)
            return self._add("softmax", inputs, output, shape_in=shape, shape_out=shape)
        if name in _BINARY:
            return self._binary(_BINARY[name], inputs, output)
        if name in _POINTWISE:
            return self._add(_POINTWISE[name], inputs, output)
        if name in {"cat", "stack"}:
            distinct = [value for value in values if isinstance(value, int)]
            return distinct[0] if len(inputs) == 1 else self._add("concat", inputs, output)
        if name == "constant_pad_nd":
            return self._pad(args, inputs, output)
        if name in {"max_pool2d_with_indices", "max_pool2d", "avg_pool2d"}:
            kernel = _pair(args[1])
            stride = _pair(args[2] if len(args) > 2 and args[2] else args[1])
            pad = _pair(args[3] if len(args) > 3 else 0)
            kind = "avg_pool" if name == "avg_pool2d" else "max_pool"
            return self._add(kind, inputs, output, kernel=kernel, stride=stride[0], pad=(pad[0], pad[0]))
        if "adaptive" in name and "pool" in name:
            kind = "max_pool" if "max" in name else "global_pool" if output.shape[-2:] == (1, 1) else "avg_pool"
            return self._add(kind, inputs, output)
        if name == "mean" and inputs[0].dim() == 4 and len(args) > 1 and {d % 4 for d in args[1] or ()} == {2, 3}:
            return self._add("global_pool", inputs, output, shape_out=(inputs[0].shape[1], 1, 1))
        if name in _REDUCTIONS:
            return self._add("reduce", inputs, output)
        if name.startswith("upsample"):
            scale = max(1, round(output.shape[-1] / inputs[0].shape[-1]))
            return self._add("resize", inputs, output, stride=scale)
        row = self._add("move" if name in _MOVES else "other", inputs, output)
        self.nodes[row].label = name
        return row

    def _add(
        self,
        kind: str,
        inputs: Iterable[Tensor],
        output: Tensor,
        *,
        shape_in: Shape | None = None,
        shape_out: Shape | None = None,
        **fields: Any,
    ) -> int:
        """Adds a node that reads `inputs`: activations become its sources, constants its weights."""
        tensors = list(inputs)
        values = [self.value(tensor) for tensor in tensors]
        pairs = list(zip(tensors, values, strict=True))
        active = [(tensor, value) for tensor, value in pairs if isinstance(value, int)]
        self.nodes.append(
            TracedNode(
                kind,
                [value for _, value in active],
                shape_in or _map_shape(active[0][0]),
                shape_out or _map_shape(output),
                inputs=sum(tensor.numel() for tensor, _ in active),
                weights=sum(tensor.numel() for tensor, value in pairs if isinstance(value, _Constant)),
                names=_names(values),
                **fields,
            )
        )
        return len(self.nodes) - 1

    def _convolution(self, args: tuple[Any, ...], output: Tensor) -> int:
        image, weight, bias, stride, padding, _, transposed, _, groups = args
        spatial = output.shape[2:] if not transposed else image.shape[2:]
        return self._add(
            "conv_transpose" if transposed else "conv",
            [image, weight] if bias is None else [image, weight, bias],
            output,
            shape_in=_channels_first(image),
            shape_out=_channels_first(output),
            kernel=(int(weight.shape[2]), int(prod(weight.shape[3:]))),
            stride=int(stride[0]),
            # What was moved into the batch (heads, windows) counts as groups with one weight.
            groups=int(groups) * image.shape[0],
            pad=(int(padding[0]), int(padding[0])),
            bias=bias is not None,
            macs=weight.numel() * prod(spatial) * image.shape[0],
        )

    def _product(self, name: str, args: tuple[Any, ...], output: Tensor) -> int:
        """Records a matrix product: a linear layer if one factor is a constant, otherwise a product of activations."""
        addend: Tensor | None = args[0] if name.startswith(("add", "badd")) else None
        left, right = args[1:3] if addend is not None else args[:2]
        batch = left.shape[0] if left.dim() == 3 else 1
        rows, contracted = left.shape[-2:]
        columns = right.shape[-1]
        macs = batch * rows * contracted * columns
        constants = [isinstance(self.value(tensor), _Constant) for tensor in (left, right)]
        if any(constants):
            kept = rows if constants[1] else columns
            width = columns if constants[1] else rows
            biases = [addend] if addend is not None and isinstance(self.value(addend), _Constant) else []
            folded = bool(biases)
            # One weight for the whole batch reaches bmm as an expanded view.
            shared = batch > 1 and (left, right)[constants[1]].stride(0) == 0
            if shared:
                kept, batch, copies = kept * batch, 1, batch
            row = self._add(
                "linear",
                [left, right, *biases],
                output,
                shape_in=(contracted * batch, kept, 1),
                shape_out=(width * batch, kept, 1),
                groups=batch,
                bias=folded,
                macs=macs,
            )
            if shared:
                self.nodes[row].weights //= copies
        else:
            row = self._add(
                "matmul",
                [left, right],
                output,
                shape_in=(contracted, rows, columns),
                shape_out=(batch, rows, columns),
                groups=batch,
                macs=macs,
            )
            folded = False
        if addend is None or folded:
            return row
        self.remember(output, row)
        return self._add("add", [output, addend], output)

    def _attention(self, args: tuple[Any, ...], output: Tensor) -> int:
        """Records fused attention as product, softmax, product."""
        query, key, value = args[:3]
        heads, (rows, width), columns = prod(query.shape[:-2]), query.shape[-2:], key.shape[-2]
        scores = self._add(
            "matmul",
            [query, key],
            output,
            shape_in=(width, rows, columns),
            shape_out=(heads, rows, columns),
            groups=heads,
            macs=heads * rows * width * columns,
        )
        shape = (heads, rows, columns)
        self.nodes.append(TracedNode("softmax", [scores], shape, shape, inputs=prod(shape)))
        source = self.value(value)
        self.nodes.append(
            TracedNode(
                "matmul",
                [len(self.nodes) - 1, *([source] if isinstance(source, int) else [])],
                (columns, rows, value.shape[-1]),
                (heads, rows, value.shape[-1]),
                inputs=heads * columns * (rows + value.shape[-1]),
                groups=heads,
                macs=heads * rows * columns * value.shape[-1],
            )
        )
        return len(self.nodes) - 1

    def _norm(self, kind: str, source: Tensor, inputs: list[Tensor], shape: Shape, groups: int = 1) -> int:
        affine = [tensor for tensor in inputs[1:] if not self._is_statistic(tensor)]
        return self._add(
            kind, [source, *affine], source, shape_in=shape, shape_out=shape, bias=bool(affine), groups=groups
        )

    def _is_statistic(self, tensor: Tensor) -> bool:
        names = _names([self.value(tensor)])
        return any(name.endswith(("running_mean", "running_var")) for name in names)

    def _binary(self, kind: str, inputs: list[Tensor], output: Tensor) -> int:
        values = [self.value(tensor) for tensor in inputs]
        active = [value for value in values if isinstance(value, int)]
        scalar = len(inputs) == 1 or any(
            isinstance(value, _Constant) and tensor.numel() == 1 for value, tensor in zip(values, inputs, strict=True)
        )
        if scalar and len(active) == 1 and kind == "mul" and not self.copies:
            if active[0] >= 0:
                self.nodes[active[0]].names |= _names(values)
            return active[0]
        return self._add(kind, inputs, output)

    def _pad(self, args: tuple[Any, ...], inputs: list[Tensor], output: Tensor) -> int:
        sides = [int(side) for side in args[1]]
        fill = args[2] if len(args) > 2 else 0
        if not any(sides):
            source = self.value(inputs[0])
            assert isinstance(source, int)
            return source
        if inputs[0].dim() == 4 and max(sides) <= 0 and not any(sides[4:]):
            source = self.value(inputs[0])
            assert isinstance(source, int)
            return self._crop(source, inputs[0], output)
        row = self._add("pad", inputs, output)
        alike = inputs[0].dim() == 4 and len(sides) == 4 and min(sides) >= 0 and fill == 0
        if alike and (sides[0], sides[1]) == (sides[2], sides[3]):
            self.nodes[row].spatial_pad = (sides[0], sides[1])
        return row

    def _crop(self, source: _Value, tensor: Tensor, output: Tensor) -> int:
        assert isinstance(source, int)
        if source >= 0 and self.nodes[source].kind == "crop":
            # Rows first, then columns: one crop. The first half of it has no other reader.
            before = self.nodes[source]
            self.nodes.append(
                TracedNode("crop", list(before.sources), before.shape_in, _map_shape(output), before.inputs)
            )
            return len(self.nodes) - 1
        return self._add("crop", [tensor], output)


def _names(values: Iterable[_Value]) -> frozenset[str]:
    return frozenset().union(*(value.names for value in values if isinstance(value, _Constant)))


def _crops(tensor: Tensor, output: Tensor) -> bool:
    """Tells whether a slice cuts pixels off a map; a slice of channels or tokens, or a strided one, only rearranges."""
    if tensor.dim() != 4 or tensor.shape[1] != output.shape[1] or tensor.shape == output.shape:
        return False
    return output.stride() == tensor.stride() and 2 * output.numel() > tensor.numel()


def _map_shape(tensor: Tensor) -> Shape:
    """Gives (channels, height, width) of a tensor (N, C, H, W), (N, tokens, C), (N, C) or of any other rank.

    A batch above 1 counts into the channels, or into the tokens.
    """
    shape = tuple(tensor.shape)
    if len(shape) == 4:
        return shape[0] * shape[1], shape[2], shape[3]
    if len(shape) >= 3:
        return shape[-1], prod(shape[:-1]), 1
    return prod(shape), 1, 1


def _channels_first(tensor: Tensor) -> Shape:
    """Gives (channels, height, width) of a tensor of rank 2 or more whose second dimension is its channels."""
    shape = (*tensor.shape, 1, 1)
    return shape[0] * shape[1], shape[2], prod(shape[3:])


def _last_shape(tensor: Tensor, channels: int) -> Shape:
    """Gives (channels, height, width) of a tensor whose channels come last: (N, C), (N, tokens, C) or (N, H, W, C)."""
    if tensor.dim() == 4 and tensor.shape[-1] == channels:
        return channels, tensor.shape[0] * tensor.shape[1], tensor.shape[2]
    return channels, tensor.numel() // channels, 1


def _pair(value: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])
