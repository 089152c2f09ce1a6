"""ONNX files of any exporter as operator graphs. Nothing is computed but shapes, and no constant's data is kept.

Reading goes in two passes. The first one (`_Shapes`) walks through the nodes in order: it infers every tensor's shape,
evaluates what is computed from shapes alone, follows branches whose condition is known and inlines local functions.
The second (`_Reader`) turns what remains into canonical operators, recognizing those that are spelled out in smaller
ones. Files come from strangers: sizes are checked before anything of that size is made, external data is never opened,
and whatever is wrong with a file ends in a ValueError of one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.inliner
import onnx.shape_inference
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .operators import COLUMN, GRAPH_INPUT, KIND, KINDS, GraphBuilder, OpGraph

Shape = tuple[int, ...]
MapShape = tuple[int, int, int]

MAX_FILE_BYTES = 2**31
"""Protocol buffers cannot be larger; weights beyond that are external data."""
MAX_NODES = 100_000
MAX_ELEMENTS = 1 << 40
MAX_TOTAL = 1 << 62
"""Multiply-accumulates or bytes of a whole network."""
MAX_INLINED_BYTES = 1 << 28
"""Size of local functions once every call stands for a copy of one."""
MAX_RANK = 64
MAX_OPSETS = 100
SMALL = 4096
"""Elements up to which a constant's value is looked at."""


_INTEGER_OPERATORS = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QuantizeLinear", "QGemm"}
)


class UnreadableModel(ValueError):
    """An ONNX model that is well-formed but cannot be turned into an operator graph."""


def op_graph_from_onnx(path: str | Path) -> OpGraph:
    """The operator graph of an ONNX file, whichever exporter wrote it; symbolic batch sizes count as 1.

    Only shapes are read: constants kept outside the file are not opened. BatchNorm is folded; hardswish, GELU, SiLU,
    GroupNorm and LayerNorm are recognized when they are spelled out in smaller operators. Slices, splits and other
    rearrangements that copy data are rows "move"; reshapes, and the transposes of an attention or between maps and
    tokens, are not. Operators without a kind of their own are rows "other".

    Raises ValueError, in one line: a file that is missing, cannot be opened or is no ONNX model, one whose shapes
    cannot be determined or are too large to count, or one that keeps data outside its own folder.
    """
    path = Path(path)
    name = _one_line(path)
    if not path.is_file():
        raise ValueError(f"no ONNX file at {name}")
    try:
        if path.stat().st_size >= MAX_FILE_BYTES:
            raise UnreadableModel("2 GiB or more, which no ONNX model can have (larger weights are external data)")
        # The format is given, for a suffix such as .json would choose another one.
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
        check_external_data(model, path.parent)
        return graph_from_model(model)
    except UnreadableModel as error:
        raise ValueError(f"{name}: {_one_line(error)}") from None
    except (DecodeError, onnx.checker.ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not a valid ONNX model: {_one_line(error)}") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be opened: {_one_line(error.strerror or error)}") from None
    except (*_EVALUATION_ERRORS, MemoryError) as error:  # wrong in a way that no check foresaw
        raise ValueError(f"{name} cannot be read ({type(error).__name__}: {_one_line(error)})") from error


def graph_from_model(model: onnx.ModelProto) -> OpGraph:
    """`op_graph_from_onnx` of a model in memory. Raises UnreadableModel, which is a ValueError."""
    try:
        reader = _Reader(_Shapes(model))
        reader.build.precision = precision_of(model)
        return reader.read()
    except OverflowError:
        raise UnreadableModel("sizes that are too large to count") from None


def precision_of(model: onnx.ModelProto) -> str:
    """What a model computes in: "int8" if any of its operators is quantized, "fp16" if its weights are, else "fp32"."""
    if any(node.op_type in _INTEGER_OPERATORS for node in model.graph.node):
        return "int8"
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    stored = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1]
    return "fp16" if any(kind in halves for kind in stored) else "fp32"


def check_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Raises UnreadableModel if a tensor of `model` is kept anywhere but in or below `folder`, links followed."""
    home = folder.resolve()
    tensors = [*_tensors(model.graph), *(tensor for f in model.functions for tensor in _tensors_of(f.node))]
    locations: set[str] = set()
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            locations.update(entry.value for entry in tensor.external_data if entry.key == "location")
    for location in sorted(locations, key=repr):
        try:
            inside = Path(location)
            escapes = inside.is_absolute() or ".." in inside.parts or "\0" in location
            escapes = escapes or not (home / inside).resolve().is_relative_to(home)
        except (OSError, RuntimeError, TypeError, ValueError):  # a link to itself, a name too long, or no text
            escapes = True
        if escapes:
            raise UnreadableModel(f"external data at {location!r:.100}, outside of the model's folder")


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _parts(graph.sparse_initializer)
    yield from _tensors_of(graph.node)


def _tensors_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from _parts([attribute.sparse_tensor])
            yield from _parts(attribute.sparse_tensors)
        for graph in _subgraphs(node):
            yield from _tensors(graph)


def _parts(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[TensorProto]:
    for tensor in tensors:
        yield from (tensor.values, tensor.indices)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _one_line(text: object) -> str:
    """`text` on one line, without what a terminal would take for a command."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(str(text).split())[:300])


# --- shapes ----------------------------------------------------------------------------------------------------------

# They pass on what they are given; to a runtime they cost nothing, or a change of number format.
_ALIASES = {
    "Identity", "Dropout", "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
}  # fmt: skip
# What is worth evaluating, when all that it reads is small and known.
_FOLDABLE = {
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor",
    "Gather", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or",
    "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "Slice", "Split", "Sqrt",
    "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
# Quantized operators as those they stand for, and which of their inputs these read; scales and zero points go.
_QUANTIZED: dict[str, tuple[str, tuple[int, ...]]] = {
    "QLinearConv": ("Conv", (0, 3, 8)),
    "QLinearMatMul": ("MatMul", (0, 3)),
    "ConvInteger": ("Conv", (0, 1)),
    "MatMulInteger": ("MatMul", (0, 1)),
}
_EVALUATION_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
_INFERENCE_ERRORS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    onnx.defs.SchemaError,
    DecodeError,
    MemoryError,
    *_EVALUATION_ERRORS,
)


