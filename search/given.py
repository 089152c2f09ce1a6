"""Networks as people name them on a command line: published models, config files and run folders, ONNX files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..search_space import PRESETS, LowFormerConfig, OnnxFile
from ..search_space.graph.shaped_file import parse_shapes
from .devices import preset, read_config


def given_networks(
    configs: Sequence[Path] | None,
    presets: Sequence[str] | None,
    onnx: Sequence[Path] | None,
    input_shapes: Sequence[str] | None = None,
) -> list[tuple[str, LowFormerConfig | OnnxFile]]:
    """What was named, with the names to show. Raises ValueError, in one line that begins with the option."""
    items: list[tuple[str, LowFormerConfig | OnnxFile]] = []
    for name in presets or ():
        with naming("--preset"):
            items.extend(PRESETS.items() if name == "all" else [(name, preset(name))])
    for path in configs or ():
        with naming("--config"):
            items.append((str(path), read_config(path)))
    shapes = parse_shapes(input_shapes or ())
    if shapes and not onnx:
        raise ValueError("--input-shape: for ONNX files (--onnx), of which none is given")
    for path in onnx or ():
        if not path.is_file():
            raise ValueError(f"--onnx: no file at {path}")
        items.append((str(path), OnnxFile(path, shapes)))
    return items


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Puts the name of the option before what is wrong with its value."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
