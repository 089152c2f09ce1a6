"""Which candidates are worth training: those found to fit the budget, by evolution, before anything is trained.

Tens of thousands of configurations are scored in a few seconds, by a latency predictor and by an estimate of what is
maximized; only what fits the budget ever becomes a trial.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..predictors.costs import total_macs
from ..search_space.config import LowFormerConfig
from ..search_space.space import SearchSpace

Floats = NDArray[np.float64]
Score = Callable[[Sequence[LowFormerConfig]], Floats]

# A candidate uses the budget fully if its latency quantile is at least this share of it.
FULL_USE = 0.92
EQUAL_POINTS = 0.25  # points of the score within which candidates count as equally good, and variety decides; at most
SIZE_SPAN = 12.0  # the smallest candidate trained has about 1/SIZE_SPAN of the MACs of the best one for the budget
# What latency costs when candidates of one size are compared: points of the score per unit of ln(ms). A unit of
# ln(MACs) brings about as much among the published models: 2.8 points from B0 to B3.
POINTS_PER_LOG_MS = 3.0
NEAR_IN_SIZE = 0.05  # difference in ln(MACs) up to which candidates count as of one size
_SIZE_BINS = 32  # of log MACs, each of which keeps its best candidate alive
_MOST_COMPARED = 512  # of the candidates about as good as the best, so many are compared by variety
_BATCH = 512  # configurations that an evolution scores at once
_SAMPLES = 1024  # random ones, to start from and to compare with


class NothingFits(ValueError):
    """No candidate is within the budget, as far as is known now."""


class LatencyQuantiles(Protocol):
    """What finding candidates needs of a latency predictor."""

    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float, /) -> Floats: ...


@dataclass(frozen=True)
class FeasibleSet:
    """Everything within the budget that an evolution has seen, as parallel columns in the order of discovery.

    Attributes:
        configs: n distinct configurations.
        score: (n,) the estimate that was maximized, in points.
        quantile_ms: (n,) what is held against the budget: the latency quantile, or as much as a limit takes of it.
        latency_quantile_ms: (n,) the latency quantile alone.
        macs: (n,) multiply-accumulates.
        budget_ms: the budget.
        scored: how many configurations were scored in all, the infeasible ones included.
        random_best: the best score of the random samples among them, -inf if none of these is feasible.
    """

    configs: tuple[LowFormerConfig, ...]
    score: Floats
    quantile_ms: Floats
    latency_quantile_ms: Floats
    macs: Floats
    budget_ms: float
    scored: int
    random_best: float

    def best_index(self) -> int:
        return int(np.argmax(self.score))

    def near_best(self) -> NDArray[np.intp]:
        """Indices of the candidates about as good as the best; of those that use the budget, where one of them does.

        "About" is `EQUAL_POINTS`, or half of what the best is ahead of random search where that is less.
        """
        margin = min(EQUAL_POINTS, max(0.5 * float(self.score.max() - self.random_best), 0.0))
        good = self.score >= self.score.max() - margin
        tight = good & (self.quantile_ms >= FULL_USE * self.budget_ms)
        return np.flatnonzero(tight if tight.any() else good)

    def best_left(self, exclude: Collection[str]) -> LowFormerConfig | None:
        """The best by score whose id is not excluded, or None."""
        order = np.argsort(-self.score, kind="stable")
        return next((self.configs[i] for i in order if self.configs[i].id not in exclude), None)

    def near_best_left(self, exclude: Collection[str]) -> list[LowFormerConfig]:
        """The candidates of those near the best whose ids are not excluded, the best by score first."""
        band = self.near_best()
        by_score = band[np.argsort(-self.score[band], kind="stable")][:_MOST_COMPARED]
        return [self.configs[i] for i in by_score if self.configs[i].id not in exclude]

    def best_within(self, share: float, exclude: Collection[str]) -> LowFormerConfig | None:
        """The best of the candidates up to a share of the way from the fastest to the budget, in ln latency.

        If all these are excluded, the fastest one left.
        """
        fastest_ms = float(self.latency_quantile_ms.min())
        most_ms = fastest_ms * (self.budget_ms / fastest_ms) ** share
        left = np.array([i for i, config in enumerate(self.configs) if config.id not in exclude], dtype=np.intp)
        if not len(left):
            return None
        fitting = left[self.latency_quantile_ms[left] <= most_ms * (1 + 1e-9)]
        if not len(fitting):
            return self.configs[int(left[np.argmin(self.latency_quantile_ms[left])])]
        return self.configs[int(fitting[np.argmax(self.score[fitting])])]

    def size_target(self, position: int, count: int) -> float:
        """The ln(MACs) that the `position`-th of `count` candidates should have, to span the sizes evenly upwards."""
        largest = float(np.log(self.macs[self.best_index()]))
        smallest = max(float(np.log(self.macs.min())), largest - np.log(SIZE_SPAN))
        # The candidates that exploit the budget are the upper end of the span.
        return smallest + (largest - smallest) * position / max(count, 1)

    def nearest_in_size(self, log_macs: float, exclude: Collection[str]) -> LowFormerConfig | None:
        """The best for its size of the candidates with about exp(`log_macs`) MACs.

        That is the one with the highest score left when each is charged for its latency (`POINTS_PER_LOG_MS`).
        """
        distance = np.abs(np.log(self.macs) - log_macs)
        order = np.argsort(distance, kind="stable")
        near = [int(i) for i in order[:256] if self.configs[i].id not in exclude]
        if not near:
            near = [int(i) for i in order if self.configs[i].id not in exclude][:1]
            return self.configs[near[0]] if near else None
        limit = max(NEAR_IN_SIZE, float(distance[near[0]]))
        close = np.array([i for i in near if distance[i] <= limit])
        value = self.score[close] - POINTS_PER_LOG_MS * np.log(self.quantile_ms[close])
        return self.configs[int(close[int(np.argmax(value))])]


class FeasiblePool:
    """The candidates that a strategy may choose from: what evolution found within the budget, and mutants of those.

    Attributes:
        space: that all candidates are from.
        budget_ms: the latency budget.
        confidence: a candidate fits if its latency is within the budget with this probability.
        found: what evolution found, by the predictor as it was then.
        published: the published models scaled, by family, as far as the space has them.
        nothing_fits: whether measurements have shown that nothing is within the budget; then nothing is proposed.
    """

    def __init__(
        self,
        space: SearchSpace,
        predictor: LatencyQuantiles,
        use: LatencyQuantiles,
        budget_ms: float,
        confidence: float,
        evolve: Callable[[], FeasibleSet],
        found: FeasibleSet,
        published: Mapping[str, Sequence[LowFormerConfig]] | None = None,
    ) -> None:
        """`predictor` knows latency alone, `use` what is held against the budget: limits count there too.

        `evolve` finds the candidates by these as they are when that is called.
        """
        self.space, self.budget_ms, self.confidence = space, budget_ms, confidence
        self.found, self.nothing_fits, self.published = found, False, published or {}
        self._predictor, self._use, self._evolve = predictor, use, evolve

    def renew(self) -> None:
        """Finds the candidates again, after the predictor has learned; notes if nothing fits any more."""
        try:
            self.found = self._evolve()
        except NothingFits:
            self.nothing_fits = True

    def scaled_to_budget(
        self, score: Score, tried: Collection[str], chosen: Sequence[LowFormerConfig]
    ) -> LowFormerConfig | None:
        """The best published model scaled to use the budget, or most of it, of the families with the fewest chosen.

        Args:
            score: an estimate in points.
            tried: ids of all candidates so far.
            chosen: those that were chosen by this.
        """
        ids, best = {config.id for config in chosen}, None
        for configs in self.published.values():
            use = self.quantile_ms(configs)
            left = np.array([config.id not in tried for config in configs])
            fitting = np.flatnonzero(left & ~over_budget(use, self.budget_ms))
            if not len(fitting):
                continue
            full = [configs[i] for i in fitting[use[fitting] >= min(FULL_USE * self.budget_ms, use[fitting].max())]]
            scores = score(full)
            place = int(np.argmax(scores))
            rank = (-sum(config.id in ids for config in configs), float(scores[place]))
            if best is None or rank > best[0]:
                best = rank, full[place]
        return None if best is None else best[1]

    def latency_ms(self, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n,) predicted latency in ms (the median)."""
        return np.asarray(self._predictor.quantile_ms(configs, 0.5), float)

    def quantile_ms(self, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n,) what is held against the budget, in ms: the latency that each stays below at the confidence.

        Where a limit is tighter, it is as much of the budget as the candidate uses of that limit.
        """
        return np.asarray(self._use.quantile_ms(configs, self.confidence), float)

    def fits(self, configs: Sequence[LowFormerConfig]) -> NDArray[np.bool_]:
        """(n,) which candidates are within the budget and all further limits."""
        return ~over_budget(self.quantile_ms(configs), self.budget_ms)

    def mutants(
        self,
        parents: Sequence[LowFormerConfig],
        rng: np.random.Generator,
        count: int,
    ) -> tuple[list[LowFormerConfig], NDArray[np.intp]]:
        """Draws `count` mutants; gives the distinct ones that fit, and (n,) the index of each one's parent."""
        return mutants(
            self.space,
            self._use,
            parents,
            self.budget_ms,
            rng,
            confidence=self.confidence,
            count=count,
        )