@dataclass(frozen=True, eq=False)
class _Node:
    """An operator that reads activations. `inputs` are "" where one was left out."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def output(self) -> str:
        return self.outputs[0]


class _Shapes:
    """A model's operators in order, with the shapes of all tensors.

    Attributes:
        inputs: names of what the network reads.
        outputs: names of what it gives.
        nodes: operators that depend on the inputs' values, not on their shapes alone.
        shapes: of every tensor whose shape is known.
        constants: names of tensors that do not depend on the inputs' values.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        if not model.graph.node:
            raise UnreadableModel("a model without operators")
        if model.functions:
            model = _inlined(model)
        if len(model.opset_import) > MAX_OPSETS:
            raise UnreadableModel(f"more than {MAX_OPSETS} operator sets")
        self.opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
        self.opset_imports = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        self.ir_version = model.ir_version
        self.nodes: list[_Node] = []
        self.shapes: dict[str, Shape] = {}
        self.constants: set[str] = set()
        self._types: dict[str, onnx.TypeProto] = {}
        self._tensors: dict[str, TensorProto] = {}  # small constants
        self._values: dict[str, NDArray[Any]] = {}  # those looked at
        self._names: dict[str, str] = {}  # output of an operator that passes its input on -> that input
        self._seen = 0
        self._constants_of(model.graph)
        self.inputs = [info.name for info in model.graph.input if info.name not in self.constants]
        for info in model.graph.input:
            if info.name not in self.constants:
                self._input(info)
        self._declared = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}
        self._walk(model.graph)
        self.outputs = [self.name(info.name) for info in model.graph.output]

    def name(self, name: str) -> str:
        """What `name` stands for once operators that pass their input on are taken out."""
        return self._names.get(name, name)

    def _type(self, name: str) -> onnx.TypeProto:
        """A tensor's type; that of a cast or quantized one is not the type of what it was made from."""
        return self._types[name] if name in self._types else self._types[self.name(name)]

    def value(self, name: str) -> NDArray[Any] | None:
        """A small constant's value, or None."""
        name = self.name(name)
        if name not in self._values and name in self._tensors:
            try:
                self._values[name] = numpy_helper.to_array(self._tensors[name])
            except (*_EVALUATION_ERRORS, MemoryError):
                raise UnreadableModel(f"constant {name!r:.80} does not hold what its shape says") from None
        return self._values.get(name)

    def shape(self, name: str) -> Shape:
        if name not in self.shapes:
            raise UnreadableModel(
                f"the shape of tensor {name!r:.80} cannot be determined; export with a fixed input size"
            )
        return self.shapes[name]

    def _input(self, info: onnx.ValueInfoProto) -> None:
        if not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
            raise UnreadableModel(f"input {info.name!r:.80} has no declared shape; export with a fixed input size")
        dims = info.type.tensor_type.shape.dim
        shape = []
        for place, dim in enumerate(dims):
            symbolic = not dim.HasField("dim_value") or dim.dim_value == 0
            if symbolic and place > 0:
                raise UnreadableModel(f"input {info.name!r:.80} has a symbolic size; export with a fixed input size")
            if place == 0 and len(dims) == 4 and not symbolic and dim.dim_value != 1:
                raise UnreadableModel(
                    f"input {info.name!r:.80} has a fixed batch of {dim.dim_value}; "
                    "export with batch 1 or a symbolic one"
                )
            shape.append(1 if symbolic else dim.dim_value)
        self._note(info.name, helper.make_tensor_type_proto(info.type.tensor_type.elem_type, shape))

    def _constants_of(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self._constant(tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            self._sparse(sparse.values.name, sparse)

    def _constant(self, name: str, tensor: TensorProto) -> None:
        self.constants.add(name)
        shape = tuple(tensor.dims)
        self._note(name, helper.make_tensor_type_proto(tensor.data_type, shape))
        if tensor.data_location == TensorProto.EXTERNAL:
            return
        if prod(shape) <= SMALL:
            self._tensors[name] = tensor
        elif prod(shape) > 4 * _held(tensor):  # the smallest types have four elements in a byte
            raise UnreadableModel(f"constant {name!r:.80} does not hold what its shape says")

    def _sparse(self, name: str, tensor: onnx.SparseTensorProto) -> None:
        self.constants.add(name)
        self._note(name, helper.make_tensor_type_proto(tensor.values.data_type, list(tensor.dims)))

    def _known(self, name: str, value: NDArray[Any]) -> None:
        try:
            tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name)
        except _EVALUATION_ERRORS:
            return
        self._values.pop(name, None)
        self._constant(name, tensor)

    def _note(self, name: str, kind: onnx.TypeProto) -> None:
        """Keeps a tensor's type, and its shape where all of it is known."""
        self._types[name] = kind
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

    def _walk(self, graph: onnx.GraphProto) -> None:
        for proto in graph.node:
            self._seen += 1
            if self._seen > MAX_NODES:
                raise UnreadableModel(f"more than {MAX_NODES} operators")
            if proto.output:
                self._visit(proto)

    def _visit(self, proto: onnx.NodeProto) -> None:
        op, inputs = proto.op_type, tuple(self.name(name) for name in proto.input)
        if not isinstance(op, str):
            raise UnreadableModel(f"an operator whose name is no text: {op!r:.80}")
        out = proto.output[0]
        for given, name in zip(proto.input, inputs, strict=True):
            if name and name not in self._types:
                raise UnreadableModel(f"{op!r:.40} reads {given!r:.80}, which nothing before it makes")
        for name in proto.output:
            if name and (name in self._types or name in self._names):
                raise UnreadableModel(f"{op!r:.40} makes {name!r:.80}, which something else is called already")
        if op == "Constant":
            self._constant_node(proto)
        elif op in ("Shape", "Size") and inputs and inputs[0] in self.shapes:
            shape = self.shapes[inputs[0]]
            if op == "Size":
                self._known(out, np.array(prod(shape), np.int64))
            else:
                start, end = (_attribute(proto, key) for key in ("start", "end"))
                self._known(out, np.array(shape[start:end], np.int64))
        elif op == "If":
            self._branch(proto, inputs)
        elif op in _ALIASES and inputs and inputs[0] and not self._counts(inputs[0]):
            self._infer(proto, inputs, {})  # for its type, which decides whether others can read it
            if out not in self.shapes:
                self._types[out] = self._type(proto.input[0])
            self._names[out] = inputs[0]
            if op == "DynamicQuantizeLinear":  # its scale and zero point, single numbers
                self.constants.update(filter(None, proto.output[1:]))
        else:
            self._operator(proto, inputs)

    def _counts(self, name: str) -> bool:
        """Whether a tensor is a small known number, so that casting it has to be followed."""
        return name in self._tensors

    def _constant_node(self, proto: onnx.NodeProto) -> None:
        out = proto.output[0]
        for attribute in proto.attribute:
            if attribute.name == "value":
                self._constant(out, attribute.t)
                return
            if attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
                kind = np.float32 if "float" in attribute.name else np.int64
                self._known(out, np.array(helper.get_attribute_value(attribute), kind))
                return
            if attribute.name == "sparse_value":
                self._sparse(out, attribute.sparse_tensor)
                return
        self.constants.add(out)
        self._types[out] = onnx.TypeProto()

    def _branch(self, proto: onnx.NodeProto, inputs: tuple[str, ...]) -> None:
        """The branch that is taken; where that depends on data, the longer one."""
        branches = {a.name: a.g for a in proto.attribute if a.name in ("then_branch", "else_branch")}
        condition = self.value(inputs[0]) if inputs else None
        if len(branches) != 2:
            raise UnreadableModel("an If without its two branches")
        if condition is None:
            branch = max(branches.values(), key=lambda graph: len(graph.node))
        else:
            branch = branches["then_branch" if condition.size == 1 and bool(condition.item()) else "else_branch"]
        branch = self._apart(branch)
        self._constants_of(branch)
        self._declared.update((info.name, info) for info in branch.value_info)
        self._walk(branch)
        for outer, inner in zip(proto.output, branch.output, strict=False):
            name = self.name(inner.name)
            if name not in self._types:
                raise UnreadableModel(f"a branch gives {inner.name!r:.80}, which nothing in it makes")
            if outer != name:
                self._types[outer] = self._type(inner.name)
                self._names[outer] = name

    def _apart(self, branch: onnx.GraphProto) -> onnx.GraphProto:
        """`branch` with other names for what is called as something outside of it is (in another branch, say)."""
        made = {name for node in branch.node for name in node.output} | {tensor.name for tensor in branch.initializer}
        taken = {name: f"{name}#{self._seen}" for name in made if name in self._types or name in self._names}
        taken.pop("", None)
        if not taken:
            return branch
        renamed = onnx.GraphProto()
        renamed.CopyFrom(branch)
        _rename(renamed, taken)
        return renamed

    def _operator(self, proto: onnx.NodeProto, inputs: tuple[str, ...]) -> None:
        op, outputs = proto.op_type, tuple(proto.output)
        # What the bodies of a Loop or Scan read from outside is read by the operator.
        outer = {name: self.name(name) for name in _captured(proto) if self.name(name) in self._types}
        read = tuple(dict.fromkeys((*inputs, *outer.values()))) if outer else inputs
        constant = all(not name or name in self.constants for name in read) and not op.startswith("Random")
        inferred = self._infer(proto, inputs, outer)
        if constant:
            self.constants.update(outputs)
            if op in _FOLDABLE and inferred and self._evaluate(proto, inputs):
                return
        else:
            attributes = {a.name: a for a in proto.attribute}
            if op in _QUANTIZED:
                op, places = _QUANTIZED[op]
                read = tuple(read[place] for place in places if place < len(read))
            self.nodes.append(_Node(op, read, outputs, attributes))

    def _infer(self, proto: onnx.NodeProto, inputs: tuple[str, ...], outer: dict[str, str]) -> bool:
        """Notes the shapes of an operator's outputs. True if all of them follow from those of its inputs."""
        found: dict[str, onnx.TypeProto] = {}
        try:
            if proto.op_type == "Split" and (_attribute(proto, "num_outputs") or 0) > len(proto.output):
                raise UnreadableModel("a Split into more parts than it gives")  # inference would make a list of them
            domain = _domain(proto.domain)
            schema = onnx.defs.get_schema(proto.op_type, self.opsets.get(domain, 1), domain)
            given = (*zip(proto.input, inputs, strict=True), *outer.items())
            types = {before: self._type(before) for before, name in given if name}
            data = {}
            for before, name in zip(proto.input, inputs, strict=True):
                if name in self._tensors and self.value(name) is not None:
                    data[before] = self._tensors[name]
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self.opset_imports, ir_version=self.ir_version
            )
        except UnreadableModel:
            raise
        except _INFERENCE_ERRORS:
            pass  # an operator of another domain, or one that is wrong: what the file declares is the last resort
        inferred = True
        for place, name in enumerate(proto.output):
            if not name:
                continue
            self.shapes.pop(name, None)
            self._note(name, found.get(name, onnx.TypeProto()))
            if name not in self.shapes:
                inferred = False
                self._assume(proto, place, inputs)
        return inferred

    def _assume(self, proto: onnx.NodeProto, place: int, inputs: tuple[str, ...]) -> None:
        """A shape that inference leaves open: as the file declares it, or the largest it can be."""
        name = proto.output[place]
        declared = self._declared.get(name)
        if declared is not None and declared.type.HasField("tensor_type"):
            dims = declared.type.tensor_type.shape.dim
            if declared.type.tensor_type.HasField("shape") and all(dim.dim_value > 0 for dim in dims):
                self._note(name, declared.type)
                return
        shape = self._largest(proto, place, inputs)
        if shape is not None:
            kind = self._types[name].tensor_type.elem_type or TensorProto.FLOAT
            self._note(name, helper.make_tensor_type_proto(kind, shape))

    def _largest(self, proto: onnx.NodeProto, place: int, inputs: tuple[str, ...]) -> Sequence[int] | None:
        """The largest output of an operator whose output's size depends on data, or that inference has no rule for."""
        op = proto.op_type
        if op == "Loop":
            return self._of_loop(proto, place, inputs)
        first = self.shapes.get(inputs[0]) if inputs else None
        if first is None:
            return None
        if op == "NonMaxSuppression" and len(first) == 3 and len(inputs) > 1:
            classes = self.shapes.get(inputs[1], (1, 1, 1))[1:2] or (1,)
            most = self.value(inputs[2]) if len(inputs) > 2 and inputs[2] else None
            kept = first[1] if most is None or not most.size else min(first[1], max(0, int(most.reshape(-1)[0])))
            return [first[0] * classes[0] * kept, 3]
        if op == "NonZero":
            return [max(1, len(first)), prod(first)]
        if op in ("Unique", "Compress") and place == 0:
            return first if any(attribute.name == "axis" for attribute in proto.attribute) else [prod(first)]
        if op in ("Slice", "TopK") and len(inputs) > 1 and not all(map(self._counts, filter(None, inputs[1:]))):
            return first
        own = _domain(proto.domain) != "" and len(inputs) == 1 and op in _POINTWISE
        return first if place == 0 and (own or op == "GroupNormalization") else None

    def _of_loop(self, proto: onnx.NodeProto, place: int, inputs: tuple[str, ...]) -> Sequence[int] | None:
        """What a loop carries keeps its size; what it collects has one entry per turn, a single one if that is open."""
        carried = len(inputs) - 2
        if place < carried:
            return self.shapes.get(inputs[2 + place])
        kind = self._types[proto.output[place]].tensor_type
        sizes = [dim.dim_value for dim in kind.shape.dim[1:] if dim.HasField("dim_value")]
        if not kind.HasField("shape") or len(sizes) + 1 != len(kind.shape.dim):
            return None
        turns = self.value(inputs[0]) if inputs and inputs[0] else None
        count = int(turns.item()) if turns is not None and turns.size == 1 and turns.dtype.kind in "iu" else 1
        return [count if 0 <= count <= MAX_NODES else 1, *sizes]

    def _evaluate(self, proto: onnx.NodeProto, inputs: tuple[str, ...]) -> bool:
        """Computes an operator on small constants. False where that cannot be, or is not worth it."""
        sizes = [prod(self.shapes.get(name, (SMALL + 1,))) for name in proto.output]
        if sum(sizes) > SMALL:
            return False
        values = {}
        for before, name in zip(proto.input, inputs, strict=True):
            if not name:
                continue
            value = self.value(name)
            if value is None or (value.dtype.kind not in "biu" and value.size > 16):
                return False
            values[before] = value
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(proto, opsets=self.opsets).run(None, values)  # type: ignore[arg-type]
        except (*_EVALUATION_ERRORS, MemoryError):
            return False
        for name, result in zip(proto.output, results, strict=False):
            if not isinstance(result, np.ndarray | np.generic) or result.size > SMALL:
                return False
            self._known(name, np.asarray(result))
        return True


