"""What published results of many families teach about accuracy: the part of the prior that is fitted and shipped.

The error of network x of family f, trained by recipe r, is modelled as

    ln(100 - top-1 %) = level + b h(x)  +  level[f, r] + c[f] h(x)  +  g[f](x)  +  a[x]  +  noise

h are the features (`features`), standardized. Slopes b are shared by all families; c are a family's own departures from
them, g what bends within a family (smooth in the features `SIDE`), a the luck of one architecture. All of these are
normal, with variances that say how much families differ. Slopes of `SIDE` are drawn to 0, those of `MAIN` are not.
Fitted by experiments/prior/fit.py; what it gives is the distribution of b and the standard deviations of all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from ...search_space.config import one_line
from ..model_files import read_model, write_model
from .features import NAMES, SIDE

Floats = NDArray[np.float64]

SCHEMA = 1
_LARGEST = 1e9
_REMEDY = "fit the prior again (experiments/prior/fit.py)"


class _File(BaseModel):
    """The content of a prior's file."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    features: list[str]
    centre: list[float]
    scale: list[float]
    slopes: list[float]
    slopes_covariance: list[list[float]]
    family_sd: list[float]
    smooth_sd: float
    smooth_length: float
    architecture_sd: float
    noise_sd: float
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False)
class FamilyLaw:
    """What a family that was not fitted on may be expected to be like.

    "1 + features" stands for the level and then the slopes in the order of `features.NAMES`, all in ln(100 - top-1 %)
    per standard deviation of the feature.

    Attributes:
        centre, scale: (features,) by which features are standardized.
        slopes, slopes_covariance: (1 + features,) and (1 + features, 1 + features) of what is shared by all families.
        family_sd: (1 + features,) standard deviations of a family's own departures.
        smooth_sd, smooth_length: of what bends within a family; the length is in the root mean square of the features
            `SIDE`, standardized.
        architecture_sd: of the luck of one architecture, the same in all its trainings.
        noise_sd: of one training.
        provenance: what it was fitted on, with which held-out errors.
    """

    centre: Floats
    scale: Floats
    slopes: Floats
    slopes_covariance: Floats
    family_sd: Floats
    smooth_sd: float
    smooth_length: float
    architecture_sd: float
    noise_sd: float
    provenance: Mapping[str, Any]

    @classmethod
    def load(cls, file: str | Path | None = None) -> Self:
        """The shipped one, or that in a file. Raises ValueError, in one line, if it is cut, altered or newer."""
        path = Path(file) if file is not None else Path(__file__).with_name("imagenet.json")
        content = read_model(path, "accuracy prior", SCHEMA, _REMEDY)
        content.pop("schema")
        try:
            found = _File.model_validate(content)
        except ValidationError as error:
            raise ValueError(f"broken accuracy prior {path}: {one_line(error)}") from None
        if tuple(found.features) != NAMES:
            raise ValueError(f"accuracy prior {path} is of other features than {', '.join(NAMES)}: {_REMEDY}")
        given = {name: getattr(found, name) for name in _File.model_fields if name != "features"}
        try:
            values: dict[str, Any] = {n: np.array(v) if isinstance(v, list) else v for n, v in given.items()}
        except ValueError:  # rows of different lengths
            raise ValueError(f"broken accuracy prior {path}: slopes_covariance is not a square") from None
        law = cls(**values)
        law._check(path)
        return law

    def _check(self, path: Path) -> None:
        """Raises ValueError for arrays of other sizes, or standard deviations that are none."""
        count = len(NAMES)
        sizes = {"centre": (count,), "scale": (count,), "slopes": (1 + count,), "family_sd": (1 + count,)}
        for name, size in {**sizes, "slopes_covariance": (1 + count, 1 + count)}.items():
            if np.shape(getattr(self, name)) != size:
                raise ValueError(f"broken accuracy prior {path}: {name} is not of size {size}")
        covariance = self.slopes_covariance
        if not np.allclose(covariance, covariance.T) or np.linalg.eigvalsh(covariance).min() < 0:
            raise ValueError(f"broken accuracy prior {path}: slopes_covariance is not a covariance")
        deviations = (*self.scale, *self.family_sd, self.smooth_sd, self.architecture_sd, self.noise_sd)
        if min(deviations) < 0 or min(*self.scale, self.smooth_length, self.noise_sd) <= 0:
            raise ValueError(f"broken accuracy prior {path}: a standard deviation is not positive")
        if max(*deviations, self.smooth_length) > _LARGEST:  # whose squares would be infinite
            raise ValueError(f"broken accuracy prior {path}: a standard deviation beyond {_LARGEST:g}")

    def save(self, path: Path) -> None:
        """Writes it to a file, over an older one."""
        arrays = ("centre", "scale", "slopes", "slopes_covariance", "family_sd")
        content = {name: np.round(getattr(self, name), 9).tolist() for name in arrays}
        numbers = {
            name: round(getattr(self, name), 9)
            for name in ("smooth_sd", "smooth_length", "architecture_sd", "noise_sd")
        }
        write_model(path, {"features": list(NAMES), **content, **numbers, "provenance": dict(self.provenance)}, SCHEMA)

    def design(self, features: Floats) -> Floats:
        """(n, 1 + features) a constant and the standardized features, from (n, features)."""
        return np.column_stack([np.ones(len(features)), (features - self.centre) / self.scale])

    def linear_covariance(self, first: Floats, second: Floats) -> Floats:
        """(n, m) of level and slopes, between networks of one family, from their designs."""
        covariance: Floats = first @ self._of_slopes @ second.T
        return covariance

    def linear_variance(self, design: Floats) -> Floats:
        """(n,) the diagonal of `linear_covariance`."""
        variance: Floats = np.einsum("ij,ij->i", design @ self._of_slopes, design)
        return variance

    def smooth_covariance(self, first: Floats, second: Floats) -> Floats:
        """(n, m) of what bends within a family, from designs."""
        a, b = first[:, -len(SIDE) :], second[:, -len(SIDE) :]
        scale = len(SIDE) * self.smooth_length**2
        squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
        covariance: Floats = self.smooth_sd**2 * np.exp(-0.5 * np.maximum(squared, 0.0) / scale)
        return covariance

    @property
    def _of_slopes(self) -> Floats:
        covariance: Floats = self.slopes_covariance + np.diag(self.family_sd**2)
        return covariance
