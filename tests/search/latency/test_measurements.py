"""The latencies that a run measures itself."""

from lownas.search.latency.measurements import Measurements
from lownas.search.trials.run_folder import RunFolder


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
        measurements = Measurements(run, "cpu", measure, 0.0)
        assert measurements.measure(configs[:3], 2, "anchor") == [configs[0], configs[2]]
        assert order == [configs[i].id for i in (0, 1, 2, 0, 2)]
        again = Measurements(run, "cpu", measure, 0.0)
        assert again.known() == [(configs[0], 2.0), (configs[2], 2.0)]
        assert again.has_role("anchor") and not again.has_role("leader")
        again.measure(configs[:1], 3, "finalist")
        assert again.medians_ms(configs[0]) == [2.0] * 3 and len(order) == 6
