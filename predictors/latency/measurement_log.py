"""What a calibration has measured so far, in memory and in a JSON Lines file that a broken calibration resumes from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...search_space import LowFormerConfig, OpGraph
from .fitting.samples import ConfigLook, Probe, Sample, block_size, merged
from .target import Target
from .undisturbed import Look, sentinel_reference, undisturbed, unevenness


class MeasurementLog:
    """The looks of one calibration, appended to a file as they come.

    If the file's last calibration has the same header and is not complete, its looks are taken over. Otherwise a new
    calibration begins at the end of the file. If its header says that it "adds", it has the looks of those before, as
    far as they were on the same device and with the same settings of the machine. Without a header the file's last
    calibration is only read.

    Attributes:
        file: the JSON Lines file.
        looks: by configuration id, in the order of their first look.
        probes: by name, each with its kernel times and the sentinel's time around it.
        sentinels_ms: what the sentinel took, in order.
        known_ms: its undisturbed time as known before.
        spaces: that the configurations were drawn from (`calibration.space_key`).
    """

    def __init__(self, file: Path, header: dict[str, Any] | None = None, known_ms: float | None = None) -> None:
        self.file = file
        self.known_ms = known_ms
        self.looks: dict[str, list[ConfigLook]] = {}
        self.probes: dict[str, tuple[Mapping[str, float], float | None]] = {}
        self.sentinels_ms: list[float] = []
        self.spaces: list[str] = []
        self._space, self._space_of = "", dict[str, str]()
        self._header: Mapping[str, Any] | None = None
        if header is None:
            self._read(file.read_text(encoding="utf-8"), {})
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        resuming = self._read(text, header)
        if text and not text.endswith("\n"):
            with file.open("a", encoding="utf-8") as out:
                out.write("\n")
        if not resuming:
            if not (header.get("adds") and self._header is not None and _same_machine(header, self._header)):
                self._clear()
            self._append(header)
            self._begin(header)

    def add_sentinel(self, sentinel_ms: float) -> None:
        """Keeps one look at the sentinel."""
        self.sentinels_ms.append(sentinel_ms)
        self._append({"sentinel_ms": sentinel_ms})

    def add_look(self, look: ConfigLook) -> None:
        """Keeps one look at a configuration."""
        self._keep(look)
        times = asdict(look.look)
        kernel_ms = None if look.kernel_ms is None else _rounded(look.kernel_ms)
        self._append({"config": look.config.to_dict(), **times, "kernel_ms": kernel_ms})

    def add_probe(self, name: str, kernel_ms: Mapping[str, float], sentinel_ms: float | None = None) -> None:
        """Keeps one look at a probe."""
        self.probes[name] = kernel_ms, sentinel_ms
        self._append({"probe": name, "sentinel_ms": sentinel_ms, "kernel_ms": _rounded(kernel_ms)})

    def complete(self, held_out_error: float) -> None:
        """Ends the calibration: the next one with this file begins anew."""
        self._append({"complete": True, "held_out_error": round(held_out_error, 5)})

    def count(self, config: LowFormerConfig) -> int:
        """How often a configuration was looked at."""
        return len(self.looks.get(config.id, ()))

    @property
    def reference_ms(self) -> float | None:
        """The sentinel's undisturbed time, as far as it is known by now."""
        return sentinel_reference(self.sentinels_ms, self.known_ms)

    def samples(self) -> list[Sample]:
        """One sample per configuration, from all looks at it."""
        reference_ms = self.reference_ms
        each = [undisturbed([one.look for one in looks], reference_ms) for looks in self.looks.values()]
        uneven = max(1.0, unevenness(each))
        return [merged(looks, reference_ms, uneven) for looks in self.looks.values()]

    def measured_probes(self, graphs: Mapping[str, OpGraph]) -> list[Probe]:
        """The probes that were measured, with their graphs by name, as fast as undisturbed."""
        found = []
        for name, (kernel_ms, sentinel_ms) in self.probes.items():
            if name in graphs:
                (factor,) = undisturbed([Look(1.0, 0.0, sentinel_ms)], self.reference_ms).factors.tolist()
                found.append(Probe(graphs[name], {key: factor * ms for key, ms in kernel_ms.items()}))
        return found

    def space_of(self, config: LowFormerConfig) -> str:
        """The space that a configuration was drawn from, of those in `spaces`."""
        return self._space_of[config.id]

    def to_fit(self, target: Target, graphs: Mapping[str, OpGraph]) -> tuple[list[Sample], str, int, list[Probe]]:
        """Samples, fusion, block and probes, as the fitting functions take them; `graphs` are the probes' by name."""
        samples = self.samples()
        return samples, target.fusion, block_size(samples, target.fusion), self.measured_probes(graphs)

    def _read(self, text: str, header: dict[str, Any]) -> bool:
        """Reads the file's last calibration. Returns whether it has this header and was not completed."""
        resuming = False
        for line in text.splitlines():
            try:
                record = json.loads(line)
                if "calibration" in record:
                    resuming = record == header
                    if not (record.get("adds") and self._header is not None and _same_machine(record, self._header)):
                        self._clear()
                    self._begin(record)
                elif "complete" in record:
                    resuming = False
                elif "config" in record:
                    config = LowFormerConfig.from_dict(record["config"])
                    sentinel_ms = None if record.get("sentinel_ms") is None else float(record["sentinel_ms"])
                    look = Look(float(record["latency_ms"]), float(record["disturbance"]), sentinel_ms)
                    self._keep(ConfigLook(config, look, record["kernel_ms"]))
                elif "probe" in record:
                    self.probes[str(record["probe"])] = record["kernel_ms"], record.get("sentinel_ms")
                else:
                    self.sentinels_ms.append(float(record["sentinel_ms"]))
            except (ValueError, KeyError, TypeError):
                continue  # cut off where the machine stopped; that one is measured again
        return resuming

    def _clear(self) -> None:
        self.looks, self.probes, self.sentinels_ms, self.spaces = {}, {}, [], []
        self._space_of = {}

    def _begin(self, header: Mapping[str, Any]) -> None:
        self._header = header
        self._space = str(header.get("space", ""))
        if self._space and self._space not in self.spaces:
            self.spaces.append(self._space)

    def _keep(self, look: ConfigLook) -> None:
        self._space_of.setdefault(look.config.id, self._space)
        self.looks.setdefault(look.config.id, []).append(look)

    def _append(self, record: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, separators=(",", ":")) + "\n")
            out.flush()
            os.fsync(out.fileno())


def _same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("calibration", "fingerprint", "settings"))


def _rounded(kernel_ms: Mapping[str, float]) -> dict[str, float]:
    return {key: round(ms, 5) for key, ms in kernel_ms.items()}
