"""The looks at elements, kept in a file as they are taken, so that a run which broke off goes on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...predictors.latency.undisturbed import Look
from ...version import __version__
from ..trials.run_folder import write_text

FORMAT = 1
FAILED_COUNTS = 1000
"""Looks for which a failure counts: it is not tried again."""


@dataclass(frozen=True)
class ElementLook:
    """One look at a chain, or why there is none.

    Attributes:
        setting: the target's full name.
        key: of the element, its frame, or a whole network.
        copies: in the chain; 0 of frames and networks.
        latency_ms, disturbance, sentinel_ms: as in `Look`; None where it failed.
        failed: why the runtime did not run it; empty if it did.
    """

    setting: str
    key: str
    copies: int
    latency_ms: float | None = None
    disturbance: float = 0.0
    sentinel_ms: float | None = None
    failed: str = ""

    @property
    def look(self) -> Look | None:
        return None if self.latency_ms is None else Look(self.latency_ms, self.disturbance, self.sentinel_ms)


class LooksFile:
    """looks.jsonl: first what was measured where, then a line for each look.

    Attributes:
        about: the first line.
        looks: all so far.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Opens a file of looks, or makes one.

        Raises ValueError, in one line, if it is of another machine, runtime or target, or damaged.
        """
        self.path, self.about = path, {"format": FORMAT, "lownas": __version__, **about}
        self.looks: list[ElementLook] = []
        if path.exists():
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(self.about)

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        complete = [line for line in lines if line.endswith("\n")]
        try:
            rows = [json.loads(line) for line in complete]
            known = rows[0]
            if not isinstance(known, dict):
                raise TypeError
            self.looks = [ElementLook(**row) for row in rows[1:]]
        except (ValueError, TypeError, IndexError):
            raise ValueError(f"{self.path} is damaged or no file of looks: remove it, or name another --out") from None
        for name, value in self.about.items():
            if name != "lownas" and known.get(name) != value:
                raise ValueError(
                    f"{self.path} has looks of {name} {known.get(name)!r}, not of {value!r}: name another --out"
                )
        if len(complete) < len(lines):  # the last line was cut off
            write_text(self.path, "".join(complete))

    def add(self, look: ElementLook, *, keep: bool = True) -> None:
        """Adds a look; unless it is kept, the next run takes it again."""
        self.looks.append(look)
        if keep:
            self._append(asdict(look))

    def _append(self, row: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    def counts(self, setting: str) -> dict[str, int]:
        """How often each key was looked at in a setting; a failure counts as many."""
        found: dict[str, int] = defaultdict(int)
        for look in self.looks:
            if look.setting == setting:
                found[look.key] += FAILED_COUNTS if look.failed else 1
        return found
