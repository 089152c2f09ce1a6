"""The hierarchical law of `lownas.predictors.accuracy.family_law`: its variances by restricted maximum likelihood.

Libraries for mixed models (statsmodels, lme4) have nested groups; here levels of families and recipes, slopes of
families, smooth departures within families and the luck of an architecture cross each other. As a Gaussian process all
of them are one sum of covariances, and with 600 rows the likelihood is a matrix inverse away; scipy optimizes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rows import Rows
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from lownas.predictors.accuracy.family_law import FamilyLaw
from lownas.predictors.accuracy.features import MAIN, NAMES, SIDE

Floats = NDArray[np.float64]

TYPICAL = -7.0
SPREAD = 4.0
"""Mean and standard deviation of a weak prior of ln variances, so that one that the rows cannot tell stays finite."""
BOUNDS = -16.0, 1.0
STEPS = 100


@dataclass(frozen=True)
class Form:
    """Which features a law has, by their places in `features.NAMES`.

    Attributes:
        main: whose shared slopes are free, and whose slopes differ between families by variances of their own.
        side: whose shared slopes are drawn to 0, with one variance for all, and differ between families by one.
        curved: whether families bend smoothly in the side features.
        length: over which they do; of 0.35, 0.5, 0.7 and 1 the likeliest.
        shared_curve: whether all families bend in common too: the judge of another kind.
    """

    main: tuple[int, ...] = tuple(range(len(MAIN)))
    side: tuple[int, ...] = tuple(range(len(MAIN), len(NAMES)))
    curved: bool = True
    length: float = 0.5
    shared_curve: bool = False


SHIPPED = Form()


class Fitted:
    """A law fitted to rows: variances, and the posterior of everything that is shared.

    Attributes:
        variances: by name; `likelihood` is the restricted one (in ln), with the weak prior, where they were fitted.
        slopes: (1 + main,) of the constant and the features whose shared slopes are free.
    """

    def __init__(self, rows: Rows, form: Form = SHIPPED, variances: Mapping[str, float] | None = None) -> None:
        """Fits the variances by restricted maximum likelihood, unless they are given."""
        self.rows, self.form = rows, form
        self.centre, self.scale = rows.features.mean(axis=0), rows.features.std(axis=0)
        self.parts = self._parts(rows, rows)
        self.likelihood = np.nan
        self.variances = dict(variances) if variances is not None else self._fit()
        self._condition()

    def design(self, rows: Rows) -> Floats:
        """(n, 1 + main) the constant and the features whose shared slopes are free."""
        return np.column_stack([np.ones(len(rows)), self._standardized(rows)[:, self.form.main]])

    def _standardized(self, rows: Rows) -> Floats:
        return np.asarray((rows.features - self.centre) / self.scale)

    def _parts(self, first: Rows, second: Rows) -> dict[str, Floats]:
        """(n, m) covariances at variance 1, by name."""

        def same(name: str) -> Floats:
            equal: Floats = (getattr(first, name)[:, None] == getattr(second, name)[None, :]).astype(np.float64)
            return equal

        a, b, family = self._standardized(first), self._standardized(second), same("family")
        parts = {"recipe": same("group"), "family": family}
        for place in self.form.main:
            parts[f"slope of {NAMES[place]}"] = family * a[:, [place]] * b[:, place]
        if self.form.side:
            a, b = a[:, self.form.side], b[:, self.form.side]
            product = a @ b.T / len(self.form.side)
            gap = ((a[:, None, :] - b[None, :, :]) ** 2).mean(axis=2)
            parts |= {"side": product, "family's side": family * product}
            if self.form.curved:
                parts["smooth"] = family * np.exp(-0.5 * gap / self.form.length**2)
            if self.form.shared_curve:
                parts["shared curve"] = np.exp(-0.5 * gap)
        return {**parts, "architecture": same("arch")}

    def _fit(self) -> dict[str, float]:
        names, matrices, design, y = list(self.parts), list(self.parts.values()), self.design(self.rows), self.rows.y
        identity = np.eye(len(y))

        def negative(logs: Floats) -> tuple[float, Floats]:
            variances = np.exp(logs)
            total = sum(v * matrix for v, matrix in zip(variances, matrices, strict=False)) + variances[-1] * identity
            factor = cho_factor(total, lower=True, check_finite=False)
            inverse = cho_solve(factor, identity, check_finite=False)
            weighted = inverse @ design
            information = design.T @ weighted
            projection = inverse - weighted @ np.linalg.solve(information, weighted.T)
            pulled = projection @ y
            value = np.log(np.diag(factor[0])).sum() + 0.5 * np.linalg.slogdet(information)[1] + 0.5 * y @ pulled
            slopes = [0.5 * (np.einsum("ij,ij", projection, m) - pulled @ m @ pulled) for m in matrices]
            slopes.append(0.5 * (np.trace(projection) - pulled @ pulled))
            away = (logs - TYPICAL) / SPREAD
            return value + 0.5 * away @ away, np.array(slopes) * variances + away / SPREAD

        start = np.full(len(names) + 1, np.log(1e-3))
        options = {"maxiter": STEPS}
        found = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=[BOUNDS] * len(start), options=options)
        if not found.success:
            raise RuntimeError(f"the variances were not found: {found.message}")
        self.likelihood = -float(found.fun)
        return dict(zip((*names, "noise"), np.exp(found.x).tolist(), strict=True))

    def _condition(self) -> None:
        total = sum(self.variances[name] * matrix for name, matrix in self.parts.items())
        total = total + self.variances["noise"] * np.eye(len(self.rows))
        self._inverse = np.linalg.inv(total)
        design = self.design(self.rows)
        self._uncertain = np.linalg.inv(design.T @ self._inverse @ design)
        self.slopes = self._uncertain @ design.T @ self._inverse @ self.rows.y
        self._weights = self._inverse @ (self.rows.y - design @ self.slopes)

    def predict(self, rows: Rows) -> tuple[Floats, Floats]:
        """(n,) means and (n, n) covariances of y, noise included; families that were fitted on are known."""
        across = sum(self.variances[name] * matrix for name, matrix in self._parts(rows, self.rows).items())
        own = sum(self.variances[name] * matrix for name, matrix in self._parts(rows, rows).items())
        design = self.design(rows)
        rest = design - across @ self._inverse @ self.design(self.rows)
        covariance = own + self.variances["noise"] * np.eye(len(rows)) - across @ self._inverse @ np.transpose(across)
        return design @ self.slopes + across @ self._weights, covariance + rest @ self._uncertain @ rest.T

    def law(self, provenance: Mapping[str, Any]) -> FamilyLaw:
        """What it teaches of a family that is not among the rows. Of the shipped form only."""
        if self.form != SHIPPED:
            raise ValueError("only the shipped form can be written")
        v, side = self.variances, len(SIDE)
        # Side slopes are normal around 0: part of the design, with a prior.
        design = np.column_stack([np.ones(len(self.rows)), self._standardized(self.rows)])
        total = sum(v[name] * matrix for name, matrix in self.parts.items() if name != "side")
        inverse = np.linalg.inv(total + v["noise"] * np.eye(len(self.rows)))
        precision = design.T @ inverse @ design
        places = np.arange(1 + len(MAIN), 1 + len(NAMES))
        precision[places, places] += side / v["side"]
        covariance = np.linalg.inv(precision)
        family = [
            v["recipe"] + v["family"],
            *(v[f"slope of {name}"] for name in MAIN),
            *[v["family's side"] / side] * side,
        ]
        return FamilyLaw(
            centre=self.centre,
            scale=self.scale,
            slopes=covariance @ design.T @ inverse @ self.rows.y,
            slopes_covariance=covariance,
            family_sd=np.sqrt(family),
            smooth_sd=float(np.sqrt(v["smooth"])),
            smooth_length=self.form.length,
            architecture_sd=float(np.sqrt(v["architecture"])),
            noise_sd=float(np.sqrt(v["noise"])),
            provenance=provenance,
        )


def folds(rows: Rows, count: int, seed: int) -> NDArray[np.intp]:
    """(n,) the fold of each row: whole modules, at random."""
    modules = sorted(set(rows.module.tolist()))
    order = np.random.default_rng(seed).permutation(len(modules))
    place = {module: int(order[i]) % count for i, module in enumerate(modules)}
    return np.array([place[module] for module in rows.module.tolist()])


def centred(values: Floats, groups: NDArray[np.str_]) -> Floats:
    """(n,) values less the mean of their group."""
    _, place = np.unique(groups, return_inverse=True)
    means = np.bincount(place, weights=values) / np.bincount(place)
    return np.asarray(values - means[place])


def features_form(names: Sequence[str]) -> Form:
    """A law of these features alone, as main ones."""
    return Form(main=tuple(NAMES.index(name) for name in names), side=(), curved=False)
