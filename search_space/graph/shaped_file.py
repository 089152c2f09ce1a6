"""An ONNX file and the sizes of its inputs, as people name them; it is opened elsewhere (`onnx_inputs`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Shape = tuple[int, ...]
InputShapes = Mapping[str, Sequence[int]]
"""Shapes by the names of inputs; under "" that of the only one, or of the only one that is open."""

_SHAPE = re.compile(r"\d{1,9}(x\d{1,9})*")


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file with the shapes of its inputs, where it leaves them open.

    Attributes:
        path: the file.
        input_shapes: as in `InputShapes`.
    """

    path: Path
    input_shapes: InputShapes = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a string is as good

    def __str__(self) -> str:
        return str(self.path)


def parse_shapes(texts: Iterable[str]) -> dict[str, Shape]:
    """Shapes as they are given on a command line: "1x3x640x640", or "images=1x3x640x640" for an input by its name.

    Raises ValueError, in one line, for anything else, and for a name that is given twice.
    """
    found: dict[str, Shape] = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        if not _SHAPE.fullmatch(sizes) or (equals and not name):
            forms = "1x3x640x640 or images=1x3x640x640"
            raise ValueError(f"--input-shape: sizes with x between them ({forms}), given {text!r:.80}")
        if name in found:
            raise ValueError(f"--input-shape: {name or 'a shape without a name'!r:.80} is given twice")
        found[name] = tuple(map(int, sizes.split("x")))
    return found
