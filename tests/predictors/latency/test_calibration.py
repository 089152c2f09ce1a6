import json
from dataclasses import dataclass, field

import numpy as np
import pytest

from lownas.predictors import LatencyPredictor, Target
from lownas.predictors.latency.calibration import (
    calibrate,
    sentinel_config,
    spread_sample,
)
from lownas.predictors.latency.fit import (
    Probe,
    Sample,
    blocked_channels,
    fit_samples,
    held_out_bound,
    merged,
    profiling_ms,
    quiet_factor,
)
from lownas.predictors.latency.fusion import fuse
from lownas.predictors.latency.kernel_model import COEFFICIENTS, KernelModel
from lownas.predictors.latency.kernels import KERNEL_CLASSES
from lownas.search_space import PRESETS, OpGraph, SearchSpace, op_graph


@dataclass
class Reading:
    median_ms: float
    undisturbed_ms: float
    kernel_ms: dict[str, float] | None
    host: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: {"device": "made up"})


class MadeUpDevice:
    """Measures by a formula; breaks after `breaks_after` measurements."""

    def __init__(self, block=8, kernels=True, noise=0.03, breaks_after=None, profiling_ms=0.0):
        rng = np.random.default_rng(3)
        coefficients = np.zeros((len(KERNEL_CLASSES), len(COEFFICIENTS)))
        for term, value in {"launch": 0.003, "macs": 0.02, "macs_per_cin": 0.05, "inputs": 0.1, "outputs": 0.1}.items():
            coefficients[:, COEFFICIENTS.index(term)] = value * rng.uniform(0.5, 2, len(KERNEL_CLASSES))
        self.model = KernelModel("onnxruntime", block, coefficients)
        self.kernels, self.noise, self.breaks_after, self.profiling_ms = kernels, noise, breaks_after, profiling_ms
        self.rng = np.random.default_rng(4)
        self.measured = []

    def __call__(self, network, target):
        if len(self.measured) == self.breaks_after:
            raise KeyboardInterrupt
        self.measured.append(network)
        graph = network if isinstance(network, OpGraph) else op_graph(network)
        graph = fuse(graph, "onnxruntime", self.model.block)
        disturbance = self.rng.exponential(0.02)  # of the whole measurement, as by other work on the machine
        times = self.model.kernel_ms(graph)
        noisy = times * (1 + disturbance / 2) * np.exp(self.rng.normal(0, self.noise, len(times)))
        noisy += self.profiling_ms
        named = {f"{row}:{role}": float(t) for (row, role), t in zip(graph.keys, noisy, strict=True)}
        clean = float(times.sum()) * np.exp(self.rng.normal(0, 0.005))
        host = target.fingerprint() if target else {}
        return Reading(clean * (1 + disturbance), clean, named if self.kernels else None, host)


def test_calibration_gives_a_profile_that_predicts_the_device(tmp_path):
    device = MadeUpDevice()
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


def test_broken_calibration_resumes(tmp_path):
    whole = MadeUpDevice()
    calibrate("cpu", whole, samples=8, probes={}, profiles=tmp_path / "whole")
    first = MadeUpDevice(breaks_after=6)
    with pytest.raises(KeyboardInterrupt):
        calibrate("cpu", first, samples=8, probes={}, profiles=tmp_path)
    file = next(tmp_path.glob("*.jsonl"))
    file.write_bytes(file.read_bytes()[:-40])  # the last line was cut off as well
    second = MadeUpDevice()
    calibrate("cpu", second, samples=8, probes={}, profiles=tmp_path)
    sentinel = sentinel_config().id

    def configs(*devices):
        networks = [network for device in devices for network in device.measured]
        return [n.id for n in networks if not isinstance(n, OpGraph) and n.id != sentinel]

    assert set(configs(first, second)) == set(configs(whole))
    assert len(configs(second)) < 16
    # A finished calibration is not resumed: the next one measures anew, into the same file.
    third = MadeUpDevice()
    calibrate("cpu", third, samples=8, probes={}, profiles=tmp_path)
    assert len(configs(third)) == 16
    complete = [line for line in file.read_text().splitlines() if line.startswith("{") and "complete" in line]
    assert len(complete) == 2


