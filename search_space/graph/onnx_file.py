"""Opening ONNX files that come from strangers: limits, external data, subgraphs and local functions.

Sizes are checked before anything of that size is made, of external data only small tensors are read, and whatever is
wrong with a file ends in a ValueError of one line.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from math import prod
from pathlib import Path

import onnx
import onnx.checker
import onnx.defs
import onnx.inliner
import onnx.shape_inference
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

MAX_FILE_BYTES = 2**31
"""Protocol buffers cannot be larger; weights beyond that are external data."""
MAX_NODES = 100_000
MAX_ELEMENTS = 1 << 40
"""Elements of one tensor."""
MAX_TOTAL = 1 << 62
"""Multiply-accumulates or bytes of a whole network; sums of a graph's columns would overflow beyond it."""
MAX_INLINED_BYTES = 1 << 28
"""Size of local functions once every call is replaced by a copy of the function."""
MAX_FUNCTION_DEPTH = 50
"""Local functions that call each other."""
SMALL_ELEMENTS = 4096
"""Elements up to which a constant's value is looked at."""
MAX_RANK = 64
MAX_OPSETS = 100

EVALUATION_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of onnx's reference evaluator and its helpers for operators and tensors that are wrong."""
INFERENCE_ERRORS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    onnx.defs.SchemaError,
    DecodeError,
    MemoryError,
    *EVALUATION_ERRORS,
)
"""Errors of onnx's shape inference for operators that are wrong or that it does not know."""
INVALID_MODEL_ERRORS = (DecodeError, onnx.checker.ValidationError, UnicodeDecodeError)
"""Errors of opening a file that is no ONNX model."""

_QUANTIZED_OPERATORS = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QuantizeLinear", "QGemm"}
)


class UnreadableModel(ValueError):
    """An ONNX model that is well-formed but cannot be turned into an operator graph."""


def load_model(path: Path) -> onnx.ModelProto:
    """Reads a model, after checking the file's size and where its external data is kept; of that only small tensors.

    Raises UnreadableModel for what the checks find, OSError and `INVALID_MODEL_ERRORS` for files that cannot be opened.
    """
    if path.stat().st_size >= MAX_FILE_BYTES:
        raise UnreadableModel("2 GiB or more, which no ONNX model can have (larger weights are external data)")
    # The format is given, because onnx would choose another one for a suffix such as .json.
    model = onnx.load(str(path), format="protobuf", load_external_data=False)
    check_external_data(model, path.parent)
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL and 0 < prod(tensor.dims) <= SMALL_ELEMENTS:
            _read_small(tensor, path.parent)
    return model


def missing_data(model: onnx.ModelProto, folder: Path) -> list[str]:
    """The files with external data that are not there, of a model that `load_model` gave."""
    outside = [tensor for tensor in _tensors(model.graph) if tensor.data_location == TensorProto.EXTERNAL]
    found = {_entries(tensor).get("location", "") for tensor in outside}
    return sorted(name for name in found if name and not (folder / name).is_file())


