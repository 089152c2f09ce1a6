"""Who proposes candidates, in which order they are trained, and who goes on from rung to rung.

Strategies are found by name; a module is imported when its strategy is asked for.
"""

from __future__ import annotations

from importlib import import_module

from .base import Opening, SearchState, Strategy, Suggestion

__all__ = ["Opening", "SearchState", "Strategy", "Suggestion", "make_strategy", "register_strategy", "strategy_names"]

STRATEGIES: dict[str, Strategy | str] = {}  # an instance, or where to find its class: "module:Class"


def register_strategy(strategy: Strategy) -> Strategy:
    """Makes a strategy known by its name."""
    STRATEGIES[strategy.name] = strategy
    return strategy


STRATEGIES |= {
    "surrogate": "surrogate:SurrogateStrategy",
    "evolution": "evolution:Evolution",
    "tpe": "optuna_samplers:Tpe",
    "nsga2": "optuna_samplers:Nsga2",
    "gp": "optuna_samplers:Gp",
    "random": "optuna_samplers:Random",
}


def strategy_names() -> tuple[str, ...]:
    """The names of all known strategies."""
    return tuple(STRATEGIES)


def make_strategy(wanted: str | Strategy) -> Strategy:
    """The strategy of that name, or the one given. Raises ValueError for an unknown name."""
    if isinstance(wanted, Strategy):
        return wanted
    if wanted not in STRATEGIES:
        raise ValueError(f"strategy: unknown {wanted!r}, known are {', '.join(map(repr, STRATEGIES))}")
    found = STRATEGIES[wanted]
    if isinstance(found, Strategy):
        return found
    module, _, name = found.partition(":")
    made: Strategy = getattr(import_module(f".{module}", __name__), name)()
    return made