def test_time_limit_ends_measuring(tmp_path):
    with pytest.warns(UserWarning) as said:
        predictor = calibrate("cpu", MadeUpDevice(), samples=200, time_limit_s=0.0, profiles=tmp_path)
    assert predictor.provenance["samples"] == 8
    texts = [str(warning.message) for warning in said]
    assert any("51 of 51 probes were not measured" in text for text in texts)
    assert any("8 of 200 configs were measured" in text for text in texts)


def test_an_error_that_was_not_reached_is_said(tmp_path):
    with pytest.warns(UserWarning, match=r"surely below [\d.]+% only, asked for was 0.1%"):
        calibrate("cpu", MadeUpDevice(), until=0.001, samples=12, probes={}, profiles=tmp_path)
    with pytest.warns(UserWarning, match="not sure with fewer than 12 configs"):
        calibrate("cpu", MadeUpDevice(), until=0.001, samples=8, probes={}, profiles=tmp_path)


def test_whole_graph_times_alone_make_a_profile(tmp_path):
    predictor = calibrate("cpu:torch", MadeUpDevice(kernels=False), samples=12, profiles=tmp_path)
    assert predictor.target == Target.parse("cpu:torch")
    assert predictor.provenance["held_out_error"] < 0.3


def test_errors_are_those_of_samples_left_out():
    """Pure noise on whole graphs cannot be fitted: the held-out error must not be smaller than it."""
    device = MadeUpDevice()
    rng = np.random.default_rng(0)
    samples = []
    for config in spread_sample(SearchSpace.load("default"), 12, seed=0):
        reading = device(config, None)
        samples.append(Sample(config, reading.undisturbed_ms * float(rng.choice([0.8, 1.25])), 0.0, reading.kernel_ms))
    fit = fit_samples(samples, "onnxruntime", 8)
    assert fit.held_out_error > 0.12
    assert len(fit.log_errors) == 12


def test_what_the_profiler_adds_is_taken_off():
    device = MadeUpDevice(profiling_ms=0.004)
    configs = spread_sample(SearchSpace.load("default"), 16, seed=0)
    readings = [device(config, None) for config in configs]
    kernel_times = [np.array(list(reading.kernel_ms.values())) for reading in readings]
    times = np.array([reading.undisturbed_ms for reading in readings])
    assert 0.003 < profiling_ms(kernel_times, times) < 0.005
    assert profiling_ms(kernel_times, np.array([t.sum() for t in kernel_times])) < 0.0015
    samples = [Sample(c, r.undisturbed_ms, 0.0, r.kernel_ms) for c, r in zip(configs, readings, strict=True)]
    assert fit_samples(samples, "onnxruntime", 8).held_out_error < 0.02


def test_calibration_stops_once_the_error_is_reached(tmp_path):
    device = MadeUpDevice(noise=0.01)
    says = []
    predictor = calibrate("cpu", device, until=0.04, probes={}, profiles=tmp_path, progress=lambda p: says.append(p))
    assert 12 <= predictor.provenance["samples"] < 40
    assert predictor.provenance["held_out_error"] < 0.04
    assert any("held-out error below" in p.message for p in says)


def test_bound_is_above_the_error():
    device = MadeUpDevice()
    configs = spread_sample(SearchSpace.load("default"), 12, seed=0)
    samples = [Sample(c, (r := device(c, None)).undisturbed_ms, 0.0, r.kernel_ms) for c in configs]
    assert held_out_bound(samples, "onnxruntime", 8) > 1.05 * fit_samples(samples, "onnxruntime", 8).held_out_error


def test_probes_teach_kernels_that_the_samples_lack(tmp_path):
    """Networks without attention, and one probe that has some: its classes are inside afterwards."""
    device = MadeUpDevice(noise=0.0)
    configs = [PRESETS[name].replace(classes=10) for name in ("cpubone_nano", "lowformer_b0")]
    probe = op_graph(configs[1])
    samples = [Sample(c, (r := device(c, None)).undisturbed_ms, 0.0, r.kernel_ms) for c in configs[:1] * 8]
    alone = fit_samples(samples, "onnxruntime", 8).model
    taught = fit_samples(samples, "onnxruntime", 8, probes=[Probe(probe, device(probe, None).kernel_ms)]).model
    kernels = fuse(probe, "onnxruntime", 8)
    assert alone.outside(kernels) and not taught.outside(kernels)


