"""Pictures that a table lists, with their labels."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..records import DataRequest, FoundData, ImageFiles, LabelledImages
from .base import DataSource
from .imagefolder import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES

FILE_COLUMNS = (
    "file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "image_file", "img",
)  # fmt: skip
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name", "label_name", "y")
SPLIT_COLUMNS = ("split", "subset", "part", "set", "partition")
"""What columns are called, in the order in which they are looked for; capitals and spaces around do not matter."""
_DELIMITERS = ",;\t|"
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_MOST_BYTES = 2**30
_NUMBER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Table(DataSource):
    """A text file with a line for each picture (`csv:FILE`): its file, its label, and perhaps its part.

    Columns are found by name (`FILE_COLUMNS`, `LABEL_COLUMNS`, `SPLIT_COLUMNS`). Files are relative to the table's
    folder. Commas, semicolons, tabs and bars separate, lines end in any way, and text is UTF-8 unless a byte-order mark
    says otherwise. Labels are names of classes; numbers are put in their order.
    """

    file: str

    @property
    def spec(self) -> str:
        return f"csv:{self.file}"

    def read(self, request: DataRequest) -> FoundData:
        rows = self._rows()
        train, validation = rows.of(TRAIN_NAMES), rows.of(VALIDATION_NAMES)
        if not train:
            raise ValueError(f"{self.spec}: no picture to train on ({rows.said})")
        names = _classes([label for _, label in train])
        parts = {"test": "rows of the table" if rows.of(TEST_NAMES) else "none"}
        if validation:
            parts |= {"train": "rows of the table", "validation": "rows of the table"}
        held = self._labelled(validation, names) if validation else None
        return FoundData(self._labelled(train, names), held, names, {"origin": "table of pictures", "parts": parts})

    def read_test(self, request: DataRequest) -> LabelledImages | None:
        rows = self._rows()
        test = rows.of(TEST_NAMES)
        return self._labelled(test, _classes([label for _, label in rows.of(TRAIN_NAMES)])) if test else None

    def _labelled(self, rows: Sequence[tuple[str, str]], names: tuple[str, ...]) -> LabelledImages:
        number = {name: index for index, name in enumerate(names)}
        if unknown := sorted({label for _, label in rows} - set(names)):
            raise ValueError(f"{self.spec}: {unknown[0]!r:.80} is no class of the training pictures")
        labels = np.array([number[label] for _, label in rows], dtype=np.int64)
        return LabelledImages(ImageFiles.of(Path(self.file).parent, (file for file, _ in rows)), labels)

    def _rows(self) -> _Rows:
        text = self._text()
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        try:
            header, *lines = [row for row in reader if any(cell.strip() for cell in row)] or [[]]
        except csv.Error as error:
            raise ValueError(f"{self.spec}: not a table: {error}") from None
        names = [_in_one_line(name.strip("\ufeff")).lower() for name in header]
        columns = {}
        for what, known in (("file", FILE_COLUMNS), ("label", LABEL_COLUMNS), ("split", SPLIT_COLUMNS)):
            columns[what] = next((names.index(name) for name in known if name in names), None)
            if columns[what] is None and what != "split":
                raise ValueError(
                    f"{self.spec}: no column for the {what} ({', '.join(known[:6])}, ...); "
                    f"there are {', '.join(names):.120}"
                )
        return self._parted(lines, columns)

    def _parted(self, lines: Sequence[Sequence[str]], columns: Mapping[str, int | None]) -> _Rows:
        """The rows by the part that they belong to."""
        file, label, split = (columns[what] for what in ("file", "label", "split"))
        assert file is not None and label is not None
        known = (*TRAIN_NAMES, *VALIDATION_NAMES, *TEST_NAMES)
        by_part: dict[str, list[tuple[str, str]]] = {}
        for number, row in enumerate(lines, start=2):
            if len(row) <= max(file, label, split or 0):
                raise ValueError(f"{self.spec}: row {number} has {len(row)} columns, fewer than the header")
            part = TRAIN_NAMES[0] if split is None else row[split].strip().lower()
            if part not in known:
                raise ValueError(f"{self.spec}: row {number} is of part {part!r:.40}; known are {', '.join(known)}")
            name = row[file].strip()
            if not name or "\0" in name:
                raise ValueError(f"{self.spec}: row {number} names no file")
            if not (called := _in_one_line(row[label])):
                raise ValueError(f"{self.spec}: row {number} has no label")
            by_part.setdefault(part, []).append((name.replace("\\", "/"), called))
        return _Rows(by_part)

    def _text(self) -> str:
        path = Path(self.file)
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ValueError(f"{self.spec}: more than {_MOST_BYTES} bytes")
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{self.spec}: {error.strerror or error}") from None
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.spec}: not text in {encoding} ({error.reason} at byte {error.start})") from None


@dataclass(frozen=True)
class _Rows:
    """Files and labels by the name of their part."""

    by_part: Mapping[str, list[tuple[str, str]]]

    def of(self, names: Sequence[str]) -> list[tuple[str, str]]:
        return [row for name in names for row in self.by_part.get(name, ())]

    @property
    def said(self) -> str:
        return ", ".join(f"{len(rows)} of {part}" for part, rows in self.by_part.items()) or "no rows"


def _in_one_line(cell: str) -> str:
    """A name without spaces around it, and with single ones between its words: a quoted cell may have several lines."""
    return " ".join(cell.split())


def _delimiter(text: str) -> str:
    """What separates columns: of those that are known, the one that the header has most of."""
    header = text.lstrip().splitlines()[0] if text.strip() else ""
    return max(_DELIMITERS, key=header.count)


def _classes(labels: Sequence[str]) -> tuple[str, ...]:
    """Names of classes, sorted; numbers by their values."""
    names = set(labels)
    numeric = all(_NUMBER.fullmatch(name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name)) if numeric else sorted(names))
