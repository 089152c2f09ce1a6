"""Fits a latency model to samples and estimates, on samples left out, the errors that it makes on other networks.

Where the runtime reports the times of single kernels, every kernel class is fitted to them, and the whole networks'
times set overhead and scale; without, all classes are fitted to the whole networks' times at once. Which form of the
first is taken (`measured_networks.FORMS`) is decided on folds of the samples fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..kernel_model import KernelModel
from ..kernel_terms import Array
from .measured_networks import FORMS, Form, MeasuredNetworks
from .samples import Probe, Sample

FOLDS = 8
MUST_REDUCE_ERROR_TO: Mapping[Form, float] = {"corrected": 1.0, "refined": 0.7}
"""Error of a form over that of kernels alone, on folds left out, up to which it is taken.

Networks of other kinds are predicted alike with corrections and without (`by_form` in experiments/latency's
cpu_timm.json). Coefficients refined by whole networks suit those of the space alone.
"""
MUST_REDUCE_ERROR_WITHIN_SPACE_TO = 0.97
"""The same of a model that no other networks are predicted by."""
KEPT_WEIGHTS: tuple[int, ...] = tuple(2**n for n in range(19, 25))
"""Elements of weights that caches may keep: 2 to 64 MB in fp32."""
CACHES_MUST_REDUCE_ERROR_TO = 0.97
"""Error of a model with caches over that of one without, on folds left out, up to which it is taken."""
BOUND_CONFIDENCE = 0.9
"""Probability with which the held-out error is below `held_out_bound`."""


@dataclass(frozen=True)
class Fit:
    """A fitted model, with its errors on samples that it was not fitted on.

    Attributes:
        model: fitted on all samples.
        log_errors: (samples,) log of measured over predicted time, each by a model fitted without that sample.
        held_out_error: mean absolute relative error of the same predictions.
        macs_only_error: the same error of a line in log MACs.
        form: in which form the model was fitted, one of `measured_networks.FORMS`.
        noise: root mean square of the samples' repeatability, the part of the log errors that is not the model's.
    """

    model: KernelModel
    log_errors: Array
    held_out_error: float
    macs_only_error: float
    form: Form
    noise: float


def fit_samples(
    samples: Sequence[Sample],
    fusion: str,
    block: int,
    folds: int = FOLDS,
    probes: Sequence[Probe] = (),
    within_space: bool = False,
) -> Fit:
    """Fits a model to samples, and cross-validates it; the choice for or against corrections is nested in the folds.

    Args:
        samples: measured networks.
        fusion: the fusion rules by which they ran (`Target.fusion`).
        block: channels of the blocked layout on the device (`samples.block_size`).
        folds: into which the samples are parted.
        probes: measured small graphs; every fold is fitted on all of them.
        within_space: whether only networks like the samples will be predicted.
    """
    data = _with_caches(MeasuredNetworks.of(samples, fusion, block, probes, within_space=within_space), folds)
    everything = np.arange(len(samples))
    predicted, line = held_out_ms(data, folds, choose=True)
    form = _chosen_form(data, everything, folds)
    model = data.fit(everything, form)
    log_errors = np.log(data.times_ms / predicted)
    return Fit(
        model=model,
        log_errors=log_errors,
        held_out_error=float(np.mean(np.abs(predicted / data.times_ms - 1))),
        macs_only_error=float(np.mean(np.abs(line / data.times_ms - 1))),
        form=form,
        noise=float(np.sqrt(np.mean(data.repeatabilities**2))),
    )


def fit_errors(samples: Sequence[Sample], fusion: str, block: int, probes: Sequence[Probe] = ()) -> Array:
    """(samples,) log of measured over predicted, each by a fit on the other folds, in a form chosen once for all."""
    data = _with_caches(MeasuredNetworks.of(samples, fusion, block, probes), FOLDS)
    return np.log(data.times_ms / held_out_ms(data, FOLDS, choose=False)[0])


def held_out_bound(samples: Sequence[Sample], fusion: str, block: int, probes: Sequence[Probe] = ()) -> float:
    """The mean relative error on held-out samples that is not exceeded with `BOUND_CONFIDENCE` (Student's t)."""
    from scipy.stats import t

    errors = np.abs(np.expm1(-fit_errors(samples, fusion, block, probes)))
    n = len(errors)
    return float(errors.mean() + t.ppf(BOUND_CONFIDENCE, n - 1) * errors.std(ddof=1) / np.sqrt(n))


def _with_caches(data: MeasuredNetworks, folds: int) -> MeasuredNetworks:
    """`data` with the size of the caches that explains networks held out and probes best, if any does.

    The errors of probes are those of a fit to them and all networks.
    """
    if data.kernel_times is None:
        return data
    everything = np.arange(len(data.times_ms))
    errors = {}
    for kept in (0, *KEPT_WEIGHTS):
        of_size = replace(data, kept=kept)
        predicted = _predicted_ms(of_size, everything, max(2, folds // 2), "kernels")
        in_probes = of_size.probe_errors(of_size.fit(everything))
        errors[kept] = float(np.abs(np.log(predicted / data.times_ms)).sum() + np.abs(in_probes).sum())
    best = min(errors, key=errors.__getitem__)
    return replace(data, kept=best if errors[best] < CACHES_MUST_REDUCE_ERROR_TO * errors[0] else 0)


def _predicted_ms(data: MeasuredNetworks, networks: NDArray[np.int64], folds: int, form: Form) -> Array:
    """(n,) times of `networks` by models in `form`, each fitted on the other folds of them."""
    part, predicted = np.arange(len(networks)) % folds, np.empty(len(networks))
    for k in range(min(folds, len(networks))):
        model = data.fit(networks[part != k], form)
        predicted[part == k] = [model.graph_ms(data.graphs[i]) for i in networks[part == k]]
    return predicted


def held_out_ms(data: MeasuredNetworks, folds: int, *, choose: bool) -> tuple[Array, Array]:
    """(n,) times of the networks by models fitted on the other folds, and (n,) by lines in log MACs fitted on those.

    Args:
        data: n networks.
        folds: how many.
        choose: whether each fold decides for a form; without, all take that which is best on all networks.
    """
    n = len(data.times_ms)
    macs = np.array([float(graph.column("macs").sum()) for graph in data.graphs[:n]])
    everything = np.arange(n)
    predicted, line = np.empty(n), np.empty(n)
    shared: Form = "kernels" if choose else _chosen_form(data, everything, folds)
    for k in range(min(folds, n)):
        train, test = everything[everything % folds != k], everything[everything % folds == k]
        model = data.fit(train, _chosen_form(data, train, folds) if choose else shared)
        predicted[test] = [model.graph_ms(data.graphs[i]) for i in test]
        slope = np.polyfit(np.log(macs[train]), np.log(data.times_ms[train]), 1)
        line[test] = np.exp(np.polyval(slope, np.log(macs[test])))
    return predicted, line


def _chosen_form(data: MeasuredNetworks, train: NDArray[np.int64], folds: int) -> Form:
    """The form of the model of the networks `train`: another than kernels alone if it helps on folds of them."""
    if data.kernel_times is None:
        return "kernels"
    errors = {}
    for form in FORMS:
        predicted = _predicted_ms(data, train, max(2, folds // 2), form)
        errors[form] = float(np.abs(np.log(predicted / data.times_ms[train])).sum())
    good = [
        form
        for form, share in MUST_REDUCE_ERROR_TO.items()
        if errors[form] < (MUST_REDUCE_ERROR_WITHIN_SPACE_TO if data.within_space else share) * errors["kernels"]
    ]
    return min(good, key=errors.__getitem__, default="kernels")