def over_budget(quantile_ms: Floats, budget_ms: float) -> NDArray[np.bool_]:
    """(n,) which candidates are not within the budget at the asked confidence, and so never become trials."""
    return ~(quantile_ms <= budget_ms)


def fastest(
    space: SearchSpace, predictor: LatencyQuantiles, rng: np.random.Generator, *, confidence: float = 0.9
) -> tuple[LowFormerConfig, float]:
    """The fastest configuration found and its latency quantile in ms: coordinate descent from the best of a sample."""
    return _descend(space, lambda configs: predictor.quantile_ms(configs, confidence), rng)


def slowest(
    space: SearchSpace, predictor: LatencyQuantiles, rng: np.random.Generator, *, confidence: float = 0.9
) -> tuple[LowFormerConfig, float]:
    """The slowest configuration found and its latency quantile in ms."""
    config, negated = _descend(space, lambda configs: -predictor.quantile_ms(configs, confidence), rng)
    return config, -negated


def _descend(
    space: SearchSpace, cost: Score, rng: np.random.Generator, *, samples: int = 256, sweeps: int = 6
) -> tuple[LowFormerConfig, float]:
    configs = [space.sample(rng) for _ in range(samples)]
    costs = cost(configs)
    best, lowest = configs[int(np.argmin(costs))], float(costs.min())
    params = space.to_params(best)
    for _ in range(sweeps):
        improved = False
        for name, choices in space.parameters.items():
            variants = [{**params, name: choice} for choice in choices if choice != params[name]]
            if not variants:
                continue
            configs = [space.from_params(variant) for variant in variants]
            costs = cost(configs)
            index = int(np.argmin(costs))
            if costs[index] < lowest:
                params, best, lowest, improved = variants[index], configs[index], float(costs[index]), True
        if not improved:
            break
    return best, lowest


