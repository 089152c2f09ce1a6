"""The records of a run: proposals, what is known after a trial, at a rung and of a latency measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...search_space.config import LowFormerConfig, one_line

Status = Literal["complete", "infeasible", "pruned", "failed", "predicted"]
Role = Literal["explore", "exploit", "scaled", "child", "sampled", "repeat", "enqueued", "control"]
LatencySource = Literal["measured", "predicted"]
MeasurementRole = Literal["anchor", "leader", "finalist"]

# Controls are numbered from here on. They are no trials of the study, whose numbers are as they would be without them.
FIRST_CONTROL = 1_000_000


@dataclass(frozen=True)
class Proposal:
    """A candidate for the next trial.

    Attributes:
        role: why it is proposed, as in `EvaluationResult`.
        seed: of its training.
        attrs: what a sampler of Optuna notes of it (a generation, say), as JSON values.
    """

    config: LowFormerConfig
    role: Role
    seed: int
    attrs: Mapping[str, Any] = field(default_factory=dict)


class _Record(BaseModel):
    """A frozen record with a JSON round trip; unknown keys raise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """One line."""
        return self.model_dump_json()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError, in one line, for unknown keys or impossible values."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ValueError(f"not {cls._what()}: {one_line(error)}") from None

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """As `from_dict`."""
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise ValueError(f"not {cls._what()}: {one_line(error)}") from None

    @classmethod
    def _what(cls) -> str:
        return "a record of a run"


class RungEntry(_Record):
    """What a trial had reached at a rung: one line of rungs.jsonl.

    Attributes:
        trial: number of the trial.
        rung: counted from 0; the end of the training is no rung of this kind.
        share: of the whole training that was done.
        accuracy: score on the held-out images then, 0 to 1.
        seconds: that this part of the training took.
        latency_ms: what was predicted when the trial began; None in files of early versions.
        role, seed, config: of the trial, as in `EvaluationResult`.
    """

    trial: int = Field(ge=0)
    rung: int = Field(ge=0)
    share: float = Field(gt=0, lt=1)
    accuracy: float
    seconds: float
    latency_ms: float | None = None
    role: Role
    seed: int
    config: LowFormerConfig

    @classmethod
    def _what(cls) -> str:
        return "an entry of a rung"


class MeasuredRound(_Record):
    """One look at a network's latency in a run, in a session of its own: one line of measured.jsonl.

    Attributes:
        config_id: of the network that was measured.
        round: counted from 0 for each network.
        median_ms, iqr_ms, p90_ms, p99_ms: of the timed runs, beside whatever else ran meanwhile.
        undisturbed_ms: their lower decile, without what other processes were given in between.
        sentinel_ms: the sentinel's latency around the look.
        look: everything that was noted of it: times, state of the machine.
        role: "anchor" (before the first training), "leader" (half-way) or "finalist" (at the end).
        target: full name of the setting.
        config: the network; missing in files of early versions, as are the figures that may be None.
    """

    config_id: str
    round: int = Field(ge=0)
    median_ms: float = Field(gt=0, allow_inf_nan=False)
    iqr_ms: float = 0.0
    p90_ms: float | None = None
    p99_ms: float | None = None
    undisturbed_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    sentinel_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    look: dict[str, Any] | None = None
    role: MeasurementRole | None = None
    target: str = ""
    config: LowFormerConfig | None = None

    @classmethod
    def _what(cls) -> str:
        return "a latency measurement"


class EvaluationResult(_Record):
    """What is known of one candidate after its trial: one line of results.jsonl.

    Attributes:
        trial: number of the trial, counted from 0; of a control from `FIRST_CONTROL`.
        status: "complete" (trained to the end), "infeasible" (predicted to be over the budget, so not trained),
            "pruned" (stopped early at a rung), "failed", or "predicted" (nothing trains in the run; it is one of the
            best predicted networks, and no trial).
        reason: why it is not complete, or from which trial its result was reused; else empty.
        role: why it was proposed: "explore" (one of those that span the sizes), "exploit" (the best for the budget
            before anything is trained), "scaled" (a published model scaled to the budget), "child" (by what was trained
            so far), "sampled" (by a sampler of Optuna), "repeat" (a second seed of an earlier candidate), "enqueued"
            (from outside) or "control" (a published model, trained to see how far such trainings agree with what was
            published).
        config: the candidate.
        config_id: its `id`.
        seed: of its training.
        accuracy: score on the held-out images after the proxy training, 0 to 1 (for classification the share that is
            classified correctly); None if not trained.
        prior_top1: ImageNet top-1 in percent that the prior expects.
        objective: what is maximized, in percent, as far as known when the trial ended.
        latency_ms, low_ms, high_ms: latency with its interval at coverage 0.9.
        quantile_ms: the latency quantile that is held against the budget.
        latency_source: whether the latency was measured in this run before the trial ended, or predicted.
        predicted_ms: what was predicted when the trial began; None in early files, where `latency_ms` is that.
        macs, params: costs.
        seconds: how long the training took.
        history: what the evaluation reported on the way, one mapping per epoch or rung.
        details: what else it reported.
    """

    trial: int = Field(ge=0)
    status: Status
    reason: str = ""
    role: Role = "enqueued"
    config: LowFormerConfig
    config_id: str
    seed: int
    accuracy: float | None = None
    prior_top1: float | None = None
    objective: float | None = None
    latency_ms: float
    low_ms: float
    high_ms: float
    quantile_ms: float
    latency_source: LatencySource = "predicted"
    predicted_ms: float | None = None
    macs: int
    params: int
    seconds: float = 0.0
    history: tuple[dict[str, Any], ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def _what(cls) -> str:
        return "an evaluation result"
