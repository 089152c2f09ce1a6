"""Which candidates are worth training: bulk evolution through the latency predictor and the accuracy prior.

Tens of thousands of configurations are scored in a few seconds; only what fits the budget ever becomes a trial.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...predictors.accuracy.prior import total_macs
from ...search_space.config import LowFormerConfig
from ...search_space.space import SearchSpace

Floats = NDArray[np.float64]
Score = Callable[[Sequence[LowFormerConfig]], Floats]
Excluded = Callable[[Sequence[LowFormerConfig]], NDArray[np.bool_]]

BAND = 0.92  # a candidate "uses the budget" if its latency quantile is at least this share of it
MARGIN = 0.25  # points of the score within which candidates count as equally good, and variety decides; at most
SPAN = 12.0  # the smallest candidate trained has about 1/SPAN of the MACs of the best one for the budget
_BINS = 32
_BATCH = 512
_SAMPLES = 1024  # random ones, to start from and to compare with


class Predictor(Protocol):
    """What the strategy needs of a `LatencyPredictor`."""

    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float, /) -> Floats: ...


@dataclass(frozen=True)
class Front:
    """Everything feasible that an evolution has seen, as parallel columns in the order of discovery.

    Attributes:
        configs: n distinct configurations.
        score: (n,) what was maximized, in points.
        quantile_ms: (n,) the latency quantile held against the budget.
        macs: (n,) multiply-accumulates.
        budget_ms: the budget.
        scored: how many configurations were scored in all, the infeasible ones included.
        random_best: the best score of the random samples among them, -inf if none of these is feasible.
    """

    configs: tuple[LowFormerConfig, ...]
    score: Floats
    quantile_ms: Floats
    macs: Floats
    budget_ms: float
    scored: int
    random_best: float

    def best_index(self) -> int:
        return int(np.argmax(self.score))

    def band(self) -> NDArray[np.intp]:
        """Indices of those about as good as the best, and using the budget where one of these does.

        "About" is `MARGIN`, or half of what the best is ahead of random search where that is less.
        """
        margin = min(MARGIN, max(0.5 * float(self.score.max() - self.random_best), 0.0))
        good = self.score >= self.score.max() - margin
        tight = good & (self.quantile_ms >= BAND * self.budget_ms)
        return np.flatnonzero(tight if tight.any() else good)

    def best_within(self, share: float, exclude: Collection[str]) -> LowFormerConfig | None:
        """The best of those as fast as the `share` (0 to 1) of the way from the fastest to the budget, in ln latency.

        If all these are excluded, the fastest one left.
        """
        fastest_ms = float(self.quantile_ms.min())
        most_ms = fastest_ms * (self.budget_ms / fastest_ms) ** share
        left = np.array([i for i, config in enumerate(self.configs) if config.id not in exclude], dtype=np.intp)
        if not len(left):
            return None
        fitting = left[self.quantile_ms[left] <= most_ms * (1 + 1e-9)]
        if not len(fitting):
            return self.configs[int(left[np.argmin(self.quantile_ms[left])])]
        return self.configs[int(fitting[np.argmax(self.score[fitting])])]

    def size_target(self, position: int, count: int) -> float:
        """ln(MACs) of the `position`-th of `count` candidates that span the sizes evenly, the smallest first."""
        largest = float(np.log(self.macs[self.best_index()]))
        smallest = max(float(np.log(self.macs.min())), largest - np.log(SPAN))
        # The candidates that exploit the budget are the upper end of the span.
        return smallest + (largest - smallest) * position / max(count, 1)

    def nearest_in_size(self, log_macs: float, exclude: Collection[str]) -> LowFormerConfig | None:
        """The best for its size among those of about exp(`log_macs`) MACs: the most accuracy left when each is charged
        for its latency at the rate at which MACs buy accuracy."""
        distance = np.abs(np.log(self.macs) - log_macs)
        order = np.argsort(distance, kind="stable")
        near = [int(i) for i in order[:256] if self.configs[i].id not in exclude]
        if not near:
            near = [int(i) for i in order if self.configs[i].id not in exclude][:1]
            return self.configs[near[0]] if near else None
        limit = max(0.05, float(distance[near[0]]))
        close = np.array([i for i in near if distance[i] <= limit])
        value = self.score[close] - 3.0 * np.log(self.quantile_ms[close])
        return self.configs[int(close[int(np.argmax(value))])]


def surely_over(quantile_ms: Floats, budget_ms: float) -> NDArray[np.bool_]:
    """(n,) which candidates never become trials."""
    return ~(quantile_ms <= budget_ms)


def fastest(
    space: SearchSpace, predictor: Predictor, rng: np.random.Generator, *, confidence: float = 0.9
) -> tuple[LowFormerConfig, float]:
    """The fastest configuration found and its latency quantile in ms: coordinate descent from the best of a sample."""
    return _descend(space, lambda configs: predictor.quantile_ms(configs, confidence), rng)


def slowest(
    space: SearchSpace, predictor: Predictor, rng: np.random.Generator, *, confidence: float = 0.9
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
    predictor: Predictor,
    budget_ms: float,
    rng: np.random.Generator,
    *,
    confidence: float = 0.9,
    limits: str = "",
) -> float:
    """The latency quantile of the fastest configuration in ms. Raises ValueError if not even that one fits.

    Args:
        limits: in words, what `predictor` counts beside latency.
    """
    config, lowest = fastest(space, predictor, rng, confidence=confidence)
    if surely_over(np.array([lowest]), budget_ms)[0]:
        if limits:
            raise ValueError(
                f"no model of the space {space.name!r} fits a latency budget of {budget_ms:g} ms and {limits}: the "
                f"closest ({config.id}, {config.resolution} pixels) needs {lowest / budget_ms:.3g} times as much of one"
            )
        raise ValueError(
            f"no model of the space {space.name!r} fits a latency budget of {budget_ms:g} ms: the fastest "
            f"({config.id}, {config.resolution} pixels) takes {lowest:.3g} ms at confidence {confidence:g}"
        )
    return lowest


def evolve_front(
    space: SearchSpace,
    predictor: Predictor,
    score: Score,
    budget_ms: float,
    rng: np.random.Generator,
    *,
    confidence: float = 0.9,
    evaluations: int = 20_000,
    seeds: Iterable[LowFormerConfig] = (),
    excluded: Excluded | None = None,
) -> Front:
    """Evolution of the highest `score` within the budget, and of the best for every size on the way.

    Half of the parents come from the best found, half from the elites of bins in log MACs (the most score left after
    paying for the latency), so that the whole range of sizes stays alive. Deterministic by `rng`.

    Args:
        seeds: configurations to start from, beside a random sample.
        evaluations: configurations scored in all; duplicates count, so that small spaces end too.
        excluded: (n,) which configurations are no candidates, whatever their latency.
    """
    seen: set[str] = set()
    found: list[LowFormerConfig] = []
    columns: list[Floats] = []  # (3, n) score, quantile_ms, macs of the feasible
    scored = 0
    population: list[LowFormerConfig] = []
    samples = [space.sample(rng) for _ in range(min(_SAMPLES, evaluations))]
    sampled = {config.id for config in samples}
    fresh = [*seeds, *samples]
    while True:
        scored += len(fresh)
        distinct = {config.id: config for config in fresh if config.id not in seen}
        seen.update(distinct)
        if distinct:
            batch = list(distinct.values())
            quantile = np.asarray(predictor.quantile_ms(batch, confidence), float)
            feasible = np.flatnonzero(~surely_over(quantile, budget_ms) & ~_excluded(batch, excluded))
            kept = [batch[i] for i in feasible]
            if kept:
                found.extend(kept)
                columns.append(np.stack([score(kept), quantile[feasible], total_macs(kept)]))
                population = _parents(found, np.concatenate(columns, axis=1))
            elif not found:  # nothing fits yet: go on from the fastest
                population = [batch[i] for i in np.argsort(quantile, kind="stable")[:32]]
        if scored >= evaluations:
            break
        fresh = _offspring(space, population, min(_BATCH, evaluations - scored), rng)
    if not found:
        config, _ = fastest(space, predictor, rng, confidence=confidence)
        quantile = np.asarray(predictor.quantile_ms([config], confidence), float)
        if surely_over(quantile, budget_ms)[0]:
            raise ValueError(f"no model of the space {space.name!r} was found within {budget_ms:g} ms")
        found, columns = [config], [np.stack([score([config]), quantile, total_macs([config])])]
    table = np.concatenate(columns, axis=1)
    # What was sampled is in the first batch, at the front.
    first = zip(found, columns[0][0].tolist(), strict=False)
    random_best = max((value for config, value in first if config.id in sampled), default=-np.inf)
    return Front(tuple(found), table[0], table[1], table[2], budget_ms, scored, random_best)


def _excluded(configs: Sequence[LowFormerConfig], excluded: Excluded | None) -> NDArray[np.bool_]:
    return np.zeros(len(configs), dtype=bool) if excluded is None else excluded(configs)


def _parents(found: Sequence[LowFormerConfig], table: Floats) -> list[LowFormerConfig]:
    """The best 64, and one elite of each bin in log MACs, repeated so that both halves weigh the same."""
    score, quantile, macs = table
    best = np.argsort(-score, kind="stable")[:64]
    log_macs = np.log(macs)
    low, high = float(log_macs.min()), float(log_macs.max())
    bins = np.minimum((_BINS * (log_macs - low) / max(high - low, 1e-9)).astype(int), _BINS - 1)
    value = score - 3.0 * np.log(quantile)
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


def children(
    space: SearchSpace,
    predictor: Predictor,
    parents: Sequence[LowFormerConfig],
    budget_ms: float,
    rng: np.random.Generator,
    *,
    confidence: float = 0.9,
    count: int = 2000,
    excluded: Excluded | None = None,
) -> tuple[list[LowFormerConfig], NDArray[np.intp]]:
    """Distinct feasible mutants of `parents`, and (n,) the index of each one's parent."""
    drawn: dict[str, tuple[LowFormerConfig, int]] = {}
    for _ in range(count):
        index = int(rng.integers(len(parents)))
        child = space.mutate(parents[index], rng)
        drawn.setdefault(child.id, (child, index))
    configs = [config for config, _ in drawn.values()]
    origins = np.array([index for _, index in drawn.values()])
    over = surely_over(np.asarray(predictor.quantile_ms(configs, confidence), float), budget_ms)
    fitting = np.flatnonzero(~over & ~_excluded(configs, excluded))
    return [configs[i] for i in fitting], origins[fitting]


def feasible_share(
    space: SearchSpace,
    predictor: Predictor,
    budget_ms: float,
    rng: np.random.Generator,
    *,
    confidence: float = 0.9,
    samples: int = 2000,
) -> float:
    """Share of random samples of the space that fit the budget."""
    quantile = np.asarray(predictor.quantile_ms([space.sample(rng) for _ in range(samples)], confidence), float)
    return float(np.mean(~surely_over(quantile, budget_ms)))