def check_budget(
    space: SearchSpace,
    predictor: LatencyQuantiles,
    budget_ms: float,
    rng: np.random.Generator,
    *,
    confidence: float = 0.9,
    limits: str = "",
) -> float:
    """The latency quantile of the fastest configuration in ms. Raises NothingFits if not even that one fits.

    Args:
        limits: in words, what `predictor` counts beside latency.
    """
    config, lowest = fastest(space, predictor, rng, confidence=confidence)
    if over_budget(np.array([lowest]), budget_ms)[0]:
        if limits:
            raise NothingFits(
                f"no model of the space {space.name!r} fits a latency budget of {budget_ms:g} ms and {limits}: the "
                f"closest ({config.id}, {config.resolution} pixels) needs {lowest / budget_ms:.3g} times as much of one"
            )
        raise NothingFits(
            f"no model of the space {space.name!r} fits a latency budget of {budget_ms:g} ms: the fastest "
            f"({config.id}, {config.resolution} pixels) takes {lowest:.3g} ms at confidence {confidence:g}"
        )
    return lowest


def evolve(
    space: SearchSpace,
    predictor: LatencyQuantiles,
    score: Score,
    budget_ms: float,
    rng: np.random.Generator,
    *,
    confidence: float = 0.9,
    evaluations: int = 20_000,
    seeds: Iterable[LowFormerConfig] = (),
    latency: LatencyQuantiles | None = None,
) -> FeasibleSet:
    """Evolves configurations towards the highest `score` within the budget, and keeps the best of every size alive.

    Half of the parents come from the best found, half from the elites of bins in log MACs (the most score left after
    paying for the latency), so that the whole range of sizes stays alive. Deterministic by `rng`.

    Args:
        seeds: configurations to start from, beside a random sample.
        evaluations: configurations scored in all; duplicates count, so that small spaces end too.
        latency: latency alone, where `predictor` counts limits too.

    Raises NothingFits if no configuration was found within the budget.
    """
    seen: set[str] = set()
    found: list[LowFormerConfig] = []
    columns: list[Floats] = []  # (4, n) score, quantile_ms, latency_ms, macs of the feasible
    scored = 0
    population: list[LowFormerConfig] = []
    samples = [space.sample(rng) for _ in range(min(_SAMPLES, evaluations))]
    sampled = {config.id for config in samples}
    fresh = [*seeds, *samples]

    def described(configs: list[LowFormerConfig], quantile: Floats) -> Floats:
        alone = quantile if latency is None else np.asarray(latency.quantile_ms(configs, confidence), float)
        return np.stack([score(configs), quantile, alone, total_macs(configs)])

    while True:
        scored += len(fresh)
        distinct = {config.id: config for config in fresh if config.id not in seen}
        seen.update(distinct)
        if distinct:
            batch = list(distinct.values())
            quantile = np.asarray(predictor.quantile_ms(batch, confidence), float)
            feasible = np.flatnonzero(~over_budget(quantile, budget_ms))
            kept = [batch[i] for i in feasible]
            if kept:
                found.extend(kept)
                columns.append(described(kept, quantile[feasible]))
                population = _parents(found, np.concatenate(columns, axis=1))
            elif not found:  # nothing fits yet: go on from the fastest
                population = [batch[i] for i in np.argsort(quantile, kind="stable")[:32]]
        if scored >= evaluations:
            break
        fresh = _offspring(space, population, min(_BATCH, evaluations - scored), rng)
    if not found:
        config, _ = fastest(space, predictor, rng, confidence=confidence)
        quantile = np.asarray(predictor.quantile_ms([config], confidence), float)
        if over_budget(quantile, budget_ms)[0]:
            raise NothingFits(f"no model of the space {space.name!r} was found within {budget_ms:g} ms")
        found, columns = [config], [described([config], quantile)]
    table = np.concatenate(columns, axis=1)
    # What was sampled is in the first batch, at the front.
    first = zip(found, columns[0][0].tolist(), strict=False)
    random_best = max((value for config, value in first if config.id in sampled), default=-np.inf)
    scores, quantiles, latencies, macs = table
    return FeasibleSet(tuple(found), scores, quantiles, latencies, macs, budget_ms, scored, random_best)


