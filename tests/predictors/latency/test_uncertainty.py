import numpy as np
import pytest

from lownas.predictors.latency.uncertainty import LogErrors


def test_quantile_and_cdf_are_inverse():
    errors = LogErrors.from_errors(np.random.default_rng(0).normal(0.02, 0.05, 40))
    q = np.linspace(0.01, 0.99, 99)
    assert np.allclose(errors.cdf(errors.quantile(q)), q, atol=1e-3)
    assert (np.diff(errors.quantile(q)) > 0).all()


@pytest.mark.parametrize("n", [10, 40, 200])
@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_intervals_cover_new_errors(n, coverage):
    """Pooled over 400 sets of errors with a skewed, heavy-tailed distribution."""
    rng = np.random.default_rng(1)

    def draw(size):
        return rng.standard_t(4, size) * 0.05 + rng.exponential(0.02, size)

    inside = []
    for _ in range(400):
        low, high = LogErrors.from_errors(draw(n)).interval(coverage)
        new = draw(50)
        inside.append(((new >= low) & (new <= high)).mean())
    assert coverage - 0.03 < np.mean(inside) < coverage + 0.05


def test_wider_coverage_is_wider():
    errors = LogErrors.from_errors(np.random.default_rng(0).normal(0, 0.05, 12))
    widths = [np.subtract(*errors.interval(c)[::-1]) for c in (0.5, 0.8, 0.9, 0.99)]
    assert (np.diff(widths) > 0).all()


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="two finite"):
        LogErrors((0.1,))
    with pytest.raises(ValueError, match="two finite"):
        LogErrors((0.1, float("nan")))
    errors = LogErrors((0.0, 0.1))
    with pytest.raises(ValueError, match=r"1\.5"):
        errors.interval(1.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        errors.quantile(0.0)
