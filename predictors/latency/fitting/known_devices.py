"""Stacks a target's own model with those of known targets, where that predicts better.

Few measurements fit a device's own coefficients badly; the predictions of known devices then carry part of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..kernel_terms import Array
from ..predictor import LatencyPredictor
from ..stacked_model import StackedModel, StackedPart
from ..target import Target, profile_folders
from ..uncertainty import without_stragglers
from .cross_validation import Fit
from .samples import Sample
from .transfer import MIN_MEASUREMENTS, Transfer, choose_transfer

STACKING_MUST_REDUCE_ERROR_TO = 0.95
"""Held-out error of the stack over that of the target's own model, up to which the stack is taken."""


@dataclass(frozen=True, eq=False)
class StackedFit:
    """A stacked model and its errors.

    Attributes:
        model: the target's own model stacked with those of known targets.
        log_errors: (samples,) log of measured over predicted time, by stacks fitted without each sample; stragglers are
            drawn in (`uncertainty.without_stragglers`).
        held_out_error: mean absolute relative error of the same predictions, nothing drawn in.
    """

    model: StackedModel
    log_errors: Array
    held_out_error: float


def stack_with_known(
    fit: Fit, samples: Sequence[Sample], own: str, known: Mapping[str, LatencyPredictor]
) -> StackedFit | None:
    """The target's own model stacked with those of known targets; None if its own model alone is as good.

    Args:
        fit: of the target alone.
        samples: what it was fitted on.
        own: full name of the target.
        known: predictors of other targets, by full name.
    """
    times_ms = np.array([sample.latency_ms for sample in samples])
    if not known or len(times_ms) <= MIN_MEASUREMENTS:
        return None
    configs = [sample.config for sample in samples]
    predicted = {own: times_ms / np.exp(fit.log_errors)}
    predicted |= {name: predictor.latency_ms(configs) for name, predictor in known.items()}
    transfer, log_errors = choose_transfer(predicted, times_ms)
    error = float(np.mean(np.abs(np.expm1(-log_errors))))
    if error > STACKING_MUST_REDUCE_ERROR_TO * fit.held_out_error:
        return None
    if not transfer.weights:  # a constant alone fits best: it would predict the same for all networks
        return None
    return StackedFit(_stacked(fit, own, known, transfer), without_stragglers(log_errors), error)


def _stacked(fit: Fit, own: str, known: Mapping[str, LatencyPredictor], transfer: Transfer) -> StackedModel:
    overhead_ms = transfer.overhead_ms
    parts = [StackedPart(own, transfer.weights.get(own, 0.0), transfer.shares.get(own, 0.0), fit.model)]
    for name, weight in transfer.weights.items():
        if name == own:
            continue
        model = known[name].model
        stacked = model if isinstance(model, StackedModel) else StackedModel.of(model)
        # A predictor gives the median of its errors about its model.
        factor = weight * float(np.exp(known[name].errors.quantile(0.5)))
        overhead_ms += factor * stacked.overhead_ms
        share = transfer.shares[name]
        parts += [StackedPart(name, factor * part.weight, share * part.share, part.model) for part in stacked.parts]
    return StackedModel(overhead_ms, tuple(parts), transfer.least_ms)


def profiles_of_others(target: Target, profiles: str | Path | None) -> dict[str, LatencyPredictor]:
    """The predictors of all other targets that have a profile, made on whichever machine, by full name."""
    found: dict[str, LatencyPredictor] = {}
    for folder in profile_folders(profiles):
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            with suppress(ValueError):  # a broken profile is of no use here
                predictor = LatencyPredictor.read(path, check_host=False)
                predictor.further = ()  # its model of the first space alone is lent
                if predictor.target != target:
                    found.setdefault(str(predictor.target), predictor)
    return found
