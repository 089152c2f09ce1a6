"""What is known of one candidate after its trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...search_space.config import LowFormerConfig, one_line

Status = Literal["complete", "infeasible", "pruned", "failed"]
Role = Literal["explore", "exploit", "child", "sampled", "repeat", "enqueued"]
LatencySource = Literal["measured", "predicted"]


class EvaluationResult(BaseModel):
    """One line of results.jsonl.

    Attributes:
        trial: number of the trial, counted from 0.
        status: "complete" (trained to the end), "infeasible" (surely over the budget, not trained), "pruned" (stopped
            early) or "failed".
        reason: why it is not complete, or from which trial its result was reused; else empty.
        role: why it was proposed: "explore" (spans the sizes), "exploit" (the best for the budget), "child" (by what
            was trained so far), "sampled" (by a sampler of Optuna), "repeat" (a second seed of an earlier candidate) or
            "enqueued" (from outside).
        config: the candidate.
        config_id: its `id`.
        seed: of its training.
        accuracy: share of held-out images classified correctly after proxy training, 0 to 1; None if not trained.
        prior_top1: ImageNet top-1 in percent that the prior expects.
        objective: what is maximized, in percent, as far as known when the trial ended.
        latency_ms, low_ms, high_ms: latency with its interval at coverage 0.9.
        quantile_ms: the latency quantile that is held against the budget.
        latency_source: whether the latency was measured or predicted.
        macs, params: costs.
        seconds: how long the training took.
        history: what the evaluation reported on the way, one mapping per epoch or rung.
        details: what else it reported.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    macs: int
    params: int
    seconds: float = 0.0
    history: tuple[dict[str, Any], ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """One line."""
        return self.model_dump_json()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ValueError(f"not an evaluation result: {one_line(error)}") from None

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise ValueError(f"not an evaluation result: {one_line(error)}") from None
