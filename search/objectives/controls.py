"""What the trainings of a run tell of ImageNet top-1 beyond the prior, as far as published models bear it out.

A few published models (controls) train beside the candidates. What the prior misses of each is known: it is predicted
from the others, and its accuracy was published. If their trainings went better than others where the prior expects too
little, then so may those of the candidates; if not, trainings say nothing here, and move nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...predictors.accuracy.prior import AccuracyPrediction, AccuracyPrior
from ...search_space.presets import PUBLISHED
from .estimates import TrainedCandidate, line

Floats = NDArray[np.float64]

# From small to large, with attention and without (the E1 and E2). Not those of which no weights were published.
CONTROLS = ("cpubone_nano", "cpubone_s0", "lowformer_b0", "lowformer_e1", "lowformer_e2", "lowformer_b3")
MIN_CONTROLS = 5  # with fewer it cannot be told from noise what they say
# In pixels: where the largest images of a space are smaller, its candidates cannot be compared by trainings with the
# published models, which are for 224 pixels.
SMALLEST_RESOLUTION = 112
COVERAGE = 0.9  # of intervals
_WIDTH = 2 * 1.6449  # of such an interval, in standard deviations of a normal variable
_TINY = 1e-12  # a variance of nothing
_LEAST_ACCURACY = 1e-3  # logits of accuracies are finite by it


@dataclass(frozen=True)
class TrainedControl:
    """A published model that was trained in the run.

    Attributes:
        trained: its accuracies in the run.
        top1: its published ImageNet top-1 in percent, at the resolution of the configuration.
        expected: what the prior makes of it that does not know it.
    """

    trained: TrainedCandidate
    top1: float
    expected: AccuracyPrediction


@dataclass(frozen=True)
class Correction:
    """By how much trainings move what the prior expects, in ln(100 - top-1 %), which is about normal there.

    Attributes:
        controls: how many published models it rests on.
        weight: by how much ln(100 - top-1 %) falls per logit that a training went better than the prior lets expect.
        explained: the share of what the prior misses that trainings explain over the controls, 0 to 1.
        gain: by configuration id, by how much ln(100 - top-1 %) falls.
        narrower: by configuration id, what its standard deviation is multiplied by, 0 to 1.
    """

    controls: int
    weight: float = 0.0
    explained: float = 0.0
    gain: Mapping[str, float] = field(default_factory=dict)
    narrower: Mapping[str, float] = field(default_factory=dict)

    def top1(self, config_id: str, top1: float, median: float) -> float:
        """A quantile of a candidate's ImageNet top-1 in percent, corrected; `median` is that of the prior."""
        gain, narrower = self.gain.get(config_id, 0.0), self.narrower.get(config_id, 1.0)
        middle = _log_error(median)
        return 100.0 - float(np.exp(middle - gain + narrower * (_log_error(top1) - middle)))


def controls_of(
    trained: Sequence[TrainedCandidate], left_out: Mapping[str, AccuracyPrediction]
) -> list[TrainedControl]:
    """The published models among `trained`; `left_out` has what the prior without it expects of each, by its name."""
    found = []
    for one in trained:
        for name, expected in left_out.items():
            model = PUBLISHED[name]
            top1 = model.top1.get(one.config.resolution)
            if top1 is not None and one.config == model.config.replace(resolution=one.config.resolution):
                found.append(TrainedControl(one, top1, expected))
    return found


def predict_left_out(prior: AccuracyPrior, name: str) -> AccuracyPrediction:
    """What the prior expects of a published model that it was not told of, at any resolution."""
    return prior.without(name).predict([PUBLISHED[name].config], coverage=COVERAGE)[0]


