"""lownas: hardware-aware neural architecture search over a parameterized LowFormer space.

`from lownas.search import search`; `from lownas import resume, train, evaluate, calibrate, measure, predict`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .search import calibrate, evaluate, measure, predict, resume, train

__all__ = ["calibrate", "evaluate", "measure", "predict", "resume", "train"]

# As a library it says nothing by itself; who wants to hear what is worth a warning configures logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(".search", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
