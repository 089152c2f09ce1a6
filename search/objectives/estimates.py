"""What is known of the trained candidates of a run: accuracies over seeds, and estimates for them and for others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...search_space.config import LowFormerConfig
from ..trials.records import EvaluationResult

MIN_REPEATS = 4  # candidates trained with two seeds, below which no rank correlation is given
MIN_FOR_SLOPE = 3  # trained candidates, below which accuracy is not related to the prior
INHERITED = 0.5  # of how far a parent is from what its prior lets expect, so much is expected of its children too


@dataclass(frozen=True)
class TrainedCandidate:
    """What is known of one trained candidate.

    Attributes:
        config: its architecture.
        prior_top1: what the ImageNet prior expects of it, in percent.
        accuracies: of its proxy trainings, 0 to 1, one for each seed; at least one.
    """

    config: LowFormerConfig
    prior_top1: float
    accuracies: tuple[float, ...]

    @property
    def config_id(self) -> str:
        """The id of its architecture."""
        return self.config.id

    @property
    def accuracy(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.accuracies))


def trained_candidates(results: Iterable[EvaluationResult]) -> list[TrainedCandidate]:
    """The trained candidates, in the order of their first trial; results reused from another trial count once."""
    seeds: dict[str, dict[int, float]] = {}
    first: dict[str, EvaluationResult] = {}
    for result in results:
        if result.status == "complete" and result.accuracy is not None and result.prior_top1 is not None:
            seeds.setdefault(result.config_id, {})[result.seed] = result.accuracy
            first.setdefault(result.config_id, result)
    return [
        TrainedCandidate(first[name].config, first[name].prior_top1 or 0.0, tuple(found.values()))
        for name, found in seeds.items()
    ]


@dataclass(frozen=True)
class SeedAgreement:
    """How far proxy trainings of the same network with two seeds agree.

    Attributes:
        repeats: candidates trained with two seeds.
        kendall_tau: rank correlation of the two seeds' accuracies over them, or None with fewer than `MIN_REPEATS`.
        noise: standard deviation of an accuracy between seeds, 0 to 1, or None without repeats.
    """

    repeats: int
    kendall_tau: float | None
    noise: float | None

    @classmethod
    def of(cls, candidates: Sequence[TrainedCandidate]) -> SeedAgreement:
        """That of the candidates that were trained with at least two seeds."""
        pairs = np.array([candidate.accuracies[:2] for candidate in candidates if len(candidate.accuracies) >= 2])
        if len(pairs) == 0:
            return cls(0, None, None)
        noise = float(np.sqrt(np.mean((pairs[:, 0] - pairs[:, 1]) ** 2) / 2))
        if len(pairs) < MIN_REPEATS:
            return cls(len(pairs), None, noise)
        from scipy.stats import kendalltau  # type: ignore[import-untyped, unused-ignore]

        tau = float(kendalltau(pairs[:, 0], pairs[:, 1]).statistic)
        return cls(len(pairs), tau if np.isfinite(tau) else 0.0, noise)  # not finite: all accuracies are equal


@dataclass(frozen=True)
class Top1Estimate:
    """ImageNet top-1 of a network, in percent, as it is known in a run.

    Attributes:
        top1: the median.
        low_top1, high_top1: the interval at coverage 0.9.
        lower_top1: the lower quantile that is maximized.
    """

    top1: float
    low_top1: float
    high_top1: float
    lower_top1: float


class Estimates:
    """The objective's values of the trained candidates, in percent, and what it expects of untrained ones.

    Attributes:
        trained: the candidates by their ids.
        learned: whether their values come from a surrogate of all trainings.
        agreement: of trainings with two seeds.
    """

    def __init__(
        self, trained: Sequence[TrainedCandidate], values: Mapping[str, float], *, learned: bool = False
    ) -> None:
        """`values` are what is maximized, in percent, by id.

        A line relates them to the prior, so that something can be expected of candidates that are not trained.
        """
        self.trained = {candidate.config_id: candidate for candidate in trained}
        self.learned = learned
        self.agreement = SeedAgreement.of(trained)
        self._values = {name: float(values[name]) for name in self.trained}
        prior = np.array([candidate.prior_top1 for candidate in trained])
        self._slope, self._intercept = line(prior, np.array(list(self._values.values())))

    def value(self, config_id: str) -> float:
        """What is maximized, of a trained candidate."""
        return self._values[config_id]

    def expected(self, parent_id: str, prior_top1: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) what is expected of untrained children of a trained parent, given their (n,) prior top-1 in percent.

        They inherit a part of their parent's departure from what the prior alone lets expect.
        """
        expected = self._intercept + self._slope * self.trained[parent_id].prior_top1
        departure = self._values[parent_id] - expected
        return self._intercept + self._slope * prior_top1 + INHERITED * departure

    def top1(self, config_id: str) -> Top1Estimate | None:
        """ImageNet top-1 of a trained candidate where that is maximized, else None."""
        return None


def line(prior: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[float, float]:
    """Slope (not negative) and intercept of (n,) values over (n,) prior."""
    if len(prior) == 0:
        return 0.0, 0.0
    centred = prior - prior.mean()
    spread = float((centred**2).sum())
    related = len(prior) >= MIN_FOR_SLOPE and spread > 0
    slope = max(float((centred * values).sum()) / spread, 0.0) if related else 0.0
    return slope, float(values.mean()) - slope * float(prior.mean())
