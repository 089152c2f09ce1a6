"""A predictor that learns from what the run measures."""

import numpy as np
import pytest

from lownas.search.latency.correction import Corrected
from lownas.search.latency.measurements import Rounds
from lownas.search.trials.run_folder import RunFolder

SPREAD = 0.08  # log spread of the predictor below


class NormalPredictor:
    """Log-normal around 1 ms."""

    def quantile_ms(self, configs, q):
        from scipy.special import ndtri

        return np.full(len(configs), np.exp(SPREAD * ndtri(q)))

    def predict(self, configs):
        raise NotImplementedError


@pytest.fixture
def configs(space):
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(12)]


def test_with_nothing_measured_it_is_the_predictor(predictor, configs) -> None:
    corrected = Corrected(predictor)
    assert corrected.factor == 1.0 and corrected.measured == 0
    assert corrected.quantile_ms(configs, 0.9).tolist() == predictor.quantile_ms(configs, 0.9).tolist()
    assert corrected.predict(configs) == predictor.predict(configs)


def test_what_all_have_in_common_is_learned(predictor, configs) -> None:
    corrected = Corrected(predictor)
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
        corrected = Corrected(NormalPredictor())
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
        corrected = Corrected(NormalPredictor())
        for config, latency_ms in zip(configs[:count], latencies, strict=False):
            corrected.learn(config, float(latency_ms))
        held.append(latencies[-1] <= corrected.quantile_ms(configs[-1:], 0.9)[0])
    assert 0.86 <= np.mean(held) <= (0.96 if shared == 0.5 else 1.0)


def test_rounds_are_taken_in_turn_and_kept(tmp_path, settings, configs) -> None:
    class Measured:
        median_ms, iqr_ms = 2.0, 0.1

    order = []

    def measure(config):
        order.append(config.id)
        if config.id == configs[1].id:
            raise RuntimeError("the device is gone")
        return Measured()

    with RunFolder.open(tmp_path / "run", resume=False) as run:
        rounds = Rounds(run, "cpu", measure, 0.0)
        assert rounds.take(configs[:3], 2, "anchor") == [configs[0], configs[2]]
        assert order == [configs[i].id for i in (0, 1, 2, 0, 2)]
        again = Rounds(run, "cpu", measure, 0.0)
        assert again.known() == [(configs[0], 2.0), (configs[2], 2.0)]
        assert again.taken("anchor") and not again.taken("leader")
        again.take(configs[:1], 3, "finalist")
        assert again.medians_ms(configs[0]) == [2.0] * 3 and len(order) == 6
