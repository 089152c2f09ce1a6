"""A predictor that learns from what the run measures."""

import numpy as np
import pytest

from lownas.search.latency.correction import CorrectedPredictor

SPREAD = 0.08  # log spread of the predictor below


class NormalPredictor:
    """Log-normal around 1 ms."""

    def quantile_ms(self, configs, q):
        from scipy.special import ndtri

        return np.full(len(configs), np.exp(SPREAD * ndtri(q)))

    def predict(self, configs):
        raise NotImplementedError


def test_with_nothing_measured_it_is_the_predictor(predictor, configs) -> None:
    corrected = CorrectedPredictor(predictor)
    assert corrected.factor == 1.0 and corrected.measured == 0
    assert corrected.quantile_ms(configs, 0.9).tolist() == predictor.quantile_ms(configs, 0.9).tolist()
    assert corrected.predict(configs) == predictor.predict(configs)


def test_what_all_have_in_common_is_learned(predictor, configs) -> None:
    corrected = CorrectedPredictor(predictor)
    for config in configs[:6]:
        corrected.learn(config, 1.3 * float(predictor.quantile_ms([config], 0.5)[0]))
    truth = 1.3 * predictor.quantile_ms(configs[6:], 0.5)
    median = corrected.quantile_ms(configs[6:], 0.5)
    np.testing.assert_allclose(median, truth, rtol=0.05)
    assert (corrected.quantile_ms(configs[6:], 0.9) > median).all()
    shown = corrected.predict(configs[6:])
    np.testing.assert_allclose([p.latency_ms for p in shown], truth, rtol=0.05)
    assert all(p.low_ms < p.latency_ms < p.high_ms for p in shown)


def test_agreement_narrows_and_disagreement_widens(configs) -> None:
    widths = {}
    for name, factors in {"none": [], "agree": [1.2] * 5, "disagree": [0.6, 1.5, 1.0, 2.0, 0.8]}.items():
        corrected = CorrectedPredictor(NormalPredictor())
        for config, factor in zip(configs, factors, strict=False):
            corrected.learn(config, factor)
        low, high = (corrected.quantile_ms(configs[6:7], q)[0] for q in (0.5, 0.9))
        widths[name] = float(np.log(high / low))
    assert widths["agree"] < widths["none"] < widths["disagree"]


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("shared", [0.2, 0.5, 0.8])
def test_the_confidence_is_kept(configs, count: int, shared: float) -> None:
    """Devices drawn as the prior has it, and with more or less in common than that, which may only err to be safe."""
    rng = np.random.default_rng(1)
    held = []
    for _ in range(400):
        offset = np.sqrt(shared) * SPREAD * rng.standard_normal()
        latencies = np.exp(offset + np.sqrt(1 - shared) * SPREAD * rng.standard_normal(count + 1))
        corrected = CorrectedPredictor(NormalPredictor())
        for config, latency_ms in zip(configs[:count], latencies, strict=False):
            corrected.learn(config, float(latency_ms))
        held.append(latencies[-1] <= corrected.quantile_ms(configs[-1:], 0.9)[0])
    assert 0.86 <= np.mean(held) <= (0.96 if shared == 0.5 else 1.0)
