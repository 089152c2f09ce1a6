"""The sizes of an ONNX file's inputs: those that it leaves open, and what is said of them.

A symbol has one size wherever it stands. A first size that is open is the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from .onnx_file import UnreadableModel, load_model
from .shaped_file import InputShapes, OnnxFile, Shape

SUGGESTED_SIDE, SUGGESTED_LENGTH = 224, 512
"""Sizes in the command that is suggested where a file leaves them open: of images, and of anything else."""
_NO_NAMES = frozenset({"", "?", "-1", "None", "none", "unk", "unknown"})
"""What stands for a size that is open without being any other's too."""
_CHANNELS = (1, 3, 4)
_Size = int | str | None  # a number, a symbol, or open without a name


def input_shapes(file: OnnxFile, batch: int = 1) -> dict[str, Shape]:
    """The shapes of all inputs of a file. Raises ValueError, in one line, as `op_graph_from_onnx` does."""
    try:
        return shapes_of(open_inputs(load_model(file.path)), file.input_shapes, batch=batch)
    except UnreadableModel as error:
        raise ValueError(f"{file}: {error}") from None


def open_inputs(model: onnx.ModelProto) -> dict[str, list[_Size] | None]:
    """The sizes of a model's inputs by their names; None where no shape is declared, or no tensor."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    found: dict[str, list[_Size] | None] = {}
    for info in model.graph.input:
        if info.name in constants:
            continue
        tensor = info.type.tensor_type
        declared = info.type.HasField("tensor_type") and tensor.HasField("shape")
        found[info.name] = [_size(dim) for dim in tensor.shape.dim] if declared else None
    return found


def _size(dim: onnx.TensorShapeProto.Dimension) -> _Size:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    return None if dim.dim_param in _NO_NAMES else str(dim.dim_param)


def shapes_of(inputs: Mapping[str, list[_Size] | None], given: InputShapes, *, batch: int = 1) -> dict[str, Shape]:
    """The shapes of all inputs: as declared, as given, and by the symbols that those share.

    Args:
        inputs: what the file declares (`open_inputs`).
        given: what is said of them.
        batch: a first size that is open.

    Raises UnreadableModel: sizes that stay open (each is named, with a command that says them), that do not fit what
    the file declares, or of an input that is not there.
    """
    named = _by_name(inputs, given)
    symbols: dict[str, int] = {}
    found: dict[str, Shape] = {}
    for name, shape in named.items():
        _fit(name, inputs[name], shape, symbols)
        found[name] = shape
    still_open: dict[str, list[_Size]] = {}
    for name, declared in inputs.items():
        if name in found:
            continue
        sizes = [_known(size, place, symbols, batch) for place, size in enumerate(declared or ())]
        if declared is None or not all(isinstance(size, int) for size in sizes):
            still_open[name] = list(declared or ())
        else:
            found[name] = tuple(size for size in sizes if isinstance(size, int))
    if still_open:
        raise UnreadableModel(_said(still_open, inputs, batch))
    return {name: found[name] for name in inputs}


def _known(size: _Size, place: int, symbols: Mapping[str, int], batch: int) -> _Size:
    if isinstance(size, str) and size in symbols:
        return symbols[size]
    return batch if place == 0 and not isinstance(size, int) else size


def _by_name(inputs: Mapping[str, list[_Size] | None], given: InputShapes) -> dict[str, Shape]:
    """What was given, by the names of the inputs that it is for."""
    found = {name: tuple(int(size) for size in shape) for name, shape in given.items()}
    if "" in found:
        loose = [name for name, sizes in inputs.items() if sizes is None or not all(isinstance(s, int) for s in sizes)]
        only = loose if len(loose) == 1 else list(inputs)
        if not only:
            raise UnreadableModel("it has no inputs")
        if len(only) != 1:
            raise UnreadableModel(f"it has several inputs: say which shape is whose (--input-shape {only[0]}=...)")
        found = {only[0]: found.pop(""), **found}
    if unknown := [name for name in found if name not in inputs]:
        raise UnreadableModel(f"it has no input {unknown[0]!r:.80}; there are {', '.join(inputs):.200}")
    for name, shape in found.items():
        if any(size < 1 for size in shape):
            raise UnreadableModel(f"input {name!r:.80} would have a size of {min(shape)}; sizes are at least 1")
    return found


def _fit(name: str, declared: list[_Size] | None, shape: Shape, symbols: dict[str, int]) -> None:
    """Notes the sizes of symbols. Raises UnreadableModel where a given shape is not what is declared."""
    if declared is None:
        return
    if len(declared) != len(shape) or any(isinstance(d, int) and d != s for d, s in zip(declared, shape, strict=True)):
        raise UnreadableModel(f"input {name!r:.80} has sizes ({_text(declared)}), which ({_text(shape)}) do not fit")
    for size, number in zip(declared, shape, strict=True):
        if isinstance(size, str) and symbols.setdefault(size, number) != number:
            raise UnreadableModel(f"{size!r:.80} is {symbols[size]} and {number}: a symbol has one size")


def _text(sizes: Sequence[_Size]) -> str:
    return ", ".join("?" if size is None else str(size) for size in sizes) or "none"


def _said(still_open: Mapping[str, list[_Size]], inputs: Mapping[str, list[_Size] | None], batch: int) -> str:
    """What is open, and a command that says it."""
    parts, options = [], []
    symbols: dict[str, int] = {}
    for name, sizes in still_open.items():
        parts.append(f"input {name!r:.60} has {f'open sizes ({_text(sizes)})' if sizes else 'no shape'}")
        shape = "x".join(str(_suggested(sizes, place, batch, symbols)) for place in range(len(sizes))) or "..."
        options.append(f"--input-shape {shape if len(inputs) == 1 else f'{name:.60}={shape}'}")
    return f"{'; '.join(parts)}: say them, for example {' '.join(options)}"


def _suggested(sizes: Sequence[_Size], place: int, batch: int, symbols: dict[str, int]) -> int:
    """A size that may be meant at a place."""
    size = sizes[place]
    if isinstance(size, int):
        return size
    if isinstance(size, str) and size in symbols:
        return symbols[size]
    if place == 0:
        found = batch
    elif len(sizes) == 4 and place == 1 and sizes[3] not in _CHANNELS:
        found = 3
    else:
        found = SUGGESTED_SIDE if len(sizes) == 4 else SUGGESTED_LENGTH
    if isinstance(size, str):
        symbols[size] = found
    return found
