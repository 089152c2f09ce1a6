"""The law that searches maximized before: a power law of the error in MACs, resolution, blocks and attention.

Fitted on the 15 published models of the family alone, and kept to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lownas.predictors.costs import total_macs
from lownas.search_space import LowFormerConfig
from lownas.search_space.graph.from_config import units
from lownas.search_space.presets import PUBLISHED
from lownas.search_space.units import AttentionUnit, LocalUnit

Floats = NDArray[np.float64]


class FormerLaw:
    """ln(100 - top-1 %), linear in ln MACs, ln resolution (at least 224), ln local blocks and the share with attention.

    MACs (at 224 pixels) and blocks beyond the largest published ones gain nothing; larger ones are `excluded`.
    """

    def __init__(self) -> None:
        points = [(m.config.replace(resolution=r), top1) for m in PUBLISHED.values() for r, top1 in m.top1.items()]
        self._most_macs = float(total_macs([model.config for model in PUBLISHED.values()]).max())
        self._most_blocks = np.inf
        features = self._features([config for config, _ in points])
        self._most_blocks = float(np.exp(features[:, 3].max()))
        errors = np.log(100 - np.array([top1 for _, top1 in points]))
        self._coefficients = np.linalg.lstsq(features, errors, rcond=None)[0]

    def __call__(self, configs: Sequence[LowFormerConfig]) -> Floats:
        """(n,) top-1 in percent; -inf where a configuration was excluded."""
        top1 = 100 - np.exp(self._features(configs) @ self._coefficients)
        return np.where(self._at_224(configs) > 1.005 * self._most_macs, -np.inf, top1)

    def _at_224(self, configs: Sequence[LowFormerConfig]) -> Floats:
        resolution = np.array([config.resolution for config in configs])
        return np.asarray(total_macs(configs) * (224 / resolution) ** 2)

    def _features(self, configs: Sequence[LowFormerConfig]) -> Floats:
        macs = total_macs(configs) / np.maximum(self._at_224(configs) / self._most_macs, 1.0)
        resolution = np.array([config.resolution for config in configs])
        rows = []
        for config in configs:
            parts = units(config)
            local = [part for part in parts if isinstance(part, LocalUnit)]
            attending = sum(isinstance(part, AttentionUnit) for part in parts)
            rows.append((len(local), attending / max(sum(part.in_block for part in local), 1)))
        blocks, attention = np.array(rows, dtype=np.float64).T
        larger = np.maximum(resolution, 224) / 224
        blocks = np.minimum(blocks, self._most_blocks)
        return np.column_stack([np.ones(len(macs)), np.log(macs / 1e9), np.log(larger), np.log(blocks), attention])
