"""Looks at networks for people."""

import time

import numpy as np

from lownas.search.latency.looks import LONGEST, Looks, Measuring

from ..conftest import StubMeasurement

LIMIT_S = 0.1


def looks_at(scatter: float) -> tuple[Looks, list[str], float]:
    """Looks at two networks, one of which scatters; what was said, and how long it took."""
    rng, said = np.random.default_rng(0), []

    def look(network: str, **limits: float) -> StubMeasurement:
        time.sleep(0.002)
        slower = float(np.exp(rng.exponential(scatter))) if network == "scattering" else 1.0
        return StubMeasurement(5.0 * slower)

    looks = Looks(Measuring(look, lambda: 1.0), "cpu")
    begin = time.monotonic()
    looks.take({name: name for name in ("scattering", "still")}, LIMIT_S, said.append)
    return looks, said, time.monotonic() - begin


def test_a_machine_at_rest_is_looked_at_for_the_time_asked() -> None:
    looks, said, seconds = looks_at(0.0)
    assert not said and seconds < LONGEST * LIMIT_S
    assert looks.latencies()["scattering"].repeatability < 0.02


def test_on_a_restless_machine_it_goes_on_with_what_is_not_repeatable() -> None:
    looks, said, seconds = looks_at(0.5)
    assert len(said) == 1 and said[0].startswith("the machine is restless: looking on, for")
    assert len(looks.rounds["scattering"]) > 1.5 * len(looks.rounds["still"]) > 3
    assert seconds < 3 * LONGEST * 2 * LIMIT_S
