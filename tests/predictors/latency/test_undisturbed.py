import math

import numpy as np
import pytest

from lownas.predictors import Target
from lownas.predictors.latency.sentinel_history import SentinelHistory
from lownas.predictors.latency.undisturbed import Look, SentinelWatch, sentinel_reference, undisturbed


def looks(rng, count, true_ms=4.0, sentinel_ms=8.0):
    """On a machine that is slower by up to 40 % half of the time; this network is more or less so than the sentinel."""
    slow = np.where(rng.random(count) < 0.5, rng.uniform(0, 0.35, count), 0.0)
    own = true_ms * np.exp(rng.uniform(0.4, 1.2) * slow + rng.normal(0, 0.01, count))
    sentinel = sentinel_ms * np.exp(slow * rng.normal(1.0, 0.1, count))
    return [Look(float(a), 0.02, float(b)) for a, b in zip(own, sentinel, strict=True)]


def test_slow_looks_are_shortened_and_count_less():
    rng = np.random.default_rng(0)
    errors = [math.log(undisturbed(looks(rng, 3), 8.0).latency_ms / 4.0) for _ in range(400)]
    without = [math.log(undisturbed(looks(rng, 3), None).latency_ms / 4.0) for _ in range(400)]
    assert abs(np.mean(errors)) < 0.01 and np.std(errors) < 0.03
    assert np.mean(without) > max(0.01, 2 * abs(np.mean(errors)))


def test_repeatability_is_the_error_of_the_estimate():
    rng = np.random.default_rng(1)
    found = [undisturbed(looks(rng, 8), 8.0) for _ in range(600)]
    errors = np.log([each.latency_ms / 4.0 for each in found])
    said = np.sqrt(np.mean([each.repeatability**2 for each in found]))
    assert 0.6 < said / np.std(errors) < 1.7


def test_one_look_that_was_disturbed_between_the_sentinels_hardly_counts():
    quiet = [Look(4.0, 0.01, 8.0)] * 4
    assert undisturbed([*quiet, Look(12.0, 0.01, 8.0)], 8.0).latency_ms == pytest.approx(4.0, rel=0.01)
    assert undisturbed([Look(4.0, 0.01, 8.0)], 8.0).repeatability >= 0.01


def test_how_sensitive_a_network_is_shows_in_its_own_looks():
    slow = np.array([0.0, 0.1, 0.2, 0.3, 0.05, 0.25])
    for sensitivity in (0.3, 1.3):
        seen = [Look(4.0 * math.exp(sensitivity * s), 0.0, 8.0 * math.exp(s)) for s in slow]
        found = undisturbed(seen, 8.0)
        assert found.latency_ms == pytest.approx(4.0, rel=0.01)
        assert np.log(found.factors[3]) == pytest.approx(-0.3 * sensitivity, abs=0.06)


def test_the_undisturbed_sentinel_is_the_fastest_known():
    assert sentinel_reference([]) is None and sentinel_reference([], 5.0) == 5.0
    assert sentinel_reference([5.0, 6.0, 7.0], 8.0) == pytest.approx(5.2)
    assert sentinel_reference([5.0, 6.0, 7.0], 4.0) == 4.0
    with pytest.raises(ValueError, match="positive and finite"):
        sentinel_reference([5.0, float("nan")])


def test_the_sentinel_is_looked_at_before_and_after():
    order = []

    def sentinel():
        order.append("sentinel")
        return 4.0 if len(order) == 1 else 9.0

    watch = SentinelWatch(sentinel)
    assert watch.around(lambda: order.append("look")) == (None, pytest.approx(6.0))
    assert order == ["sentinel", "look", "sentinel"]
    watch.around(lambda: order.append("look"))
    assert order == ["sentinel", "look", "sentinel", "look", "sentinel"], "what is fresh is not looked at twice"


def test_history_counts_what_was_on_the_same_machine_in_the_same_state(tmp_path):
    def history(**settings):
        return SentinelHistory.of(Target.parse("cpu"), {"cpu": "x"}, settings, tmp_path)

    history().add([9.0, 9.1])  # too few to know
    assert history().known_ms() is None
    history().add([8.0, 9.0, 10.0])
    history().add([8.6, 8.6, 8.6])
    assert 8.2 <= history().known_ms() < 8.6
    history(governor="powersave").add([20.0] * 3)
    assert history(governor="powersave").known_ms() == pytest.approx(20.0)
    assert history(governor="performance").known_ms() is None
    file = history().file
    file.write_text(file.read_text() + '{"sentinel_ms": 1.0}\n[1]\n{"finger')
    assert 8.2 <= history().known_ms() < 8.6
    file.unlink()
    file.mkdir()
    history().add([8.0] * 3)  # what was measured is not lost to it
    assert history().known_ms() is None
