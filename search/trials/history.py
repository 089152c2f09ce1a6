"""What has happened to every trial of a run so far, in memory: all that strategies and objectives decide by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...search_space.config import LowFormerConfig
from .records import EvaluationResult, Proposal, Role, RungEntry


@dataclass(frozen=True)
class AskedTrial:
    """What the study was told of a trial when it began, which Optuna's samplers want to know again.

    Attributes:
        params: the choices of the space.
        attrs: the sampler's own notes.
        constraints: by how much the candidate exceeds each limit, as a share of it.
    """

    params: Mapping[str, Any]
    attrs: Mapping[str, Any]
    constraints: Mapping[str, float]


class History:
    """All trials so far. Counts are kept as trials come, so that no decision walks through all of them.

    Attributes:
        results: by trial, in the order of their numbers; without controls.
        controls: results of the published models that are trained beside the candidates, by their numbers. They count
            nowhere else but in `open` and `roles`.
        rungs: by trial what it had reached at each rung, in order.
        open: by trial what was asked for and has no result yet: it trains, or waits at a rung.
        asked: by trial what the study was told when it began.
        roles: how many trials of each role are complete, were stopped at a rung, or are open.
        statuses: how many results of each status there are.
        tried: by configuration id, how many trials it has had or has.
        rung_log, result_log: the entries at rungs, and the results, in the order in which they came.
    """

    def __init__(self) -> None:
        self.results: dict[int, EvaluationResult] = {}
        self.controls: dict[int, EvaluationResult] = {}
        self.rungs: dict[int, list[RungEntry]] = {}
        self.open: dict[int, Proposal] = {}
        self.asked: dict[int, AskedTrial] = {}
        self.roles, self.statuses, self.tried = Counter[str](), Counter[str](), Counter[str]()
        self.rung_log: list[RungEntry] = []
        self.result_log: list[EvaluationResult] = []

    def load(self, results: Iterable[EvaluationResult], rungs: Iterable[RungEntry]) -> None:
        """Starts from what an earlier process left, each in the order in which it came."""
        for entry in rungs:
            self.add_rung(entry)
        for result in results:
            if result.role == "control":
                self._add_control(result)
                continue
            self.results[result.trial] = result
            self.result_log.append(result)
            self._count(result)
        self.results = dict(sorted(self.results.items()))

    def begin(self, number: int, proposal: Proposal) -> None:
        """Notes that a trial is open from now on."""
        self.open[number] = proposal
        self.roles[proposal.role] += 1
        self.tried[proposal.config.id] += proposal.role != "control"

    def abandon(self, number: int) -> None:
        """Forgets that a trial was begun; one that is not open stays as it is."""
        if (proposal := self.open.pop(number, None)) is not None:
            self.roles[proposal.role] -= 1
            self.tried[proposal.config.id] -= proposal.role != "control"

    def add_rung(self, entry: RungEntry) -> None:
        """Notes what a trial has reached at a rung."""
        self.rung_log.append(entry)
        self.rungs.setdefault(entry.trial, []).append(entry)

    def add_result(self, result: EvaluationResult) -> None:
        """Notes the result of a trial, which is open no more."""
        if result.role == "control":
            self.abandon(result.trial)
            self._add_control(result)
            return
        last = next(reversed(self.results), -1)
        self.results[result.trial] = result
        self.result_log.append(result)
        self.abandon(result.trial)
        self._count(result)
        if result.trial < last:
            self.results = dict(sorted(self.results.items()))

    def _add_control(self, result: EvaluationResult) -> None:
        self.controls[result.trial] = result
        self.roles["control"] += result.status == "complete"

    def _count(self, result: EvaluationResult) -> None:
        self.statuses[result.status] += 1
        self.tried[result.config_id] += 1
        if result.status in ("complete", "pruned"):
            self.roles[result.role] += 1

    def complete(self) -> list[EvaluationResult]:
        """The results of trials that were trained to the end, in the order of their numbers."""
        return [result for result in self.results.values() if result.status == "complete"]

    def with_controls(self) -> list[EvaluationResult]:
        """The results of all trials and of all controls."""
        return [*self.results.values(), *self.controls.values()]

    def of_status(self, status: str) -> list[EvaluationResult]:
        """The results with that status, in the order of their trials' numbers."""
        return [result for result in self.results.values() if result.status == status]

    def proposed(self, *roles: Role) -> list[LowFormerConfig]:
        """The candidates that were proposed in these roles so far, finished or under way."""
        done = [result.config for result in self.results.values() if result.role in roles]
        return done + [proposal.config for proposal in self.open.values() if proposal.role in roles]

    def proposed_for_budget(self) -> list[LowFormerConfig]:
        """The candidates that were to exploit the budget so far, finished or under way."""
        return self.proposed("exploit", "scaled", "child")

    def configs(self) -> list[LowFormerConfig]:
        """The configurations of all trials that have a result or are open."""
        return [result.config for result in self.results.values()] + [p.config for p in self.open.values()]
