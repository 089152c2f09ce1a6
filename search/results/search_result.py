"""What a search found, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .exporters import export_config
from .findings import SearchFindings
from .report import write_report
from .trained import WEIGHTS, load_trained


@dataclass(frozen=True)
class SearchResult(SearchFindings):
    """What a search found: its attributes are those of `SearchFindings`."""

    def report(self) -> Path:
        """Writes report.html into the run folder: accuracy against latency, published models beside the candidates."""
        return write_report(self)

    def export(self, *formats: str, to: str | Path | None = None) -> list[Path]:
        """Writes the answer in these formats ("config", "onnx", "weights", ...); gives the files.

        With the weights of its final training, where it had one; else with fresh ones.

        Args:
            to: path without suffix; `best` in the run folder if None.

        Raises ValueError for an unknown format, or if there is no answer.
        """
        if self.answer is None:
            raise ValueError(f"the search in {self.run} has no answer to export")
        stem, formats = Path(to or self.run / "best"), formats or ("config", "onnx")
        if self.final is None:
            return export_config(self.answer.config, stem, formats=formats)
        weights, about = load_trained(self.run / WEIGHTS)
        return export_config(self.final.config, stem, formats=formats, model=weights.model, about=about)