def _parents(found: Sequence[LowFormerConfig], table: Floats) -> list[LowFormerConfig]:
    """The best 64, and the best of each bin in log MACs, repeated so that both halves weigh the same."""
    score, quantile, _, macs = table
    best = np.argsort(-score, kind="stable")[:64]
    log_macs = np.log(macs)
    low, high = float(log_macs.min()), float(log_macs.max())
    bins = np.minimum((_SIZE_BINS * (log_macs - low) / max(high - low, 1e-9)).astype(int), _SIZE_BINS - 1)
    value = score - POINTS_PER_LOG_MS * np.log(quantile)
    order = np.lexsort((-value, bins))
    first = np.unique(bins[order], return_index=True)[1]
    elites = np.resize(order[first], len(best))
    return [found[i] for i in (*best, *elites)]


def _offspring(
    space: SearchSpace, parents: Sequence[LowFormerConfig], count: int, rng: np.random.Generator
) -> list[LowFormerConfig]:
    children = []
    kinds = rng.random(count)
    for kind in kinds:
        first = parents[int(rng.integers(len(parents)))]
        if kind < 0.05:
            child = space.sample(rng)
        elif kind < 0.25:
            child = space.crossover(first, parents[int(rng.integers(len(parents)))], rng)
        else:
            child = space.mutate(first, rng)
        children.append(child)
    return children


def most_varied(
    space: SearchSpace, candidates: Sequence[LowFormerConfig], chosen: Sequence[LowFormerConfig]
) -> LowFormerConfig:
    """The candidate farthest from all `chosen` (the first candidate if there are none), by normalized `encode`."""
    if not chosen:
        return candidates[0]
    codes = np.stack([np.asarray(space.encode(config), float) for config in (*candidates, *chosen)])
    spread = codes.std(axis=0)
    codes = codes[:, spread > 0] / spread[spread > 0]
    distance = np.full(len(candidates), np.inf)
    for other in codes[len(candidates) :]:
        distance = np.minimum(distance, ((codes[: len(candidates)] - other) ** 2).sum(axis=1))
    return candidates[int(np.argmax(distance))]


def mutants(
    space: SearchSpace,
    predictor: LatencyQuantiles,
    parents: Sequence[LowFormerConfig],
    budget_ms: float,
    rng: np.random.Generator,
    *,
    confidence: float = 0.9,
    count: int = 2000,
) -> tuple[list[LowFormerConfig], NDArray[np.intp]]:
    """Draws distinct feasible mutants of `parents`; gives them, and (n,) the index of each one's parent."""
    drawn: dict[str, tuple[LowFormerConfig, int]] = {}
    for _ in range(count):
        index = int(rng.integers(len(parents)))
        child = space.mutate(parents[index], rng)
        drawn.setdefault(child.id, (child, index))
    configs = [config for config, _ in drawn.values()]
    origins = np.array([index for _, index in drawn.values()])
    over = over_budget(np.asarray(predictor.quantile_ms(configs, confidence), float), budget_ms)
    fitting = np.flatnonzero(~over)
    return [configs[i] for i in fitting], origins[fitting]


def feasible_share(
    space: SearchSpace,
    predictor: LatencyQuantiles,
    budget_ms: float,
    rng: np.random.Generator,
    *,
    confidence: float = 0.9,
    samples: int = 2000,
) -> float:
    """The share of random samples of the space that fit the budget."""
    quantile = np.asarray(predictor.quantile_ms([space.sample(rng) for _ in range(samples)], confidence), float)
    return float(np.mean(~over_budget(quantile, budget_ms)))