def correct(
    trained: Sequence[TrainedCandidate],
    expected: Sequence[AccuracyPrediction],
    controls: Sequence[TrainedControl],
    *,
    noise_sd: float = 0.0,
) -> Correction:
    """What trainings say of candidates beyond the prior.

    How much better than expected each training went is the residual of a line of its logit accuracy over what the prior
    expects, through candidates and controls alike. Over the controls, what the prior misses is regressed on it. The
    slope counts as far as it exceeds what noise alone would give on average (its squared t-statistic, df / (df - 2)),
    and never if it is negative. A candidate is moved no farther than a control that went as well, and the less, the
    surer the prior is of it.

    Args:
        trained: n candidates.
        expected: (n,) what the prior makes of each.
        controls: published models that were trained in the run.
        noise_sd: of what two trainings of one network differ by, in ln(100 - top-1 %): the part of the prior's spread
            that no knowledge of the network takes away.
    """
    count = len(controls)
    if count < MIN_CONTROLS or not trained:
        return Correction(count)
    networks = [*(control.trained for control in controls), *trained]
    predictions = [*(control.expected for control in controls), *expected]
    residuals = _residuals(networks, np.array([-_log_error(one.top1) for one in predictions]))
    own, others = residuals[:count], residuals[count:]
    missed = np.array([_log_error(one.expected.top1) - _log_error(one.top1) for one in controls])
    centred, missed = own - own.mean(), missed - missed.mean()
    square, total = float(centred @ centred), float(missed @ missed)
    if square <= 0 or total <= 0:
        return Correction(count)
    slope, freedom = float(centred @ missed) / square, count - 2
    left = float(((missed - slope * centred) ** 2).sum())
    noise = left / freedom / square  # squared standard error of the slope
    if slope <= 0 or slope**2 <= (chance := noise * freedom / (freedom - 2)):
        return Correction(count)
    kept = 1 - chance / slope**2
    explained = kept * max(0.0, 1 - left / freedom / (total / (count - 1)))
    limit = float(np.abs(own).max())
    variance = np.array([_spread(one) ** 2 for one in predictions])
    unknown = np.maximum(variance - noise_sd**2, 0.0)  # what knowing the network better could take away
    doubt = np.minimum(unknown[count:] / max(float(unknown[:count].mean()), _TINY), 1.0)
    moves = np.clip(others, -limit, limit) * doubt
    surer = explained * float(variance[:count].mean()) * doubt**2 - noise * (kept * moves) ** 2
    left_over = 1 - np.clip(surer, 0.0, unknown[count:]) / np.maximum(variance[count:], _TINY)
    names = [one.config_id for one in trained]
    return Correction(
        count,
        kept * slope,
        explained,
        dict(zip(names, (kept * slope * moves).tolist(), strict=True)),
        dict(zip(names, np.sqrt(left_over).tolist(), strict=True)),
    )


def _residuals(networks: Sequence[TrainedCandidate], expected: Floats) -> Floats:
    """(n,) logits by which trainings went better than (n,) `expected` lets expect, without what the seeds' noise adds.

    Each is multiplied by its reliability: the share of the residuals' variance that is not noise between seeds. That is
    known where networks were trained with a second seed.
    """
    logits = [_logits(network.accuracies) for network in networks]
    means = np.array([float(values.mean()) for values in logits])
    slope, intercept = line(expected, means)
    residuals = means - intercept - slope * expected
    residuals -= residuals.mean()
    again = [values for values in logits if len(values) > 1]
    if not again:
        return residuals
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in again)
    noise = squares / sum(len(values) - 1 for values in again) / np.array([len(values) for values in logits])
    true = max(float((residuals**2).mean()) - float(noise.mean()), 0.0)
    reliable: Floats = residuals * (true / np.maximum(true + noise, _TINY))
    return reliable


def _logits(accuracies: Sequence[float]) -> Floats:
    clipped = np.clip(np.array(accuracies, dtype=np.float64), _LEAST_ACCURACY, 1 - _LEAST_ACCURACY)
    logits: Floats = np.log(clipped / (1 - clipped))
    return logits


def _log_error(top1: float) -> float:
    return float(np.log(max(100.0 - top1, 1e-6)))


def _spread(prediction: AccuracyPrediction) -> float:
    """The standard deviation in ln(100 - top-1 %)."""
    return (_log_error(prediction.low_top1) - _log_error(prediction.high_top1)) / _WIDTH
