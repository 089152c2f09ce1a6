import numpy as np
import pytest

from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.latency.calibration import calibrate
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.sampling import sentinel_config
from lownas.search_space import PRESETS, OpGraph, op_graph


def test_calibration_gives_a_profile_that_predicts_the_device(tmp_path, made_up_device):
    device = made_up_device()
    steps = []
    predictor = calibrate("cpu", device, samples=16, profiles=tmp_path, progress=steps.append)
    loaded = LatencyPredictor.load("cpu", profiles=tmp_path)
    truth = np.array(
        [float(device.model.kernel_ms(fuse(op_graph(c), "onnxruntime", 8)).sum()) for c in PRESETS.values()]
    )
    assert np.abs(loaded.latency_ms(list(PRESETS.values())) / truth - 1).mean() < 0.03
    provenance = predictor.provenance
    assert provenance["samples"] == 16
    assert provenance["held_out_error"] < 0.04 < provenance["macs_only_error"]
    assert loaded.model.block == 8
    assert steps[-1].done == 16 and "held-out error" in steps[-1].message
    configs = {network.id for network in device.measured if not isinstance(network, OpGraph)}
    assert len(configs) == 17 and not configs & {config.id for config in PRESETS.values()}


def test_broken_calibration_resumes(tmp_path, made_up_device):
    whole = made_up_device()
    calibrate("cpu", whole, samples=8, probes={}, profiles=tmp_path / "whole")
    first = made_up_device(breaks_after=6)
    with pytest.raises(KeyboardInterrupt):
        calibrate("cpu", first, samples=8, probes={}, profiles=tmp_path)
    file = next(tmp_path.glob("*.jsonl"))
    file.write_bytes(file.read_bytes()[:-40])  # the last line was cut off as well
    second = made_up_device()
    calibrate("cpu", second, samples=8, probes={}, profiles=tmp_path)
    sentinel = sentinel_config().id

    def configs(*devices):
        networks = [network for device in devices for network in device.measured]
        return [n.id for n in networks if not isinstance(n, OpGraph) and n.id != sentinel]

    assert set(configs(first, second)) == set(configs(whole))
    assert len(configs(second)) < 16
    # A finished calibration is not resumed: the next one measures anew, into the same file.
    third = made_up_device()
    calibrate("cpu", third, samples=8, probes={}, profiles=tmp_path)
    assert len(configs(third)) == 16
    complete = [line for line in file.read_text().splitlines() if line.startswith("{") and "complete" in line]
    assert len(complete) == 2


def test_time_limit_ends_measuring(tmp_path, made_up_device):
    with pytest.warns(UserWarning) as said:
        predictor = calibrate("cpu", made_up_device(), samples=200, time_limit_s=0.0, profiles=tmp_path)
    assert predictor.provenance["samples"] == 8
    texts = [str(warning.message) for warning in said]
    assert any("51 of 51 probes were not measured" in text for text in texts)
    assert any("8 of 200 configs were measured" in text for text in texts)


def test_an_error_that_was_not_reached_is_said(tmp_path, made_up_device):
    with pytest.warns(UserWarning, match=r"surely below [\d.]+% only, asked for was 0.1%"):
        calibrate("cpu", made_up_device(), until=0.001, samples=12, probes={}, profiles=tmp_path)
    with pytest.warns(UserWarning, match="not sure with fewer than 12 configs"):
        calibrate("cpu", made_up_device(), until=0.001, samples=8, probes={}, profiles=tmp_path)


def test_whole_graph_times_alone_make_a_profile(tmp_path, made_up_device):
    predictor = calibrate("cpu:torch", made_up_device(kernels=False), samples=12, profiles=tmp_path)
    assert predictor.target == Target.parse("cpu:torch")
    assert predictor.provenance["held_out_error"] < 0.3


def test_calibration_stops_once_the_error_is_reached(tmp_path, made_up_device):
    device = made_up_device(noise=0.01)
    says = []
    predictor = calibrate("cpu", device, until=0.04, probes={}, profiles=tmp_path, progress=lambda p: says.append(p))
    assert 12 <= predictor.provenance["samples"] < 40
    assert predictor.provenance["held_out_error"] < 0.04
    assert any("held-out error below" in p.message for p in says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": "cpu", "samples": 3}, "at least 8"),
        ({"target": "cpu", "until": 3.0}, "between 0 and 100 %"),
        ({"target": "gpu0"}, "unknown target"),
    ],
)
def test_bad_requests(tmp_path, arguments, says, made_up_device):
    with pytest.raises(ValueError, match=says):
        calibrate(measure=made_up_device(), profiles=tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_configurations_are_measured_again_on_a_disturbed_machine(tmp_path, made_up_device, reading):
    """A busy device lengthens measurements by up to a half; of three per config the shortest counts."""

    class Busy(made_up_device):
        def __call__(self, config, target):
            quiet = super().__call__(config, target)
            factor = 1 + 0.5 * self.rng.random()
            kernels = {name: factor * t for name, t in quiet.kernel_ms.items()}
            return reading(2 * factor * quiet.median_ms, factor * quiet.undisturbed_ms, kernels, quiet.host)

    device = Busy()
    predictor = calibrate("cpu", device, samples=8, probes={}, profiles=tmp_path)
    assert predictor.provenance["samples"] == 8
    assert predictor.provenance["measurements"] == 24
    assert predictor.provenance["quiet_factor"] < 1
