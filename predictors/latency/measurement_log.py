"""What a calibration has measured so far, in memory and in a JSON Lines file that a broken calibration resumes from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...search_space import LowFormerConfig, OpGraph
from .fitting.samples import QUIET_DISTURBANCE, Probe, Sample, merged

MAX_SENTINEL_SWING = 0.1
"""Relative difference of the sentinel's fastest and slowest measurement, above which a machine counts as disturbed."""


class MeasurementLog:
    """The measurements of one calibration, appended to a file as they come.

    If the file's last calibration has the same header and is not complete, its measurements are taken over. Otherwise
    a new calibration begins at the end of the file.

    Attributes:
        file: the JSON Lines file.
        measurements: by configuration id, in the order of their first measurement.
        probes: kernel times by name of the probe.
        sentinels_ms: undisturbed times of the sentinel, in order.
    """

    def __init__(self, file: Path, header: dict[str, Any]) -> None:
        self.file = file
        self.measurements: dict[str, list[Sample]] = {}
        self.probes: dict[str, Mapping[str, float]] = {}
        self.sentinels_ms: list[float] = []
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        resuming = self._read(text, header)
        if text and not text.endswith("\n"):
            with file.open("a", encoding="utf-8") as out:
                out.write("\n")
        if not resuming:
            self._clear()
            self._append(header)

    def add_sentinel(self, sentinel_ms: float) -> None:
        """Keeps one measurement of the sentinel."""
        self.sentinels_ms.append(sentinel_ms)
        self._append({"sentinel_ms": sentinel_ms})

    def add_measurement(self, measurement: Sample) -> None:
        """Keeps one measurement of a configuration."""
        self._keep(measurement)
        times = {"latency_ms": measurement.latency_ms, "disturbance": measurement.disturbance}
        kernel_ms = None if measurement.kernel_ms is None else _rounded(measurement.kernel_ms)
        self._append({"config": measurement.config.to_dict(), **times, "kernel_ms": kernel_ms})

    def add_probe(self, name: str, kernel_ms: Mapping[str, float]) -> None:
        """Keeps the measurement of a probe."""
        self.probes[name] = kernel_ms
        self._append({"probe": name, "kernel_ms": _rounded(kernel_ms)})

    def complete(self, held_out_error: float) -> None:
        """Ends the calibration: the next one with this file begins anew."""
        self._append({"complete": True, "held_out_error": round(held_out_error, 5)})

    def count(self, config: LowFormerConfig) -> int:
        """How often a configuration was measured."""
        return len(self.measurements.get(config.id, ()))

    @property
    def disturbed(self) -> bool:
        """Whether other work on the machine showed, in the measurements themselves or in the sentinel's swing."""
        disturbances = [each.disturbance for measurements in self.measurements.values() for each in measurements]
        swing = float(np.ptp(self.sentinels_ms)) / min(self.sentinels_ms)
        return float(np.median(disturbances)) > QUIET_DISTURBANCE or swing > MAX_SENTINEL_SWING

    def samples(self) -> list[Sample]:
        """One sample per configuration, merged from all its measurements."""
        return [merged(measurements) for measurements in self.measurements.values()]

    def measured_probes(self, graphs: Mapping[str, OpGraph]) -> list[Probe]:
        """The probes that were measured, with their graphs by name."""
        return [Probe(graphs[name], kernel_ms) for name, kernel_ms in self.probes.items() if name in graphs]

    def _read(self, text: str, header: dict[str, Any]) -> bool:
        """Reads the file's last calibration. Returns whether it has this header and was not completed."""
        resuming = False
        for line in text.splitlines():
            try:
                record = json.loads(line)
                if "calibration" in record:
                    resuming = record == header
                    self._clear()
                elif "complete" in record:
                    resuming = False
                elif "sentinel_ms" in record:
                    self.sentinels_ms.append(float(record["sentinel_ms"]))
                elif "probe" in record:
                    self.probes[str(record["probe"])] = record["kernel_ms"]
                else:
                    config = LowFormerConfig.from_dict(record["config"])
                    times = float(record["latency_ms"]), float(record["disturbance"])
                    self._keep(Sample(config, *times, record["kernel_ms"]))
            except (ValueError, KeyError, TypeError):
                continue  # cut off where the machine stopped; that one is measured again
        return resuming

    def _clear(self) -> None:
        self.measurements, self.probes, self.sentinels_ms = {}, {}, []

    def _keep(self, measurement: Sample) -> None:
        self.measurements.setdefault(measurement.config.id, []).append(measurement)

    def _append(self, record: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, separators=(",", ":")) + "\n")
            out.flush()
            os.fsync(out.fileno())


def _rounded(kernel_ms: Mapping[str, float]) -> dict[str, float]:
    return {key: round(ms, 5) for key, ms in kernel_ms.items()}
