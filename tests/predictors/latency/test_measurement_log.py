import json

from lownas.predictors import Target
from lownas.predictors.latency.calibration import calibrate
from lownas.predictors.latency.fitting.samples import ConfigLook
from lownas.predictors.latency.measurement_log import MeasurementLog
from lownas.predictors.latency.sampling import sentinel_config
from lownas.predictors.latency.undisturbed import Look


def test_measurements_are_json_lines(tmp_path, made_up_device):
    calibrate("cpu", made_up_device(), samples=8, profiles=tmp_path)
    lines = [json.loads(line) for line in next(tmp_path.glob("*.measurements.jsonl")).read_text().splitlines()]
    assert lines[0]["calibration"] == str(Target.parse("cpu"))
    looks = [line for line in lines if "config" in line]
    assert len(looks) >= 16 and all(line["sentinel_ms"] > 0 for line in looks)
    assert lines[-1]["complete"]


def test_only_the_same_unfinished_calibration_is_resumed(tmp_path):
    config = sentinel_config()
    file = tmp_path / "box.measurements.jsonl"
    log = MeasurementLog(file, {"calibration": "a", "seed": 0})
    log.add_sentinel(5.0)
    log.add_look(ConfigLook(config, Look(4.0, 0.01, 5.1), {"0:op": 1.0}))
    log.add_probe("gelu", {"0:op": 0.1}, 5.2)
    again = MeasurementLog(file, {"calibration": "a", "seed": 0})
    assert (again.looks, again.probes, again.sentinels_ms) == (log.looks, log.probes, log.sentinels_ms)
    assert again.count(config) == 1
    assert MeasurementLog(file, {"calibration": "a", "seed": 1}).looks == {}
    MeasurementLog(file, {"calibration": "a", "seed": 0}).complete(0.02)
    assert MeasurementLog(file, {"calibration": "a", "seed": 0}).looks == {}


def test_a_calibration_that_adds_keeps_what_was_measured_on_the_same_machine(tmp_path):
    file = tmp_path / "box.jsonl"
    header = {"calibration": "a", "fingerprint": {"cpu": "x"}, "settings": {"turbo": "on"}, "space": "default:1"}
    log = MeasurementLog(file, header)
    log.add_look(ConfigLook(sentinel_config(), Look(4.0), None))
    log.complete(0.02)
    more = {**header, "space": "tiny:2", "adds": True}
    added = MeasurementLog(file, more)
    assert added.looks == log.looks and added.spaces == ["default:1", "tiny:2"]
    added.add_look(ConfigLook(sentinel_config(), Look(4.2), None))
    assert MeasurementLog(file, more).count(sentinel_config()) == 2, "it resumes"
    assert MeasurementLog(file, {**more, "settings": {"turbo": "off"}}).looks == {}
    assert MeasurementLog(file, header).looks == {} and MeasurementLog(file, header).spaces == ["default:1"]


def test_lines_of_former_versions_are_read(tmp_path):
    file = tmp_path / "box.jsonl"
    config = sentinel_config().to_dict()
    lines = [
        {"calibration": "a"},
        {"sentinel_ms": 5.0},
        {"config": config, "latency_ms": 4.0, "disturbance": 0.1, "kernel_ms": None},
        {"probe": "gelu", "kernel_ms": {"0:op": 0.1}},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = MeasurementLog(file, {"calibration": "a"})
    assert [each.look for each in log.looks[sentinel_config().id]] == [Look(4.0, 0.1)]
    assert log.reference_ms == 5.0 and log.probes == {"gelu": ({"0:op": 0.1}, None)}
