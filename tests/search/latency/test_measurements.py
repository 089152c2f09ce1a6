"""The latencies that a run measures itself."""

import pytest

from lownas.search.latency.looks import Measuring
from lownas.search.latency.measurements import Measurements
from lownas.search.trials.run_folder import RunFolder

from ..conftest import StubMeasurement


def test_rounds_are_taken_in_turn_and_kept(tmp_path, settings, configs) -> None:
    order = []

    def measure(config):
        order.append(config.id)
        if config.id == configs[1].id:
            raise RuntimeError("the device is gone")
        return StubMeasurement(2.0)

    with RunFolder.open(tmp_path / "run", resume=False) as run:
        measurements = Measurements(run, "cpu", Measuring(measure))
        assert measurements.measure(configs[:3], 2, "anchor") == [configs[0], configs[2]]
        assert order == [configs[i].id for i in (0, 1, 2, 0, 2)]
        again = Measurements(run, "cpu", Measuring(measure))
        known = [(config, latency.undisturbed_ms) for config, latency in again.known()]
        assert known == [(configs[0], pytest.approx(2.0)), (configs[2], pytest.approx(2.0))]
        assert again.has_role("anchor") and not again.has_role("leader")
        again.measure(configs[:1], 3, "finalist")
        latency = again.latency(configs[0], 0.9)
        assert latency is not None and len(latency.rounds) == 3 and len(order) == 6


def test_looks_go_on_while_they_lie_apart(tmp_path, settings, configs) -> None:
    swinging = iter([2.0, 3.1, 2.6, 2.0, 2.0, 2.0, 2.0, 2.0])
    taken: dict[str, int] = {}

    def measure(config):
        taken[config.id] = taken.get(config.id, 0) + 1
        return StubMeasurement(next(swinging) if config.id == configs[0].id else 1.0)

    with RunFolder.open(tmp_path / "run", resume=False) as run:
        measurements = Measurements(run, "cpu", Measuring(measure))
        before_s = measurements.expected_s(2, 3)
        measurements.measure(configs[:2], 3, "anchor")
        latency = measurements.latency(configs[0], 0.9)
    assert taken[configs[1].id] == 3 < taken[configs[0].id] <= 7
    assert latency is not None and latency.undisturbed_ms == pytest.approx(2.0, rel=0.1)
    assert measurements.expected_s(2, 3) < before_s  # by looks as short as these
    assert measurements._restless
