"""Opening the place where candidates are evaluated: this process, or Ray workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..settings import SearchSettings
from .pool import InProcessPool, TrainingPool
from .ray_pool import RayPool
from .task import Evaluate, SharedInput


def open_pool(
    evaluate: Evaluate, settings: SearchSettings, log: logging.Logger, share: SharedInput | None = None
) -> TrainingPool:
    """Opens the pool that a search's settings ask for: Ray workers, or this process if there are to be none."""
    if not settings.workers:
        return InProcessPool(evaluate, log)
    return RayPool(
        evaluate,
        settings.workers,
        settings.gpu_fraction,
        share=share,
        trial_timeout_s=settings.trial_timeout_s,
        address=settings.ray_address,
        insecure=settings.insecure,
        log=log,
    )


@contextmanager
def open_caller(settings: SearchSettings, log: logging.Logger) -> Iterator[Callable[..., Any] | None]:
    """Opens what calls a function where candidates train, on a worker of a cluster; None if they train on this machine.

    It takes the function and its arguments, and gives the result. Raises ValueError if there is no such cluster.
    """
    if settings.ray_address is None:
        yield None
        return
    pool = RayPool(
        lambda task: 0.0,
        settings.workers,
        settings.gpu_fraction,
        address=settings.ray_address,
        insecure=settings.insecure,
        log=log,
    )
    try:
        yield pool.call
    finally:
        pool.close()
