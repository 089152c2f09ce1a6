"""What a search found, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .exporters import export_config
from .findings import SearchFindings
from .report import write_report


@dataclass(frozen=True)
class SearchResult(SearchFindings):
    """What a search found: its attributes are those of `SearchFindings`."""

    def report(self) -> Path:
        """Writes report.html into the run folder: accuracy against latency, published models beside the candidates."""
        return write_report(self)

    def export(self, *formats: str, to: str | Path | None = None) -> list[Path]:
        """Writes the answer in these formats ("config", "onnx", ...); gives the files.

        Args:
            to: path without suffix; `best` in the run folder if None.

        Raises ValueError for an unknown format, or if there is no answer.
        """
        if self.answer is None:
            raise ValueError(f"the search in {self.run} has no answer to export")
        return export_config(self.answer.config, Path(to or self.run / "best"), formats=formats or ("config", "onnx"))
