"""How a search judges its candidates by default: proxy training, planned once per run. Torch is imported late."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...evaluators.data.sources import Data
from ...evaluators.tasks import Task
from ...search_space.config import LowFormerConfig
from ..settings import SearchSettings, replay_command
from .task import Evaluation, TrainingTask

if TYPE_CHECKING:
    from ...evaluators.data.records import ImageData
    from ...evaluators.training.inherit import Source
    from ...evaluators.training.settings import ProxySettings

DEFAULT_PROXY_BUDGET_S = 360.0  # of all trainings together: so a search with data ends well within 10 minutes
# The shortest training on generated images, as (steps, pixels), that orders published models better than the prior does
# alone; None: none of the lengths that were tried does (experiments/proxy_growth/). It waits for one that does.
TELLING_TRAINING: tuple[int, int] | None = None
NVIDIA_DRIVER = "/dev/nvidiactl"  # is there where a GPU can be used; looking needs no torch
TIME_SHARE = 0.7  # of a time budget, for the trainings; proposing, starting and measuring take the rest


def training_budget_s(settings: SearchSettings) -> float:
    """Seconds that all proxy trainings may take together: as set, or the default within the time budget."""
    if settings.proxy_budget_s is not None:
        return settings.proxy_budget_s
    limit = settings.time_budget_s
    return DEFAULT_PROXY_BUDGET_S if limit is None else min(DEFAULT_PROXY_BUDGET_S, TIME_SHARE * limit)


@dataclass(frozen=True)
class PlanRequest:
    """What the trainings of a run are to be planned for.

    Attributes:
        settings: of the search.
        configs: a few candidates as the run will train, from small to large.
        trainings: what the run costs, in whole trainings.
        data, task: what is trained on, and what for.
        call: calls a function with arguments where candidates train, and gives its result; None if that is here.
    """

    settings: SearchSettings
    configs: Sequence[LowFormerConfig]
    trainings: float
    data: Data = "formula"
    task: str | Task = "classification"
    call: Callable[..., Any] | None = None


# What plans the trainings of a run, once: JSON values that are kept in run.json and handed to every task. A "data_card"
# among them goes to data_card.json instead.
Plan = Callable[[PlanRequest], Mapping[str, Any]]


def plan_proxy(request: PlanRequest) -> dict[str, Any]:
    """Chooses the proxy training for a run's time and data; times a few steps where candidates train.

    On the user's data there is also a "data_card". Raises ValueError if the data cannot be used.
    """
    from ...evaluators.data.loading import data_card
    from ...evaluators.training.budget import choose_settings
    from ...evaluators.training.proxy import load_proxy_data

    settings, configs = request.settings, request.configs
    chosen = choose_settings(
        configs,
        request.data,
        training_budget_s(settings),
        request.trainings,
        settings.workers,
        epochs=settings.proxy_epochs,
        seed=settings.seed,
        task=request.task,
        timer=_time_steps if request.call is None else partial(request.call, _time_steps),
    )
    if settings.data is None:
        return chosen.to_dict()
    card = data_card(load_proxy_data(chosen, configs[0].resolution, request.data, request.task))
    return {**chosen.to_dict(), "data_card": {**card, "seed": settings.seed}}


def check_data(run: Path, proxy: Mapping[str, Any], data: Data, task: str | Task) -> None:
    """Raises ValueError if a run's trainings would see other images now than when it began, or split otherwise.

    Args:
        run: its folder; without a data_card.json nothing is checked.
        proxy: the run's plan.
    """
    path = run / "data_card.json"
    if not path.exists():
        return
    from ...evaluators.data import sources
    from ...evaluators.data.loading import data_identity, load_data
    from ...evaluators.training.settings import ProxySettings

    settings, source = ProxySettings.from_dict(proxy), sources.source(data)
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        resolution, identity = int(card["resolution"]), str(card["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    found = load_data(
        source,
        resolution,
        settings.data_seed,
        train_images=settings.train_images,
        validation_images=settings.validation_images,
        classes=settings.classes if source.open_classes else None,
        task=task,
    )
    if data_identity(found) != identity:
        raise ValueError(
            f"the data are not those that the run in {run} began with: images were added, removed or changed, or this "
            f"version splits them otherwise (see its changelog); search anew: {replay_command(run, '')}".rstrip()
        )


def affords_telling_proxy(settings: SearchSettings, configs: Sequence[LowFormerConfig], trainings: float) -> bool:
    """Whether this machine can make `trainings` trainings that tell something (`TELLING_TRAINING`) in the default time.

    Always False today: no length that was tried tells anything (experiments/proxy_growth/), so `TELLING_TRAINING` is
    None. Once it holds a length that does, a search without data trains by itself wherever the machine affords that:
    steps of `configs` (typical networks, from small to large) are timed, and a plan of the default time must reach the
    length. Without a GPU of NVIDIA's that is not tried, as it takes hours; whoever has a cluster asks for trainings.
    """
    if TELLING_TRAINING is None or not Path(NVIDIA_DRIVER).exists() or settings.ray_address is not None:
        return False
    from ...evaluators.training.settings import ProxySettings

    steps, pixels = TELLING_TRAINING
    planned = ProxySettings.from_dict(plan_proxy(PlanRequest(settings, configs, trainings)))
    smallest = min(planned.proxy_resolution(config.resolution) for config in configs)
    return planned.steps(planned.train_images) >= steps and smallest >= pixels


def _time_steps(
    configs: Sequence[LowFormerConfig], settings: ProxySettings, look: ImageData, task: Task
) -> list[float]:
    """Times training steps on the device that candidates train on here; seconds per training image."""
    from ...evaluators.training.budget import seconds_per_image

    return seconds_per_image(configs, settings, look, task, _device())


def train_candidate(task: TrainingTask) -> Evaluation:
    """Trains a candidate briefly and judges it: the default evaluation.

    Images are those that are shared, or loaded. Weights are inherited from the checkpoint `init_from`.
    """
    from ...evaluators.training.proxy import train_proxy
    from ...evaluators.training.settings import ProxySettings
    from ...search_space.heads import HEADS, register_head

    if task.head is not None and task.head.name not in HEADS:
        register_head(task.head)
    result = train_proxy(
        task.config,
        task.shared if task.shared is not None else task.data,
        ProxySettings.from_dict(task.proxy),
        task.seed,
        _device(),
        until=task.until,
        state=None if task.state is None else Path(task.state),
        source=None if task.init_from is None else _source(task.init_from),
        task=task.task,
    )
    return Evaluation(
        result.accuracy,
        result.loss,
        result.seconds,
        result.reason,
        tuple(vars(record) for record in result.history),
        {"images_per_second": result.images_per_second, "resolution": result.resolution, "share": result.share},
    )


def candidate_data(task: TrainingTask) -> tuple[Hashable, Callable[[], Any]]:
    """The images that `train_candidate` needs for a task: their resolution, which names them, and what loads them."""
    from ...evaluators.training.proxy import load_proxy_data
    from ...evaluators.training.settings import ProxySettings

    proxy, resolution = ProxySettings.from_dict(task.proxy), task.config.resolution
    return proxy.proxy_resolution(resolution), lambda: load_proxy_data(proxy, resolution, task.data, task.task)


@lru_cache(maxsize=1)
def _source(path: str) -> Source:
    """The network that all candidates of a run inherit from; a worker reads it once."""
    from ...evaluators.training.inherit import load_source

    return load_source(path)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
