"""What the trainings of a run tell of accuracy: a surrogate of them all, kept up to date."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...predictors.accuracy.surrogate import LONGER, AccuracySurrogate, Observation, accuracy
from ...search_space.config import LowFormerConfig
from ...search_space.space import SearchSpace
from ..settings import SearchSettings
from ..strategies.rungs import Rungs
from ..trials.history import Journal
from ..trials.records import EvaluationResult

Floats = NDArray[np.float64]

HYPERPARAMETER_OBSERVATIONS = 150  # they change little with more, and a fit costs the cube
ENOUGH = 4  # networks trained, at least to a rung; fewer are compared by their own trainings alone


class Experience:
    """Of the run whose `journal` is given."""

    def __init__(self, settings: SearchSettings, space: SearchSpace, journal: Journal) -> None:
        self.settings, self.space, self.journal = settings, space, journal
        self._failed, self._counts = 0, (0, 0)  # as of what was observed, and how much of the logs that is
        self._observed: tuple[list[Observation], list[Observation]] = ([], [])
        self._encoded: dict[str, tuple[Floats, Floats]] = {}  # what surrogates know of configurations, by id
        self._fitted: tuple[tuple[int, ...], Floats] | None = None  # how much came before, and hyperparameters
        self._learned: tuple[tuple[int, ...], AccuracySurrogate] | None = None  # as of what was observed

    def surrogate(self) -> AccuracySurrogate:
        """Of all that was observed, which must be 2 at least."""
        seen = self.observations()
        key = (*self._counts, self._failed)
        if self._learned is None or self._learned[0] != key:
            self._learned = (
                key,
                AccuracySurrogate(
                    self.space,
                    seen,
                    rungs=Rungs.of(self.settings).count,
                    hyperparameters=self._hyperparameters(),
                    fit=False,
                    known=self._encoded,
                ),
            )
        return self._learned[1]

    def accuracies(self) -> dict[str, float] | None:
        """By id, of the networks trained to the end, an accuracy to compare them by, 0 to 1: that of this training as
        all of them tell, larger networks raised and smaller ones lowered by what a longer one adds. None as long as
        fewer than `ENOUGH` are trained at all.

        A training is noisy, so that the best of many is the luckiest too; see `experiments/proxy_fidelity/`.
        """
        last = Rungs.of(self.settings).last
        seen = self.observations()
        trained = {observation.config.id: observation.config for observation in seen if observation.rung == last}
        worth = self.worth(list(trained.values()))
        return None if worth is None else dict(zip(trained, accuracy(worth).tolist(), strict=True))

    def worth(self, configs: Sequence[LowFormerConfig]) -> Floats | None:
        """(n,) logits of an accuracy to compare networks by, trained to the end or not; None as for `accuracies`."""
        if not configs or len({observation.config.id for observation in self.observations()}) < ENOUGH:
            return None
        return self.surrogate().mean(configs)

    def observations(self) -> list[Observation]:
        """All accuracies so far: at rungs, then at the end, each as they came."""
        logs = self.journal.rung_log, self.journal.result_log
        failed = self.journal.statuses["failed"]
        if failed != self._failed:  # what they had reached before counts no more
            self._failed, self._counts, self._observed = failed, (0, 0), ([], [])
        self._observed[0].extend(self._at_rungs(logs[0][self._counts[0] :]))
        self._observed[1].extend(self._at_the_end(logs[1][self._counts[1] :]))
        self._counts = len(logs[0]), len(logs[1])
        return [*self._observed[0], *self._observed[1]]

    def _at_rungs(self, entries: Iterable[Mapping[str, Any]]) -> Iterator[Observation]:
        for entry in entries:
            result = self.journal.results.get(entry["trial"])
            if result is None or result.status != "failed":
                yield Observation(self.journal.configs[entry["trial"]], entry["rung"], entry["accuracy"])

    def _at_the_end(self, results: Iterable[EvaluationResult]) -> Iterator[Observation]:
        last = Rungs.of(self.settings).last
        for result in results:
            if result.status == "complete" and result.accuracy is not None and not result.reason:
                loss = result.details.get("loss")
                known = isinstance(loss, float) and 0 <= loss < math.inf
                yield Observation(result.config, last, result.accuracy, loss if known else None)

    def _hyperparameters(self) -> Floats:
        """Fitted on what came first, up to a count that goes on in steps of a tenth: they change little, and a fit
        costs more than all else. So they depend on what came, not on when this was asked."""
        at_rungs, ends = (seen[: refit_step(len(seen))] for seen in self._observed)
        key = (len(at_rungs), len(ends), self.journal.statuses["failed"])
        if self._fitted is None or self._fitted[0] != key:
            rungs = Rungs.of(self.settings).count
            self._fitted = key, fitted(self.space, [*at_rungs, *ends], rungs, self._encoded)
        return self._fitted[1]


def refit_step(count: int) -> int:
    """The last step up to `count`: all numbers up to 10, then each a tenth more than the one before."""
    step = min(count, 10)
    while step + step // 10 <= count and step >= 10:
        step += step // 10
    return step


def fitted(
    space: SearchSpace,
    observations: Sequence[Observation],
    rungs: int,
    known: dict[str, tuple[Floats, Floats]] | None = None,
) -> Floats:
    """The surrogate's hyperparameters, by at most `HYPERPARAMETER_OBSERVATIONS` of at least 2 observations."""
    # Not each third or so: in steps with the rungs it would be one of these alone.
    places = np.random.default_rng(0).permutation(len(observations))[:HYPERPARAMETER_OBSERVATIONS]
    thinned = [observations[i] for i in sorted(places.tolist())]
    return AccuracySurrogate(space, thinned, rungs=rungs, known=known).hyperparameters


def learn(
    space: SearchSpace, observations: Sequence[Observation], rungs: int, *, longer: float = LONGER
) -> AccuracySurrogate:
    """The surrogate of `observations`, of which it needs 2. A function of what is given, and of nothing else."""
    known: dict[str, tuple[Floats, Floats]] = {}
    hyperparameters = fitted(space, observations, rungs, known)
    return AccuracySurrogate(
        space, observations, rungs=rungs, hyperparameters=hyperparameters, fit=False, known=known, longer=longer
    )
