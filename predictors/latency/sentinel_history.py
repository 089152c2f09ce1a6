"""What the sentinel took in earlier measurements on a device, by which one knows how fast that device can be."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .target import Target, user_profiles
from .undisturbed import SENTINEL_QUANTILE, sentinel_reference

KEPT = 200
"""Sessions of measurements that are regarded, the latest ones."""
FEWEST_LOOKS = 3
"""Looks that a session needs to be remembered: fewer say little of how fast the machine can be."""


class SentinelHistory:
    """One line for each session of measurements: the lower decile of its looks at the sentinel.

    Sessions count that were on the same device, with the same runtime and settings of the machine. The file is beside
    the target's profile; without it, or where it cannot be written, nothing is known.
    """

    def __init__(self, file: Path, fingerprint: Mapping[str, str], settings: Mapping[str, str]) -> None:
        self.file = file
        self._key = {"fingerprint": dict(fingerprint), "settings": dict(settings)}

    @classmethod
    def of(
        cls,
        target: Target,
        fingerprint: Mapping[str, str],
        settings: Mapping[str, str],
        profiles: str | Path | None = None,
    ) -> SentinelHistory:
        """The history of a target, beside its profile in `profiles` or in the user's own folder."""
        folder = Path(profiles) if profiles is not None else user_profiles()
        return cls(folder / f"{target.file_name.removesuffix('.json')}.sentinel.jsonl", fingerprint, settings)

    def known_ms(self) -> float | None:
        """The undisturbed sentinel by earlier sessions; None if there was none."""
        try:
            lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return None
        found: list[float] = []
        for line in lines[-KEPT:]:
            try:
                row = json.loads(line)
                if self._key.items() <= row.items() and float(row["sentinel_ms"]) > 0:
                    found.append(float(row["sentinel_ms"]))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # cut off, or another version's
        return float(np.quantile(found, SENTINEL_QUANTILE)) if found else None

    def add(self, sentinels_ms: Sequence[float]) -> None:
        """Remembers a session."""
        if len(sentinels_ms) < FEWEST_LOOKS:
            return
        row: dict[str, Any] = {
            "sentinel_ms": round(sentinel_reference(sentinels_ms) or 0.0, 5),
            "looks": len(sentinels_ms),
        }
        row |= {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({**self._key, **row}) + "\n")
                out.flush()
                os.fsync(out.fileno())
        except OSError:
            return  # what was measured must not be lost to it