def _attribute(proto: onnx.NodeProto, name: str) -> int | None:
    return next((attribute.i for attribute in proto.attribute if attribute.name == name), None)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _held(tensor: TensorProto) -> int:
    """Bytes of a tensor's data, or its numbers where they are kept one by one."""
    lists = (tensor.float_data, tensor.int32_data, tensor.string_data, tensor.int64_data)
    return max(len(tensor.raw_data), *map(len, lists), len(tensor.double_data), len(tensor.uint64_data))


def _captured(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of a node read and do not make."""
    names: set[str] = set()
    for graph in _subgraphs(node):
        read = {name for step in graph.node for name in step.input} | {info.name for info in graph.output}
        for step in graph.node:
            read |= _captured(step)
        made = {name for step in graph.node for name in step.output}
        made |= {item.name for items in (graph.input, graph.initializer) for item in items}
        names |= read - made
    return names - {""}


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames tensors of `graph`, in place, and what its subgraphs read of them."""
    for items in (graph.initializer, graph.value_info, graph.output):
        for item in items:
            item.name = names.get(item.name, item.name)
    for node in graph.node:
        for given in (node.input, node.output):
            given[:] = [names.get(name, name) for name in given]
        for inner in _subgraphs(node):
            _rename(inner, names)


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without local functions. How much that makes is counted before any of it is made."""
    bodies = {_key(function, function.name): function.node for function in model.functions}
    counted: dict[tuple[str, str, str], tuple[int, int]] = {}

    def count(nodes: Iterable[onnx.NodeProto], within: frozenset[tuple[str, str, str]]) -> tuple[int, int]:
        total = size = 0
        for node in nodes:
            key = _key(node, node.op_type)
            if key in within or len(within) > 50:
                raise UnreadableModel(f"function {node.op_type!r:.80} calls itself, or too many others")
            if key in bodies and key not in counted:
                counted[key] = count(bodies[key], within | {key})
            parts = [counted.get(key, (1, node.ByteSize() if within else 0))]
            parts += [count(graph.node, within) for graph in _subgraphs(node)]
            total += sum(part[0] for part in parts)
            size += sum(part[1] for part in parts)
            if total > MAX_NODES or size > MAX_INLINED_BYTES:
                raise UnreadableModel(f"functions of more than {MAX_NODES} operators or {MAX_INLINED_BYTES} bytes")
        return total, size

    count(model.graph.node, frozenset())
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        raise UnreadableModel(f"local functions that cannot be read: {_one_line(error)}") from None


def _key(item: onnx.NodeProto | onnx.FunctionProto, name: str) -> tuple[str, str, str]:
    return _domain(item.domain), name, item.overload


# --- canonical operators ---------------------------------------------------------------------------------------------

_POINTWISE = {
    "Add": "add",
    "Sub": "add",
    "Sum": "add",
    "Mul": "mul",
    "Div": "mul",
    "Pow": "mul",
    "Sqrt": "mul",
    "Reciprocal": "mul",
    "Neg": "mul",
    "Abs": "mul",
    "Relu": "relu",
    "Clip": "relu",
    "LeakyRelu": "relu",
    "PRelu": "relu",
    "Elu": "relu",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "hardsigmoid",
    "HardSwish": "hardswish",
    "Gelu": "gelu",
    "Tanh": "tanh",
    "Swish": "silu",
    "BatchNormalization": "batch_norm",
    "LayerNormalization": "layer_norm",
    "SimplifiedLayerNormalization": "layer_norm",
    "RMSNormalization": "layer_norm",
    "GroupNormalization": "group_norm",
    "InstanceNormalization": "group_norm",
}
# Rearrangements that only rename what lies in memory, or that belong to the operator beside them.
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "SplitToSequence", "SequenceAt"}
# Rearrangements that copy.
_COPIES = {
    "Slice", "Split", "Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "Tile", "ScatterND",
    "ScatterElements", "Where", "ReverseSequence",
}  # fmt: skip
_REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ArgMax", "ArgMin"}
_SCALINGS = {"Mul", "Div"}
_AFFINE = {"Mul", "Add"}


@dataclass(frozen=True)
class _Pattern:
    """An operator spelled out in smaller ones: a chain from `nodes[0]` on, each reading the one before."""

    kind: str
    source: str
    output: str
    constants: tuple[str, ...]


class _Reader:
    """Turns nodes into rows, in order; keeps for every tensor the row that made it."""

    def __init__(self, model: _Shapes) -> None:
        self.model = model
        self.shape = model.shape
        self.consumers: dict[str, list[_Node]] = {}
        self.producers: dict[str, _Node] = {}
        self.first_output = model.outputs[0] if model.outputs else ""
        for node in model.nodes:
            for name in node.outputs:
                self.producers[name] = node
            for name in dict.fromkeys(node.inputs):
                self.consumers.setdefault(name, []).append(node)
        self.ends = set(model.outputs)
        self.build = GraphBuilder()
        self.rows: dict[str, int] = {name: GRAPH_INPUT for name in model.inputs}
        self.pads: dict[str, tuple[str, list[int]]] = {}  # output of a Pad -> its input, (top, left, bottom, right)
        self.sequences: dict[str, list[Shape]] = {}  # output of a SplitToSequence -> the shapes of its parts
        self.patterns: dict[int, _Pattern] = {}  # by the id of their first node
        self.covered: set[int] = set()  # ids of nodes that belong to a pattern
        self.spelled: set[int] = set()  # those of them that are read one by one all the same
        self.turned: set[str] = set()  # their tensors, whose channels come last
        self._find_patterns()

    def read(self) -> OpGraph:
        for node in self.model.nodes:
            if id(node) in self.patterns:
                self._pattern(self.patterns[id(node)])
            elif id(node) not in self.covered or id(node) in self.spelled:
                self._node(node)
        if not self.build.rows:
            raise UnreadableModel("a model that computes nothing")
        macs = sum(row[COLUMN["macs"]] for row in self.build.rows)
        moved = sum(row[COLUMN[name]] for row in self.build.rows for name in ("inputs", "outputs", "weights"))
        if max(macs, 4 * moved) > MAX_TOTAL:  # sums of a table's columns would wrap
            raise OverflowError
        return self.build.build()

    # --- what nodes are given

    def map_shape(self, name: str) -> MapShape:
        """(C, H, W) of a tensor: of (N, C, H, W); tokens (N, T, C) count as (C, T, 1), and so on for other ranks."""
        shape = self.shape(name)
        if len(shape) == 4 and name in self.turned:
            return shape[3], shape[0] * shape[1], shape[2]
        if len(shape) == 4:
            return shape[0] * shape[1], shape[2], shape[3]
        if len(shape) >= 3:
            return shape[-1], prod(shape[:-1]), 1
        return prod(shape), 1, 1

    def active(self, node: _Node) -> list[str]:
        """Inputs that depend on the image."""
        return [name for name in node.inputs if name in self.rows]

    def fixed(self, node: _Node) -> list[str]:
        return [name for name in node.inputs if name and name not in self.rows]

    def elements(self, names: Iterable[str]) -> int:
        return sum(prod(self.shape(name)) for name in names)

    def attribute(self, node: _Node, name: str, default: Any) -> Any:
        if name not in node.attributes:
            return default
        try:
            value = helper.get_attribute_value(node.attributes[name])
        except ValueError:
            value = None
        if value is None:  # of an unknown type, or a reference to an attribute of a function there is none around
            raise UnreadableModel(f"{node.op!r:.40} has a broken attribute {name!r:.80}")
        return value

    def whole(self, node: _Node, name: str, default: int) -> int:
        value = self.attribute(node, name, default)
        if not isinstance(value, int):
            raise UnreadableModel(f"{node.op!r:.40}: {name} is no whole number")
        return value

    def numbers(self, node: _Node, name: str, default: Sequence[int]) -> list[int]:
        values = self.attribute(node, name, default)
        if not isinstance(values, list | tuple) or not all(isinstance(value, int) for value in values):
            raise UnreadableModel(f"{node.op!r:.40}: {name} are no whole numbers")
        return [int(value) for value in values] or list(default)

    def kind_of(self, name: str) -> str:
        row = self.rows.get(name, GRAPH_INPUT)
        return KINDS[self.build.rows[row][COLUMN["kind"]]] if row >= 0 else "input"

    # --- nodes

    def _node(self, node: _Node) -> None:
        op = node.op
        sources = self.active(node)
        if not sources:  # random numbers, or what follows from them
            return
        row = self.rows[sources[0]]
        if op in ("Conv", "ConvTranspose"):
            row = self._conv(node)
        elif op in ("Gemm", "MatMul"):
            row = self._product(node)
        elif op == "Einsum":
            row = self._einsum(node)
        elif op == "Attention":
            row = self._attention(node)
        elif op == "Pad":
            row = row if self._pads_a_convolution(node) or self._is_unchanged(node) else self._plain("pad", node)
        elif op in _VIEWS:
            self._view(node)
            if op == "Transpose" and self._moves(node):
                row = self._plain("move", node)
        elif op in _COPIES:
            row = self._copy(node)
        elif op == "BatchNormalization" and self._folds(sources[0]):
            row = self._fold_norm(row)
        elif op == "Add" and self._is_product_bias(node):
            row = self._add_bias(row)
        elif op in _SCALINGS and self._scales_attention(node):
            pass
        elif op in _POINTWISE:
            row = self._pointwise(_POINTWISE[op], node)
        elif op in ("Softmax", "LogSoftmax"):
            row = self._softmax(node)
        elif op == "GlobalAveragePool" or (op == "ReduceMean" and self._pools_everything(node)):
            shape = self.map_shape(sources[0])
            row = self.build.add_op("global_pool", [row], shape_in=shape, shape_out=(shape[0], 1, 1))
        elif op in ("MaxPool", "AveragePool", "GlobalMaxPool"):
            row = self._pool("avg_pool" if op == "AveragePool" else "max_pool", node)
        elif op in ("Resize", "Upsample"):
            before, after = self.map_shape(sources[0]), self.map_shape(node.output)
            stride = max(1, after[1] // max(1, before[1]))
            row = self.build.add_op("resize", [row], shape_in=before, shape_out=after, stride=stride)
        else:
            row = self._plain("concat" if op == "Concat" else "reduce" if op in _REDUCTIONS else "other", node)
        for name in node.outputs:
            self.rows[name] = row

    def _plain(self, kind: str, node: _Node) -> int:
        """An operator of which only the sizes matter."""
        sources = self.active(node)
        if kind == "concat" and len(sources) == 1 and not self.fixed(node):
            return self.rows[sources[0]]
        if kind == "other":
            self.build.unmodelled.add(_one_line(node.op))
        known = [name for name in node.outputs if name in self.model.shapes]
        out = self.map_shape(known[0]) if known and node.op != "Split" else self.map_shape(sources[0])
        return self.build.add_op(
            kind,
            [self.rows[name] for name in sources],
            shape_in=self.map_shape(sources[0]),
            shape_out=out,
            inputs=self.elements(sources),
            weights=sum(prod(self.model.shapes.get(name, ())) for name in self.fixed(node)) if kind == "concat" else 0,
        )

    def _conv(self, node: _Node) -> int:
        if len(node.inputs) < 2 or node.inputs[0] not in self.rows:
            raise UnreadableModel(f"{node.op} whose image or weight is missing")
        source, extra = node.inputs[0], [0, 0, 0, 0]
        if source in self.pads:
            source, extra = self.pads[source]
        image, out, weight = self.shape(source), self.shape(node.output), self.shape(node.inputs[1])
        if not len(image) == len(out) == len(weight) >= 3:
            raise UnreadableModel(f"{node.op} of {list(image)} with weights of {list(weight)}")
        rank, groups = len(weight) - 2, self.whole(node, "group", 1)
        if groups < 1:
            raise UnreadableModel(f"{node.op} in {groups} groups")
        strides = self.numbers(node, "strides", [1] * rank)
        pads = self.numbers(node, "pads", [0] * (2 * rank))
        begin, end = pads[0] + extra[0], pads[len(pads) // 2] + extra[2]
        if self.attribute(node, "auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
            total = max(0, (out[2] - 1) * strides[0] + weight[2] - image[2])
            begin, end = total // 2, total - total // 2
        transposed = node.op == "ConvTranspose"
        has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
        weights = prod(weight) + out[1] * has_bias
        return self.build.add_op(
            "conv_transpose" if transposed else "conv",
            [self.rows[source]],
            shape_in=_channels_first(image),
            shape_out=_channels_first(out),
            kernel=(weight[2], prod(weight[3:])),
            stride=strides[0],
            # What was moved into the batch (heads, windows) counts as groups with one weight.
            groups=groups * image[0],
            pad=(begin, end),
            bias=has_bias,
            macs=prod(weight) * prod((image if transposed else out)[2:]) * image[0],
            weights=weights,
            params=weights,
        )

    def _product(self, node: _Node) -> int:
        sources = self.active(node)
        if len(node.inputs) < 2:
            raise UnreadableModel(f"{node.op} with a single factor")
        left, right, out = self.shape(node.inputs[0]), self.shape(node.inputs[1]), self.shape(node.output)
        if node.op == "Gemm" and self.whole(node, "transA", 0):
            left = left[::-1]
        if node.op == "Gemm" and self.whole(node, "transB", 0):
            right = right[::-1]
        left = left if len(left) > 1 else (1, *left)
        right = right if len(right) > 1 else (*right, 1)
        rows, contracted, columns = left[-2], left[-1], right[-1]
        factors = [name for name in node.inputs[:2] if name in self.rows]
        if len(factors) == 2:
            heads = prod(out) // max(1, rows * columns)
            first, second = (self.rows[name] for name in factors)
            return self.build.matmul(first, second, heads, rows, contracted, columns)
        by_right = node.inputs[0] in self.rows
        weight = right if by_right else left
        # A weight per head or token is as many products side by side; one for all of them is one product.
        groups = prod(weight[:-2])
        fan_out = columns if by_right else rows
        tokens = prod(out) // max(1, fan_out * groups)
        bias = node.op == "Gemm" and len(node.inputs) > 2 and bool(node.inputs[2])
        weights = prod(weight) + fan_out * bias
        return self.build.add_op(
            "linear",
            [self.rows[name] for name in sources],
            shape_in=(contracted * groups, tokens, 1),
            shape_out=(fan_out * groups, tokens, 1),
            groups=groups,
            bias=bias,
            macs=prod(weight) * tokens,
            weights=weights,
            params=weights,
        )

    def _einsum(self, node: _Node) -> int:
        equation = self.attribute(node, "equation", b"")
        text = equation.decode(errors="replace").replace(" ", "") if isinstance(equation, bytes) else ""
        terms = text.split("->")[0].split(",")
        shapes = [self.shape(name) for name in node.inputs]
        readable = len(terms) == len(shapes) == 2 and "->" in text and "." not in text
        if not readable or any(len(term) != len(shape) for term, shape in zip(terms, shapes, strict=True)):
            return self._plain("other", node)
        sizes = {
            letter: size
            for term, shape in zip(terms, shapes, strict=True)
            for letter, size in zip(term, shape, strict=True)
        }
        kept = set(text.split("->")[1])
        left, right = (set(term) for term in terms)

        def count(letters: set[str]) -> int:
            return prod(sizes[letter] for letter in letters)

        heads, contracted = count(left & right & kept), count((left | right) - kept)
        rows, columns = count((left - right) & kept), count((right - left) & kept)
        sources = self.active(node)
        if len(sources) == 2:
            first, second = (self.rows[name] for name in sources)
            return self.build.matmul(first, second, heads, rows, contracted, columns)
        by_right = node.inputs[0] in self.rows
        tokens, fan_out = (rows, columns) if by_right else (columns, rows)
        weights = heads * contracted * fan_out
        return self.build.add_op(
            "linear",
            [self.rows[name] for name in sources],
            shape_in=(contracted * heads, tokens, 1),
            shape_out=(fan_out * heads, tokens, 1),
            groups=heads,
            macs=weights * tokens,
            weights=weights,
            params=weights,
        )

    def _attention(self, node: _Node) -> int:
        """Attention as one operator (opset 23 on), spelled out as product, softmax, product."""
        sources = [name for name in node.inputs[:3] if name in self.rows]
        if len(sources) != 3:
            return self._plain("other", node)
        query, key, value = (self.shape(name) for name in sources)
        heads = query[1] if len(query) == 4 else self.whole(node, "q_num_heads", 1)
        others = query[1] if len(query) == 4 else self.whole(node, "kv_num_heads", heads)
        if min(len(query), len(key), len(value)) < 3 or min(heads, others) < 1:
            return self._plain("other", node)
        rows, columns = query[-2], key[-2]
        width = query[-1] if len(query) == 4 else query[-1] // heads
        value_width = value[-1] if len(value) == 4 else value[-1] // others
        heads *= query[0]
        scores = self.build.matmul(self.rows[sources[0]], self.rows[sources[1]], heads, rows, width, columns)
        weights = self.build.pointwise("softmax", [scores], (heads, rows, columns))
        return self.build.matmul(weights, self.rows[sources[2]], heads, rows, columns, value_width)

    def _softmax(self, node: _Node) -> int:
        shape = self.shape(node.output)
        last = shape[-2:] if len(shape) > 1 else (1, *shape)
        rows, columns = (int(size) for size in last)
        whole = (prod(shape) // max(1, rows * columns), rows, columns)
        return self.build.pointwise("softmax", [self.rows[self.active(node)[0]]], whole)

    def _pads_a_convolution(self, node: _Node) -> bool:
        """Zero padding of height and width that only convolutions read is part of them."""
        pads = self._padding(node)
        users = self.consumers.get(node.output, [])
        constant = self.model.value(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1)
        if (
            pads is None
            or len(pads) != 8
            or any(pads[i] for i in (0, 1, 4, 5))
            or min(pads) < 0
            or constant is None
            or bool(np.any(constant != 0))
            or self.attribute(node, "mode", b"constant") != b"constant"
            or not users
            or node.output in self.ends
            or any(user.op != "Conv" or user.inputs[0] != node.output for user in users)
        ):
            return False
        self.pads[node.output] = (node.inputs[0], [pads[2], pads[3], pads[6], pads[7]])
        return True

    def _padding(self, node: _Node) -> list[int] | None:
        if "pads" in node.attributes:
            return self.numbers(node, "pads", [])
        value = self.model.value(node.inputs[1]) if len(node.inputs) > 1 else None
        if value is None or value.dtype.kind not in "iu" or len(node.inputs) > 3:
            return None
        return [int(pad) for pad in value.reshape(-1)]

    def _is_unchanged(self, node: _Node) -> bool:
        return self.model.shapes.get(node.output) == self.shape(node.inputs[0])

    def _view(self, node: _Node) -> None:
        """torch's newer exporter may split q, k and v into a sequence, which shape inference does not see through."""
        source = self.active(node)[0]
        if node.op == "SplitToSequence":
            self._split_to_sequence(node)
        elif node.op == "SequenceAt" and len(node.inputs) > 1:
            place = self.model.value(node.inputs[1])
            parts = self.sequences.get(source, [])
            if place is not None and place.size == 1 and -len(parts) <= int(place.item()) < len(parts):
                self.model.shapes[node.output] = parts[int(place.item())]
                self._infer_from(node)

    def _split_to_sequence(self, node: _Node) -> None:
        shape = self.shape(node.inputs[0])
        axis = self.whole(node, "axis", 0)
        split = self.model.value(node.inputs[1]) if len(node.inputs) > 1 else np.ones((), np.int64)
        if split is None or not -len(shape) <= axis < len(shape):
            return
        axis %= len(shape)
        if split.ndim == 0:
            size = max(1, int(split))
            sizes: list[int] = [min(size, shape[axis] - start) for start in range(0, min(shape[axis], SMALL), size)]
        else:
            sizes = [int(part) for part in split.reshape(-1)[:SMALL]]
            if min(sizes, default=0) < 0 or sum(sizes) != shape[axis]:
                return
        self.sequences[node.output] = [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]

    def _infer_from(self, known: _Node) -> None:
        """Shapes of the operators after `known`, whose output's shape became known just now."""
        frontier = list(self.consumers.get(known.output, []))
        shapes = self.model.shapes
        for _ in range(64):
            if not frontier:
                return
            node = frontier.pop(0)
            if node.output in shapes or not all(name in shapes for name in node.inputs if name):
                continue
            if node.op == "Transpose":
                shape = shapes[node.inputs[0]]
                perm = self.numbers(node, "perm", list(range(len(shape)))[::-1])
                if sorted(perm) != list(range(len(shape))):
                    continue
                shapes[node.output] = tuple(shape[place] for place in perm)
            elif node.op == "MatMul":
                left, right = shapes[node.inputs[0]], shapes[node.inputs[1]]
                shapes[node.output] = (*left[:-1], *right[-1:])
            elif node.op in ("Mul", "Div", "Softmax", "Add"):
                shapes[node.output] = max((shapes[name] for name in node.inputs), key=len)
            else:
                continue
            frontier.extend(self.consumers.get(node.output, []))

    def _copy(self, node: _Node) -> int:
        source = self.active(node)[0]
        row = self.rows[source]
        before, after = self.shape(source), self.model.shapes.get(node.output, ())
        if (
            node.op == "Slice"
            and self.kind_of(source) in ("conv_transpose", "resize", "crop")
            and len(before) == len(after) == 4
            and before[:2] == after[:2]
            and before != after
        ):
            if self.kind_of(source) == "crop":  # height first, then width: one crop
                op = list(self.build.rows[row])
                op[COLUMN["hout"]], op[COLUMN["wout"]] = after[2:]
                op[COLUMN["outputs"]] = prod(after)
                self.build.rows[row] = tuple(op)
                return row
            return self.build.add_op("crop", [row], shape_in=before[1:], shape_out=after[1:])
        return self._plain("move", node) if self._moves(node) else row

    def _moves(self, node: _Node) -> bool:
        """Whether a rearrangement is an operator of its own: neither part of an attention nor a change of layout."""
        source = self.active(node)[0]
        before, after = self.shape(source), self.model.shapes.get(node.output, ())
        unchanged = before == after and not (node.op == "Slice" and self._is_kept_slice(node))
        if unchanged or self._before_product(node) or self._after_product(node):
            return False
        if node.op != "Transpose":
            return len(before) > 2
        perm = self.numbers(node, "perm", list(range(len(before)))[::-1])
        sizes = [(place, size) for place, size in zip(perm, after, strict=False) if size != 1]
        order = [place for place, _ in sizes]
        # Channels to the end or back to the front is a change between maps and tokens.
        turned = sorted(order)
        swaps = {tuple(turned[1:] + turned[:1]), tuple(turned[-1:] + turned[:-1])}
        return bool(order) and order != turned and tuple(order) not in swaps

    def _is_kept_slice(self, node: _Node) -> bool:
        """Whether a slice takes all channels and names their number, so that a runtime copies all the same."""
        if len(node.inputs) < 4:
            return False
        ends, axes = (self.model.value(name) for name in node.inputs[2:4])
        if ends is None or axes is None:
            return False
        return axes.reshape(-1).tolist() == [1] and bool((ends < 2**31 - 1).all())

    _WITHIN = _VIEWS | {"Slice", "Split", "Gather", "Mul", "Div", "Relu", "Softmax", "LayerNormalization", "ReduceL2"}

    def _before_product(self, node: _Node) -> bool:
        """Whether what a node gives reaches a product of two activations through operators on its factors."""
        frontier, seen = list(node.outputs), set(node.outputs)
        for _ in range(10):
            names, frontier = frontier, []
            for user in (user for name in names for user in self.consumers.get(name, [])[:200]):
                if self._is_attention(user):
                    return True
                if user.op in self._WITHIN and len(seen) < 200:
                    frontier.extend(name for name in user.outputs if name not in seen)
                    seen.update(user.outputs)
            if not frontier:
                return False
        return False

    def _after_product(self, node: _Node) -> bool:
        name = self.active(node)[0]
        for _ in range(6):
            made_by = self.producers.get(name)
            if made_by is None:
                return False
            if self._is_attention(made_by):
                return True
            if made_by.op not in _VIEWS:
                return False
            name = made_by.inputs[0]
        return False

    def _is_attention(self, node: _Node) -> bool:
        if node.op == "Attention":
            return True
        return node.op in ("MatMul", "Einsum") and not any(name in self.model.constants for name in node.inputs)

    def _folds(self, source: str) -> bool:
        row = self.rows[source]
        return (
            row >= 0
            and self.build.rows[row][COLUMN["kind"]] in (KIND["conv"], KIND["conv_transpose"], KIND["linear"])
            and len(self.consumers.get(source, [])) == 1
        )

    def _fold_norm(self, row: int) -> int:
        """BatchNorm folds into the operator before it, which has a bias from then on."""
        op = list(self.build.rows[row])
        cout = op[COLUMN["cout"]]
        if not op[COLUMN["bias"]]:
            op[COLUMN["weights"]] += cout
        op[COLUMN["bias"]] = 1
        op[COLUMN["params"]] += 2 * cout
        self.build.rows[row] = tuple(op)
        return row

    def _is_product_bias(self, node: _Node) -> bool:
        sources, fixed = self.active(node), self.fixed(node)
        if len(sources) != 1 or len(fixed) != 1 or not self._folds(sources[0]):
            return False
        op = self.build.rows[self.rows[sources[0]]]
        return not op[COLUMN["bias"]] and self.elements(fixed) == op[COLUMN["cout"]]

    def _add_bias(self, row: int) -> int:
        op = list(self.build.rows[row])
        op[COLUMN["bias"]] = 1
        op[COLUMN["weights"]] += op[COLUMN["cout"]]
        op[COLUMN["params"]] += op[COLUMN["cout"]]
        self.build.rows[row] = tuple(op)
        return row

    def _scales_attention(self, node: _Node) -> bool:
        """Scaling by one number right before or after a product of two activations."""
        sources, fixed = self.active(node), self.fixed(node)
        if len(sources) != 1 or len(fixed) != 1 or self.elements(fixed) != 1:
            return False
        if self.kind_of(sources[0]) == "matmul":
            return True
        users = self.consumers.get(node.output, [])
        return bool(users) and all(self._reaches_product(user) for user in users)

    def _reaches_product(self, node: _Node) -> bool:
        for _ in range(4):
            if self._is_attention(node):
                return True
            users = self.consumers.get(node.output, [])
            if node.op not in _VIEWS | _COPIES or len(users) != 1:
                return False
            node = users[0]
        return False

    def _pools_everything(self, node: _Node) -> bool:
        source = self.shape(self.active(node)[0])
        value = self.model.value(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
        axes = self.numbers(node, "axes", []) if value is None else [int(axis) for axis in value.reshape(-1)]
        return len(source) == 4 and {axis % 4 for axis in axes} == {2, 3}

    def _pool(self, kind: str, node: _Node) -> int:
        source = self.active(node)[0]
        shape = self.map_shape(source)
        kernel = self.numbers(node, "kernel_shape", shape[1:])
        pads = self.numbers(node, "pads", [0, 0])
        return self.build.add_op(
            kind,
            [self.rows[source]],
            shape_in=shape,
            shape_out=self.map_shape(node.output),
            kernel=(kernel[0], kernel[-1]),
            stride=self.numbers(node, "strides", [1])[0],
            pad=(pads[0], pads[-1]),
        )

    def _pointwise(self, kind: str, node: _Node) -> int:
        sources = self.active(node)
        # torch writes residual sums as (branch, shortcut); the order carries no meaning.
        rows = [self.rows[name] for name in sources]
        rows = sorted(rows, reverse=True) if kind in ("add", "mul") else rows
        constants = sum(prod(self.model.shapes.get(name, ())) for name in self.fixed(node))
        norm = kind.endswith("norm")
        if kind == "layer_norm":
            shape = self._last_shape(node.output)
        else:
            shape = self.map_shape(node.output)
        weights = constants if norm or (kind in ("add", "mul") and constants > 1) else 0
        return self.build.add_op(
            kind,
            rows,
            shape_in=shape if norm or len(sources) == 1 else self.map_shape(sources[0]),
            shape_out=shape,
            inputs=self.elements(sources),
            bias=norm and weights > 0,
            weights=weights,
            params=weights,
        )

    def _last_shape(self, name: str) -> MapShape:
        """(C, H, W) of a tensor whose channels come last."""
        shape = self.shape(name)
        if len(shape) == 4:
            return shape[3], shape[0] * shape[1], shape[2]
        return (shape[-1] if shape else 1), prod(shape[:-1]), 1

    # --- operators spelled out in smaller ones

    def _find_patterns(self) -> None:
        for node in self.model.nodes:
            for kind, chain in _CHAINS.get(node.op, ()):
                if id(node) in self.covered:
                    break
                for source in dict.fromkeys(name for name in node.inputs if name and name not in self.model.constants):
                    found = self._match(node, chain, source)
                    if found is None:
                        continue
                    self.covered.update(id(step) for step in found)
                    turned = source in self.producers and self.producers[source].op == "Transpose"
                    if kind == "layer_norm" and turned and found[0].op == "ReduceMean":
                        # Between two transpositions of a map, which cancel, it stays spelled out in every runtime.
                        self.spelled.update(id(step) for step in found)
                        self.turned.update([source, *(step.output for step in found)])
                        break
                    affine_steps = [step for step in found if step.op in _AFFINE]
                    names = [n for step in affine_steps for n in step.inputs if n in self.model.constants]
                    sizes = {n: prod(self.model.shapes.get(n, ())) for n in dict.fromkeys(names)}
                    affine = tuple(n for n, size in sizes.items() if size > 1) if "norm" in kind else ()
                    self.patterns[id(node)] = _Pattern(kind, source, found[-1].output, affine)
                    break

    def _match(self, first: _Node, chain: tuple[str, ...], source: str) -> list[_Node] | None:
        """The nodes of `chain` from `first` on, if they compute something of `source` alone, seen by nothing else."""
        nodes = [first]
        for op in chain[1:]:
            users = self.consumers.get(nodes[-1].output, [])
            user = next((user for user in users[: len(chain)] if user.op == op), None)
            if user is None or len(users) > len(chain):  # more than the chain has are others
                return None
            nodes.append(user)
        made = {node.output for node in nodes}
        for node in list(nodes):
            for name in node.inputs:
                if not name or name == source or name in made or name in self.model.constants:
                    continue
                beside = self.producers.get(name)  # half of the input, say, that a later step multiplies with
                if beside is None or beside.op not in ("Mul", "Add", "Sub", "ReduceMean") or id(beside) in self.covered:
                    return None
                if any(other and other != source and other not in self.model.constants for other in beside.inputs):
                    return None
                nodes.insert(0, beside)
                made.add(name)
        inside = {id(node) for node in nodes}
        for name in made - {nodes[-1].output}:
            if name in self.ends or any(id(user) not in inside for user in self.consumers.get(name, [])):
                return None
        # The kept operator stands where its first one stood; one beside it is dropped.
        return [*(node for node in nodes if node is not nodes[-1]), nodes[-1]]

    def _pattern(self, pattern: _Pattern) -> None:
        shape = self.map_shape(pattern.output)
        if pattern.kind == "layer_norm":
            shape = self._last_shape(pattern.output)
        params = self.elements(pattern.constants)
        self.rows[pattern.output] = self.build.pointwise(
            pattern.kind, [self.rows[pattern.source]], shape, params=params
        )


def _channels_first(shape: Shape) -> MapShape:
    """(C, H, W) of a tensor whose second dimension is its channels, the batch moved into them."""
    full = (*shape, 1, 1)
    return full[0] * full[1], full[2], prod(full[3:])


_LAYER_NORM = ("ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div")
# First operator -> (canonical kind, the operators in order); longer chains first. Hardswish, GELU and SiLU end by
# multiplying with the input.
_CHAINS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "HardSigmoid": (("hardswish", ("HardSigmoid", "Mul")),),
    "Sigmoid": (("silu", ("Sigmoid", "Mul")),),
    "Add": (
        ("hardswish", ("Add", "Clip", "Mul", "Div")),
        ("hardswish", ("Add", "Clip", "Div", "Mul")),
        ("hardswish", ("Add", "Clip", "Mul", "Mul")),
        ("hardswish", ("Add", "Relu", "Min", "Mul", "Div")),
    ),
    "Div": (("gelu", ("Div", "Erf", "Add", "Mul", "Mul")), ("gelu", ("Div", "Erf", "Add", "Mul"))),
    "Mul": (
        ("gelu", ("Mul", "Erf", "Add", "Mul", "Mul")),
        ("gelu", ("Mul", "Erf", "Add", "Mul")),
        ("gelu", ("Mul", "Mul", "Mul", "Add", "Mul", "Tanh", "Add", "Mul")),
    ),
    "Pow": (
        ("gelu", ("Pow", "Mul", "Add", "Mul", "Tanh", "Add", "Mul")),
        ("layer_norm", ("Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul")),
        ("layer_norm", ("Pow", "ReduceMean", "Add", "Sqrt", "Reciprocal", "Mul", "Mul")),
    ),
    "InstanceNormalization": (("group_norm", ("InstanceNormalization", "Reshape", "Mul", "Add")),),
    "ReduceMean": (
        ("layer_norm", (*_LAYER_NORM, "Mul", "Add")),
        ("layer_norm", ("ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add")),
        ("layer_norm", _LAYER_NORM),
    ),
}
