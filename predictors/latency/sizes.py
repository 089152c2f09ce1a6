"""Of which size networks are: by this the model is found that was fitted on networks of their kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...search_space.config import LowFormerConfig
from ...search_space.graph import OpGraph
from ..costs import total_macs, total_params

Floats = NDArray[np.float64]

LEAST_SPREAD = 0.3
"""Least standard deviation of the logs; networks that are all alike would leave others no chance."""


def log_sizes(networks: Sequence[LowFormerConfig | OpGraph]) -> Floats:
    """(n, 2) logs of MACs and of parameters."""
    sizes = np.ones((len(networks), 2))
    configs = [place for place, network in enumerate(networks) if isinstance(network, LowFormerConfig)]
    known = [network for network in networks if isinstance(network, LowFormerConfig)]
    sizes[configs] = np.stack([total_macs(known), total_params(known)], axis=1)
    for place, network in enumerate(networks):
        if isinstance(network, OpGraph):
            sizes[place] = network.macs, network.params
    return np.log(np.maximum(sizes, 1.0))


@dataclass(frozen=True)
class Sizes:
    """Where the networks lie that a model was fitted on.

    Attributes:
        center, spread: mean and standard deviation of the logs of MACs and of parameters.
    """

    center: tuple[float, float]
    spread: tuple[float, float]

    @classmethod
    def of(cls, configs: Sequence[LowFormerConfig]) -> Self:
        """Those of measured configurations."""
        sizes = log_sizes(configs)
        center, spread = sizes.mean(axis=0), np.maximum(sizes.std(axis=0), LEAST_SPREAD)
        return cls((float(center[0]), float(center[1])), (float(spread[0]), float(spread[1])))

    def log_density(self, sizes: Floats) -> Floats:
        """(n,) how much networks of these (n, 2) log sizes are of this kind: the log of a normal density."""
        spread = np.array(self.spread)
        return -0.5 * (((sizes - np.array(self.center)) / spread) ** 2).sum(axis=1) - np.log(spread).sum()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"center": [round(x, 4) for x in self.center], "spread": [round(x, 4) for x in self.spread]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The sizes that `to_dict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        (a, b), (c, d) = data["center"], data["spread"]
        if not (c > 0 and d > 0):
            raise ValueError("the spread of sizes is positive")
        return cls((float(a), float(b)), (float(c), float(d)))
