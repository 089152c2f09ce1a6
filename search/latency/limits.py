"""What a candidate must not exceed beside the latency budget: parameters, MACs, memory, latency on further targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...predictors.costs import total_macs, total_params
from ...predictors.latency.target import Target
from ...predictors.memory import peak_memory_bytes
from ...search_space.config import LowFormerConfig
from ..feasible_pool import LatencyQuantiles
from ..settings import SearchSettings

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Limit:
    """A bound on one cost.

    Attributes:
        name, unit: for people.
        most: that is allowed.
        per_unit: how much of the cost one unit is.
        cost: gives (n,) of n configurations.
    """

    name: str
    most: float
    unit: str
    per_unit: float
    cost: Callable[[Sequence[LowFormerConfig]], Floats]

    def shown(self, cost: float) -> str:
        """A cost with its unit."""
        return f"{cost / self.per_unit:.4g} {self.unit}"


class Limits:
    """The limits of a search; none if nothing was asked for."""

    def __init__(self, settings: SearchSettings, others: Mapping[str, LatencyQuantiles] | None = None) -> None:
        """`others` are the predictors of the further targets, by full name.

        Raises ValueError if one of them is missing.
        """
        others = others or {}
        if missing := sorted(set(settings.also) - set(others)):
            raise ValueError(f"no latency predictor for {', '.join(missing)}")
        target = Target.parse(settings.target) if settings.max_memory_bytes is not None else None

        def memory(configs: Sequence[LowFormerConfig]) -> Floats:
            assert target is not None
            return peak_memory_bytes(configs, target.precision, target.batch)

        def latency_of(predictor: LatencyQuantiles) -> Callable[[Sequence[LowFormerConfig]], Floats]:
            return lambda configs: np.asarray(predictor.quantile_ms(configs, settings.confidence), float)

        known = [
            Limit("parameters", settings.max_params or np.inf, "M", 1e6, total_params),
            Limit("MACs", settings.max_macs or np.inf, "M", 1e6, total_macs),
            Limit("memory", settings.max_memory_bytes or np.inf, "MB", 1e6, memory),
            *(
                Limit(f"latency on {name}", budget_ms, "ms", 1.0, latency_of(others[name]))
                for name, budget_ms in settings.also.items()
            ),
        ]
        self.limits = tuple(limit for limit in known if np.isfinite(limit.most))

    def __bool__(self) -> bool:
        return bool(self.limits)

    def __str__(self) -> str:
        return ", ".join(f"{limit.name} <= {limit.shown(limit.most)}" for limit in self.limits)

    def used(self, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n,) the share that each candidate uses of its tightest limit; over 1 is too much. 0 without limits."""
        shares = [limit.cost(configs) / limit.most for limit in self.limits]
        used: Floats = np.max(shares, axis=0) if shares else np.zeros(len(configs))
        return used

    def excess(self, config: LowFormerConfig) -> dict[str, float]:
        """By name the share by which a candidate exceeds each limit, negative where it is within."""
        return {limit.name: float(limit.cost([config])[0]) / limit.most - 1 for limit in self.limits}

    def reason(self, config: LowFormerConfig) -> str:
        """Which limits a candidate exceeds, in words; empty if none."""
        costs = [(limit, float(limit.cost([config])[0])) for limit in self.limits]
        over = [f"{limit.name} of {limit.shown(cost)}" for limit, cost in costs if cost > limit.most]
        return f"{' and '.join(over)}: over the limit ({self})" if over else ""


class BudgetUse:
    """How much of what is allowed a candidate takes, in ms of the latency budget.

    That is the quantile of its latency or, where a limit is tighter, the same share of the budget as it uses of that
    limit. So one number says how near a candidate is to the edge of what is allowed; it is no latency.

    Attributes:
        latency: the predictor of latency alone, or None where there are no limits, and this is the latency.
    """

    def __init__(self, predictor: LatencyQuantiles, limits: Limits, budget_ms: float) -> None:
        self.latency = predictor if limits else None
        self._predictor, self._limits, self._budget_ms = predictor, limits, budget_ms

    def quantile_ms(self, configs: Sequence[LowFormerConfig], q: float) -> Floats:
        """(n,) in ms of the budget, at the quantile `q` of the latency."""
        latency = np.asarray(self._predictor.quantile_ms(configs, q), float)
        if not self._limits:
            return latency
        return np.maximum(latency, self._budget_ms * self._limits.used(configs))
