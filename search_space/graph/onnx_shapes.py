"""Shapes of everything in an ONNX model: the first of the two passes in which a file is read.

The pass walks through the nodes in order. It infers every tensor's shape, evaluates what is computed from shapes alone,
and follows the branches whose condition is known. Nothing else is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.shape_inference
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from .onnx_file import (
    EVALUATION_ERRORS,
    INFERENCE_ERRORS,
    MAX_NODES,
    MAX_OPSETS,
    SMALL_ELEMENTS,
    UnreadableModel,
    captured_names,
    domain_name,
    in_order,
    rename_tensors,
    without_functions,
)
from .onnx_inputs import open_inputs, shapes_of
from .onnx_network import POINTWISE, Node, OnnxNetwork
from .onnx_tensors import Tensors
from .onnx_windows import POOLS, spectrum_shape, window_shape
from .shaped_file import InputShapes

# Operators that pass on what they are given; to a runtime they cost nothing, or a change of number format.
_PASSING_ON = {
    "Identity", "Dropout", "Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
}  # fmt: skip
# Operators that are evaluated if all that they read is small and known.
_EVALUATED = {
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor",
    "Gather", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not",
    "Or", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "Slice", "Split", "Sqrt",
    "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
# For quantized operators the operator that they stand for, and which of their inputs it reads (not scales and zero
# points).
_QUANTIZED: dict[str, tuple[str, tuple[int, ...]]] = {
    "QLinearConv": ("Conv", (0, 3, 8)),
    "QLinearMatMul": ("MatMul", (0, 3)),
    "ConvInteger": ("Conv", (0, 1)),
    "MatMulInteger": ("MatMul", (0, 1)),
}

# The same for onnxruntime's own operators, which optimized and quantized files have.
_RUNTIME_DOMAIN = "com.microsoft"
_STANDARD: dict[str, tuple[str, slice | tuple[int, ...]]] = {
    "FusedConv": ("Conv", (0, 1, 2)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearSigmoid": ("Sigmoid", (0,)),
    "QLinearLeakyRelu": ("LeakyRelu", (0,)),
    "QLinearSoftmax": ("Softmax", (0,)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearReduceMean": ("ReduceMean", (0,)),
    "DynamicQuantizeLSTM": ("LSTM", (0, 1, 2)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "BiasGelu": ("Gelu", (0,)),
    "FastGelu": ("Gelu", (0,)),
    "QuickGelu": ("Swish", (0,)),
}

_MAX_FRACTIONS = 16
"""Elements up to which a constant that holds no whole numbers is computed with."""


def infer_shapes(model: onnx.ModelProto, input_shapes: InputShapes | None = None) -> OnnxNetwork:
    """Gives the operators of a model that depend on its inputs' values, with the shapes of all tensors.

    `input_shapes` are those that the model leaves open. Raises UnreadableModel, which is a ValueError.
    """
    if not model.graph.node:
        raise UnreadableModel("a model without operators")
    if model.functions:
        model = without_functions(model)
    if len(model.opset_import) > MAX_OPSETS:
        raise UnreadableModel(f"more than {MAX_OPSETS} operator sets")
    return _ShapeInference(model).network(input_shapes or {})


class _ShapeInference:
    """Walks through a model and its branches.

    Attributes:
        tensors: what is known of the tensors so far.
        nodes: the operators so far that depend on the inputs' values.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.opsets = {domain_name(entry.domain): entry.version for entry in model.opset_import}
        self.opset_imports = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        self.nodes: list[Node] = []
        self.tensors = Tensors()
        self._seen = 0
        self._declared = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}

    def network(self, input_shapes: InputShapes) -> OnnxNetwork:
        graph, tensors = self.model.graph, self.tensors
        tensors.add_constants_of(graph)
        shapes = shapes_of(open_inputs(self.model), input_shapes)
        inputs = [info for info in graph.input if info.name in shapes]
        for info in inputs:
            tensors.add_input(info, shapes[info.name])
        self._walk(graph)
        outputs = [tensors.resolve(info.name) for info in graph.output]
        return OnnxNetwork(self.nodes, tensors, [info.name for info in inputs], outputs)

    def _walk(self, graph: onnx.GraphProto) -> None:
        for proto in in_order(graph.node, self.tensors.types):
            self._seen += 1
            if self._seen > MAX_NODES:
                raise UnreadableModel(f"more than {MAX_NODES} operators")
            if proto.output:
                self._visit(proto)

    def _visit(self, proto: onnx.NodeProto) -> None:
        if proto.domain == _RUNTIME_DOMAIN and proto.op_type in _STANDARD:
            proto = _standard(proto)
        op, inputs = proto.op_type, tuple(self.tensors.resolve(name) for name in proto.input)
        if not isinstance(op, str):
            raise UnreadableModel(f"an operator whose name is no text: {op!r:.80}")
        out = proto.output[0]
        for given, name in zip(proto.input, inputs, strict=True):
            if name and name not in self.tensors.types:
                raise UnreadableModel(f"{op!r:.40} reads {given!r:.80}, which nothing before it makes")
        for name in proto.output:
            if name and self.tensors.exists(name):
                raise UnreadableModel(f"{op!r:.40} makes {name!r:.80}, which something else is called already")
        if op == "Constant":
            self._constant_node(proto)
        elif op in ("Shape", "Size") and inputs and inputs[0] in self.tensors.shapes:
            shape = self.tensors.shapes[inputs[0]]
            if op == "Size":
                self.tensors.add_value(out, np.array(prod(shape), np.int64))
            else:
                start, end = (_integer_attribute(proto, key) for key in ("start", "end"))
                self.tensors.add_value(out, np.array(shape[start:end], np.int64))
        elif op == "If":
            self._branch(proto, inputs)
        elif op in _PASSING_ON and inputs and inputs[0] and inputs[0] not in self.tensors.small_constants:
            # It is inferred for its type, which decides whether others can read it. The value of a small constant is
            # followed through a cast instead.
            self._infer(proto, inputs, {})
            if out not in self.tensors.shapes:
                self.tensors.types[out] = self.tensors.type_of(proto.input[0])
            self.tensors.aliases[out] = inputs[0]
            if op == "DynamicQuantizeLinear":  # its scale and zero point, single numbers
                self.tensors.constants.update(filter(None, proto.output[1:]))
        else:
            self._operator(proto, inputs)

    def _constant_node(self, proto: onnx.NodeProto) -> None:
        out = proto.output[0]
        for attribute in proto.attribute:
            if attribute.name == "value":
                self.tensors.add_constant(out, attribute.t)
                return
            if attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
                kind = np.float32 if "float" in attribute.name else np.int64
                self.tensors.add_value(out, np.array(helper.get_attribute_value(attribute), kind))
                return
            if attribute.name == "sparse_value":
                self.tensors.add_sparse_constant(out, attribute.sparse_tensor)
                return
        self.tensors.constants.add(out)
        self.tensors.types[out] = onnx.TypeProto()

    def _branch(self, proto: onnx.NodeProto, inputs: tuple[str, ...]) -> None:
        """Walks through the branch of an If that is taken; where that depends on data, through the longer one."""
        branches = {a.name: a.g for a in proto.attribute if a.name in ("then_branch", "else_branch")}
        condition = self.tensors.value(inputs[0]) if inputs else None
        if len(branches) != 2:
            raise UnreadableModel("an If without its two branches")
        if condition is None:
            branch = max(branches.values(), key=lambda graph: len(graph.node))
        else:
            branch = branches["then_branch" if condition.size == 1 and bool(condition.item()) else "else_branch"]
        branch = self._with_own_names(branch)
        self.tensors.add_constants_of(branch)
        self._declared.update((info.name, info) for info in branch.value_info)
        self._walk(branch)
        for outer, inner in zip(proto.output, branch.output, strict=False):
            name = self.tensors.resolve(inner.name)
            if name not in self.tensors.types:
                raise UnreadableModel(f"a branch gives {inner.name!r:.80}, which nothing in it makes")
            if outer != name:
                self.tensors.types[outer] = self.tensors.type_of(inner.name)
                self.tensors.aliases[outer] = name

    def _with_own_names(self, branch: onnx.GraphProto) -> onnx.GraphProto:
        """Renames what a branch makes under a name that something outside of it has, in another branch for example."""
        made = {name for node in branch.node for name in node.output} | {tensor.name for tensor in branch.initializer}
        taken = {name: f"{name}#{self._seen}" for name in made if self.tensors.exists(name)}
        taken.pop("", None)
        if not taken:
            return branch
        renamed = onnx.GraphProto()
        renamed.CopyFrom(branch)
        rename_tensors(renamed, taken)
        return renamed

    def _operator(self, proto: onnx.NodeProto, inputs: tuple[str, ...]) -> None:
        op, outputs = proto.op_type, tuple(proto.output)
        # What the bodies of a Loop or Scan read from outside is read by the operator.
        captured = {name: self.tensors.resolve(name) for name in sorted(captured_names(proto), key=repr)}
        outer = {name: known for name, known in captured.items() if known in self.tensors.types}
        read = tuple(dict.fromkeys((*inputs, *outer.values()))) if outer else inputs
        constant = all(not name or name in self.tensors.constants for name in read) and not op.startswith("Random")
        inferred = self._infer(proto, inputs, outer)
        if constant:
            self.tensors.constants.update(outputs)
            if op in _EVALUATED and inferred and self._evaluate(proto, inputs):
                return
        else:
            attributes = {a.name: a for a in proto.attribute}
            if op in _QUANTIZED:
                op, places = _QUANTIZED[op]
                read = tuple(read[place] for place in places if place < len(read))
            self.nodes.append(Node(op, read, outputs, attributes))

    def _infer(self, proto: onnx.NodeProto, inputs: tuple[str, ...], outer: dict[str, str]) -> bool:
        """Infers the shapes of an operator's outputs. True if all of them follow from those of its inputs."""
        found: dict[str, onnx.TypeProto] = {}
        try:
            if proto.op_type == "Split" and (_integer_attribute(proto, "num_outputs") or 0) > len(proto.output):
                raise UnreadableModel("a Split into more parts than it gives")  # inference would make a list of them
            domain = domain_name(proto.domain)
            schema = onnx.defs.get_schema(proto.op_type, self.opsets.get(domain, 1), domain)
            given = (*zip(proto.input, inputs, strict=True), *outer.items())
            types = {before: self.tensors.type_of(before) for before, name in given if name}
            data = {}
            for before, name in zip(proto.input, inputs, strict=True):
                if name in self.tensors.small_constants and self.tensors.value(name) is not None:
                    data[before] = self.tensors.small_constants[name]
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self.opset_imports, ir_version=self.model.ir_version
            )
        except UnreadableModel:
            raise
        except INFERENCE_ERRORS:
            pass  # an operator of another domain, or one that is wrong: what the file declares is used instead
        self._as_executed(proto, inputs, found)
        inferred = True
        for place, name in enumerate(proto.output):
            if not name:
                continue
            self.tensors.shapes.pop(name, None)
            self.tensors.set_type(name, found.get(name, onnx.TypeProto()))
            if name not in self.tensors.shapes:
                inferred = False
                self._assume(proto, place, inputs)
        return inferred

    def _as_executed(self, proto: onnx.NodeProto, inputs: tuple[str, ...], found: dict[str, onnx.TypeProto]) -> None:
        """Puts onnxruntime's sizes in the place of onnx's, where these are others."""
        op, shapes = proto.op_type, [self.tensors.shapes.get(name) for name in inputs]
        if not shapes or shapes[0] is None or domain_name(proto.domain):
            return
        shape = None
        if op in POOLS | {"ConvTranspose"}:
            shape = window_shape(proto, shapes[0], shapes[1] if len(shapes) > 1 else None)
        elif op == "STFT" and len(inputs) > 2:
            frame, window = self.tensors.value(inputs[3]) if len(inputs) > 3 and inputs[3] else None, shapes[2]
            length = int(frame.item()) if frame is not None and frame.size == 1 else window[0] if window else 0
            shape = spectrum_shape(proto, shapes[0], self.tensors.value(inputs[1]), length)
        for name in proto.output if shape is not None else ():
            if name in found and found[name].HasField("tensor_type"):
                found[name] = helper.make_tensor_type_proto(found[name].tensor_type.elem_type, shape)

    def _assume(self, proto: onnx.NodeProto, place: int, inputs: tuple[str, ...]) -> None:
        """Assumes a shape that inference leaves open: what the file declares, or the largest that it can be."""
        name = proto.output[place]
        declared = self._declared.get(name)
        if declared is not None and declared.type.HasField("tensor_type"):
            dims = declared.type.tensor_type.shape.dim
            if declared.type.tensor_type.HasField("shape") and all(dim.dim_value > 0 for dim in dims):
                self.tensors.set_type(name, declared.type)
                return
        shape = self._largest(proto, place, inputs)
        if shape is not None:
            kind = self.tensors.types[name].tensor_type.elem_type or TensorProto.FLOAT
            self.tensors.set_type(name, helper.make_tensor_type_proto(kind, shape))

    def _largest(self, proto: onnx.NodeProto, place: int, inputs: tuple[str, ...]) -> Sequence[int] | None:
        """Gives the largest shape of an output whose size depends on data, or for which inference has no rule."""
        op = proto.op_type
        if op == "Loop":
            return self._loop_output(proto, place, inputs)
        first = self.tensors.shapes.get(inputs[0]) if inputs else None
        if first is None:
            return None
        if op == "LSTM" and len(first) == 3 and (hidden := _integer_attribute(proto, "hidden_size")):  # quantized
            way = next((attribute.s for attribute in proto.attribute if attribute.name == "direction"), b"forward")
            state = [2 if way == b"bidirectional" else 1, first[1], hidden]
            return [first[0], *state] if place == 0 else state
        if op == "NonMaxSuppression" and len(first) == 3 and len(inputs) > 1:
            classes = self.tensors.shapes.get(inputs[1], (1, 1, 1))[1:2] or (1,)
            most = self.tensors.value(inputs[2]) if len(inputs) > 2 and inputs[2] else None
            kept = first[1] if most is None or not most.size else min(first[1], max(0, int(most.reshape(-1)[0])))
            return [first[0] * classes[0] * kept, 3]
        if op == "NonZero":
            return [max(1, len(first)), prod(first)]
        if op in ("Unique", "Compress") and place == 0:
            return first if any(attribute.name == "axis" for attribute in proto.attribute) else [prod(first)]
        bounds = [name for name in inputs[1:] if name]
        if op in ("Slice", "TopK") and bounds and not all(name in self.tensors.small_constants for name in bounds):
            return first
        own = len(inputs) == 1 and op in POINTWISE  # of another domain, or of a newer operator set
        return first if place == 0 and (own or op == "GroupNormalization") else None

    def _loop_output(self, proto: onnx.NodeProto, place: int, inputs: tuple[str, ...]) -> Sequence[int] | None:
        """Gives the shape of a loop's output.

        What the loop carries keeps its size; what it collects has one entry for each iteration, a single one if their
        number is not known.
        """
        carried = len(inputs) - 2
        if place < carried:
            return self.tensors.shapes.get(inputs[2 + place])
        kind = self.tensors.types[proto.output[place]].tensor_type
        sizes = [dim.dim_value for dim in kind.shape.dim[1:] if dim.HasField("dim_value")]
        if not kind.HasField("shape") or len(sizes) + 1 != len(kind.shape.dim):
            return None
        iterations = self.tensors.value(inputs[0]) if inputs and inputs[0] else None
        known = iterations is not None and iterations.size == 1 and iterations.dtype.kind in "iu"
        count = int(iterations.item()) if iterations is not None and known else 1
        return [count if 0 <= count <= MAX_NODES else 1, *sizes]

    def _evaluate(self, proto: onnx.NodeProto, inputs: tuple[str, ...]) -> bool:
        """Computes an operator on small constants. False if that cannot be done, or is not worth it."""
        sizes = [prod(self.tensors.shapes.get(name, (SMALL_ELEMENTS + 1,))) for name in proto.output]
        if sum(sizes) > SMALL_ELEMENTS:
            return False
        values = {}
        for before, name in zip(proto.input, inputs, strict=True):
            if not name:
                continue
            value = self.tensors.value(name)
            if value is None or (value.dtype.kind not in "biu" and value.size > _MAX_FRACTIONS):
                return False
            values[before] = value
        try:
            with np.errstate(all="ignore"):
                results = ReferenceEvaluator(self._alone(proto, values)).run(None, values)  # type: ignore[arg-type]
        except (*EVALUATION_ERRORS, MemoryError):
            return False
        for name, result in zip(filter(None, proto.output), results, strict=False):
            if not isinstance(result, np.ndarray | np.generic) or result.size > SMALL_ELEMENTS:
                return False
            self.tensors.add_value(name, np.asarray(result))
        return True

    def _alone(self, proto: onnx.NodeProto, values: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
        """A model of this operator alone. (Given the operator, the evaluator takes the newest version of some.)"""
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in values.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
        return helper.make_model(
            helper.make_graph([proto], "alone", inputs, outputs),
            opset_imports=self.opset_imports,
            ir_version=self.model.ir_version,
        )


def _standard(proto: onnx.NodeProto) -> onnx.NodeProto:
    """The operator of ONNX itself for one of onnxruntime's own, with those inputs that are its own."""
    op, places = _STANDARD[proto.op_type]
    given = list(proto.input)
    inputs = given[places] if isinstance(places, slice) else [given[place] for place in places if place < len(given)]
    found = helper.make_node(op, inputs, list(proto.output), proto.name)
    known = onnx.defs.get_schema(op).attributes
    found.attribute.extend(attribute for attribute in proto.attribute if attribute.name in known)
    return found


def _integer_attribute(proto: onnx.NodeProto, name: str) -> int | None:
    return next((attribute.i for attribute in proto.attribute if attribute.name == name), None)
