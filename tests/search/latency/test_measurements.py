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
