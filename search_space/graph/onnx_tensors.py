"""Keeps what is known about an ONNX model's tensors: types, shapes, which are constants, values of small constants.

The data of larger constants is never looked at.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .onnx_file import EVALUATION_ERRORS, MAX_ELEMENTS, MAX_RANK, SMALL_ELEMENTS, UnreadableModel

Shape = tuple[int, ...]

_MOST_ELEMENTS_PER_BYTE = 4
"""The smallest number types of ONNX have two bits."""


class Tensors:
    """A table of tensors by name.

    Attributes:
        types: of every tensor that exists so far, as ONNX describes them; possibly empty.
        shapes: of every tensor whose shape is known.
        constants: names of tensors that do not depend on the inputs' values.
        aliases: output of an operator that only passes its input on -> that input.
        small_constants: constants whose values can be looked at.
    """

    def __init__(self) -> None:
        self.types: dict[str, onnx.TypeProto] = {}
        self.shapes: dict[str, Shape] = {}
        self.constants: set[str] = set()
        self.aliases: dict[str, str] = {}
        self.small_constants: dict[str, TensorProto] = {}
        self._values: dict[str, NDArray[Any]] = {}

    def resolve(self, name: str) -> str:
        """Gives the name of the tensor that `name` stands for, once operators that pass their input on are left out."""
        return self.aliases.get(name, name)

    def exists(self, name: str) -> bool:
        return name in self.types or name in self.aliases

    def type_of(self, name: str) -> onnx.TypeProto:
        """Gives a tensor's type; that of a cast or quantized one is not the type of what it was made from."""
        return self.types[name] if name in self.types else self.types[self.resolve(name)]

    def shape(self, name: str) -> Shape:
        """Gives a tensor's shape. Raises UnreadableModel if it is not known."""
        if name not in self.shapes:
            raise UnreadableModel(
                f"the shape of tensor {name!r:.80} cannot be determined: it depends on data, or on an operator that is "
                "not known"
            )
        return self.shapes[name]

    def value(self, name: str) -> NDArray[Any] | None:
        """Gives a small constant's value, or None for any other tensor."""
        name = self.resolve(name)
        if name not in self._values and name in self.small_constants:
            try:
                self._values[name] = numpy_helper.to_array(self.small_constants[name])
            except (*EVALUATION_ERRORS, MemoryError):
                raise UnreadableModel(f"constant {name!r:.80} does not hold what its shape says") from None
        return self._values.get(name)

    def set_type(self, name: str, kind: onnx.TypeProto) -> None:
        """Keeps a tensor's type, and its shape if all of it is known."""
        self.types[name] = kind
        if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            return
        dims = kind.tensor_type.shape.dim
        if len(dims) > MAX_RANK:
            raise UnreadableModel(f"tensor {name!r:.80} has {len(dims)} dimensions")
        if all(dim.HasField("dim_value") for dim in dims):
            shape = tuple(dim.dim_value for dim in dims)
            if any(size < 0 for size in shape):
                raise UnreadableModel(f"tensor {name!r:.80} has a negative size: {list(shape)!r:.80}")
            if prod(shape) > MAX_ELEMENTS:
                raise UnreadableModel(f"tensor {name!r:.80} of {list(shape)!r:.80} elements is too large")
            self.shapes[name] = shape

    def add_input(self, info: onnx.ValueInfoProto, shape: Shape) -> None:
        """Adds an input of the model. Raises UnreadableModel if it is several images at a time."""
        if len(shape) == 4 and shape[0] != 1:
            said = f"input {info.name!r:.80} has a batch of {shape[0]}"
            raise UnreadableModel(f"{said}; predicted is batch 1: export with that, or an open one")
        self.set_type(info.name, helper.make_tensor_type_proto(info.type.tensor_type.elem_type, shape))

    def add_constants_of(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self.add_constant(tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            self.add_sparse_constant(sparse.values.name, sparse)

    def add_constant(self, name: str, tensor: TensorProto) -> None:
        self.constants.add(name)
        shape = tuple(tensor.dims)
        self.set_type(name, helper.make_tensor_type_proto(tensor.data_type, shape))
        if tensor.data_location == TensorProto.EXTERNAL:
            return
        if prod(shape) <= SMALL_ELEMENTS:
            self.small_constants[name] = tensor
        elif prod(shape) > _MOST_ELEMENTS_PER_BYTE * _stored(tensor):
            raise UnreadableModel(f"constant {name!r:.80} does not hold what its shape says")

    def add_sparse_constant(self, name: str, tensor: onnx.SparseTensorProto) -> None:
        self.constants.add(name)
        self.set_type(name, helper.make_tensor_type_proto(tensor.values.data_type, list(tensor.dims)))

    def add_value(self, name: str, value: NDArray[Any]) -> None:
        """Adds a constant that was computed. One of a type that ONNX does not have stays unknown."""
        try:
            tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        except EVALUATION_ERRORS:
            return
        self._values.pop(name, None)
        self.add_constant(name, tensor)


def _stored(tensor: TensorProto) -> int:
    """Bytes of a tensor's data, or its numbers where they are stored one by one."""
    lists = (tensor.float_data, tensor.int32_data, tensor.string_data, tensor.int64_data)
    return max(len(tensor.raw_data), *map(len, lists), len(tensor.double_data), len(tensor.uint64_data))
