"""Turns float ONNX models into int8 ones to be timed: static quantization in QDQ format, by onnxruntime's library.

Where latency is all that is wanted, no picture is run through the model: every activation gets the same range. The
integer kernels take as long for any values and ranges, but what the result computes means nothing. To deploy, give the
ranges that activations have on pictures of your own (`experiments/case_study/int8.py` does).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from onnxruntime.quantization import TensorsData

QUANTIZED: tuple[str, ...] = (
    "Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "GlobalAveragePool", "AveragePool", "MaxPool",
    "Concat", "Flatten", "Reshape", "Resize", "Slice", "Split", "Transpose",
)  # fmt: skip
"""Operators that onnxruntime's CPU provider computes in int8, or moves as such. Others stay in float: activations but
ReLU, norms, products, and transposed convolutions, which have no integer kernel. Weights are int8 with a scale per
output channel, activations uint8 per tensor."""

_OLDEST_OPSET = 13  # the first with scales per channel
_RANGE = 4.0
"""Largest absolute value that is assumed of every activation; times do not depend on it."""


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether a model has quantized tensors already."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)


def quantized(model: onnx.ModelProto, ranges: TensorsData | None = None) -> onnx.ModelProto:
    """Quantizes a model to int8, which takes seconds; one that is quantized already is given back as it is.

    `ranges` are those of its activations (of onnxruntime's calibrators); without, all are the same.

    Raises ValueError, in one line: an opset below 13, or a model that the quantizer does not take.
    """
    if is_quantized(model):
        return model
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OLDEST_OPSET:
        raise ValueError(f"int8 needs a model of opset {_OLDEST_OPSET} or newer, given {opset}: export it again")
    import numpy as np
    from onnxruntime.quantization import CalibrationMethod, QuantType, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    model = onnx.shape_inference.infer_shapes(model)
    add_infer_metadata(model)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node{index}"
    constants = {tensor.name for tensor in model.graph.initializer}
    scaled = {node.output[0] for node in model.graph.node if node.op_type == "Mul"}
    shifts = [  # of norms: they stay with them
        node.name
        for node in model.graph.node
        if node.op_type == "Add" and constants.intersection(node.input) and scaled.intersection(node.input)
    ]
    values = [info.name for info in model.graph.input] + [name for node in model.graph.node for name in node.output]
    extent = (np.float32(-_RANGE), np.float32(_RANGE))
    try:
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges or TensorsData(CalibrationMethod.MinMax, dict.fromkeys(values, extent)),
            nodes_to_quantize=[],
            nodes_to_exclude=shifts,
            op_types_to_quantize=list(QUANTIZED),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"onnxruntime cannot quantize the model: {' '.join(str(error).split()):.200}") from None
    return quantizer.model.model


def quantized_file(path: Path) -> bytes | Path:
    """Quantizes the model of an ONNX file; gives it serialized, or the path itself if that holds a quantized one."""
    try:
        if is_quantized(onnx.load(str(path), load_external_data=False)):
            return path
        return bytes(quantized(onnx.load(str(path))).SerializeToString())
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"{path} is not a valid ONNX model: {' '.join(str(error).split()):.200}") from None
