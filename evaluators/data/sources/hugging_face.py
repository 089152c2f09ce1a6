"""Data sets in the format of Hugging Face's library `datasets`, from the hub or from a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import DataRequest, FoundData, LabelledImages
from .base import DataSource
from .imagefolder import TRAIN_NAMES, VALIDATION_NAMES

_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target")


@dataclass(frozen=True)
class _Rows:
    """The images in a column of a table, encoded."""

    table: Any
    column: str

    def __getitem__(self, index: int) -> bytes | Path:
        image = self.table[index][self.column] or {}  # None where there is none
        if image.get("bytes") is not None or image.get("path") is None:
            return image.get("bytes") or b""  # which no decoder takes for an image
        return Path(image["path"])

    def take(self, index: NDArray[np.intp]) -> _Rows:
        return _Rows(self.table.select(index), self.column)


@dataclass(frozen=True)
class HuggingFace(DataSource):
    """A data set of Hugging Face by its name, or a folder of one (`hf:NAME`, `hf:NAME:CONFIG`).

    Attributes:
        name: as the library's `load_dataset` takes it; a folder begins with "." or "/".
        config: which of the data set's configurations; None for its default.
    """

    name: str
    config: str | None = None

    @classmethod
    def named(cls, argument: str) -> HuggingFace:
        """The source for what stands after the colon of a specification."""
        name, colon, config = argument.partition(":")
        return cls(name, config if colon else None)

    @property
    def spec(self) -> str:
        return f"hf:{self.name}" if self.config is None else f"hf:{self.name}:{self.config}"

    def read(self, request: DataRequest) -> FoundData:
        try:
            import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore] # noqa: F401
        except ImportError:
            raise ValueError(f"{self.spec} needs the library `datasets`: pip install 'lownas[data]'") from None
        found = _load_dataset(self.name, self.config, self.spec)
        train = next((found[part] for part in TRAIN_NAMES if part in found), None)
        if train is None:
            raise ValueError(f"{self.spec}: no split 'train'; there are {', '.join(found)}")
        columns = _columns(train, self.spec)
        names, number = _classes(train, columns[1])
        # A published test part may hide its labels (-1 or none): then it is no part to judge by.
        held_out = next(
            (
                part
                for part in VALIDATION_NAMES
                if part in found and not {-1, None}.issuperset(found[part][columns[1]][:])
            ),
            None,
        )
        judged = f"validation: {held_out}" if held_out else "split by class"
        return FoundData(
            _labelled(train, columns, number, names, self.spec),
            _labelled(found[held_out], columns, number, names, self.spec) if held_out else None,
            names,
            {"origin": f"Hugging Face data set, columns {columns[0]!r} and {columns[1]!r}, {judged}"},
        )


def _classes(table: Any, column: str) -> tuple[tuple[str, ...], dict[Any, int]]:
    """The names of the classes in the order of the labels, and the label of each value that may occur."""
    import datasets

    kind = table.features[column]
    if isinstance(kind, datasets.ClassLabel):
        names = tuple(kind.names)
        return names, {index: index for index in range(len(names))}
    values = sorted({value for value in table[column][:] if value is not None})
    return tuple(map(str, values)), {value: index for index, value in enumerate(values)}


def _labelled(
    table: Any, columns: tuple[str, str], number: dict[Any, int], names: tuple[str, ...], spec: str
) -> LabelledImages:
    """The images and labels of one part of the data set."""
    import datasets

    image, label = columns
    values = table[label][:]
    if unknown := sorted({str(value) for value in values if value not in number}):
        raise ValueError(f"{spec}: {unknown[0]} in column {label!r} is no class; classes are {', '.join(names):.80}")
    files = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return LabelledImages(_Rows(files, image), np.array([number[value] for value in values], dtype=np.int64))


def _load_dataset(name: str, config: str | None, spec: str) -> Any:
    """The parts of a data set by their names; of what the library reads, nothing is executed."""
    import datasets

    if name == "pandas":  # the library's reader of pickles, which it would let loose on the current folder
        raise ValueError(f"{spec}: not a data set; of a folder called so say hf:./pandas")
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise ValueError(f"{spec}: no such folder")
    try:
        return datasets.load_dataset(name, config or None)
    # Whatever the library and the network raise: not found, no access, a script it would have to run, broken files.
    except Exception as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = " ".join(str(cause or error).split())
        raise ValueError(f"{spec}: cannot be loaded: {type(error).__name__}: {reason:.200}") from None


def _columns(table: Any, spec: str) -> tuple[str, str]:
    """The column of images and that of labels, by their types.

    Where no column is declared to hold classes, labels are integers or text: in a column with a usual name, or in the
    only one of such a type.
    """
    import datasets

    images = [column for column, kind in table.features.items() if isinstance(kind, datasets.Image)]
    labels = [column for column, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)]
    plain = [
        column
        for column, kind in table.features.items()
        if isinstance(kind, datasets.Value) and kind.dtype.strip("u").startswith(("int", "string", "large_string"))
    ]
    labels = labels or [column for column in _LABEL_COLUMNS if column in plain] or (plain if len(plain) == 1 else [])
    if not images or not labels:
        raise ValueError(
            f"{spec}: a column of images and one of labels are needed; there are {', '.join(table.column_names):.120}"
        )
    return images[0], labels[0]
