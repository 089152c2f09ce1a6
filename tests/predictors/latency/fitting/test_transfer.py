import numpy as np
import pytest

from lownas.predictors.latency.fitting.transfer import (
    MIN_MEASUREMENTS,
    Transfer,
    choose_transfer,
    fit_transfer,
    leave_one_out,
)


def latencies(n=20, seed=0):
    """Predicted latencies on three known devices, and a new one that is a mix of two of them and an overhead."""
    rng = np.random.default_rng(seed)
    known = {name: np.exp(rng.normal(1, 0.6, n)) for name in ("a", "b", "c")}
    return known, 0.2 + 2 * known["a"] + 0.5 * known["c"]


def applied(transfer, known):
    """Latencies of a new device, of those predicted for the known ones."""
    return transfer.overhead_ms + sum(weight * np.asarray(known[name]) for name, weight in transfer.weights.items())


def test_a_mix_of_known_devices_is_found():
    known, new = latencies()
    transfer = fit_transfer(known, new, penalty=1e-6)
    assert transfer.weights["a"] == pytest.approx(2, rel=0.01)
    assert transfer.weights["c"] == pytest.approx(0.5, rel=0.05)
    assert transfer.weights.get("b", 0) < 0.01
    assert sum(transfer.shares.values()) + transfer.overhead_ms / np.median(new) == pytest.approx(1, abs=0.1)
    more, truth = latencies(200, seed=1)
    assert np.abs(applied(transfer, more) / truth - 1).max() < 0.02


def test_few_measurements_are_drawn_towards_equal_shares():
    rng = np.random.default_rng(0)
    known = {name: np.exp(rng.normal(0, 0.5, MIN_MEASUREMENTS)) for name in "abcdef"}
    new = np.mean(list(known.values()), axis=0) * np.exp(rng.normal(0, 0.2, MIN_MEASUREMENTS))
    loose, tight = (fit_transfer(known, new, penalty=penalty) for penalty in (1e-9, 1e3))
    spread = [np.std([transfer.shares.get(name, 0) for name in known]) for transfer in (loose, tight)]
    assert spread[1] < 0.01 < spread[0]


def test_one_disturbed_measurement_does_not_turn_the_fit():
    known, new = latencies()
    disturbed = new.copy()
    disturbed[3] *= 4
    more, truth = latencies(200, seed=1)
    errors = {
        freedom: np.abs(applied(fit_transfer(known, disturbed, freedom=freedom), more) / truth - 1).mean()
        for freedom in (4.0, np.inf)
    }
    assert errors[4.0] < 0.03 < errors[np.inf]


def test_errors_are_those_of_measurements_left_out():
    """Noise cannot be predicted: what is left out is off by at least as much."""
    known, new = latencies()
    noise = np.random.default_rng(5).choice([-0.2, 0.2], len(new))
    errors = leave_one_out(known, new * np.exp(noise))
    assert np.abs(errors).mean() > 0.19
    assert np.abs(leave_one_out(known, new)).max() < 0.1


def test_signs_are_taken_where_they_predict_far_better():
    known, mix = latencies()
    more, _ = latencies(200, seed=1)
    chosen, errors = choose_transfer(known, mix)
    assert chosen.least_ms == 0 and min(chosen.weights.values()) > 0
    assert np.allclose(errors, leave_one_out(known, mix))
    # Two known devices overlap what this one does one after the other: their sum less a part of the third.
    apart = {name: np.asarray(values) for name, values in known.items()}
    new = 3 + apart["a"] + apart["b"] - 0.3 * apart["c"]
    signed, errors = choose_transfer(known, new)
    assert signed.weights["c"] < 0 < signed.least_ms < new.min()
    truth = 3 + more["a"] + more["b"] - 0.3 * more["c"]
    assert np.abs(applied(signed, more) / truth - 1).mean() < 0.02 < np.abs(leave_one_out(known, new)).mean()
    assert np.abs(errors).max() < 0.05
    assert sum(signed.shares.values()) + signed.overhead_ms / np.median(new) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("known", "new", "says"),
    [
        ({"a": [1, 2]}, [1, 2], "at least 4"),
        ({}, [1, 2, 3, 4], "known device"),
        ({"a": [1, 2, 3]}, [1, 2, 3, 4], "a: 4 positive"),
        ({"a": [1, 2, 3, -4]}, [1, 2, 3, 4], "a: 4 positive"),
        ({"a": [1, 2, 3, 4]}, [1, 2, 3, float("nan")], "measured: 4 positive"),
    ],
)
def test_what_is_no_latency(known, new, says):
    with pytest.raises(ValueError, match=says):
        fit_transfer(known, new)
    with pytest.raises(ValueError, match="positive weights"):
        Transfer({"b": -1.0}, 0.0, {"b": 1.0})