def _read_small(tensor: TensorProto, folder: Path) -> None:
    """Puts the external data of a small tensor into it, if they are there and as large as they should be."""
    entries = _entries(tensor)
    try:
        size = prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if int(entries.get("length", size)) != size:
            return
        if not (folder / entries["location"]).is_file():
            return
        with (folder / entries["location"]).open("rb") as file:
            file.seek(int(entries.get("offset", 0)))
            content = file.read(size)
    except (OSError, KeyError, ValueError, TypeError, OverflowError):
        return
    if len(content) == size:
        tensor.raw_data = content
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def one_line(text: object) -> str:
    """Gives a text on one line, without characters that a terminal would take for a command."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(str(text).split())[:300])


def precision_of(model: onnx.ModelProto) -> str:
    """Tells what a model computes in: "int8" if any operator is quantized, "fp16" if its weights are, else "fp32"."""
    if any(node.op_type in _QUANTIZED_OPERATORS for node in model.graph.node):
        return "int8"
    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    stored = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1]
    return "fp16" if any(kind in halves for kind in stored) else "fp32"


# --- external data ---------------------------------------------------------------------------------------------------


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
        for graph in subgraphs(node):
            yield from _tensors(graph)


def _parts(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[TensorProto]:
    for tensor in tensors:
        yield from (tensor.values, tensor.indices)


# --- subgraphs and local functions -----------------------------------------------------------------------------------


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Gives the graphs inside a node: the branches of an If, the body of a Loop or Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def captured_names(node: onnx.NodeProto) -> set[str]:
    """Gives the names that the subgraphs of a node read from outside."""
    names: set[str] = set()
    for graph in subgraphs(node):
        read = {name for step in graph.node for name in step.input} | {info.name for info in graph.output}
        for step in graph.node:
            read |= captured_names(step)
        made = {name for step in graph.node for name in step.output}
        made |= {item.name for items in (graph.input, graph.initializer) for item in items}
        names |= read - made
    return names - {""}


def in_order(nodes: Sequence[onnx.NodeProto], known: Container[str]) -> Sequence[onnx.NodeProto]:
    """The nodes, each after those whose outputs it reads. Runtimes take them in any order; most files have them in one.

    What waits for itself stays where it is. `known` are names that exist already.
    """
    made = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    waiting = [{made[name] for name in _reads(node) if name in made and name not in known} for node in nodes]
    if all(not before or max(before) < place for place, before in enumerate(waiting)):
        return nodes
    readers: dict[int, list[int]] = {}
    for place, before in enumerate(waiting):
        for other in before:
            readers.setdefault(other, []).append(place)
    free = [place for place, before in enumerate(waiting) if not before]
    heapify(free)
    order = []
    while free:
        place = heappop(free)
        order.append(place)
        for reader in readers.get(place, ()):
            waiting[reader].discard(place)
            if not waiting[reader]:
                heappush(free, reader)
    done = set(order)
    return [nodes[place] for place in (*order, *(place for place in range(len(nodes)) if place not in done))]


def _reads(node: onnx.NodeProto) -> set[str]:
    return {*node.input} | captured_names(node)


def rename_tensors(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames tensors of a graph in place, and what its subgraphs read of them."""
    for items in (graph.initializer, graph.value_info, graph.output):
        for item in items:
            item.name = names.get(item.name, item.name)
    for node in graph.node:
        for given in (node.input, node.output):
            given[:] = [names.get(name, name) for name in given]
        for inner in subgraphs(node):
            rename_tensors(inner, names)


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replaces the calls of local functions by their operators. The size of the result is checked before it is made."""
    bodies = {_function_key(function, function.name): function.node for function in model.functions}
    counted: dict[tuple[str, str, str], tuple[int, int]] = {}

    def count(nodes: Iterable[onnx.NodeProto], within: frozenset[tuple[str, str, str]]) -> tuple[int, int]:
        """(operators, bytes) of `nodes`, called inside the functions `within`."""
        total = size = 0
        for node in nodes:
            key = _function_key(node, node.op_type)
            if key in within or len(within) > MAX_FUNCTION_DEPTH:
                raise UnreadableModel(f"function {node.op_type!r:.80} calls itself, or too many others")
            if key in bodies and key not in counted:
                counted[key] = count(bodies[key], within | {key})
            parts = [counted.get(key, (1, node.ByteSize() if within else 0))]
            parts += [count(graph.node, within) for graph in subgraphs(node)]
            total += sum(part[0] for part in parts)
            size += sum(part[1] for part in parts)
            if total > MAX_NODES or size > MAX_INLINED_BYTES:
                raise UnreadableModel(f"functions of more than {MAX_NODES} operators or {MAX_INLINED_BYTES} bytes")
        return total, size

    count(model.graph.node, frozenset())
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, TypeError, onnx.checker.ValidationError) as error:
        raise UnreadableModel(f"local functions that cannot be read: {one_line(error)}") from None


def _function_key(item: onnx.NodeProto | onnx.FunctionProto, name: str) -> tuple[str, str, str]:
    return domain_name(item.domain), name, item.overload


def domain_name(name: str) -> str:
    """Gives the one name of an operator set's domain; the standard one has two."""
    return "" if name == "ai.onnx" else name
