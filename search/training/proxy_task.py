"""How a search judges its candidates by default: proxy training, planned once per run. Torch is imported late."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...search_space.config import LowFormerConfig
from ..settings import SearchSettings
from ..strategies.rungs import Rungs

if TYPE_CHECKING:
    from ...evaluators.training.inherit import Source

DEFAULT_PROXY_BUDGET_S = 360.0  # of all trainings together, so that a default search ends well within 10 minutes
TIME_SHARE = 0.7  # of a time budget, for the trainings; proposing, starting and measuring take the rest

logger = logging.getLogger("lownas.search")


def training_budget_s(settings: SearchSettings) -> float:
    """Seconds that all proxy trainings may take together: as set, or the default within the time budget."""
    if settings.proxy_budget_s is not None:
        return settings.proxy_budget_s
    limit = settings.time_budget_s
    return DEFAULT_PROXY_BUDGET_S if limit is None else min(DEFAULT_PROXY_BUDGET_S, TIME_SHARE * limit)


def second_seeds(settings: SearchSettings) -> int:
    """How many candidates are trained again: with rungs only those that were trained to the end can be."""
    return min(settings.repeats, Rungs.of(settings).reach_end(settings.trials))


def trainings(settings: SearchSettings) -> float:
    """What a run costs, in whole proxy trainings; without rungs as many as it makes."""
    return Rungs.of(settings).trainings(settings.trials) + second_seeds(settings)


def plan_proxy(settings: SearchSettings, configs: Sequence[LowFormerConfig]) -> dict[str, Any]:
    """Proxy settings for a run that trains `configs` or the like, as JSON values; times a few steps on this machine.

    On the user's data also a "data_card", which is not a setting.

    Raises ValueError if the data cannot be used.
    """
    from ...evaluators.data.loading import data_card
    from ...evaluators.training.budget import choose_settings
    from ...evaluators.training.proxy import load_proxy_data

    chosen = choose_settings(
        configs,
        settings.data or "formula",
        training_budget_s(settings),
        math.ceil(trainings(settings)),
        settings.workers,
        _device(),
        epochs=settings.proxy_epochs,
        seed=settings.seed,
    )
    logger.info("proxy training: %s", chosen.to_json())
    if settings.data is None:
        return chosen.to_dict()
    card = data_card(load_proxy_data(chosen, configs[0].resolution))
    return {**chosen.to_dict(), "data_card": {**card, "seed": settings.seed}}


def train_candidate(task: Mapping[str, Any]) -> dict[str, Any]:
    """Proxy training of a task's "config" with its "seed" under the settings "proxy".

    Images are those "shared", or loaded. If the task says "until" (a share), it goes that far; what was trained is in,
    and goes to, the file "state". Weights are inherited from the checkpoint "init_from".
    """
    from ...evaluators.training.proxy import ProxySettings, train_proxy

    config = LowFormerConfig.from_dict(task["config"])
    result = train_proxy(
        config,
        task.get("shared"),
        ProxySettings.from_dict(task["proxy"]),
        task["seed"],
        _device(),
        until=task.get("until", 1.0),
        state=Path(task["state"]) if task.get("state") else None,
        source=_source(task["init_from"]) if task.get("init_from") else None,
    )
    return result.to_dict()


def candidate_data(task: Mapping[str, Any]) -> tuple[Hashable, Callable[[], Any]]:
    """The images that `train_candidate` needs for a task: their resolution, which names them, and what loads them."""
    from ...evaluators.training.proxy import ProxySettings, load_proxy_data

    proxy, resolution = ProxySettings.from_dict(task["proxy"]), task["config"]["resolution"]
    return proxy.proxy_resolution(resolution), lambda: load_proxy_data(proxy, resolution)


@lru_cache(maxsize=1)
def _source(path: str) -> Source:
    """The network that all candidates of a run inherit from; a worker reads it once."""
    from ...evaluators.training.inherit import load_source

    return load_source(path)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
