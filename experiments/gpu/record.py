"""What a step has found: a JSON file that is written anew after every number, completely or not at all."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DIGITS = 6  # significant ones that numbers keep
PARTS = 5  # of a step, the last ones, that tell what the next one takes


class Skipped(Exception):
    """A step cannot run here; the message says why, in one line."""


class Record:
    """The record of one step, in FOLDER/STEP.json.

    Attributes:
        folder: of all results.
        document: what is written.
    """

    def __init__(self, step: str, folder: Path, limit_s: float, **about: Any) -> None:
        self.folder = folder
        self._path = folder / f"{step}.json"
        self._begin, self._limit_s = time.monotonic(), limit_s
        self._took_s: list[float] = []
        self.document: dict[str, Any] = {"step": step, "status": "running", "limit_s": limit_s, **about}
        self.note()

    @property
    def left_s(self) -> float:
        """Seconds until the step is ended."""
        return self._limit_s - (time.monotonic() - self._begin)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around one part of the step, by which it is planned whether there is time for another one."""
        begin = time.monotonic()
        yield
        self._took_s.append(time.monotonic() - begin)

    def has_time(self, margin_s: float) -> bool:
        """Whether another part is likely to end before the step does: the last ones' median is what one takes."""
        typical = statistics.median(self._took_s[-PARTS:]) if self._took_s else 0.0
        return self.left_s >= margin_s + typical

    def note(self, **facts: Any) -> None:
        """Keeps facts under their names, in the place of former ones."""
        self.document |= facts
        self.document["seconds"] = round(time.monotonic() - self._begin, 2)
        write_json(self._path, self.document)

    def add(self, row: Mapping[str, Any], to: str = "rows") -> None:
        """Keeps one more row of a list."""
        self.note(**{to: [*self.document.get(to, []), dict(row)]})

    def end(self, status: str, **facts: Any) -> None:
        """Keeps what became of the step: "done", "skipped", "timed out" or "failed"."""
        self.note(status=status, **facts)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a file completely or not at all; numbers that are not finite become null."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(_plain(document), file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """JSON values; numbers of numpy and torch become Python's, everything unknown its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def one_line(error: BaseException) -> str:
    """An exception as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
