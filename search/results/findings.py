"""What a search found, as data: the answer, the front, all candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..latency.correction import Predictor
from ..objectives.base import Objective
from ..objectives.estimates import SeedAgreement
from ..objectives.pareto import pareto_front
from ..settings import SearchSettings
from ..trials.candidate import Candidate
from .published import PublishedRow
from .trained import TrainedAnswer


@dataclass(frozen=True)
class SearchFindings:
    """What a search found.

    Attributes:
        run: the run folder.
        settings: of the search.
        objective: what was maximized.
        answer: the best candidate within the budget, or None (there are none yet, or nothing fits when measured).
        candidates: all that were trained, or where nothing trains the best predicted ones; the best objective first.
        agreement: of proxy trainings with two seeds, measured in this run.
        notes: what a reader must know, in plain sentences.
        counts: how many results of each status there are.
        interrupted: whether it was stopped before all trials were done, by Ctrl-C, the time budget or a callback.
        seconds: that the search took.
        cut_short: whether Ctrl-C stopped it; then nothing is begun any more.
        final: the answer after its final training; None where it had none.
        predictor: of the target's latency, as it was given.
        published: the published models as this run sees them, the fastest first.
    """

    run: Path
    settings: SearchSettings
    objective: Objective
    answer: Candidate | None
    candidates: tuple[Candidate, ...]
    agreement: SeedAgreement
    notes: tuple[str, ...]
    counts: Mapping[str, int]
    interrupted: bool
    seconds: float
    predictor: Predictor
    published: tuple[PublishedRow, ...] = ()
    cut_short: bool = False
    final: TrainedAnswer | None = None

    @property
    def title(self) -> str:
        """What was looked for, in a few words."""
        settings = self.settings
        return f"{settings.target} within {settings.latency_budget_ms:.4g} ms{self.objective.goal.title}"

    @property
    def trained(self) -> bool:
        """Whether any candidate was trained; else all are predicted only."""
        return any(candidate.seeds for candidate in self.candidates)

    @property
    def front(self) -> list[Candidate]:
        """The candidates within the budget that no other one beats in objective without being slower, fastest first."""
        return pareto_front(self.candidates, self.settings.latency_budget_ms)

    @property
    def shown(self) -> list[Candidate]:
        """The candidates of most interest: the answer and the next best, or the front where that was looked for."""
        return self.objective.goal.shown(self.candidates, self.answer, self.settings.latency_budget_ms)

    def to_records(self) -> list[dict[str, Any]]:
        """One flat mapping for each candidate, the best first: `pandas.DataFrame(result.to_records())`."""
        front = {candidate.config.id for candidate in self.front}
        records = []
        for candidate in self.candidates:
            record = {name: value for name, value in candidate.to_dict().items() if name != "config"}
            record["resolution"] = candidate.config.resolution
            record["front"] = candidate.config.id in front
            record["answer"] = candidate == self.answer
            records.append(record)
        return records

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values: what `--json` prints."""
        return {
            "run": str(self.run),
            "target": self.settings.target,
            "latency_budget_ms": self.settings.latency_budget_ms,
            "confidence": self.settings.confidence,
            "data": self.settings.data,
            "objective": self.objective.name,
            "answer": self.answer.to_dict() if self.answer else None,
            "front": [candidate.config.id for candidate in self.front],
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "counts": dict(self.counts),
            "notes": list(self.notes),
            "interrupted": self.interrupted,
            "seconds": self.seconds,
            "trained": self.final.to_dict() if self.final else None,
        }
