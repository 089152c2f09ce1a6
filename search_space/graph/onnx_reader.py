"""ONNX files of any exporter as operator graphs. Nothing is computed but shapes, and no large constant is looked at.

Reading goes in two passes. `onnx_shapes` walks through the model and infers the shape of every tensor. Then the
operators are translated in order (`onnx_operators`); one that is spelled out in smaller ones (`onnx_patterns`) becomes
the one operator that it is. What a file from a stranger may not do is checked in `onnx_file`.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from .onnx_file import (
    EVALUATION_ERRORS,
    INVALID_MODEL_ERRORS,
    UnreadableModel,
    load_model,
    missing_data,
    one_line,
    precision_of,
)
from .onnx_operators import translate_operator, translate_pattern
from .onnx_shapes import infer_shapes
from .onnx_translation import Translation
from .operators import OpGraph
from .shaped_file import InputShapes, OnnxFile


def op_graph_from_onnx(path: str | Path | OnnxFile, input_shapes: InputShapes | None = None) -> OpGraph:
    """Gives the operator graph of an ONNX file, whichever exporter wrote it; symbolic batch sizes count as 1.

    Only shapes are read, and small constants. BatchNorm is folded, and counted among the parameters where names of
    constants show that an exporter has folded it; hardswish, GELU, SiLU, GroupNorm and LayerNorm are recognized when
    they are spelled out in smaller operators. Slices, splits and other
    rearrangements that copy data are rows "move", or "permute" where they go element by element; reshapes, and the
    transposes of an attention or between maps and tokens, are none. Operators without a kind of their own are rows
    "other".

    Args:
        path: the file.
        input_shapes: of inputs whose size it leaves open, by their names: {"images": (1, 3, 640, 640)}; under "" that
            of the only one.

    Raises:
        ValueError: a file that is missing, cannot be opened or is no ONNX model, one whose shapes cannot be determined
            or are too large to count, or one that keeps data outside its own folder; in one line.
    """
    if isinstance(path, OnnxFile):
        return op_graph_from_onnx(path.path, {**path.input_shapes, **(input_shapes or {})})
    path = Path(path)
    name = one_line(path)
    if not path.is_file():
        raise ValueError(f"no ONNX file at {name}")
    try:
        model = load_model(path)
        missing = missing_data(model, path.parent)
        try:
            return graph_from_model(model, input_shapes)
        except UnreadableModel as error:
            absent = f"; {missing[0]!r:.80} beside it is missing, which has some of its numbers" if missing else ""
            raise UnreadableModel(f"{error}{absent}") from None
    except UnreadableModel as error:
        raise ValueError(f"{name}: {one_line(error)}") from None
    except INVALID_MODEL_ERRORS as error:
        raise ValueError(f"{name} is not a valid ONNX model: {one_line(error)}") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be opened: {one_line(error.strerror or error)}") from None
    except (*EVALUATION_ERRORS, MemoryError) as error:  # wrong in a way that no check foresaw
        raise ValueError(f"{name} cannot be read ({type(error).__name__}: {one_line(error)})") from error


def graph_from_model(model: onnx.ModelProto, input_shapes: InputShapes | None = None) -> OpGraph:
    """Gives the operator graph of a model in memory, like `op_graph_from_onnx`.

    Raises UnreadableModel, which is a ValueError.
    """
    try:
        translation = Translation(infer_shapes(model, input_shapes))
        translation.build.precision = precision_of(model)
        _translate(translation)
        return translation.graph()
    except OverflowError:
        raise UnreadableModel("sizes that are too large to count") from None


def _translate(t: Translation) -> None:
    """Translates all operators in order."""
    for node in t.network.nodes:
        pattern = t.patterns.found.get(id(node))
        if pattern is not None:
            t.rows[pattern.output] = translate_pattern(t, pattern)
        elif t.active(node) and not t.patterns.covers(node):  # random numbers read nothing
            row = translate_operator(t, node)
            for name in node.outputs:
                t.rows[name] = row
