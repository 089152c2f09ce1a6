import json

from lownas.predictors import Target
from lownas.predictors.latency.calibration import calibrate
from lownas.predictors.latency.fitting.samples import Sample
from lownas.predictors.latency.measurement_log import MeasurementLog
from lownas.predictors.latency.sampling import sentinel_config


def test_measurements_are_json_lines(tmp_path, made_up_device):
    calibrate("cpu", made_up_device(), samples=8, profiles=tmp_path)
    lines = [json.loads(line) for line in next(tmp_path.glob("*.jsonl")).read_text().splitlines()]
    assert lines[0]["calibration"] == str(Target.parse("cpu"))
    assert sum("config" in line for line in lines) == 16
    assert lines[-1]["complete"]


def test_only_the_same_unfinished_calibration_is_resumed(tmp_path):
    config = sentinel_config()
    file = tmp_path / "box.measurements.jsonl"
    log = MeasurementLog(file, {"calibration": "a", "seed": 0})
    log.add_sentinel(5.0)
    log.add_measurement(Sample(config, 4.0, 0.01, {"0:op": 1.0}))
    log.add_probe("gelu", {"0:op": 0.1})
    again = MeasurementLog(file, {"calibration": "a", "seed": 0})
    assert (again.measurements, again.probes, again.sentinels_ms) == (log.measurements, log.probes, log.sentinels_ms)
    assert again.count(config) == 1 and not again.disturbed
    assert MeasurementLog(file, {"calibration": "a", "seed": 1}).measurements == {}
    MeasurementLog(file, {"calibration": "a", "seed": 0}).complete(0.02)
    assert MeasurementLog(file, {"calibration": "a", "seed": 0}).measurements == {}


def test_other_work_on_the_machine_shows(tmp_path):
    log = MeasurementLog(tmp_path / "box.jsonl", {"calibration": "a"})
    log.add_measurement(Sample(sentinel_config(), 4.0, 0.01, None))
    for sentinel_ms in (5.0, 5.4):
        log.add_sentinel(sentinel_ms)
    assert not log.disturbed
    log.add_sentinel(5.6)
    assert log.disturbed
