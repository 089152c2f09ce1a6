"""Data sets in the format of Hugging Face's library `datasets`, from the hub or from a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import DataRequest, FoundData, LabelledImages
from .base import DataSource
from .imagefolder import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES

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
        found, there = self._parts(test=False)
        train, columns, number, names = self._train(found)
        validation = next(
            (name for name in VALIDATION_NAMES if name in found and _labels_given(found[name], columns[1])), None
        )
        test = next((name for name in TEST_NAMES if name in there), None)
        parts = {"test": f"the split {test!r}, if its labels are given" if test else "none"}
        if validation:
            parts |= {"train": "the split 'train'", "validation": f"the split {validation!r}"}
        origin = f"Hugging Face data set, columns {columns[0]!r} and {columns[1]!r}"
        return FoundData(
            _labelled(train, columns, number, names, self.spec),
            _labelled(found[validation], columns, number, names, self.spec) if validation else None,
            names,
            {"origin": origin, "parts": parts},
        )

    def read_test(self, request: DataRequest) -> LabelledImages | None:
        found, _ = self._parts(test=True)
        test = next((found[name] for name in TEST_NAMES if name in found), None)
        if test is None:
            return None
        _, columns, number, names = self._train(self._parts(test=False)[0])
        if columns[1] not in test.column_names or not _labels_given(test, columns[1]):
            return None
        return _labelled(test, columns, number, names, self.spec)

    def _parts(self, *, test: bool) -> tuple[dict[str, Any], list[str]]:
        """The splits for testing, or all others, and the names of all that are there."""
        try:
            import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore] # noqa: F401
        except ImportError:
            raise ValueError(f"{self.spec} needs the library `datasets`: pip install 'lownas[data]'") from None
        return _load_dataset(self.name, self.config, self.spec, test)

    def _train(self, found: dict[str, Any]) -> tuple[Any, tuple[str, str], dict[Any, int], tuple[str, ...]]:
        """The split to train on, its columns of images and labels, the label of each value, and the classes."""
        train = next((found[part] for part in TRAIN_NAMES if part in found), None)
        if train is None:
            raise ValueError(f"{self.spec}: no split 'train'; there are {', '.join(found)}")
        columns = _columns(train, self.spec)
        names, number = _classes(train, columns[1])
        return train, columns, number, names


def _labels_given(table: Any, column: str) -> bool:
    """Whether a split has labels: those of a competition are hidden (-1 or none)."""
    return not {-1, None}.issuperset(table[column][:])


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


def _load_dataset(name: str, config: str | None, spec: str, test: bool) -> tuple[dict[str, Any], list[str]]:
    """The splits for testing or all others by their names, and the names of all. Nothing that is read is executed."""
    import datasets

    if name == "pandas":  # the library's reader of pickles, which it would let loose on the current folder
        raise ValueError(f"{spec}: not a data set; of a folder called so say hf:./pandas")
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise ValueError(f"{spec}: no such folder")
    try:
        builder = datasets.load_dataset_builder(name, config or None)
        there = list(builder.config.data_files or {})
        others = [split for split in there if (split in TEST_NAMES) != test]
        if others and not Path(builder.cache_dir).is_dir():
            # The library prepares a data set as a whole. What leaves splits out is prepared in a place of its own.
            place = Path(datasets.config.HF_DATASETS_CACHE, "lownas", "test" if test else "without_test")
            builder = datasets.load_dataset_builder(name, config or None, cache_dir=str(place))
            for split in others:
                del builder.config.data_files[split]
        if there and len(others) == len(there):
            return {}, there
        builder.download_and_prepare(verification_mode="no_checks")
        splits = list(builder.info.splits or {})
        wanted = [split for split in splits if (split in TEST_NAMES) == test]
        return {split: builder.as_dataset(split=split) for split in wanted}, there or splits
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
