from dataclasses import replace

import numpy as np
import pytest

from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.latency.calibration import calibrate
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.sampling import sentinel_config
from lownas.predictors.latency.stacked_model import StackedModel
from lownas.search_space import PRESETS, OpGraph, SearchSpace, op_graph
from lownas.search_space.probes import probe_graphs


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
    parts = [part.model for part in loaded.model.parts] if isinstance(loaded.model, StackedModel) else [loaded.model]
    assert 8 in {model.block for model in parts}
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
    assert len(configs(second)) < len(configs(whole))
    # A finished calibration is not resumed: the next one measures anew, into the same file.
    third = made_up_device()
    calibrate("cpu", third, samples=8, probes={}, profiles=tmp_path)
    assert len(configs(third)) >= 16
    complete = [line for line in file.read_text().splitlines() if line.startswith("{") and "complete" in line]
    assert len(complete) == 2


def test_time_limit_ends_measuring(tmp_path, made_up_device):
    with pytest.warns(UserWarning) as said:
        predictor = calibrate("cpu", made_up_device(), samples=200, time_limit_s=0.0, profiles=tmp_path)
    assert predictor.provenance["samples"] == 8
    texts = [str(warning.message) for warning in said]
    probes = len(probe_graphs())
    assert any(f"{probes} of {probes} probes were not measured" in text for text in texts)
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


class Restless:
    """A device that is slower by up to a half for a few looks on end; the sentinel is, too."""

    def __init__(self, device, changes=()):
        self.device, self.rng, self.changes = device, np.random.default_rng(5), list(changes)
        self.slowness, self.left, self.looks = 1.0, 0, 0

    def factor(self):
        if not self.left:
            self.slowness, self.left = 1 + 0.5 * float(self.rng.random()) * float(self.rng.random() < 0.6), 6
        self.left -= 1
        return self.slowness * float(np.exp(self.rng.normal(0, 0.005)))

    def __call__(self, network, target):
        quiet, factor = self.device(network, target), self.factor()
        kernels = None if quiet.kernel_ms is None else {name: factor * ms for name, ms in quiet.kernel_ms.items()}
        self.looks += 1
        settings = {"governor": "powersave" if self.looks in self.changes else "performance"}
        return replace(
            quiet,
            median_ms=1.3 * factor * quiet.median_ms,
            undisturbed_ms=factor * quiet.undisturbed_ms,
            kernel_ms=kernels,
            settings=settings,
        )


def predictions(predictor):
    return predictor.latency_ms(list(PRESETS.values()))


def test_a_restless_machine_gives_the_profile_of_one_at_rest(tmp_path, made_up_device):
    still = calibrate("cpu", made_up_device(), samples=24, probes={}, profiles=tmp_path / "still")
    device = Restless(made_up_device())
    restless = calibrate("cpu", device, samples=24, probes={}, profiles=tmp_path / "restless")
    assert np.abs(predictions(restless) / predictions(still) - 1).mean() < 0.03
    assert restless.provenance["slowness"] > 0.05 > still.provenance["slowness"]
    assert restless.provenance["looks"] >= 48


def test_what_is_noise_is_told_apart_and_looked_at_again(tmp_path, made_up_device):
    """Noise of the looks that no sentinel shows: more looks, until it is a small part of the error or time is over."""

    class Noisy(made_up_device):
        def __call__(self, network, target):
            reading = super().__call__(network, target)
            if getattr(network, "id", "") == sentinel_config().id:
                return reading
            factor = float(np.exp(self.rng.exponential(0.15)))
            return replace(
                reading, undisturbed_ms=factor * reading.undisturbed_ms, median_ms=factor * reading.median_ms
            )

    noisy = calibrate("cpu", Noisy(), samples=12, probes={}, profiles=tmp_path / "noisy").provenance
    quiet = calibrate("cpu", made_up_device(), samples=12, probes={}, profiles=tmp_path / "quiet").provenance
    assert noisy["looks"] > quiet["looks"] >= 24
    assert noisy["noise_rms"] > 1.5 * quiet["noise_rms"]
    parts = noisy["noise_rms"] ** 2 + noisy["model_rms"] ** 2
    assert noisy["held_out_rms"] ** 2 == pytest.approx(parts, rel=0.01) or noisy["model_rms"] == 0