def test_spread_sample_spreads():
    space = SearchSpace.load("default")
    chosen = spread_sample(space, 20, seed=0)
    assert len({config.id for config in chosen}) == 20
    assert [c.id for c in chosen] == [c.id for c in spread_sample(space, 20, seed=0)]
    assert [c.id for c in chosen] != [c.id for c in spread_sample(space, 20, seed=1)]
    macs = np.array([op_graph(config).macs for config in chosen])
    assert macs.max() / macs.min() > 8
    assert len({config.resolution for config in chosen}) >= 4
    limited = spread_sample(space, 20, seed=0, limit_macs=2e9)
    assert max(op_graph(config).macs for config in limited) <= 2e9


def test_busy_machine_pulls_towards_the_quiet_time():
    errors = np.random.default_rng(0).normal(0, 0.05, 40)
    assert quiet_factor(errors, np.full(40, 0.01)) == 1.0
    assert 0.93 < quiet_factor(errors, np.full(40, 1.0)) < 0.97
    assert quiet_factor(errors + 0.2, np.full(40, 1.0)) == 1.0


@pytest.mark.parametrize("block", [16, 8, 0])
def test_layout_is_recognized_from_kernel_names(block):
    device = MadeUpDevice(block=block)
    configs = spread_sample(SearchSpace.load("default"), 4, seed=2)
    readings = [(config, device(config, None)) for config in configs]
    assert blocked_channels([Sample(c, r.undisturbed_ms, 0.0, r.kernel_ms) for c, r in readings]) == block


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": "cpu", "samples": 3}, "at least 8"),
        ({"target": "cpu", "until": 3.0}, "between 0 and 100 %"),
        ({"target": "gpu0"}, "unknown target"),
    ],
)
def test_bad_requests(tmp_path, arguments, says):
    with pytest.raises(ValueError, match=says):
        calibrate(measure=MadeUpDevice(), profiles=tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_measurements_are_json_lines(tmp_path):
    calibrate("cpu", MadeUpDevice(), samples=8, profiles=tmp_path)
    lines = [json.loads(line) for line in next(tmp_path.glob("*.jsonl")).read_text().splitlines()]
    assert lines[0]["calibration"] == str(Target.parse("cpu"))
    assert sum("config" in line for line in lines) == 16
    assert lines[-1]["complete"]


def test_disturbed_machine_is_looked_at_again(tmp_path):
    """A busy device lengthens a measurement by up to a half; of three looks at each config the best one counts."""

    class Busy(MadeUpDevice):
        def __call__(self, config, target):
            reading = super().__call__(config, target)
            factor = 1 + 0.5 * self.rng.random()
            kernels = {name: factor * t for name, t in reading.kernel_ms.items()}
            return Reading(2 * factor * reading.median_ms, factor * reading.undisturbed_ms, kernels, reading.host)

    device = Busy()
    predictor = calibrate("cpu", device, samples=8, probes={}, profiles=tmp_path)
    assert predictor.provenance["samples"] == 8
    assert predictor.provenance["measurements"] == 24
    assert predictor.provenance["quiet_factor"] < 1


def test_looks_are_merged():
    config = sentinel_config()
    quiet = [Sample(config, 4.0, 0.01, {"0:op": 2.0}), Sample(config, 9.0, 0.03, {"0:op": 8.0})]
    assert merged(quiet) == Sample(config, pytest.approx(6.0), 0.02, {"0:op": pytest.approx(4.0)})
    disturbed = [Sample(config, 5.0, 0.3, {"0:op": 4.0}), Sample(config, 4.0, 0.5, {"0:op": 4.5})]
    assert merged(disturbed) == Sample(config, 4.0, 0.3, {"0:op": 4.0})
    assert merged([quiet[0], *disturbed]) == merged(quiet[:1])
    assert merged([Sample(config, 4.0, 0.5, None)]).kernel_ms is None
