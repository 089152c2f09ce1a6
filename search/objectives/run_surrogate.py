"""What the trainings of a run tell of accuracy: a surrogate of all of them, kept up to date as they come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ...predictors.accuracy.surrogate import RUNGS_BEYOND_LAST, AccuracyObservation, AccuracySurrogate, accuracy
from ...search_space.config import LowFormerConfig
from ...search_space.space import SearchSpace
from ..trials.history import History
from ..trials.records import EvaluationResult, RungEntry

Floats = NDArray[np.float64]

HYPERPARAMETER_OBSERVATIONS = 150  # they change little with more, and the cost of a fit grows with the cube
MIN_NETWORKS = 4  # trained at least to a rung; fewer are compared by their own trainings alone


class RunSurrogate:
    """The surrogate of the accuracies in a run's history, fitted anew when there are more of them."""

    def __init__(self, space: SearchSpace, history: History, rungs: int) -> None:
        """`rungs` is how many the run has, the end of the training included."""
        self.space, self.history, self.rungs = space, history, rungs
        self._failed, self._counts = 0, (0, 0)  # as of what was observed, and how much of the logs that is
        self._observed: tuple[list[AccuracyObservation], list[AccuracyObservation]] = ([], [])
        self._encoded: dict[str, tuple[Floats, Floats]] = {}  # what surrogates know of configurations, by id
        self._fitted: tuple[tuple[int, ...], Floats] | None = None  # how much came before, and hyperparameters
        self._current: tuple[tuple[int, ...], AccuracySurrogate] | None = None  # as of what was observed

    def fitted(self) -> AccuracySurrogate:
        """The surrogate of all that was observed, which must be 2 accuracies at least."""
        seen = self.observations()
        key = (*self._counts, self._failed)
        if self._current is None or self._current[0] != key:
            self._current = (
                key,
                AccuracySurrogate(
                    self.space,
                    seen,
                    rungs=self.rungs,
                    hyperparameters=self._hyperparameters(),
                    fit=False,
                    feature_cache=self._encoded,
                ),
            )
        return self._current[1]

    def accuracies(self) -> dict[str, float] | None:
        """Accuracies, 0 to 1, to compare the networks by that were trained to the end, by their ids.

        Each is that of the short training as all trainings together tell, larger networks raised and smaller ones
        lowered by what a longer training adds. One training is noisy, so that the best of many is the luckiest too; see
        `experiments/proxy_fidelity/`. None as long as fewer than `MIN_NETWORKS` networks are trained at all.
        """
        last = self.rungs - 1
        seen = self.observations()
        trained = {observation.config.id: observation.config for observation in seen if observation.rung == last}
        logits = self.logits(list(trained.values()))
        return None if logits is None else dict(zip(trained, accuracy(logits).tolist(), strict=True))

    def logits(self, configs: Sequence[LowFormerConfig]) -> Floats | None:
        """(n,) logits of an accuracy to compare networks by, trained to the end or not; None as for `accuracies`."""
        if not configs or len({observation.config.id for observation in self.observations()}) < MIN_NETWORKS:
            return None
        return self.fitted().mean(configs)

    def observations(self) -> list[AccuracyObservation]:
        """All accuracies so far: those at rungs, then those at the end, each in the order in which they came."""
        logs = self.history.rung_log, self.history.result_log
        failed = self.history.statuses["failed"]
        if failed != self._failed:  # what failed trials had reached before counts no more
            self._failed, self._counts, self._observed = failed, (0, 0), ([], [])
        self._observed[0].extend(self._at_rungs(logs[0][self._counts[0] :]))
        self._observed[1].extend(self._at_the_end(logs[1][self._counts[1] :]))
        self._counts = len(logs[0]), len(logs[1])
        return [*self._observed[0], *self._observed[1]]

    def _at_rungs(self, entries: Iterable[RungEntry]) -> Iterator[AccuracyObservation]:
        for entry in entries:
            result = self.history.results.get(entry.trial)
            if result is None or result.status != "failed":
                yield AccuracyObservation(entry.config, entry.rung, entry.accuracy)

    def _at_the_end(self, results: Iterable[EvaluationResult]) -> Iterator[AccuracyObservation]:
        for result in results:
            if result.status == "complete" and result.accuracy is not None and not result.reason:
                loss = result.details.get("loss")
                known = isinstance(loss, float) and 0 <= loss < math.inf
                yield AccuracyObservation(result.config, self.rungs - 1, result.accuracy, loss if known else None)

    def _hyperparameters(self) -> Floats:
        """Fits the hyperparameters on what came first, up to a count that goes on in steps of a tenth.

        They change little, and a fit costs more than all else. So they depend on what came, not on when this was asked.
        """
        at_rungs, ends = (seen[: refit_step(len(seen))] for seen in self._observed)
        key = (len(at_rungs), len(ends), self.history.statuses["failed"])
        if self._fitted is None or self._fitted[0] != key:
            self._fitted = key, fit_hyperparameters(self.space, [*at_rungs, *ends], self.rungs, self._encoded)
        return self._fitted[1]


def refit_step(count: int) -> int:
    """The last step up to `count`: all numbers up to 10, then each a tenth more than the one before."""
    step = min(count, 10)
    while step + step // 10 <= count and step >= 10:
        step += step // 10
    return step


def fit_hyperparameters(
    space: SearchSpace,
    observations: Sequence[AccuracyObservation],
    rungs: int,
    known: dict[str, tuple[Floats, Floats]] | None = None,
) -> Floats:
    """The surrogate's hyperparameters, by at most `HYPERPARAMETER_OBSERVATIONS` of at least 2 observations."""
    # Not each third or so: in steps with the rungs it would be one of these alone.
    places = np.random.default_rng(0).permutation(len(observations))[:HYPERPARAMETER_OBSERVATIONS]
    thinned = [observations[i] for i in sorted(places.tolist())]
    return AccuracySurrogate(space, thinned, rungs=rungs, feature_cache=known).hyperparameters


def learn(
    space: SearchSpace, observations: Sequence[AccuracyObservation], rungs: int, *, longer: float = RUNGS_BEYOND_LAST
) -> AccuracySurrogate:
    """The surrogate of at least 2 observations: a function of what is given, and of nothing else."""
    known: dict[str, tuple[Floats, Floats]] = {}
    hyperparameters = fit_hyperparameters(space, observations, rungs, known)
    return AccuracySurrogate(
        space,
        observations,
        rungs=rungs,
        hyperparameters=hyperparameters,
        fit=False,
        feature_cache=known,
        rungs_beyond=longer,
    )