def test_settings_that_change_meanwhile_are_said_and_looked_at_again(tmp_path, made_up_device):
    device = Restless(made_up_device(), changes=(5, 9))
    with pytest.warns(UserWarning, match="governor changed from performance to powersave: what was looked at then"):
        predictor = calibrate("cpu", device, samples=8, probes={}, profiles=tmp_path)
    assert predictor.provenance["settings"] == {"governor": "performance"}
    lines = [line for line in next(tmp_path.glob("*.measurements.jsonl")).read_text().splitlines() if "config" in line]
    assert len(lines) == predictor.provenance["looks"]
    with (
        pytest.warns(UserWarning, match="looked at again"),
        pytest.raises(ValueError, match="governor changed from performance to powersave, and that stayed"),
    ):
        calibrate("cpu", Restless(made_up_device(), range(5, 500)), samples=8, probes={}, profiles=tmp_path / "other")


def test_a_further_space_is_added_to_a_profile(tmp_path, made_up_device):
    default = calibrate("cpu", made_up_device(), samples=12, probes={}, profiles=tmp_path)
    both = calibrate("cpu", made_up_device(), space="tiny", samples=8, probes={}, profiles=tmp_path, adds=True)
    assert both.provenance["samples"] == 20
    assert [name.split(":")[0] for name in both.provenance["spaces"]] == ["default", "tiny"]
    assert default.provenance["spaces"] == both.provenance["spaces"][:1]


def test_what_the_sentinel_took_before_is_known_the_next_time(tmp_path, made_up_device):
    """The second calibration sees a machine that is slower all the time."""
    first = calibrate("cpu", made_up_device(), samples=8, probes={}, profiles=tmp_path)

    class Slow(made_up_device):
        def __call__(self, network, target):
            quiet = super().__call__(network, target)
            kernels = {name: 1.2 * ms for name, ms in quiet.kernel_ms.items()}
            return replace(
                quiet, median_ms=1.2 * quiet.median_ms, undisturbed_ms=1.2 * quiet.undisturbed_ms, kernel_ms=kernels
            )

    second = calibrate("cpu", Slow(), samples=8, probes={}, profiles=tmp_path)
    assert np.abs(predictions(second) / predictions(first) - 1).mean() < 0.08, "most of 20 % is taken out"
    assert second.provenance["slowness"] == pytest.approx(0.2, abs=0.03)


def test_networks_that_are_quick_to_measure_are_measured_in_greater_numbers(tmp_path, made_up_device):
    predictor = calibrate("cpu", made_up_device(), space="tiny", probes={}, profiles=tmp_path)
    assert 40 < predictor.provenance["samples"] <= 100
    few = calibrate("cpu", made_up_device(), samples=12, probes={}, profiles=tmp_path)
    assert few.provenance["samples"] == 12


def test_a_space_whose_networks_behave_otherwise_gets_a_model_of_its_own(tmp_path, made_up_device):
    """What stays in a cache is three times as fast."""

    class Cached(made_up_device):
        def __call__(self, network, target):
            reading = super().__call__(network, target)
            if isinstance(network, OpGraph) or network.resolution > 100:
                return reading
            kernels = {name: ms / 3 for name, ms in reading.kernel_ms.items()}
            return replace(
                reading, median_ms=reading.median_ms / 3, undisturbed_ms=reading.undisturbed_ms / 3, kernel_ms=kernels
            )

    default = calibrate("cpu", Cached(), samples=12, probes={}, profiles=tmp_path)
    both = calibrate("cpu", Cached(), space="tiny", samples=12, probes={}, profiles=tmp_path, adds=True)
    assert len(both.further) == 1 and set(both.provenance["held_out_error_by_space"]) == set(both.provenance["spaces"])
    presets = list(PRESETS.values())
    assert np.abs(both.latency_ms(presets) / default.latency_ms(presets) - 1).max() < 0.02, "nothing changes for others"
    space, rng, device = SearchSpace.load("tiny"), np.random.default_rng(1), Cached()
    configs = [space.sample(rng) for _ in range(20)]
    truth = np.array([float(device.model.kernel_ms(fuse(op_graph(c), "onnxruntime", 8)).sum()) / 3 for c in configs])
    loaded = LatencyPredictor.load("cpu", profiles=tmp_path)
    assert np.abs(loaded.latency_ms(configs) / truth - 1).mean() < 0.08
